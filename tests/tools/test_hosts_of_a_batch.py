"""The whole command against stub hosts: hostile ones, gone ones, slow ones, several of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import run_workflow
from aiohttp import web
from batch import client, run
from batch.hosts import HostMissing, OwnHost
from batch.jobs import Job
from batch.ledger import Ledger, Record
from batch.table import Row
from stub_host import INFO, PROMPT, STATS, StubHost, image

from host import ROOT


class Folder:
    """A workflow, its table and its results."""

    def __init__(self, path: Path, *texts: str, rows: str = "", name: str = "t.csv") -> None:
        self.path, self.results = path, path / "results"
        (path / "workflow.json").write_text(json.dumps(PROMPT), encoding="utf-8")
        lines = ["name,1.text", *(f"{text},{text}" for text in texts)]
        (path / name).write_text(rows or "\n".join(lines), encoding="utf-8")
        self.table = path / name

    def command(self, *hosts: StubHost) -> list[str]:
        addresses = [word for host in hosts for word in ("--host", host.url)]
        files = [str(self.path / "workflow.json"), "--table", str(self.table), "--output", str(self.results)]
        return [*files, *addresses, "--wait", "0"]

    def run(self, *hosts: StubHost, more: tuple[str, ...] = ("--retries", "0")) -> int:
        return run_workflow.main([*self.command(*hosts), *more])

    def records(self) -> list[dict[str, Any]]:
        lines = (self.results / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[1:]]

    def states(self) -> dict[str, str]:
        return {record["inputs"]["1.text"]: record["state"] for record in self.records()}


def mistakes(folder: Folder, capsys: pytest.CaptureFixture[str], *hosts: StubHost, more: tuple[str, ...] = ()) -> str:
    """What a dry run says that finds something wrong."""
    assert folder.run(*hosts, more=("--dry-run", *more)) == 2
    assert not folder.results.exists()
    return capsys.readouterr().err.strip()


LOADING = {**PROMPT, "2": {"class_type": "Save", "inputs": {"source": ["3", 0]}}}
LOADING["3"] = {"class_type": "Load", "inputs": {"image": "x.png"}}


@pytest.fixture
def host() -> Iterator[StubHost]:
    with StubHost() as stub:
        yield stub


@pytest.mark.parametrize(
    "outputs",
    [
        *(image(name) for name in ("..", "", "a\0b", "x" * 300, 7, None, "a/..", "\ud800")),
        *(image("a.png", subfolder=5), image("a.png", type=["output"]), None, 7, "text"),
    ],
    ids=str,
)
def test_row_with_an_answer_that_no_host_gives_fails_and_the_others_go_on(
    host: StubHost, tmp_path: Path, outputs: Any
) -> None:
    host.outputs = lambda text: outputs if text == "bad" else image("fine.png")
    folder = Folder(tmp_path, "bad", "good")
    assert folder.run(host) == 1
    assert folder.states() == {"bad": "failed", "good": "done"}
    assert "cannot be used" in folder.records()[0]["error"]
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [path for path in kept if path.startswith("results/good/")] == [
        f"results/good/{name}" for name in ("fine.png", "outputs.json", "prompt.json")
    ]
    assert not [path for path in kept if not path.startswith(("results/", "t.csv", "workflow.json"))]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [300, 900])
def test_what_is_nested_too_deeply_to_be_written_fails_one_row(host: StubHost, tmp_path: Path, depth: int) -> None:
    answer = {"2": {"images": nested(depth)}}

    async def deep(request: web.Request) -> web.Response | None:
        entry = {"status": {"status_str": "success"}, "outputs": answer}
        if len(host.queued) != 1:
            return None
        return web.Response(text=json.dumps({request.path.rpartition("/")[2]: entry}))

    host.routes["/history/"] = deep
    folder = Folder(tmp_path, "bad", "good")
    assert folder.run(host) in (0, 1) and folder.states()["good"] == "done"


def test_long_names_and_long_reasons(host: StubHost, tmp_path: Path) -> None:
    twice = [{"filename": "x" * 251 + ".png", "subfolder": each} for each in "ab"]
    host.outputs = lambda text: {"2": {"images": twice}}
    folder = Folder(tmp_path, "twice")
    assert folder.run(host) == 0
    assert sorted(map(len, folder.records()[0]["files"])) == [255, 255]

    async def refuses(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "\x1b[2J" + "x" * 1_000_000}}, status=400)

    host.routes["/prompt"] = refuses
    (tmp_path / "other").mkdir()
    folder = Folder(tmp_path / "other", "refused")
    assert folder.run(host) == 1
    error = folder.records()[0]["error"]
    assert len(error) <= 10_000 and "\x1b" not in error


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/history/", web.Response(text="[" * 200_000, content_type="application/json")),
        ("/history/", web.Response(text="nonsense", content_type="application/json")),
        ("/history/", web.Response(text="[]")),
        ("/queue", web.Response(text='{"queue_running": null}')),
        ("/prompt", web.Response(text='{"node_errors": 3}', status=400)),
        ("/prompt", web.Response(status=500)),
        ("/view", web.Response(status=302, headers={"Location": "/elsewhere"})),
    ],
)
def test_malformed_answer_fails_one_row(host: StubHost, tmp_path: Path, path: str, answer: web.Response) -> None:
    """Of the first row alone."""
    done = threading.Event()

    async def once(request: web.Request) -> web.Response | None:
        if done.is_set():
            return None
        done.set()
        return web.Response(text=answer.text, body=None, status=answer.status, headers=answer.headers)

    host.routes[path] = once
    folder = Folder(tmp_path, "bad", "good")
    assert folder.run(host) == 1
    assert folder.states() == {"bad": "failed", "good": "done"}


def test_malformed_messages_of_progress_are_passed_over(host: StubHost, tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[" * 200_000, '{"type": "progress", "data": {"value": "x"}}', "7")):
        host.socket_text = text
        (tmp_path / str(number)).mkdir()
        assert Folder(tmp_path / str(number), "good").run(host) == 0


@pytest.mark.parametrize("path", ["/system_stats", "/object_info", "/queue", "/prompt", "/history/"])
def test_redirect_is_not_followed(host: StubHost, tmp_path: Path, path: str) -> None:
    with StubHost() as other:

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": other.url + path})

        host.routes[path] = redirect
        assert Folder(tmp_path, "a").run(host) != 0
        assert other.queued == []


def test_answers_without_an_end_are_refused(
    host: StubHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "MOST_JSON", 1 << 20)
    monkeypatch.setattr(client, "MOST_FILE", 1 << 20)

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(300):
            await answer.write(b" " * (1 << 20))
        return answer

    host.routes["/view"] = endless
    folder = Folder(tmp_path, "a")
    assert folder.run(host) == 1 and "is longer than" in folder.records()[0]["error"]
    host.routes["/object_info"] = endless
    assert folder.run(host) == 2 and "/object_info is longer than 1 MiB" in capsys.readouterr().err


def test_all_that_a_run_wrote_is_in_the_manifest(host: StubHost, tmp_path: Path) -> None:
    """Files deep in a node's output, under names of our own, in folders of models; nodes that name none."""
    deep = {"2": {"panel": [{"maps": {"filename": "maps.png", "type": "temp"}, "size": {"width": 5}}]}}
    names = [{"filename": name, "type": "output"} for name in ("prompt.json", "Prompt.json", "a.png")]
    model = {"filename": "subject_00001.safetensors", "subfolder": "p3s", "type": "model_patches"}
    host.outputs = lambda text: {"deep": deep, "names": {"2": {"any": names}}, "model": {"2": {"files": [model]}}}.get(
        text, {}
    )
    folder = Folder(tmp_path, "deep", "names", "model", "quiet")
    assert folder.run(host) == 0
    of_maps, of_names, of_model, quiet = folder.records()
    assert of_maps["files"].keys() == {"maps.png"}
    assert of_names["files"].keys() == {"prompt_2.json", "Prompt_3.json", "a.png"}
    assert json.loads((folder.results / "names" / "prompt.json").read_text())["1"]["inputs"]["text"] == "names"
    assert of_model["left_on_host"] == ["model_patches/p3s/subject_00001.safetensors"]
    assert quiet["named_no_files"] == {"2": "Save"} and "named_no_files" not in of_maps


