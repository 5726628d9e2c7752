"""Runs a workflow once for each row of a table of input values, on a host that runs already or is started for it.

    python tools/run_workflow.py workflows/api/refdrop.json --table rows.csv --output results --host 127.0.0.1:8188

A column is named node.input, where node is an id, a title or a class of the workflow: KSampler.seed, 6.text. Started
again with the same folder, it goes on where it was stopped. Needs what ComfyUI itself needs, nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.answers import Unusable
from batch.client import Client
from batch.files import digest, parse_json
from batch.hosts import HostMissing, OwnHost, await_host
from batch.jobs import Plan
from batch.ledger import Ledger, LedgerError
from batch.overrides import Workflow
from batch.run import Batch
from batch.table import Row, TableError, read_table
from cluster import command
from cluster.connection import ClusterError
from host_process import HostError

from workflow import WorkflowFormatError, ui_to_api

OK, ROWS_FAILED, USAGE, STOPPED = 0, 1, 2, 130
MISTAKES = (TableError, LedgerError, WorkflowFormatError, HostMissing, HostError, Unusable, ClusterError)


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("workflow", type=Path, help="a workflow file, as the editor saves it or in API format")
    parser.add_argument("--table", type=Path, help="a .csv or .jsonl file of overrides; without it, one run")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for every row")
    parser.add_argument(
        "--upload-from", action="append", type=Path, default=[], metavar="FOLDER", help="files here may be sent too"
    )
    parser.add_argument(
        "--output", type=place, required=True, help="folder for results and manifest.jsonl; with --ray, a URL too"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="127.0.0.1:8188", help="address of a running ComfyUI (default: %(default)s)")
    where.add_argument("--start", type=Path, metavar="FOLDER", help="start the ComfyUI in this folder, and stop it")
    parser.add_argument("--host-args", default="", help="what to start it with, in quotes: --host-args='--lowvram'")
    parser.add_argument("--retries", type=int, default=2, help="how often a failed row is sent again (%(default)s)")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for a host that is gone (%(default)s)")
    command.add_options(parser)
    return parser.parse_args(command_line)


def place(text: str) -> Path | str:
    """A folder, or a URL as it is."""
    return text if "://" in text else Path(text)


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


def about_of(options: argparse.Namespace, graph: dict[str, Any]) -> dict[str, Any]:
    """The manifest's first line."""
    return {"workflow": options.workflow.name, "workflow_sha256": digest(graph)}


def plan_of(options: argparse.Namespace, graph: dict[str, Any], about_nodes: Mapping[str, Any]) -> Plan:
    """What is to be run, in the eyes of a host that has these nodes."""
    prompt = ui_to_api(graph, about_nodes) if "nodes" in graph else graph
    # As seen from anywhere: workers of a cluster run in other folders.
    folder = options.table.parent.absolute() if options.table else Path().absolute()
    return Plan(Workflow(prompt, about_nodes), common_of(options.set), folder, options.upload_from)


def on_cluster(options: argparse.Namespace) -> int:
    """Runs the rows on a Ray cluster and returns how many failed."""
    graph = read_workflow(options.workflow)
    plan = functools.partial(plan_of, options, graph)
    return command.run(options, about_of(options, graph), plan, lambda: rows_of(options.table))


async def work(options: argparse.Namespace, host: OwnHost | None) -> int:
    """Runs the rows and returns how many failed."""
    graph = read_workflow(options.workflow)
    with Ledger(options.output, about_of(options, graph)) as ledger:
        url = host.url if host else options.host if "://" in options.host else f"http://{options.host}"
        async with Client(url, ledger.run) as client:

            async def revive() -> None:
                if host:
                    host.revive()
                await await_host(client, options.wait)

            await revive()
            about_nodes = await client.get("/object_info")
            plan = plan_of(options, graph, about_nodes)
            number = plan.check(rows_of(options.table))
            batch = Batch(client, ledger, about_nodes, options.retries, revive)
            failed = await batch.run(plan.jobs(rows_of(options.table)), number)
    print(f"{number - failed} of {number} rows are done; see {options.output / 'manifest.jsonl'}")
    return failed


def main(command_line: Sequence[str]) -> int:
    """0 when all rows are done, 1 when some failed, 2 when nothing could be run, 130 when stopped by Ctrl-C."""
    options = arguments_of(command_line)
    host: OwnHost | None = None
    try:
        if options.ray:
            return ROWS_FAILED if on_cluster(options) else OK
        if not isinstance(options.output, Path):
            raise LedgerError(f"--output {options.output}: without --ray, it is a folder of this machine.")
        if options.start:
            options.output.mkdir(parents=True, exist_ok=True)
            host = OwnHost(options.start, options.output, options.host_args)
        return ROWS_FAILED if asyncio.run(work(options, host)) else OK
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return STOPPED
    except (*MISTAKES, OSError) as error:
        print(error, file=sys.stderr)
        return USAGE
    finally:
        if host:
            host.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
