"""`run_workflow --ray`: from the command line's options to a summary."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from batch.arguments import at_least
from batch.jobs import Plan
from batch.ledger import Ledger
from batch.signals import stop_like_ctrl_c
from batch.table import Faults, Row
from tqdm import tqdm

from cluster.actor import Settings
from cluster.connection import Cluster, ClusterError, connected
from cluster.driver import Budget, Driver, Summary
from cluster.fleet import Fleet
from cluster.results import FolderResults, Results

MOST_REASONS = 20
# What a file's name looks like; texts to draw a picture from are none.
FILE_NAME = re.compile(r"[^\n]{1,250}\.\w{1,12}")

MakePlan = Callable[[Mapping[str, Any]], Plan]
Rows = Callable[[], Iterator[Row]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What only matters on a cluster."""
    group = parser.add_argument_group("on a Ray cluster (docs/scale.md)")
    group.add_argument("--ray", metavar="ADDRESS", help="local (this machine's GPUs), auto, or HOST:PORT of a cluster")
    group.add_argument("--workers", default="auto", metavar="N", help="how many ComfyUIs; auto: as GPUs allow")
    group.add_argument(
        "--gpus-per-worker", type=at_least(0), default=1, metavar="N", help="0: on the CPU (%(default)s)"
    )
    group.add_argument("--accelerator-type", metavar="NAME", help="only on such GPUs, as Ray names them: A100")
    group.add_argument(
        "--losses", type=at_least(0, int), default=3, help="how many workers may die under a row (%(default)s)"
    )
    group.add_argument("--insecure", action="store_true", help="take a cluster that lets in everybody")


def run(options: argparse.Namespace, about: Mapping[str, Any], plan: MakePlan, rows: Rows) -> int:
    """Runs the rows on a cluster and returns how many failed.

    Args:
        about: the first line of the manifest.
        plan: makes the plan once it is known what ComfyUI knows about its node classes.
        rows: the table, from its first row, each time it is called.

    Raises: ClusterError, or what the one-host runner raises.
    """
    if not options.start:
        raise ClusterError("--ray needs --start FOLDER: each worker starts the ComfyUI in that folder of its machine.")
    if options.workers != "auto" and (not options.workers.isdigit() or not int(options.workers)):
        raise ClusterError(f"--workers {options.workers}: a number from 1, or auto, is needed.")
    output = str(options.output) if "://" in str(options.output) else str(options.output.absolute())
    with opened(output, about) as (name, results), connected(options.ray, options.insecure) as cluster:
        stop_like_ctrl_c()  # once more: Ray has its own way with signals
        settings = Settings(str(options.start), options.host_args, output, name, options.row_timeout)
        summary = asyncio.run(_work(options, settings, cluster, results, plan, rows))
    _tell(summary, output)
    return len(summary.reasons)


@contextlib.contextmanager
def opened(output: str, about: Mapping[str, Any]) -> Iterator[tuple[str, Results]]:
    """The run's name and its results."""
    if "://" in output:
        from cluster.objects import ObjectResults

        objects = ObjectResults(output, about)
        yield objects.run, objects
        return
    with Ledger(Path(output), about) as ledger:
        yield ledger.run, FolderResults(ledger)


async def _work(
    options: argparse.Namespace, settings: Settings, cluster: Cluster, results: Results, plan: MakePlan, rows: Rows
) -> Summary:
    from cluster.workers import RayWorker, actor_options, number_of

    number = number_of(options.workers, options.gpus_per_worker)
    print(f"{number} workers on {cluster.address}; Ray's dashboard: {cluster.dashboard}", file=sys.stderr)
    actor = actor_options(options.gpus_per_worker, options.accelerator_type)
    workers = [RayWorker(f"worker-{each}", settings, actor) for each in range(1, number + 1)]
    try:
        fleet = Fleet(workers, options.wait, lambda text: tqdm.write(text, file=sys.stderr))
        checked = plan(await fleet.object_info())
        names: set[str] = set()
        faults = Faults()
        total = checked.check(_noted(rows(), names), faults)
        faults.raise_any()
        nodes = checked.workflow.prompt.values()
        _note(names, (value for node in nodes for value in node["inputs"].values()))
        await fleet.compare({node["class_type"] for node in nodes}, names, cluster.node)
        with tqdm(total=total, unit="row", disable=None) as bar:
            driver = Driver(fleet, results, Budget(options.retries, options.losses), bar)
            summary = await driver.run(checked.jobs(rows()))
        await fleet.stop()
        results.tidy()
        return summary
    finally:
        for worker in workers:
            worker.end()


def _noted(rows: Iterator[Row], names: set[str]) -> Iterator[Row]:
    for row in rows:
        _note(names, row.overrides.values())
        yield row


def _note(names: set[str], values: Any) -> None:
    names.update(value for value in values if isinstance(value, str) and FILE_NAME.fullmatch(value))


def _tell(summary: Summary, output: str) -> None:
    for name, reason in list(summary.reasons.items())[:MOST_REASONS]:
        print(f"Row {name} is set aside: {reason}")
    if len(summary.reasons) > MOST_REASONS:
        print(f"… and {len(summary.reasons) - MOST_REASONS} more")
    if summary.reasons:
        print("Raise --retries or --losses to have them tried again.")
    print(
        f"{summary.done} of {summary.rows} rows are done, after {summary.starts} starts and {summary.losses} lost "
        f"workers; see {output}/manifest.jsonl"
    )
