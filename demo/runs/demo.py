"""`make demo`: runs the pack's workflows on a headless ComfyUI with the trained world; the pictures go on sheets."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "dev"))

from world_host import WorldHost

import demo_align
import demo_deadiff
import demo_leffa
import demo_p3s
import demo_point_mask
import demo_probe
import demo_refdrop
from host import ROOT, HostError, WorkflowError

OUT = ROOT / "out" / "demo"
DEMOS = (
    *(demo_point_mask.run, demo_refdrop.run, demo_p3s.run, demo_deadiff.run),
    *(demo_leffa.run, demo_align.run, demo_probe.run),
)


def run_demos(folder: Path) -> list[Path]:
    """Runs all demos on one host and returns the paths of their sheets."""
    folder.mkdir(parents=True, exist_ok=True)
    print("demo: starting a headless ComfyUI with the models of the drawn world", flush=True)
    with WorldHost() as host:
        return [run(host, folder) for run in DEMOS]


def main() -> int:
    """Exit status 0 when every picture was written."""
    # So that a plain `kill` leaves through the with statement, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sheets = run_demos(OUT)
    except KeyboardInterrupt:
        print("demo stopped", file=sys.stderr)
        return 130
    except (HostError, WorkflowError, TimeoutError, OSError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    print(f"demo: pictures are in {OUT}, all of them on {', '.join(sheet.name for sheet in sheets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
