"""Several processes on CPUs, started by Accelerate's own command."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from bootstrap import HOST
from people import leffa_config
from training.config import ConfigError, require_all_processes
from training_support import TRAIN, losses, train_here

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
# What Open MPI's mpirun does with one machine: processes that know their number by its variables.
MPIRUN = """#!{python}
import os, subprocess, sys
if "--version" in sys.argv:
    print("mpirun (Open MPI) 5.0")
    sys.exit()
count = sys.argv[sys.argv.index("-n") + 1]
program = sys.argv[sys.argv.index({python!r}, 1):]
started = []
for rank in range(int(count)):
    told = {{"RANK": str(rank), "LOCAL_RANK": str(rank), "SIZE": count, "LOCAL_SIZE": count}}
    known = {{f"OMPI_COMM_WORLD_{{name}}": value for name, value in told.items()}}
    started.append(subprocess.Popen(program, env={{**os.environ, **known}}))
sys.exit(max(each.wait() for each in started))
"""


def launched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    environment = {**os.environ, "COMFYUI_DIR": str(HOST), "OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.run(
        [*LAUNCH, *arguments], env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, and the run of one process with the doubled batch."""
    folder = tmp_path_factory.mktemp("launch")
    config = leffa_config(folder, train={"steps": 2, "batch_size": 1})
    assert train_here("leffa", config, "--set", "train.batch_size=2", "--set", "output=one") == 0
    mpirun = folder / "mpirun"
    mpirun.write_text(MPIRUN.format(python=sys.executable))
    mpirun.chmod(mpirun.stat().st_mode | stat.S_IXUSR)
    (folder / "hosts").write_text("localhost slots=2\n")
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["torchrun", "mpirun"])
def test_two_processes_of_the_launcher_are_one_with_the_doubled_batch(folder: Path, way: str) -> None:
    program = [str(TRAIN), "leffa", str(folder / "config.toml"), "--set", f"output={way}"]
    if way == "torchrun":
        done = launched(folder, "--multi_gpu", *program, "--cpu")
    else:
        done = launched(folder, "--cpu", "--mpirun_hostfile", str(folder / "hosts"), *program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / way / "run.json").read_text())["processes"] == 2
    assert losses(folder / way) == pytest.approx(losses(folder / "one"), rel=1e-4)


def test_other_starts_are_left_alone() -> None:
    cpu, several = {"ACCELERATE_USE_CPU": "True"}, {"MASTER_ADDR": "127.0.0.1"}
    for environment in ({}, cpu, several, {**cpu, **several, "WORLD_SIZE": "2"}, {**cpu, **several, "PMI_SIZE": "2"}):
        require_all_processes(environment)
    with pytest.raises(ConfigError, match="--multi_gpu --num_processes 2"):
        require_all_processes({**cpu, **several})


def test_a_launcher_that_starts_one_process_in_place_of_two_is_refused(folder: Path) -> None:
    done = launched(folder, "--cpu", str(TRAIN), "leffa", str(folder / "config.toml"), "--set", "output=none")
    assert done.returncode != 0 and not (folder / "none").exists()
    assert "was asked for several processes, but has started one" in done.stderr
