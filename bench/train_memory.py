"""One optimiser step of each training on a full-size SD1.5 with random weights, by the command that users run.

As a program it runs the trainer on a configuration, and prints the most memory that it held.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GIB = 2**30
# The options that save memory; all other settings are the defaults.
SAVING = {"optimizer": "adafactor", "precision": "bf16", "gradient_checkpointing": True, "batch_size": 1, "steps": 1}
SIZES = {"leffa": (512, 384), "deadiff": (512, 512), "refine": (512, 512)}


def row(method: str) -> dict[str, dict[str, Any]]:
    """Most resident memory of a process that trains for one step, and writes its files."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        return {f"train.rss.{method}": _row(method, Path(folder))}


def _row(method: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, method, str(write_config(method, folder, *SIZES[method]))]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    what = f"one step at {SIZES[method][1]} x {SIZES[method][0]}, Adafactor, bfloat16, gradient checkpointing"
    detail = {"what": what, **answer}
    return {"value": round(answer["peak"] / GIB, 2), "unit": "GiB", "bound": 20.0, "detail": detail}


def write_models(folder: Path, full_size: bool = True) -> None:
    """base.safetensors and vision.safetensors; not full_size: the base of the tests."""
    import torch
    from refattention_demo import codec, text_encoder, vision
    from refattention_demo.deadiff_layout import REAL_UNET
    from refattention_demo.families import SD15, TextEncoderSize
    from refattention_demo.layout import unet_shapes
    from safetensors.torch import save_file
    from training_support import base_file

    save_file(vision.state_dict(), folder / "vision.safetensors")
    if not full_size:
        base_file(folder)
        return
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        return (noise * noise[0].numel() ** -0.5 if noise.ndim > 1 else 1 + 0.1 * noise).half()

    weights = {f"model.diffusion_model.{name}": drawn(shape) for name, shape in unet_shapes(REAL_UNET).items()}
    prefix = SD15.text_encoders[0].prefix
    weights |= text_encoder.state_dict(TextEncoderSize(prefix, layers=12, hidden=768, heads=12), generator)
    weights |= {f"first_stage_model.{name}": each for name, each in codec.state_dict(SD15.latent_scale).items()}
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "base.safetensors")


def write_config(method: str, folder: Path, height: int, width: int) -> Path:
    """A configuration with eight small pictures, which are enlarged, as data."""
    from people import leffa_config

    place = {"height": height, "width": width}
    config = leffa_config(folder, output=f"run-{method}", train={**SAVING, **place}, save={"every": 0})
    if method == "leffa":
        return config
    text = config.read_text(encoding="utf-8").replace("[models]", '[models]\nclip_vision = "vision.safetensors"')
    config.write_text(text, encoding="utf-8")
    records = {
        "deadiff": [
            {"kind": kind, "target": "person0.png", "prompt": "a person", **other}
            for kind, other in (
                ("style", {"reference": "person1.png"}),
                ("subject", {"reference": "person1.png"}),
                ("reconstruction", {}),
            )
        ],
        "refine": [{"image": "person0.png", "mask": "mask.png", "reference": "garment0.png"}],
    }
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, records[method])), encoding="utf-8")
    return config


def main(method: str, config: str) -> None:
    """Trains, and prints what it took."""
    from memory import peak_bytes

    tools = HERE.parent / "tools"
    sys.path.insert(0, str(tools))
    spec = importlib.util.spec_from_file_location("trainer", tools / "train.py")
    assert spec is not None and spec.loader is not None
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    start = time.perf_counter()
    if trainer.main([method, config, "--cpu"]):
        raise SystemExit(f"{method}: nothing was trained")
    about = json.loads((Path(config).parent / f"run-{method}" / "run.json").read_text(encoding="utf-8"))
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"peak": peak_bytes(), "seconds": seconds, "weights": about["trained_parameters"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
