"""Trains one of the methods on your own data, and writes a file that its loader node takes as it is.

    python tools/train.py leffa|deadiff|refine|p3s CONFIG.toml [--set train.steps=100 …] [--resume]
    accelerate launch --multi_gpu tools/train.py …
    accelerate launch --multi_gpu --num_processes 2 tools/train.py … --cpu

Run it with ComfyUI's Python and the packages of the extra `train` (pip install "accelerate tensorboard torchmetrics");
COMFYUI_DIR names the folder of a ComfyUI that is not in custom_nodes/../.. . docs/training.md has the data and settings
of each method.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pack import import_pack

METHODS = ("leffa", "deadiff", "refine", "p3s")
DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 130


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("config", type=Path, help="a TOML file; docs/training.md lists what it may hold")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the file: train.steps=10")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--dry-run", action="store_true", help="check the data and draw one batch, dry_run.png")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    return parser.parse_args(command_line)


def work(options: argparse.Namespace) -> int:
    """Loads, checks and trains."""
    from training.config import build, read, require_all_processes

    require_all_processes(os.environ)
    import torch

    table = read(options.config, options.set)
    cpu = options.cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    import_pack(cpu=cpu)
    from training.loop import Loop, RunFolder, accelerator_of, dry_run, write_sheet
    from training.models import extend

    method: Any = importlib.import_module(f"training.tasks.{options.method}")
    config = build(table, options.config.resolve().parent, method.Data, method.Options, method.DEFAULTS)
    # Before any model: it chooses this process's device.
    accelerator = accelerator_of(config, cpu)
    extend(config)
    with accelerator.main_process_first():  # the others find what it has read
        task = method.Task(config)
    if options.dry_run:
        folder = RunFolder(config.output, task.name)
        write_sheet(folder, "dry_run.png", dry_run(task, config))
        print(f"{task.records} records are good; one batch is in {folder.path / 'dry_run.png'}")
        return DONE
    loop = Loop(task, config, accelerator)
    loop.run(options.resume)
    return STOPPED if loop.is_stopped else DONE


def main(command_line: Sequence[str]) -> int:
    """0 when trained, 1 when it failed, 2 when nothing could be started, 130 when stopped."""
    from training.config import ConfigError
    from training.data import DataError
    from training.folder import FolderError

    try:
        return work(arguments_of(command_line))
    except (ConfigError, DataError, FolderError) as error:
        print(error, file=sys.stderr)
        return USAGE
    except (RuntimeError, ValueError, OSError) as error:
        if os.environ.get("REFATTENTION_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
