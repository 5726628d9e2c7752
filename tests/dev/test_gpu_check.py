"""`make gpu-check` on the CPU with the smallest of models: it comes to its end, resumes, and tells right from wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bootstrap import ROOT
from safetensors.torch import load_file, save_file

SCRIPT = ROOT / "bench" / "gpu_check.py"
sys.path.append(str(SCRIPT.parent))

import gpu_check


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    places = ["--results", str(folder), "--work", str(folder / "work")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--toy", *places, *options], capture_output=True, text=True, check=False
    )
    assert (folder / "toy.json").exists(), done.stderr
    return done.returncode, json.loads((folder / "toy.json").read_text(encoding="utf-8")), done.stdout


def test_it_comes_to_its_end_and_does_nothing_twice(tmp_path: Path) -> None:
    code, found, _ = run(tmp_path)
    wrong = {name: answer for name, answer in found["steps"].items() if not answer["ok"]}
    assert code == 0 and not wrong, wrong
    assert found["steps"].keys() == gpu_check.STEPS.keys()
    sizes = {name for each in found["steps"].values() for name in each.get("rows", {})}
    assert {"sd15.align", "sdxl.p3s.adapter", "flux.refdrop.cached", "wan.refdrop.live", "leffa.anew_vs_seen"} <= sizes
    assert (tmp_path / "toy.log").read_text(encoding="utf-8").count("\n") == len(gpu_check.STEPS)

    results = gpu_check.Results(tmp_path / "toy.json", found["about"])
    assert gpu_check.check(results, lambda name, seconds: pytest.fail(name), 1.0, lambda line: None)
    anew = gpu_check.Results(tmp_path / "toy.json", {**found["about"], "code": "another"})
    assert not anew.steps

    # A picture that is not what it should be is seen.
    work = tmp_path / "work"
    known = load_file(work / "reference.safetensors")
    save_file({**known, "p3s.sd15": known["p3s.sd15"] * 1.01}, work / "reference.safetensors")
    answer = gpu_check.correct("float32", ("p3s.sd15",))(work, True)
    assert not answer["ok"] and answer["failed"].keys() == {"p3s.sd15"}


def test_a_step_that_fails_or_takes_too_long_costs_no_other(tmp_path: Path) -> None:
    results = gpu_check.Results(tmp_path / "card.json", {"device": "card"})
    ran: list[str] = []

    def broken(name: str, seconds: float) -> dict[str, Any]:
        ran.append(name)
        return {"ok": name != "correct.lowvram", "ended": True}

    assert not gpu_check.check(results, broken, 1.0, lambda line: None)
    kept = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["steps"]
    assert kept.keys() == gpu_check.STEPS.keys() and set(ran) >= {"correct.novram", "sizes.wan"}
    later = gpu_check.Results(tmp_path / "later.json", {"device": "card"})
    assert not gpu_check.check(later, broken, 0.0, lambda line: None)
    assert all("left_out" in answer for answer in later.steps.values())
    assert not any(later.is_done(name) for name in gpu_check.STEPS)


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--results", str(tmp_path), "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1 and "There is no graphics card that torch can use." in done.stderr
