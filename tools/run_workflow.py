"""Runs a workflow once for each row of a table of input values, on hosts that run already or one started for it.

    python tools/run_workflow.py workflows/api/refdrop.json --table rows.csv --output results --host 127.0.0.1:8188

A column is named node.input, where node is an id, a title or a class of the workflow: KSampler.seed, 6.text. Started
again with the same folder, it goes on where it was stopped. Needs what ComfyUI itself needs, nothing else.
docs/batch.md explains it all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from batch.answers import Unusable, understood
from batch.attempt import versions_of
from batch.client import Client
from batch.files import digest, parse_json
from batch.hosts import HostMissing, OwnHost, await_host
from batch.jobs import Plan
from batch.ledger import Ledger, LedgerError
from batch.overrides import Workflow
from batch.run import Batch, Host, Limits
from batch.signals import stop_like_ctrl_c
from batch.table import Row, TableError, read_table
from cluster import command
from cluster.connection import ClusterError
from host_process import HostError

from workflow import WorkflowFormatError, ui_to_api

OK, ROWS_FAILED, USAGE, STOPPED = 0, 1, 2, 130
MISTAKES = (TableError, LedgerError, WorkflowFormatError, HostMissing, HostError, Unusable, ClusterError)
DEFAULT_HOST = "127.0.0.1:8188"


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("workflow", type=Path, help="a workflow file, as the editor saves it or in API format")
    add(
        "--table",
        type=Path,
        help="overrides: .csv, .tsv, .txt (commas, semicolons or tabs) or .jsonl; without, one run",
    )
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for every row")
    add("--upload-from", action="append", type=Path, default=[], metavar="FOLDER", help="files here may be sent too")
    add("--output", type=place, required=True, help="folder for results and manifest.jsonl; with --ray, a URL too")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--host", action="append", help=f"address of a running ComfyUI ({DEFAULT_HOST}); several share the rows"
    )
    where.add_argument("--start", type=Path, metavar="FOLDER", help="start the ComfyUI in this folder, and stop it")
    add("--host-args", default="", help="what to start it with, in quotes: --host-args='--lowvram'")
    add("--retries", type=_count, default=2, help="how often a failed row is sent again (%(default)s)")
    add("--max-failures", type=_count, metavar="N", help="begin no other row once N have failed")
    add("--row-timeout", type=float, metavar="SECONDS", help="an attempt that takes longer has failed")
    add("--wait", type=float, default=120, help="seconds to wait for a host that is gone (%(default)s)")
    add("--dry-run", action="store_true", help="check everything, print what would run, and write nothing")
    command.add_options(parser)
    return parser.parse_args(command_line)


def place(text: str) -> Path | str:
    """A folder, or a URL as it is."""
    return text if "://" in text else Path(text)


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def rows_of(table: Path | None) -> Iterator[Row]:
    """The table's rows, or one without values of its own."""
    return read_table(table) if table else iter([Row(1, "0001", {})])


def common_of(settings: Sequence[str]) -> dict[str, str]:
    """Column -> value of --set."""
    common = {}
    for each in settings:
        column, equals, value = each.partition("=")
        if not equals:
            raise TableError(f"--set {each}: write NODE.INPUT=VALUE.")
        if column in common:
            raise TableError(f"--set {column} is there twice.")
        common[column] = value
    return common


def read_workflow(path: Path) -> dict[str, Any]:
    """The parsed file.

    Raises: WorkflowFormatError when it holds no workflow.
    """
    try:
        graph = parse_json(path.read_bytes())
    except ValueError as error:
        raise WorkflowFormatError(f"{path} is no workflow: {error}.") from error
    if not isinstance(graph, dict):
        raise WorkflowFormatError(f"{path} is no workflow.")
    return graph


