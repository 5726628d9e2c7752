"""One step of Leffa with its reference pass, in a process of its own: prints the most memory it held, weights included.

Loading is not counted: here both get their weights from this process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools"), str(HERE.parent / "tests" / "support")]

import bootstrap

bootstrap.name_packages()
bootstrap.prepare_host(exact=True)

import leffa_models
import torch
from memory import forget_peak, peak_bytes


def main(which: str) -> None:
    """`which` is "ours" or "published"."""
    torch.set_num_threads(2)
    inputs = leffa_models.Inputs(384, 512)
    with torch.inference_mode():
        if which == "ours":
            parts = leffa_models.load(leffa_models.random_weights())
            forget_peak()
            leffa_models.ours(parts, inputs, 1, 0)(lambda evaluate: evaluate(601))
        else:
            published = leffa_models.Published(leffa_models.random_weights())
            forget_peak()
            published.evaluate(inputs, 601, published.features(inputs, 601))
    print(json.dumps(peak_bytes()))


if __name__ == "__main__":
    main(sys.argv[1])
