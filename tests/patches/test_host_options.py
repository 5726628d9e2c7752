"""ComfyUI started with other options of its command line: the same pictures, but for rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import every_method
import pytest
import torch
from every_method import EveryMethod, error
from safetensors.torch import load_file

NAMES = ["refdrop.sd15", "refdrop.flux", "cached.sd15", "p3s.sd15", "adapter.sd15", "deadiff.sd15", "leffa.sd15"]
# Each start takes seconds, so what does not concern the same part of the host goes into one.
OPTIONS = [
    "--use-split-cross-attention --deterministic --force-channels-last --disable-smart-memory",
    "--use-quad-cross-attention --fast --cache-none",
    "--use-pytorch-cross-attention --force-upcast-attention --reserve-vram 1",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_pictures_are_the_same(options: str, tmp_path: Path) -> None:
    file = tmp_path / "pictures.safetensors"
    command = [sys.executable, every_method.__file__, str(file), ",".join(NAMES), "--cpu", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, here = load_file(file), EveryMethod(torch.float32)
    for name in NAMES:
        assert error(found[name], here.picture(name)) < 1e-4, name
