"""`make claims`: what the papers claim, measured on the trained world through the nodes and templates that users run.

`refdrop.py` and `point_mask.py` run the published templates on a headless host and give rows; `report.py` writes them
and the plots to `docs/CLAIMS.md`. A row that fails stays and says so.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "demo" / "runs"))

import world  # noqa: F401 - names the demo's package
