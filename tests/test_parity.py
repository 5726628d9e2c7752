"""The parity tool itself: passes what is right, fails what is wrong, refuses what it does not know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bootstrap
import pytest
from bootstrap import ROOT
from parity import compare, main
from safetensors.torch import load_file, save_file

GOLDEN = ROOT / "tests" / "golden"


Parity = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """Exit status and what was said, in this process: starting Python for each takes longer than comparing."""
    monkeypatch.setattr(bootstrap, "name_packages", lambda: None)  # they are named already
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: (main([str(each) for each in arguments]), *capsys.readouterr())


# How many outputs each recorded file is compared by
OUTPUTS = {
    "refdrop_rfg_A.safetensors": 4,
    "deadiff_clipvis_tiny_A.safetensors": 5,
    "deadiff_qformer_tiny_A.safetensors": 18,
    "deadiff_unet_tiny_A.safetensors": 40,
    "deadiff_loop_A.safetensors": 27,
    "leffa_tiny_A.safetensors": 44,
    "leffa_masks.npz": 30,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_goldens(name: str) -> None:
    comparisons = list(compare(GOLDEN / name))
    assert not [one for one in comparisons if not one.passed]
    assert len(comparisons) == OUTPUTS[name]


def test_what_is_right_passes() -> None:
    command = [sys.executable, str(ROOT / "tests" / "parity.py"), str(GOLDEN / "refdrop_rfg_A.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == OUTPUTS["refdrop_rfg_A.safetensors"]


def test_no_golden_is_forgotten() -> None:
    files = {path.name for path in GOLDEN.iterdir() if path.suffix in (".safetensors", ".npz")}
    assert {name for name in files if ".weights." not in name} == set(OUTPUTS)


def test_an_error_beyond_the_tolerance_fails(parity: Parity, tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "refdrop_rfg_A.safetensors")
    tensors["out.concat"][0, 0, 0] += 1e-3
    save_file(tensors, tmp_path / "refdrop_rfg_B.safetensors")
    (tmp_path / "refdrop_rfg_B.json").write_text((GOLDEN / "refdrop_rfg_A.json").read_text())
    status, said, _ = parity(tmp_path / "refdrop_rfg_B.safetensors")
    assert status == 1
    failed = [line for line in said.splitlines() if "FAIL" in line]
    assert len(failed) == 1 and failed[0].endswith("concat") and failed[0].startswith("1.00")


def test_unknown_kind_and_missing_file(parity: Parity, tmp_path: Path) -> None:
    save_file(load_file(GOLDEN / "refdrop_rfg_A.safetensors"), tmp_path / "nothing_A.safetensors")
    for arguments, message in (
        ([tmp_path / "nothing_A.safetensors"], "kind 'nothing'. Known kinds: "),
        ([tmp_path / "gone_A.safetensors"], "There is no file"),
        ([GOLDEN / "deadiff_unet_tiny_A.weights.1of2.safetensors"], "holds only weights"),
        ([], "python tests/parity.py FILE"),
    ):
        status, _, said = parity(*arguments)
        assert status == 2 and message in said


def test_help(parity: Parity) -> None:
    status, said, _ = parity("--help")
    assert status == 0 and "FILE" in said