def test_dry_run_prints_and_writes_nothing(host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, "a", "b")
    assert folder.run(host, more=("--dry-run",)) == 0
    assert not folder.results.exists() and host.queued == []
    assert "1 a: would run: 1.text='a'" in (out := capsys.readouterr().out) and "0 done, 2 would run" in out
    assert folder.run(host) == 0
    assert folder.run(host, more=("--dry-run",)) == 0
    assert "2 done, 0 would run" in capsys.readouterr().out


def test_no_more_rows_after_so_many_failures(
    host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.outputs = lambda text: None
    folder = Folder(tmp_path, *"abcd")
    assert folder.run(host, more=("--retries", "0", "--max-failures", "2")) == 1
    assert len(folder.records()) == 2 and "Stopped after 2 failed rows" in capsys.readouterr().out
    host.outputs = lambda text: image("a.png")
    assert folder.run(host) == 0 and list(folder.states().values()) == ["done"] * 4


def test_row_that_takes_too_long_is_cancelled_and_the_next_begins(host: StubHost, tmp_path: Path) -> None:
    host.hold = lambda text: text == "slow"
    folder = Folder(tmp_path, "slow", "quick")
    assert folder.run(host, more=("--retries", "1", "--row-timeout", "1")) == 1
    assert folder.states() == {"slow": "failed", "quick": "done"}
    slow = folder.records()[0]
    assert slow["error"] == "It took longer than 1 s." and slow["attempts"] == 2 and len(host.cancelled) == 2


def test_own_host_that_does_not_let_go_of_a_row_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And started anew for the next attempt; another's host is left alone."""
    monkeypatch.setattr(run, "LET_GO_SECONDS", 0.5)
    ended: list[str] = []

    async def one_row() -> Record:
        with StubHost() as stub:
            stub.hold = lambda text: True

            async def deaf(request: web.Request) -> web.Response | None:
                return web.json_response({}) if request.method == "POST" else None

            stub.routes["/queue"] = stub.routes["/interrupt"] = deaf
            with Ledger(tmp_path / "results", {"workflow_sha256": "w"}) as ledger:
                async with client.Client(stub.url, ledger.run) as each:

                    async def revive() -> None:
                        pass

                    host = run.Host(each, revive, lambda: ended.append("ended"))
                    batch = run.Batch([host], ledger, INFO, run.Limits(retries=0, row_seconds=0.5), run.Due(ledger))
                    job = Job("key-1", Row(1, "a", {}), PROMPT)
                    await batch.run(iter([job]), 1)
                    return ledger.last["key-1"]

    assert asyncio.run(one_row())["error"] == "It took longer than 0.5 s." and ended == ["ended"]


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "run_workflow.py"), *words]
    # Deaf to Ctrl-C, as a shell makes what it runs in the background; not to SIGHUP, as nohup would make the tests.
    wanted = {signal.SIGINT: signal.SIG_IGN, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until(true: Callable[[], Any]) -> None:
    limit = time.monotonic() + 30
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "lets_go"), [(signal.SIGTERM, 3.0), (signal.SIGHUP, 0.0)])
def test_row_that_a_stopped_runner_cancelled_is_sent_again(
    host: StubHost, tmp_path: Path, number: signal.Signals, lets_go: float
) -> None:
    """Whether the host is done with it or still works on it when the next runner comes."""
    host.hold, host.lets_go = lambda text: True, lets_go
    folder = Folder(tmp_path, "a")
    runner = started(*folder.command(host), "--retries", "0")
    wait_until(lambda: host.queued)
    runner.send_signal(number)
    assert runner.communicate(timeout=30)[1].endswith("Stopped. The same command goes on from here.\n")
    assert runner.returncode == 130 and len(host.cancelled) == 1 and folder.records() == []
    host.hold = lambda text: False
    assert folder.run(host) == 0
    (record,) = folder.records()
    assert record["state"] == "done" and record["attempts"] == 1 and len(host.queued) == 2


