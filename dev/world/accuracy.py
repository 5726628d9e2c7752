"""Held-out text accuracy of the base model so far: `python -m world.accuracy [PROMPTS]`, 200 by default."""

from __future__ import annotations

import sys

from . import state, train_base
from .encode import autoencoder


def main() -> None:
    """Adds a line to `curves/accuracy.jsonl` and a sheet to `sheets/`."""
    saved = state.load(train_base.CHECKPOINT)
    if saved is None:
        raise FileNotFoundError(f"There is no {train_base.CHECKPOINT} yet: run `make world-train`.")
    models, codec = train_base.loaded(saved), autoencoder()
    sheet = train_base.painted(models, codec, train_base.SHOWN)
    train_base.write_sheet(train_base.SHEETS / f"base_{saved['seen']}_samples.png", sheet, 6)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    train_base.measure_accuracy(models, codec, saved["used"], saved["seen"], count)


if __name__ == "__main__":
    main()
