"""Makes the host, the pack, the demo models and the tools importable for every test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import bootstrap

bootstrap.name_packages()
bootstrap.prepare_host()