def test_own_host_that_is_starting_ends_with_the_command(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "a")
    runner = started(*folder.command(), "--start", str(comfy(tmp_path / "comfy")))
    wait_until((folder.results / ".host.json").exists)
    time.sleep(0.2)
    note = json.loads((folder.results / ".host.json").read_text())
    runner.terminate()
    assert "Stopped." in runner.communicate(timeout=30)[1] and runner.returncode == 130
    assert not psutil.pid_exists(note["pid"]) and not (folder.results / ".host.json").exists()


def test_rows_are_shared_among_hosts_and_go_on_without_one_that_is_gone(tmp_path: Path) -> None:
    with StubHost() as first, StubHost() as second:
        folder = Folder(tmp_path, *"abcdefgh")
        assert folder.run(first, second) == 0
        assert len(first.queued) + len(second.queued) == 8 and first.queued and second.queued

        async def gone(request: web.Request) -> None:
            assert request.transport is not None
            request.transport.close()

        (tmp_path / "other").mkdir()
        again = Folder(tmp_path / "other", *"abcd")

        async def gone_later(request: web.Request) -> None:
            if request.path == "/prompt":
                first.routes["/"] = gone
                await gone(request)

        first.routes["/prompt"] = gone_later
        assert again.run(first, second) == 0
        assert again.states() == dict.fromkeys("abcd", "done")
        assert {record["host"] for record in again.records()} == {second.url}


