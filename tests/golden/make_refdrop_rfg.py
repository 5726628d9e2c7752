"""Records a golden of kind refdrop_rfg: python tests/golden/make_refdrop_rfg.py LETTER SEED

The outputs come from the naive float64 attention in tests/support/oracle.py, not from the pack.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "support"))

import oracle
import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {"chunks": 2, "batch": 2, "heads": 4, "tokens": 30, "channels": 32}
REFERENCES = {"small": 12, "large": 50}
CASES = {
    "rfg.plus": [{"reference": "small", "weight": 0.4, "first": 0, "with_own": False}],
    "rfg.minus": [{"reference": "large", "weight": -0.3, "first": 0, "with_own": False}],
    "rfg.two": [
        {"reference": "small", "weight": 0.3, "first": 0, "with_own": False},
        {"reference": "large", "weight": 0.2, "first": 1, "with_own": False},
    ],
    "concat": [{"reference": "small", "weight": 1.0, "first": 0, "with_own": True}],
}


def expected(t: dict[str, Tensor], case: list[dict]) -> Tensor:
    """One case, sample by sample, in float64."""
    out = []
    for row in range(CONFIG["chunks"] * CONFIG["batch"]):
        chunk, sample = divmod(row, CONFIG["batch"])
        q, k, v = (t[f"in.{name}"][row] for name in "qkv")
        total, mixed = 0.0, 0.0
        for branch in case:
            if sample < branch["first"]:
                continue
            keys, values = (t[f"in.{branch['reference']}.{name}"][chunk] for name in "kv")
            if branch["with_own"]:
                keys, values = torch.cat([keys, k]), torch.cat([values, v])
            mixed = mixed + branch["weight"] * oracle.attention(q, keys, values, CONFIG["heads"])
            total += branch["weight"]
        out.append(mixed + (1 - total) * oracle.attention(q, k, v, CONFIG["heads"]))
    return torch.stack(out)


def main(letter: str, seed: str) -> None:
    """Writes the tensors and the json beside them."""
    generator = torch.Generator().manual_seed(int(seed))
    rows, tokens, channels = CONFIG["chunks"] * CONFIG["batch"], CONFIG["tokens"], CONFIG["channels"]
    t = {f"in.{name}": torch.randn(rows, tokens, channels, generator=generator) for name in "qkv"}
    for name, size in REFERENCES.items():
        t |= {f"in.{name}.{part}": torch.randn(CONFIG["chunks"], size, channels, generator=generator) for part in "kv"}
    t |= {f"out.{name}": expected(t, case) for name, case in CASES.items()}
    save_file(t, FOLDER / f"refdrop_rfg_{letter}.safetensors")
    info = {"seed": int(seed), "config": CONFIG, "cases": CASES, "tolerance": 1e-5, "torch": torch.__version__}
    (FOLDER / f"refdrop_rfg_{letter}.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
