"""A checkpoint file loaded and one step made, in a process of its own: prints the most memory it held.

The file has the names and shapes of the published try-on checkpoint without its VAE, in float32. The published code
loads it as its `LeffaModel` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]

import bootstrap

bootstrap.name_packages()
bootstrap.prepare_host(exact=True)

import leffa_models
import torch
from memory import forget_peak, peak_bytes
from refattention.core.leffa.loader import load


def main(which: str, path: str) -> None:
    """`which` is "write", "ours" or "published"."""
    torch.set_num_threads(2)
    inputs = leffa_models.Inputs(384, 512)
    with torch.inference_mode():
        if which == "write":
            torch.save(leffa_models.published_weights(), path)
            return
        forget_peak()
        if which == "ours":
            leffa_models.ours(load(path), inputs, 1, 0)(lambda evaluate: evaluate(601))
        else:
            published = leffa_models.Published.from_file(path)
            published.evaluate(inputs, 601, published.features(inputs, 601))
    print(json.dumps(peak_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
