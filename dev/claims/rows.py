"""Rows of the table: a claim, what was measured with its 95 % interval, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

RESAMPLINGS = 4000
# Resampled intervals of fewer cases are too narrow.
FEWEST = 24


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Curve:
    """Something measured at several settings."""

    label: str
    at: list[float]
    values: list[Estimate]


@dataclass(frozen=True)
class Plot:
    """Curves over one axis."""

    across: str
    up: str
    curves: list[Curve]


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        paper, claim, metric: in words; the metric names its control.
        estimate: of the difference that the claim is about.
        holds: None where it could not be measured.
        note: why it fails, or what limits it.
    """

    paper: str
    claim: str
    metric: str
    estimate: Estimate | None
    holds: bool | None
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """Rows and plots of one paper."""

    paper: str
    rows: list[Row]
    plots: list[Plot] = field(default_factory=list)

    @staticmethod
    def from_json(found: dict[str, Any]) -> Findings:
        """The inverse of `dataclasses.asdict`."""

        def estimated(values: dict[str, Any] | None) -> Estimate | None:
            return None if values is None else Estimate(**values)

        rows = [Row(**{**row, "estimate": estimated(row["estimate"])}) for row in found["rows"]]
        plots = [
            Plot(
                plot["across"],
                plot["up"],
                [Curve(each["label"], each["at"], [Estimate(**v) for v in each["values"]]) for each in plot["curves"]],
            )
            for plot in found["plots"]
        ]
        return Findings(found["paper"], rows, plots)


def columns(found: Sequence[dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    """What was measured in each case -> (cases,) of each measure."""
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean and its interval.

    Args:
        values: (N,), independent, which are resampled; or (clusters, N), where those of a cluster have something in
            common: the interval is Student's over the clusters' means, as there are few of them.
    """
    sample = np.asarray(values, float)
    if sample.ndim == 2:
        means = sample.mean(1)
        reach = stdtrit(len(means) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(means))
        low, high = means.mean() - reach, means.mean() + reach
    else:
        drawn = np.random.default_rng(0).integers(0, len(sample), (RESAMPLINGS, len(sample)))
        low, high = np.percentile(sample[drawn].mean(1), (2.5, 97.5))
    return Estimate(float(sample.mean()), float(low), float(high), sample.size)


def above(
    paper: str,
    claim: str,
    metric: str,
    values: Sequence[float] | np.ndarray,
    limit: float = 0.0,
    note: str = "",
    if_not: str = "",
) -> Row:
    """A row that holds if the whole interval of the mean lies above a limit; of few cases nothing is said.

    Args:
        note: is added to the row; if_not: only where it does not hold.
    """
    found = estimate(values)
    if found.count < FEWEST:
        return Row(paper, claim, metric, found, None, f"too few cases, {FEWEST} are needed")
    holds = found.low > limit
    return Row(paper, claim, metric, found, holds, note if holds else note or if_not)


def below(paper: str, claim: str, metric: str, values: Sequence[float] | np.ndarray, limit: float) -> Row:
    """The same for a claim that holds below a limit."""
    row = above(paper, claim, metric, values)
    holds = None if row.holds is None or row.estimate is None else row.estimate.high < limit
    return replace(row, holds=holds)


def slopes(at: Sequence[float], values: np.ndarray) -> np.ndarray:
    """(..., settings) -> (...): how much each series rises for one unit of the setting."""
    centred = np.asarray(at) - np.mean(at)
    return (values * centred).sum(-1) / np.square(centred).sum()