def api_of(graph: dict[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The workflow in API format.

    Raises: WorkflowFormatError when it is in neither format.
    """
    if "nodes" in graph:
        return ui_to_api(graph, object_info)
    for name, node in graph.items():
        if not isinstance(node, dict) or "class_type" not in node or not isinstance(node.get("inputs"), dict):
            raise WorkflowFormatError(f"The file is no workflow: {name!r} is no node. Save or export it in the editor.")
    return graph


def about_of(options: argparse.Namespace, graph: dict[str, Any]) -> dict[str, Any]:
    """The manifest's first line."""
    return {"workflow": options.workflow.name, "workflow_sha256": digest(graph)}


def plan_of(options: argparse.Namespace, graph: dict[str, Any], about_nodes: Mapping[str, Any]) -> Plan:
    """What is to be run, in the eyes of a host that has these nodes."""
    workflow = Workflow(api_of(graph, about_nodes), about_nodes)
    # As seen from anywhere: workers of a cluster run in other folders.
    folder = options.table.parent.absolute() if options.table else Path().absolute()
    return Plan(workflow, common_of(options.set), folder, options.upload_from)


def on_cluster(options: argparse.Namespace, graph: dict[str, Any]) -> int:
    """Runs the rows on a Ray cluster; the exit status."""
    for option, is_given in (("--dry-run", options.dry_run), ("--max-failures", options.max_failures is not None)):
        if is_given:
            raise ClusterError(f"{option} is not for --ray.")
    plan = functools.partial(plan_of, options, graph)
    failed = command.run(options, about_of(options, graph), plan, lambda: rows_of(options.table))
    return ROWS_FAILED if failed else OK


async def work(options: argparse.Namespace, graph: dict[str, Any], ledger: Ledger, host: OwnHost | None) -> int:
    """Checks the table and runs the rows, or only prints them; the exit status."""
    async with contextlib.AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(_connected(url, ledger, options.wait, host))
            for url in ([host.url] if host else dict.fromkeys(options.host or [DEFAULT_HOST]))
        ]
        about_nodes = await _node_descriptions([each.client for each in hosts])
        plan = plan_of(options, graph, about_nodes)
        number = plan.check(rows_of(options.table))
        if options.dry_run:
            _print_rows(plan, rows_of(options.table), ledger)
            return OK
        limits = Limits(options.retries, options.row_timeout, options.max_failures)
        batch = Batch(hosts, ledger, about_nodes, limits)
        await batch.run(plan.jobs(rows_of(options.table)), number)
    if batch.gave_up:
        print(f"Stopped after {batch.failed} failed rows (--max-failures); see {options.output / 'manifest.jsonl'}")
    else:
        print(f"{number - batch.failed} of {number} rows are done; see {options.output / 'manifest.jsonl'}")
    return ROWS_FAILED if batch.failed else OK


@contextlib.asynccontextmanager
async def _connected(address: str, ledger: Ledger, seconds: float, own: OwnHost | None) -> Any:
    url = address if "://" in address else f"http://{address}"
    async with Client(url, ledger.run) as client:

        async def revive() -> None:
            if own:
                await _started(own)
            await await_host(client, seconds)

        await revive()
        yield Host(client, revive, own.stop if own else None)


async def _started(own: OwnHost) -> None:
    """In a thread, so that the command can be stopped meanwhile."""
    try:
        await asyncio.to_thread(own.revive)
    except asyncio.CancelledError:
        own.stop()  # or the thread, and with it the command, would wait until the host answers
        raise


async def _node_descriptions(clients: Sequence[Client]) -> dict[str, Any]:
    """What the hosts know about their nodes; that has to be the same for what the workflow may use.

    Raises: HostMissing naming the host that is another one than the first.
    """
    first = None
    for client in clients:
        info = await client.get("/object_info")
        with understood("its nodes"):
            names = {name for name, each in info.items() if each["input"] is not None}
            version = (await versions_of(client))["comfyui"]
        if first is None:
            first = version, names, info
        elif (version, names) != first[:2]:
            raise HostMissing(
                f"{client.url} has another ComfyUI ({version}) or other nodes than {clients[0].url} ({first[0]}): "
                f"{', '.join(sorted(names ^ first[1])[:5])}. Rows are shared among equal hosts only."
            )
    assert first is not None
    return dict(first[2])


def _print_rows(plan: Plan, rows: Iterator[Row], ledger: Ledger) -> None:
    counts = {"done": 0, "would run": 0}
    for job in plan.jobs(rows):
        state = "done" if ledger.is_done(job.key) else "would run"
        counts[state] += 1
        values = ", ".join(f"{column}={value!r}" for column, value in job.row.overrides.items())
        print(f"{job.row.number} {job.row.name}: {state}: {values}")
        for upload in job.uploads:
            print(f"    sends {upload.path}")
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


def main(command_line: Sequence[str]) -> int:
    """0 when all rows are done, 1 when some failed, 2 when nothing could be run, 130 when stopped by Ctrl-C."""
    options = arguments_of(command_line)
    stop_like_ctrl_c()
    try:
        graph = read_workflow(options.workflow)
        for _ in rows_of(options.table):  # what is wrong with the table itself needs no host
            pass
        if options.ray:
            return on_cluster(options, graph)
        if not isinstance(options.output, Path):
            raise LedgerError(f"--output {options.output}: without --ray, it is a folder of this machine.")
        ledger = Ledger(options.output, about_of(options, graph))
        with contextlib.ExitStack() as stack:
            if options.dry_run:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                ledger.look()
            else:
                folder = options.output
                # Before anything else is written: the folder may be someone else's.
                stack.enter_context(ledger)
            host = OwnHost(options.start, folder, options.host_args) if options.start else None
            if host:
                stack.callback(host.stop)
            return asyncio.run(work(options, graph, ledger, host))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return STOPPED
    except (*MISTAKES, aiohttp.ClientError, OSError) as error:
        said = f"{error.filename}: {error.strerror}." if isinstance(error, OSError) and error.filename else error
        print(said, file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
