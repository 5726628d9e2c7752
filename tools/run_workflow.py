"""Runs a workflow once for each row of a table of input values, on a host that runs already or is started for it.

    python tools/run_workflow.py workflows/api/refdrop.json --table rows.csv --output results --host 127.0.0.1:8188

A column is named node.input, where node is an id, a title or a class of the workflow: KSampler.seed, 6.text. Started
again with the same folder, it goes on where it was stopped. Needs what ComfyUI itself needs, nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from batch.client import Client
from batch.hosts import HostMissing, OwnHost, await_host
from batch.ledger import Ledger, LedgerError, digest
from batch.run import Batch, prepare
from batch.table import Row, TableError, read_table
from host_process import HostError

from workflow import WorkflowFormatError, ui_to_api

OK, ROWS_FAILED, USAGE, STOPPED = 0, 1, 2, 130
MISTAKES = (TableError, LedgerError, WorkflowFormatError, HostMissing, HostError, json.JSONDecodeError)


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("workflow", type=Path, help="a workflow file, as the editor saves it or in API format")
    parser.add_argument("--table", type=Path, help="a .csv or .jsonl file of overrides; without it, one run")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for every row")
    parser.add_argument("--output", type=Path, required=True, help="folder for results and manifest.jsonl")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="127.0.0.1:8188", help="address of a running ComfyUI (default: %(default)s)")
    where.add_argument("--start", type=Path, metavar="FOLDER", help="start the ComfyUI in this folder, and stop it")
    parser.add_argument("--host-args", default="", help="what to start it with, in quotes: --host-args='--lowvram'")
    parser.add_argument("--retries", type=int, default=2, help="how often a failed row is sent again (%(default)s)")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for a host that is gone (%(default)s)")
    return parser.parse_args(command_line)


def rows_of(options: argparse.Namespace) -> list[Row]:
    """The table's rows with the values of --set; a row's own value wins."""
    common = {}
    for each in options.set:
        column, equals, value = each.partition("=")
        if not equals:
            raise TableError(f"--set {each}: write NODE.INPUT=VALUE.")
        common[column] = value
    rows = read_table(options.table) if options.table else [Row(1, "0001", {})]
    return [Row(row.number, row.name, {**common, **row.overrides}) for row in rows]


async def work(options: argparse.Namespace, host: OwnHost | None) -> int:
    """Runs the rows and returns how many failed."""
    graph = json.loads(options.workflow.read_text(encoding="utf-8"))
    rows = rows_of(options)
    about = {"workflow": options.workflow.name, "workflow_sha256": digest(graph)}
    with Ledger(options.output, about) as ledger:
        url = host.url if host else options.host if "://" in options.host else f"http://{options.host}"
        async with Client(url, ledger.run) as client:

            async def revive() -> None:
                if host:
                    host.revive()
                await await_host(client, options.wait)

            await revive()
            about_nodes = await client.get("/object_info")
            prompt = ui_to_api(graph, about_nodes) if "nodes" in graph else graph
            folder = options.table.parent if options.table else Path()
            jobs = await prepare(client, prompt, rows, folder, about_nodes)
            failed = await Batch(client, ledger, options.retries, revive).run(jobs)
    print(f"{len(jobs) - failed} of {len(jobs)} rows are done; see {options.output / 'manifest.jsonl'}")
    return failed


def main(command_line: Sequence[str]) -> int:
    """0 when all rows are done, 1 when some failed, 2 when nothing could be run, 130 when stopped by Ctrl-C."""
    options = arguments_of(command_line)
    host: OwnHost | None = None
    try:
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
