"""Fails when a test of a pytest run was skipped, so that nothing counts as checked that was not.

A skip is accepted only if its reason starts with "optional:", and it is still listed.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ACCEPTED = "optional:"


def skipped_tests(report: Path) -> list[tuple[str, str]]:
    """Name and reason of every test of a junit report that was skipped or is expected to fail."""
    return [
        (f"{case.get('classname')}.{case.get('name')}", skip.get("message") or "no reason given")
        for case in ET.parse(report).iter("testcase")
        for skip in case.iter("skipped")
    ]


def main(report: Path) -> int:
    """Lists the skipped tests; the exit status is 1 when one of them has no accepted reason."""
    skipped = skipped_tests(report)
    for name, reason in skipped:
        print(f"skipped: {name}: {reason}")
    refused = [name for name, reason in skipped if not reason.startswith(ACCEPTED)]
    if refused:
        print(f"{len(refused)} skipped without a reason that starts with '{ACCEPTED}'", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
