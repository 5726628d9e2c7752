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
import errno
import functools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from batch.answers import Unusable, understood
from batch.arguments import address, at_least, distinct
from batch.attempt import versions_of
from batch.client import Client
from batch.files import digest, parse_json
from batch.hosts import HostMissing, OwnHost, await_host
from batch.jobs import Plan
from batch.ledger import Ledger, LedgerError
from batch.overrides import Workflow
from batch.run import Batch, Due, Host, Limits
from batch.signals import stop_like_ctrl_c
from batch.table import Faults, Row, TableError, check_table, read_table
from cluster import command
from cluster.connection import ClusterError
from host_process import HostError

from workflow import WorkflowFormatError, ui_to_api

OK, ROWS_FAILED, USAGE, STOPPED = 0, 1, 2, 130
MISTAKES = (TableError, LedgerError, WorkflowFormatError, HostMissing, HostError, Unusable, ClusterError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
MOST_GONE = 5
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
        "--host",
        type=address,
        action="append",
        help=f"address of a running ComfyUI ({DEFAULT_HOST}); several share the rows",
    )
    where.add_argument("--start", type=Path, metavar="FOLDER", help="start the ComfyUI in this folder, and stop it")
    add("--host-args", default="", help="what to start it with, in quotes: --host-args='--lowvram'")
    add("--unchecked", action="store_true", help="leave it to ComfyUI to refuse values that do not fit its nodes")
    add("--again", action="append", default=[], metavar="NAME", help="run this row though it is done")
    add("--again-missing", action="store_true", help="run rows that are done but whose results are gone")
    add("--retries", type=at_least(0, int), default=2, help="how often a failed row is sent again (%(default)s)")
    add("--max-failures", type=at_least(1, int), metavar="N", help="begin no other row once N have failed")
    add("--row-timeout", type=at_least(0.1), metavar="SECONDS", help="an attempt that takes longer has failed")
    add("--wait", type=at_least(0), default=120, help="seconds to wait for a host that is gone (%(default)s)")
    add("--dry-run", action="store_true", help="check everything, print what would run, and write nothing")
    command.add_options(parser)
    return parser.parse_args(command_line)


def place(text: str) -> Path | str:
    """A folder, or a URL as it is."""
    return text if "://" in text else Path(text)


def rows_of(table: Path | None) -> Iterator[Row]:
    """The table's rows, or one without values of its own."""
    return read_table(table) if table else iter([Row(1, "0001", {})])


def check_rows(options: argparse.Namespace) -> None:
    """Checks what needs no host.

    Raises: TableError.
    """
    faults = Faults()
    if options.table:
        check_table(options.table, faults)
    faults.raise_any()
    if options.again:
        for name in sorted(set(options.again).difference(row.name for row in rows_of(options.table))):
            faults.add("", f"--again {name}: the table has no row of this name.")
        faults.raise_any()


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
    if not graph:
        raise WorkflowFormatError("The file is no workflow: it has no nodes. Save or export it in the editor.")
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
    return Plan(workflow, common_of(options.set), folder, options.upload_from, options.unchecked)


def on_cluster(options: argparse.Namespace, graph: dict[str, Any]) -> int:
    """Runs the rows on a Ray cluster; the exit status."""
    for option in ("dry_run", "max_failures", "again", "again_missing"):
        if getattr(options, option):
            raise ClusterError(f"--{option.replace('_', '-')} is not for --ray.")
    plan = functools.partial(plan_of, options, graph)
    failed = command.run(options, about_of(options, graph), plan, lambda: rows_of(options.table))
    return ROWS_FAILED if failed else OK


async def work(options: argparse.Namespace, graph: dict[str, Any], ledger: Ledger, own: OwnHost | None) -> int:
    """Checks the table and runs the rows, or only prints them; the exit status."""
    async with contextlib.AsyncExitStack() as stack:
        hosts = await _connected(options, ledger, own, stack)
        plan, number, about_nodes = await _checked(options, graph, hosts)
        due = Due(ledger, options.again, options.again_missing)
        if options.dry_run:
            _print_rows(plan, options, due)
            return OK
        limits = Limits(options.retries, options.row_timeout, options.max_failures)
        batch = Batch(hosts, ledger, about_nodes, limits, due)
        await batch.run(plan.jobs(rows_of(options.table)), number)
    if batch.gave_up:
        print(f"Stopped after {batch.failed} failed rows (--max-failures); see {options.output / 'manifest.jsonl'}")
    else:
        print(f"{number - batch.failed} of {number} rows are done; see {options.output / 'manifest.jsonl'}")
    if due.gone:
        some = ", ".join(list(due.gone.values())[:MOST_GONE]) + (", …" if len(due.gone) > MOST_GONE else "")
        print(f"The results of {len(due.gone)} of these are gone: {some}. --again-missing makes them again.")
    return ROWS_FAILED if batch.failed else OK


