"""The parity tool itself: passes what is right, fails what is wrong, refuses what it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bootstrap import ROOT
from parity import compare
from safetensors.torch import load_file, save_file

GOLDEN = ROOT / "tests" / "golden"


def parity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "parity.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


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
    """In this process: starting Python for each takes longer than comparing."""
    comparisons = list(compare(GOLDEN / name))
    assert not [one for one in comparisons if not one.passed]
    assert len(comparisons) == OUTPUTS[name]


def test_what_is_right_passes() -> None:
    result = parity(GOLDEN / "refdrop_rfg_A.safetensors")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == OUTPUTS["refdrop_rfg_A.safetensors"]


def test_no_golden_is_forgotten() -> None:
    files = {path.name for path in GOLDEN.iterdir() if path.suffix in (".safetensors", ".npz")}
    assert {name for name in files if ".weights." not in name} == set(OUTPUTS)


def test_an_error_beyond_the_tolerance_fails(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "refdrop_rfg_A.safetensors")
    tensors["out.concat"][0, 0, 0] += 1e-3
    save_file(tensors, tmp_path / "refdrop_rfg_B.safetensors")
    (tmp_path / "refdrop_rfg_B.json").write_text((GOLDEN / "refdrop_rfg_A.json").read_text())
    result = parity(tmp_path / "refdrop_rfg_B.safetensors")
    assert result.returncode == 1
    failed = [line for line in result.stdout.splitlines() if "FAIL" in line]
    assert len(failed) == 1 and failed[0].endswith("concat") and failed[0].startswith("1.00")


def test_unknown_kind_and_missing_file(tmp_path: Path) -> None:
    save_file(load_file(GOLDEN / "refdrop_rfg_A.safetensors"), tmp_path / "nothing_A.safetensors")
    result = parity(tmp_path / "nothing_A.safetensors")
    assert result.returncode == 2 and "kind 'nothing'. Known kinds: " in result.stderr
    assert parity(tmp_path / "gone_A.safetensors").returncode == 2
    weights = parity(GOLDEN / "deadiff_unet_tiny_A.weights.1of2.safetensors")
    assert weights.returncode == 2 and "holds only weights" in weights.stderr
    assert parity().returncode == 2


def test_help() -> None:
    said = parity("--help")
    assert said.returncode == 0 and "FILE" in said.stdout
