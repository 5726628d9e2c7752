"""Scores pictures that were made: try-on, style, subject, alignment. A table on the terminal, and JSON.

    python tools/evaluate.py tryon LIST.jsonl [--inception FILE] [--lpips FILE] [--clip FOLDER] [--output scores.json]
    python tools/evaluate.py style|subject LIST.jsonl --clip FOLDER [--dino FOLDER]
    python tools/evaluate.py alignment LIST.jsonl
    python tools/evaluate.py tryon --results FOLDER --columns truth=LoadImage.image

LIST.jsonl has a line for each picture, its files named from the list's folder: "result"; for tryon "truth"; for style
"reference" and "prompt"; for subject "reference" (one or a list), "prompt", and "group", by which seeds of one prompt
belong together; for alignment "result" and "truth" are masks. With --results, the lines are those of a folder that
run_workflow.py wrote, and --columns tells which of its inputs is which.

Nothing is downloaded. --clip and --dino are folders of Hugging Face models (config and safetensors), --lpips the file
of torchvision's AlexNet weights, --inception the network of FID and KID as TorchScript: inception-2015-12-05.pt, which
NVIDIA offers with StyleGAN. Without them, the scores that need them are left out, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from batch.files import new_file
from scoring.lines import NEEDED, EvaluationError, read_list, read_results, require_complete
from scoring.networks import Networks
from scoring.scores import Scores, alignment, style, subject, try_on, variance

DONE, USAGE = 0, 2


def report(scores: Scores, count: int) -> dict[str, dict[str, float | None]]:
    """Mean, deviation and number of each score; prints the table.

    What is infinite, as the PSNR of equal pictures, is None, for JSON has no infinity.
    """
    table = {}
    print(f"{'score':20} {'mean':>10} {'deviation':>10} {'n':>6}    of {count} pictures")
    for name, values in scores.items():
        mean = sum(values) / len(values)
        deviation = variance(values) ** 0.5 if len(values) > 1 else 0.0
        numbers = {"mean": mean, "deviation": deviation, "n": len(values)}
        table[name] = {key: each if math.isfinite(each) else None for key, each in numbers.items()}
        print(f"{name:20} {mean:10.4f} {deviation:10.4f} {len(values):6}")
    return table


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("kind", choices=tuple(NEEDED))
    parser.add_argument("list", type=Path, nargs="?", help="JSONL, a line for each picture")
    parser.add_argument("--results", type=Path, help="a folder that run_workflow.py wrote, instead of a list")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=NODE.INPUT", help="what its inputs are")
    parser.add_argument("--files", type=Path, default=Path(), help="folder of the table that the results were run with")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP")
    parser.add_argument("--dino", type=Path, help="folder of a DINOv2")
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet weights")
    parser.add_argument("--inception", type=Path, help="Inception as TorchScript, inception-2015-12-05.pt")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    options = parser.parse_args(command_line)
    if (options.list is None) == (options.results is None):
        parser.error("name either a list or --results")
    return options


def main(command_line: Sequence[str]) -> int:
    """0 when scored, 2 when there is nothing to score."""
    options = arguments_of(command_line)
    try:
        if options.output and os.path.lexists(options.output):
            raise EvaluationError(f"{options.output} exists already; choose another --output.")
        lines = (
            read_list(options.list) if options.list else read_results(options.results, options.columns, options.files)
        )
        require_complete(lines, options.kind)
        networks = Networks(options.clip, options.dino, options.lpips, options.inception)
        score = {"tryon": try_on, "style": style, "subject": subject, "alignment": alignment}[options.kind]
        table = report(score(lines, networks), len(lines))
    except (EvaluationError, OSError) as error:
        print(error, file=sys.stderr)
        return USAGE
    optional = {"tryon": {"lpips": "LPIPS", "inception": "FID and KID"}, "subject": {"dino": "DINO"}}
    for name, what in optional.get(options.kind, {}).items():
        if getattr(options, name) is None:
            print(f"{what} left out: --{name} names no network.")
    if options.output:
        entry = {"kind": options.kind, "pictures": len(lines), "scores": table}
        with new_file(options.output) as file:
            file.write((json.dumps(entry, indent=1) + "\n").encode())
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
