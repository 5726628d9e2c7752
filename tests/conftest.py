"""Makes the host, the pack and the demo models importable for every test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import bootstrap

bootstrap.name_packages()
# REFATTENTION_TEST_GPU=1 runs the same tests on the GPU.
bootstrap.prepare_host(cpu=not os.environ.get("REFATTENTION_TEST_GPU"), exact=True)