def test_hosts_must_be_equal_in_what_the_workflow_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubHost() as first, StubHost() as second:
        folder = Folder(tmp_path, "a")
        second.info = {**INFO, "More": INFO["Save"]}
        assert folder.run(first, second, more=("--dry-run",)) == 0
        second.info = {"Save": INFO["Save"]}
        said = mistakes(folder, capsys, first, second)
        assert said == f"{second.url}: Node 1: the host has no node 'Source'; install its pack."
        second.info = json.loads(json.dumps(INFO))
        second.info["Source"]["input"]["required"]["text"] = [["b"]]
        assert mistakes(folder, capsys, first, second) == (
            f"{second.url}: Row 1 (a): Column '1.text': 'a' is not one of b."
        )
        second.info = INFO
        assert folder.run(first, second, more=("--dry-run",)) == 0

        async def newer(_: web.Request) -> web.Response:
            return web.json_response({**STATS, "system": {"comfyui_version": "0.31.0"}})

        second.routes["/system_stats"] = newer
        said = mistakes(folder, capsys, first, second)
        assert f"{first.url} has ComfyUI 0.30.0, but {second.url} has ComfyUI 0.31.0" in said


def test_files_of_every_host_are_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubHost() as first, StubHost() as second:
        first.inputs = {"a/b.png"}
        folder = Folder(tmp_path, rows="Load.image\na/b.png\n")
        (tmp_path / "workflow.json").write_text(json.dumps(LOADING))
        assert mistakes(folder, capsys, first, second).startswith(f"{second.url}: Row 1 (0001): Column 'Load.image'")


def test_rows_go_to_the_hosts_that_answer_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubHost() as first:
        folder = Folder(tmp_path, "a")
        assert folder.run(first, more=("--host", "127.0.0.1:9", "--wait", "1")) == 0
        said = capsys.readouterr().err
        assert said.startswith("http://127.0.0.1:9 does not answer; waiting up to 1 s for it.\nNo ComfyUI answers at")
        assert "The rows go to the other hosts." in said and len(first.queued) == 1
    began = time.monotonic()
    assert folder.run(more=("--host", "127.0.0.1:9", "--wait", "60", "--dry-run")) == 2
    assert time.monotonic() - began < 10 and "No ComfyUI answers" in capsys.readouterr().err


def test_one_host_by_two_names_is_one(host: StubHost, tmp_path: Path) -> None:
    folder = Folder(tmp_path, "a")
    assert folder.run(host, more=("--host", host.url.replace("127.0.0.1", "localhost") + "/")) == 0
    assert "host" not in folder.records()[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host", "foo:bar"), "foo:bar: ADDRESS:PORT is needed"),
        (("--host", "ftp://foo"), "ftp://foo: ADDRESS:PORT is needed"),
        (("--retries", "-1"), "-1: a whole number from 0 is needed"),
        (("--retries", "x"), "x: a whole number from 0 is needed"),
        (("--max-failures", "0"), "0: a whole number from 1 is needed"),
        (("--row-timeout", "0"), "0: a number from 0.1 is needed"),
        (("--row-timeout", "inf"), "inf: a number from 0.1 is needed"),
        (("--wait", "nan"), "nan: a number from 0 is needed"),
    ],
)
def test_option_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str
) -> None:
    folder = Folder(tmp_path, "a")
    with pytest.raises(SystemExit, match="2"):
        folder.run(more=options)
    assert reason in capsys.readouterr().err and not folder.results.exists()


