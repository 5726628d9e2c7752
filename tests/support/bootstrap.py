"""Makes the host, the pack and the demo models importable outside a running ComfyUI.

The pack's root has the form of a package but no importable name (its folder may hold a hyphen), and its folder `nodes`
must not shadow the host's module of that name. So the root stays off `sys.path` and its folders get fixed names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_DIR") or ROOT / ".host" / "ComfyUI").expanduser().resolve()


def name_packages() -> None:
    """Makes modules importable as `refattention.…` and `refattention_demo.…`."""
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    for name, folder in {"refattention": ROOT, "refattention_demo": ROOT / "demo"}.items():
        module = ModuleType(name)  # without running its __init__, which is the host's business
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def prepare_host(cpu: bool = True, exact: bool = False) -> None:
    """Puts the host on the path, set to the CPU or to the device it finds, `exact` with full float32.

    The host reads its command line when first imported, so this comes before.

    Raises:
        FileNotFoundError: there is no ComfyUI where it should be.
    """
    _find_host()
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    comfy.cli_args.args.force_fp32 = exact
    comfy.cli_args.args.use_pytorch_cross_attention = True
    if exact and not cpu:
        import torch

        torch.backends.cudnn.allow_tf32 = False


def prepare_host_as_started(options: list[str]) -> None:
    """Puts the host on the path, set as its own command line would; before anything of it is imported.

    Raises:
        FileNotFoundError: there is no ComfyUI where it should be.
    """
    _find_host()
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv = ["main.py", *options]
    import comfy.cli_args


def _find_host() -> None:
    if not (HOST / "main.py").is_file():
        raise FileNotFoundError(f"No ComfyUI in {HOST}. Run 'make setup', or set COMFYUI_DIR to the folder of yours.")
    sys.path.insert(0, str(HOST))