async def _checked(
    options: argparse.Namespace, graph: dict[str, Any], hosts: Sequence[Host]
) -> tuple[Plan, int, Mapping[str, Any]]:
    """The plan, the number of its rows, and what the first host knows about its nodes.

    Raises: TableError when a host would refuse a row, or has not a file that one names; HostMissing when versions
        differ.
    """
    first: tuple[Plan, int, Mapping[str, Any]] | None = None
    for host in hosts:
        about_nodes = await _node_descriptions(host.client)
        faults = Faults(f"{host.client.url}: " if len(hosts) > 1 else "")
        if first is None:
            plan = plan_of(options, graph, about_nodes)
            first = plan, plan.check(rows_of(options.table), faults), about_nodes
        elif host.versions["comfyui"] != hosts[0].versions["comfyui"]:
            versions = (f"{each.client.url} has ComfyUI {each.versions['comfyui']}" for each in (hosts[0], host))
            raise HostMissing(f"{', but '.join(versions)}. Rows are shared among equal hosts only.")
        else:
            # Equal in what the workflow uses: files of models may differ, as long as no row needs those.
            plan, prompt = first[0], first[0].workflow.prompt
            if any(about_nodes.get(kind) != first[2].get(kind) for kind in {n["class_type"] for n in prompt.values()}):
                plan = plan_of(options, prompt, about_nodes)
                plan.check(rows_of(options.table), faults)
        for name, (row, text) in plan.elsewhere.items():
            if not await host.client.has_input(name):
                faults.add(row, text)
        faults.raise_any()
    assert first is not None
    return first


async def _connected(
    options: argparse.Namespace, ledger: Ledger, own: OwnHost | None, stack: contextlib.AsyncExitStack
) -> list[Host]:
    """The hosts that answer.

    Raises: HostMissing when none does.
    """
    seconds = 0 if options.dry_run else options.wait
    hosts = []
    for url in [own.url] if own else distinct(options.host or [address(DEFAULT_HOST)]):
        client = await stack.enter_async_context(Client(url, ledger.run))
        hosts.append(Host(client, functools.partial(_revive, client, seconds, own), own.stop if own else None))
    missing = await asyncio.gather(*(_missing(host) for host in hosts))
    found = [host for host, error in zip(hosts, missing, strict=True) if not error]
    for error in filter(None, missing):
        if not found:
            raise error
        print(f"{error} The rows go to the other hosts.", file=sys.stderr)
    for host in found:
        host.versions = await versions_of(host.client)
    return found


async def _missing(host: Host) -> HostMissing | None:
    try:
        await host.revive()
    except HostMissing as error:
        return error
    return None


async def _revive(client: Client, seconds: float, own: OwnHost | None) -> None:
    if own:
        await _started(own)
    await await_host(client, seconds)


async def _started(own: OwnHost) -> None:
    """In a thread, so that the command can be stopped meanwhile."""
    try:
        await asyncio.to_thread(own.revive)
    except asyncio.CancelledError:
        own.stop()  # or the thread, and with it the command, would wait until the host answers
        raise


async def _node_descriptions(client: Client) -> dict[str, Any]:
    info = await client.get("/object_info")
    with understood("its nodes"):
        return {name: each for name, each in info.items() if each["input"] is not None}


def _print_rows(plan: Plan, options: argparse.Namespace, due: Due) -> None:
    common = common_of(options.set)
    if common:
        print(f"for every row: {_values(common)}")
    counts = {"done": 0, "would run": 0}
    for row, job in zip(rows_of(options.table), plan.jobs(rows_of(options.table)), strict=True):
        state = "would run" if due(job) else "done"
        counts[state] += 1
        gone = f", but {due.gone[job.key]} is gone (--again-missing)" if job.key in due.gone else ""
        print(f"{row.number} {row.name}: {state}{gone}{': ' * bool(row.overrides)}{_values(row.overrides)}")
        for upload in job.uploads if state == "would run" else ():
            print(f"    sends {upload.path}")
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


def _values(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{column}={value!r}" for column, value in overrides.items())


def main(command_line: Sequence[str]) -> int:
    """0: all rows are done, 1: some failed, 2: it could not begin or go on, 130: it was stopped from outside."""
    options = arguments_of(command_line)
    stop_like_ctrl_c()
    try:
        graph = read_workflow(options.workflow)
        check_rows(options)
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
        print(_said(error, options.output), file=sys.stderr)
        return USAGE


def _said(error: Exception, output: Path | str) -> str:
    if not isinstance(error, OSError) or isinstance(error, aiohttp.ClientError):
        return str(error)
    full = " Make room; the same command goes on from here." if error.errno in NO_ROOM else ""
    return f"{error.filename or output}: {error.strerror or error}.{full}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
