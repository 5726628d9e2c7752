"""Makes the host's own classes importable. Import this before anything of `comfy`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .config import ROOT

HOST = Path(os.environ.get("COMFYUI_DIR") or ROOT / ".host" / "ComfyUI").resolve()
TOKENIZER = HOST / "comfy" / "sd1_tokenizer"

sys.path.insert(0, str(HOST))

import comfy.cli_args

comfy.cli_args.args.cpu = True
