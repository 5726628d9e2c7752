"""Compares the pack with recorded outputs: python tests/parity.py FILE

FILE is a golden: a .safetensors or .npz file with a .json of the same name beside it. Its kind is the file name up to
the last letter ("refdrop_rfg_A" is of kind "refdrop_rfg"); `tests/parity_checks/<kind>.py` says how to recompute the
outputs. Prints one line per output: the largest absolute error, the tolerance, and the name. Exit status: 0 when all
are within tolerance, 1 when one is not, 2 when the file cannot be checked.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKS = Path(__file__).parent / "parity_checks"


class CannotCheck(Exception):
    """The file is not a golden that this project knows how to check."""


@dataclass(frozen=True)
class Golden:
    """A recorded file: what `parity_checks` modules get."""

    path: Path
    tensors: dict[str, Any]
    info: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One output: its name, the largest absolute error and how large it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.error <= self.tolerance


def kind_of(path: Path) -> str:
    """ "deadiff_loop_A.safetensors" -> "deadiff_loop"; "leffa_masks.npz" -> "leffa_masks"."""
    return re.sub(r"_[A-Z]$", "", path.name.split(".")[0])


def read(path: Path) -> Golden:
    """Reads a golden and the json beside it, if there is one."""
    beside = path.with_suffix(".json")
    info = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    if path.suffix == ".npz":
        import numpy

        with numpy.load(path, allow_pickle=False) as arrays:
            return Golden(path, dict(arrays), info)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return Golden(path, load_file(path), info)
    raise CannotCheck(f"{path.name} is neither a .safetensors nor a .npz file.")


def compare(path: Path) -> Iterator[Comparison]:
    """Recomputes the outputs of a golden and yields how far each is off."""
    if not path.is_file():
        raise CannotCheck(f"There is no file {path}.")
    if ".weights." in path.name:
        raise CannotCheck(f"{path.name} holds only weights; name the file without '.weights' in its name.")
    kind = kind_of(path)
    if not (CHECKS / f"{kind}.py").is_file():
        known = ", ".join(sorted(check.stem for check in CHECKS.glob("[!_]*.py")))
        raise CannotCheck(f"No check for goldens of kind '{kind}'. Known kinds: {known}.")
    check = importlib.import_module(f"parity_checks.{kind}")
    for name, got, expected, tolerance in check.outputs(read(path)):
        error = float("inf") if got.shape != expected.shape else float(abs(got - expected).max())
        yield Comparison(name, error, tolerance)


def main(arguments: list[str]) -> int:
    """Checks the one file named on the command line."""
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    if len(arguments) != 1:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent / "support"))
    import bootstrap

    bootstrap.name_packages()
    try:
        comparisons = list(compare(Path(arguments[0])))
    except CannotCheck as reason:
        print(reason, file=sys.stderr)
        return 2
    for one in comparisons:
        print(f"{one.error:.3e}  tolerance {one.tolerance:.1e}  {'ok  ' if one.passed else 'FAIL'}  {one.name}")
    return 0 if comparisons and all(one.passed for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
