"""make bench: measures and writes bench/results/latest.json, a flat map from a row's name to its value.

Speeds are ratios of two things timed in the same run; `bound` is what they are held against.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]
Measure = Callable[[], Rows]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]


def device_name() -> str:
    """The device the models run on."""
    import comfy.model_management
    import torch

    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    return f"{cpu}, {torch.get_num_threads()} threads"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def on_cpu(repeats: int) -> dict[str, Measure]:
    """Float32, 2 threads, PyTorch's attention."""
    import align
    import deadiff
    import imports
    import leffa_speed
    import p3s
    import point_mask
    import refdrop
    import refdrop_blocks
    import refdrop_public
    import refdrop_story
    import scale
    import torch
    import train_memory
    import train_step

    torch.set_num_threads(2)
    return {
        "point_mask": lambda: point_mask.rows(repeats),
        "refdrop": lambda: refdrop.rows("sd15", [256, 512], torch.float32, repeats),
        "refdrop_cached": lambda: refdrop.cached_rows("sd15", [256, 512], torch.float32, repeats),
        "refdrop_story": refdrop_story.rows,
        "refdrop_blocks": lambda: refdrop_blocks.rows(repeats),
        "refdrop_public": lambda: refdrop_public.rows([256, 512], repeats),
        "deadiff": lambda: deadiff.rows([256, 512], torch.float32, repeats),
        "p3s": lambda: p3s.rows([512], torch.float32, repeats),
        "p3s_training": p3s.memory,
        "leffa": lambda: leffa_speed.rows(repeats),
        "align": lambda: align.rows(repeats),
        "align_flux": align.flux_rows,
        "train": lambda: train_step.rows(repeats),
        **{f"train_fullsize.{method}": partial(train_memory.row, method) for method in train_memory.SIZES},
        "import": imports.rows,
        "scale": lambda: scale.measured(scale.hosts),
        "scale_virtual": lambda: scale.measured(scale.virtual),
    }


def on_gpu(repeats: int) -> dict[str, Measure]:
    """Float16, at the sizes the models are made for."""
    import deadiff
    import refdrop
    import torch

    return {
        "refdrop_sd15": lambda: refdrop.rows("sd15", [256, 512, 1024], torch.float16, repeats),
        "refdrop_sdxl": lambda: refdrop.rows("sdxl", [512, 1024], torch.float16, repeats),
        "deadiff": lambda: deadiff.rows([256, 512], torch.float16, repeats),
    }


def measure(groups: Mapping[str, Measure], chosen: Sequence[str] | None, device: str, output: Path) -> None:
    """Prints the rows, and writes them after each group beside those that were known, so that a stop loses none.

    Args:
        chosen: the groups to measure; None is all of them, after which nothing else is left in the file.
    """
    known = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    measured: Rows = {}
    for group in chosen or groups:
        for name, row in groups[group]().items():
            print(f"{name:32} {row['value']:8.3f} {row['unit']}  (bound {row['bound']:.3f})", flush=True)
            measured[name] = {**row, "device": device}
        _write(known | measured, output)
    if not chosen:
        _write(measured, output)


def _write(rows: Rows, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    part.replace(output)


def main() -> int:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU instead of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="measure these groups and keep the other rows")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "latest.json")
    arguments = parser.parse_args()

    import bootstrap

    bootstrap.name_packages()
    bootstrap.prepare_host(cpu=not arguments.gpu)
    groups = (on_gpu if arguments.gpu else on_cpu)(arguments.repeats)
    if unknown := set(arguments.only or ()) - groups.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    measure(groups, arguments.only, device_name(), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
