"""Writes the results into docs/benchmarks.md; run it after `make bench`.

Each row of bench/results/latest.json gets a line, in the order of `TITLES`; a row without a title is refused, and so is
one beyond its bound of which `REASONS` does not say why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE.parent / "docs" / "benchmarks.md", HERE / "results" / "latest.json"
TABLE = "| Row | What | Measured | Bound |\n|---|---|---|---|\n"
BEYOND = "## Rows beyond their bound\n\n"
END = "\n\n"
TITLES = {
    "refdrop.latent.sd15.256": "RefDrop, reference passed at every step, 256 x 256",
    "refdrop.latent.sd15.512": "the same, 512 x 512",
    "refdrop.cached.sd15.256": "RefDrop, reference from the cache, all blocks, 256 x 256",
    "refdrop.cached.sd15.512": "the same, 512 x 512",
    "refdrop.batch4.sd15.256": "RefDrop, one reference for four pictures: its pass per picture",
    "refdrop.story.sd15": "RefDrop, a story of ten pictures with the cache",
    "refdrop.public.step.256": "RefDrop, a recorded reference against `sd-refdrop-comfyui`, 256 x 256",
    "refdrop.public.step.512": "the same, 512 x 512",
    "refdrop.public.cache.256": "its memory in float16 against theirs in float32 (in float32: 1.00), 256 x 256",
    "refdrop.public.cache.512": "the same, 512 x 512",
    "refdrop.flux.block.cached": "RefDrop, blocks as wide as Flux's, reference from the cache",
    "refdrop.flux.block.passed": "the same, reference passed",
    "refdrop.wan.block.cached": "RefDrop, blocks as wide as Wan's, reference from the cache",
    "refdrop.wan.block.passed": "the same, reference passed",
    "pointmask.vs_encoder": "Point Mask, CLIP ViT-L/14",
    "p3s.step.512": "P3S Inject with an adapter, 512 x 512",
    "p3s.train.rss.512": "P3S Train, one step, memory",
    "train.rss.leffa": "`tools/train.py leffa`, one step of full-size SD1.5, memory",
    "train.rss.deadiff": "`tools/train.py deadiff`, one step of full-size SD1.5, memory",
    "train.rss.refine": "`tools/train.py refine`, one step of full-size SD1.5, memory",
    "train.step.leffa": "`tools/train.py`, a step of Leffa's training against the same in plain torch",
    "train.step.deadiff": "the same, DEADiff",
    "train.step.refine": "the same, Refine-by-Align",
    "train.step.p3s": "the same, P3S",
    "deadiff.step.256": "DEADiff Style, 256 x 256",
    "deadiff.step.512": "the same, 512 x 512",
    "deadiff.tokens": "DEADiff, reading a reference",
    "leffa.once.vs_official.384x512": "Leffa, reference once, 384 x 512",
    "leffa.every.vs_official.384x512": "Leffa, reference at every step",
    "leffa.every_nocache.vs_official.384x512": "the same without the cache of the empty reference",
    "leffa.once.operations.768x1024": "Leffa, reference once, 768 x 1024",
    "leffa.every.operations.768x1024": "Leffa, reference at every step, 768 x 1024",
    "leffa.rss.vs_official.384x512": "Leffa, loading and one step, memory",
    "align.time_vs_step": "Refine by Align, alignment, 512 x 512",
    "align.memory_vs_step": "the same, memory",
    "align.flux.time": "Refine by Align, in-context, two blocks as wide as Flux's, 1024 x 1024, until the last map",
    "align.flux.memory": "the same, memory",
    "align.flux.memory_vs_plain": "the same against a step that has no reference",
    "align.flux.self.time": "the same blocks, by self-attention",
    "align.flux.self.memory": "the same, memory",
    "import.seconds": "the pack's share of ComfyUI's start",
    "scale.overhead": "Ray cluster, a row's extra cost over one host alone",
    "scale.workers.2": "the same, two workers, rows of 10 s",
    "scale.virtual.256": "the same, 256 virtual workers",
    "scale.virtual.1000": "the same, 1,000 virtual workers",
    "scale.driver": "the same, driver with manifest, rows that take no time",
    "scale.driver.100000": "the same, the last 1,000 of 100,000 rows",
}
UNCOUNTED = (
    "The bound is the ratio of the operations in matrix products, convolutions and attention. What only moves memory "
    "(norms, activations, the blend of two attentions) is not counted, but takes its time."
)
SPREAD = "The bound lies between these extremes: more repeats on a quieter machine would tell."
AIM = "It is held against an aim that was set before measuring."
MACHINE = (
    "With the pack as it was when it had 1.82 of 1.86, the machine of this row gave 1.92: the ratio is not the same on "
    "every machine."
)
SEQUENCE = (
    "A step that has the reference in view, as this look needs it, has twice the picture's tokens and takes 1.19 times "
    "as much itself. The weights are of two blocks; those of the whole model are over twenty times as many, beside "
    "which the tokens weigh little."
)
REASONS = {
    "align.flux.memory_vs_plain": SEQUENCE,
    "refdrop.latent.sd15.512": UNCOUNTED,
    "refdrop.cached.sd15.512": SPREAD,
    "refdrop.public.step.256": SPREAD,
    "p3s.step.512": MACHINE,
    "leffa.once.vs_official.384x512": AIM,
    "leffa.every_nocache.vs_official.384x512": f"{AIM} {SPREAD}",
}
Row = dict[str, Any]


def table(results: dict[str, Row]) -> str:
    """The lines of the table."""
    if unknown := sorted(set(results) - set(TITLES)):
        raise KeyError(f"bench/table.py has no title for {', '.join(unknown)}")
    return "\n".join(_line(name, results[name]) for name in TITLES if name in results)


def beyond(results: dict[str, Row]) -> str:
    """A list of the rows beyond their bound, each with the reason and the extremes of what was measured."""
    rows = {
        name: results[name] for name in TITLES if name in results and results[name]["value"] > results[name]["bound"]
    }
    if unexplained := sorted(set(rows) - set(REASONS)):
        raise KeyError(f"bench/table.py has no reason why {', '.join(unexplained)} is beyond its bound")
    return "\n".join(_item(name, row) for name, row in rows.items()) or "None."


def _line(name: str, row: Row) -> str:
    return f"| `{name}` | {TITLES[name]} | {_number(row['value'])} {row['unit']} | {_number(row['bound'])} |"


def _item(name: str, row: Row) -> str:
    detail, text = row["detail"], f"- `{name}`, {_number(row['value'])} against {_number(row['bound'])}"
    if "b_min" in detail:
        low, high = detail["b_min"] / detail["a_max"], detail["b_max"] / detail["a_min"]
        text += f"; fastest over slowest to slowest over fastest, {_number(low)} to {_number(high)}"
    return f"{text}. {REASONS[name]}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def written(page: str, results: dict[str, Row]) -> str:
    """The page with the results in it."""
    return _replaced(_replaced(page, TABLE, table(results)), BEYOND, beyond(results))


def _replaced(page: str, begin: str, text: str) -> str:
    before, rest = page.split(begin)
    return before + begin + text + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(text, json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