def test_results_that_are_gone_are_said_and_made_again_when_asked(
    host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path, *"abc")
    assert folder.run(host) == 0 and "are gone" not in capsys.readouterr().out
    shutil.rmtree(folder.results / "a")
    (folder.results / "b" / "b.png").unlink()
    assert folder.run(host) == 0 and len(host.queued) == 3
    said = "The results of 2 of these are gone: a, b/b.png. --again-missing makes them again."
    assert said in capsys.readouterr().out
    assert folder.run(host, more=("--dry-run",)) == 0
    out = capsys.readouterr().out
    assert "1 a: done, but a is gone (--again-missing)" in out and "3 c: done: 1.text='c'" in out
    assert folder.run(host, more=("--again-missing",)) == 0
    assert [each["1"]["inputs"]["text"] for each in host.queued[3:]] == ["a", "b"]
    assert [(record["name"], record["folder"]) for record in folder.records()[3:]] == [("a", "a_2"), ("b", "b_2")]
    assert (
        folder.run(host) == 0 and len(host.queued) == 5 and "are gone" not in capsys.readouterr().out.splitlines()[-1]
    )
    assert folder.run(host, more=("--again", "c")) == 0 and len(host.queued) == 6
    assert (folder.results / "c" / "c.png").exists() and (folder.results / "c_2" / "c.png").exists()
    assert folder.run(host, more=("--again", "d")) == 2
    assert "--again d: the table has no row of this name." in capsys.readouterr().err


def test_name_of_a_row_is_in_its_line_however_it_ended(host: StubHost, tmp_path: Path) -> None:
    host.outputs = lambda text: None if text == "bad" else image("a.png")
    folder = Folder(tmp_path, "good", "bad")
    assert folder.run(host) == 1
    assert [record["name"] for record in folder.records()] == ["good", "bad"]


def test_what_holds_for_all_rows_is_printed_once_and_a_row_that_is_done_sends_nothing(
    host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    folder = Folder(tmp_path, rows="Load.image\na.png\nx.png\n")
    (tmp_path / "workflow.json").write_text(json.dumps(LOADING))
    settings = ("--set", "1.text=same")
    assert folder.run(host, more=(*settings, "--dry-run")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "for every row: 1.text='same'",
        "1 0001: would run: Load.image='a.png'",
        f"    sends {tmp_path / 'a.png'}",
        "2 0002: would run: Load.image='x.png'",
        "0 done, 2 would run",
    ]
    assert folder.run(host, more=settings) == 0 and "\r" not in capsys.readouterr().err
    assert folder.run(host, more=(*settings, "--dry-run")) == 0 and "sends" not in capsys.readouterr().out


def test_empty_workflow_is_one_sentence(host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, "a")
    (tmp_path / "workflow.json").write_text("{}")
    assert mistakes(folder, capsys, host).startswith("The file is no workflow: it has no nodes.")


def test_file_is_sent_once_a_host_and_said(host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    folder = Folder(tmp_path, rows="3.image,1.text\na.png,x\na.png,y\n")
    workflow = {**PROMPT, "3": {"class_type": "Load", "inputs": {"image": "x.png"}}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    assert folder.run(host) == 0
    assert len(host.uploads) == 1 and host.uploads[0].endswith("-a.png")
    assert [each["3"]["inputs"]["image"] for each in host.queued] == host.uploads * 2
    assert capsys.readouterr().out.count(f"sends {tmp_path / 'a.png'} to {host.url}") == 1
    # Started anew on a host that calls the file something else, nothing is run again.
    with StubHost() as other:
        assert folder.run(other) == 0 and other.queued == []


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("t.csv", "\ufeffname;1.text;\r\na;x,y;\r\n;;\r\n"),
        ("t.csv", "sep=;\r\nname;1.text\r\na;x,y\r\n"),
        ("t.tsv", "name\t1.text\na\tx,y\n"),
        ("t.txt", '1.text\tname\n"x,y"\ta\n'),
    ],
)
def test_tables_as_excel_saves_them(host: StubHost, tmp_path: Path, name: str, rows: str) -> None:
    folder = Folder(tmp_path, rows=rows, name=name)
    assert folder.run(host) == 0
    assert [each["1"]["inputs"]["text"] for each in host.queued] == ["x,y"]
    folder.table.write_bytes(rows.lstrip("\ufeff").encode("utf-16"))
    assert folder.run(host) == 0 and len(host.queued) == 1


def comfy(folder: Path) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text("import time; time.sleep(60)")
    return folder


def test_planted_note_kills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note names a process of someone else, and what listens on the port claims to be our host."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder = comfy(tmp_path / "comfy")
    with StubHost() as host:
        port = int(host.url.rpartition(":")[2])

        async def claims(_: web.Request) -> web.Response:
            return web.json_response({"system": {"argv": [str(folder / "main.py"), "--port", str(port)]}})

        host.routes["/system_stats"] = claims
        (tmp_path / ".host.json").write_text(json.dumps({"pid": bystander.pid, "port": port}))
        own = OwnHost(folder, tmp_path, "")
        assert not own.url.endswith(f":{port}")
        own.stop()
        time.sleep(0.3)
        assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize("text", ["mine", '{"pid": -1, "port": 5}', '{"pid": "1", "port": 5}', "[" * 200_000])
def test_note_of_someone_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / ".host.json").write_text(text)
    with pytest.raises(HostMissing, match="was not made by this command"):
        OwnHost(comfy(tmp_path / "comfy"), tmp_path, "")
    assert (tmp_path / ".host.json").read_text() == text


