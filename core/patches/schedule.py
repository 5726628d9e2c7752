"""The part of the sampling schedule in which a method acts."""

from __future__ import annotations


def check_range(start_percent: float, end_percent: float) -> None:
    """Checks that a part of the schedule does not end before it begins.

    Raises:
        ValueError: it does.
    """
    if start_percent > end_percent:
        raise ValueError(f"start_percent ({start_percent:g}) must not be larger than end_percent ({end_percent:g}).")