def test_log_of_someone_else_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host.log").write_text("mine")
    own = OwnHost(comfy(tmp_path / "comfy"), tmp_path, "")
    monkeypatch.setattr(own._host, "_await_answer", lambda: None)
    own.revive()
    assert (tmp_path / "host.log").read_text() == "mine" and (tmp_path / "host_2.log").exists()
    note = json.loads((tmp_path / ".host.json").read_text())
    assert own._host.process is not None and note["pid"] == own._host.process.pid
    own.stop()
    assert not (tmp_path / ".host.json").exists()


def test_values_are_compared_with_what_the_host_says_before_the_first_row(
    host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.info = json.loads(json.dumps(INFO))
    host.info["Source"]["input"]["required"]["number"][1] = {"min": 0, "max": 9}
    host.info["Source"]["input"]["required"]["sampler"] = [["euler", "heun"]]
    folder = Folder(tmp_path, rows="name,1.number,Source.text\na,-1,x\nb,10,x\nc,-1,x\nd,5.5,x\n")
    workflow = {**PROMPT, "1": {"class_type": "Source", "inputs": {"text": "", "number": 1, "sampler": "eulr"}}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    assert mistakes(folder, capsys, host).splitlines() == [
        "Row 1 (a) and 1 other: Column '1.number': -1 is less than 0.",
        "Node 1 (Source): sampler: 'eulr' is not one of euler, heun.",
        "Row 2 (b): Column '1.number': 10 is more than 9.",
        "Row 4 (d): Column '1.number': '5.5' is not a whole number.",
    ]
    said = mistakes(folder, capsys, host, more=("--set", "Source.sampler=hein", "--set", "1.seed=1")).splitlines()
    assert "--set Source.sampler: 'hein' is not one of heun, euler." not in said  # a row of two faults names the first
    assert said[0] == "--set 1.seed: Source has no input 'seed'; it has text, number, sampler."
    folder.table.write_text("name,1.number\na,-1\n")
    said = mistakes(folder, capsys, host, more=("--set", "Source.sampler=hein")).splitlines()
    assert said[1] == "--set Source.sampler: 'hein' is not one of heun, euler."
    assert mistakes(folder, capsys, host, more=("--set", "Sauce.text=5")).startswith(
        "--set Sauce.text: the workflow has"
    )
    # The host has the last word: a class may have checks of its own.
    assert folder.run(host, more=("--unchecked",)) == 0 and len(host.queued) == 1


def test_missing_picture_is_noticed_before_the_first_row(
    host: StubHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dog.png").write_bytes(b"picture")
    host.inputs = {"sub/cat.png", "photos/dog.png"}
    names = ["dog.png", "x.png", "sub/cat.png", "photos/wolf.png", "photo\\dog.png"]
    folder = Folder(tmp_path, rows="Load.image\n" + "\n".join(names))
    (tmp_path / "workflow.json").write_text(json.dumps(LOADING))
    assert mistakes(folder, capsys, host).splitlines() == [
        f"Row {row}: Column 'Load.image': {name} is neither beside the table nor in ComfyUI's input folder{why}."
        for row, name, why in (
            ("4 (0004)", "photos/wolf.png", ""),
            ("5 (0005)", "photo\\dog.png", "; write / between folders"),
        )
    ]
    folder.table.write_text("Load.image\nsub/cat.png\n")
    assert folder.run(host) == 0
    # One that the workflow itself names.
    missing = {**LOADING, "3": {"class_type": "Load", "inputs": {"image": "wolf.png"}}}
    (tmp_path / "workflow.json").write_text(json.dumps(missing))
    folder.table.write_text("name\na\n")
    shutil.rmtree(folder.results)
    assert mistakes(folder, capsys, host).startswith("Node 3 (Load): image: wolf.png is not in ComfyUI's input folder")
