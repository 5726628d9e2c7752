"""Every place where a tool or the set-up writes: listed here with why it loses nothing, and cut off at each call."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch import files
from batch.files import new_file
from stub_host import PROMPT, StubHost

from host import ROOT

SCRIPT = Path(__file__).with_name("killed_runs.py")
# Calls that write, by the last part of their name; `open` counts with a mode that does.
CALLS = set(
    "write_text write_bytes rename replace unlink rmtree mkdir symlink_to link truncate touch copyfile copytree move "
    "chmod extractall save hardlink_to rmdir remove mkdtemp TemporaryDirectory NamedTemporaryFile dump new_file "
    "FileLock imwrite savez save_file".split()
)
# file: {call: why it writes over nothing of anyone's}. What is not here fails the test below.
OWN = "only what this command made itself, in a folder or under a name of its own"
NEW = "exclusive: it fails if there is something of that name"
WRITES: dict[str, dict[str, str]] = {
    "tools/batch/attempt.py": {"open": NEW},
    "tools/batch/client.py": {"open": NEW},
    "tools/batch/files.py": {"open": NEW, "link": NEW, "replace": OWN, "unlink": OWN, "os.open": NEW},
    "tools/batch/hosts.py": {"open": NEW, "dump": "into that file", "unlink": "the note, which was read and is ours"},
    "tools/batch/ledger.py": {
        **{"FileLock": "an empty file; another one was refused before", "mkdir": "the folder that was asked for"},
        **{"rmtree": ".partial/<key>, which only this command fills", "rename": "to a name that is free"},
        **{"new_file": NEW, "open": "appends to a manifest that is ours", "truncate": "a torn tail of our manifest"},
    },
    "tools/calibrate_align.py": {"new_file": NEW, "save": "into that file"},
    "tools/cluster/connection.py": {"mkdtemp": OWN, "rmtree": OWN, "write_text": OWN, "touch": OWN},
    "tools/cluster/fingerprint.py": {"mkdir": OWN, "FileLock": OWN, "write_text": OWN, "replace": "its own cache"},
    "tools/cluster/guard.py": {"rmtree": "the scratch folder that the worker made"},
    "tools/cluster/host.py": {"mkdtemp": OWN, "rmtree": OWN, "unlink": "in its own scratch folder"},
    "tools/cluster/objects.py": {"open": NEW, "mkdtemp": OWN, "rmtree": OWN, "unlink": OWN, "rmdir": OWN, "mkdir": OWN},
    "tools/cluster/places.py": {
        "mkdir": OWN,
        "write_text": OWN,
        "replace": OWN,
        "os.open": "reads a folder, to flush it",
    },
    "tools/cluster/results.py": {"rmtree": OWN, "rename": OWN, "unlink": OWN},
    "tools/evaluate.py": {"new_file": NEW},
    "tools/run_workflow.py": {"TemporaryDirectory": OWN},
    "tools/training/data.py": {"mkdir": OWN, "write_text": "its own cache, and a folder that was asked for"},
    "tools/training/folder.py": {
        **{"mkdir": "the folder that was asked for", "open": OWN, "write_text": OWN, "save": OWN, "unlink": OWN},
        **{"replace": "a run's own file; a folder that holds another run was refused"},
    },
    "tools/training/loop.py": {"save": OWN},
    "tools/training/tasks/leffa.py": {"save": OWN},
    "dev/setup_browser.py": {
        **{"mkdir": OWN, "TemporaryDirectory": OWN, "write_bytes": OWN, "unlink": OWN, "chmod": OWN, "write_text": OWN},
        **{"extractall": OWN, "rename": "to .host/chromium", "rmtree": ".host/chromium, which it made"},
    },
    "dev/setup_env.py": {"write_text": "the stamp, and a temporary file", "TemporaryDirectory": OWN},
    "dev/setup_host.py": {
        **{"mkdir": OWN, "rmtree": OWN, "TemporaryDirectory": OWN, "write_text": OWN, "open": OWN},
        **{"rename": "to a name that was set aside", "unlink": "a link", "symlink_to": NEW},
    },
    "dev/setup_run.py": {"rename": "to a name that is free"},
}


def writes(path: Path) -> Iterator[str]:
    """The calls of a file that write."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        base = ast.unparse(node.func)
        if base == "os.open":
            yield base
        elif name == "open" and base not in ("tarfile.open", "Image.open"):
            modes = [
                each.value
                for each in [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            if any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes):
                yield name
        elif name in CALLS and not (name == "replace" and base != "os.replace") and base != "dataclasses.replace":
            yield name


@pytest.mark.parametrize("pattern", ["tools/**/*.py", "dev/setup_*.py"])
def test_every_place_that_writes_is_known(pattern: str) -> None:
    found = {str(path.relative_to(ROOT)): set(writes(path)) for path in sorted(ROOT.glob(pattern)) if set(writes(path))}
    known = {name: set(calls) for name, calls in WRITES.items() if name.startswith(pattern.partition("/")[0])}
    assert found == known


@pytest.mark.parametrize("how", ["kill", "full"])
def test_batch_cut_off_at_any_call_loses_nothing_and_goes_on(tmp_path: Path, how: str) -> None:
    """Killed, or with a disk that is full from then on, at each call that writes; then run once more."""
    (tmp_path / "workflow.json").write_text(json.dumps(PROMPT))
    (tmp_path / "t.csv").write_text("name,1.text\nfirst,a\nsecond,b\n")
    with StubHost() as host:
        subprocess.run([sys.executable, SCRIPT, tmp_path, host.url, how], check=True, timeout=500)
    runs = sorted((path.parent for path in tmp_path.glob("*/status")), key=lambda path: int(path.name))
    assert len(runs) > 15
    for number, run in enumerate(runs, 1):
        first, last = json.loads((run / "status").read_text())
        said = (run / "said").read_text()
        assert first == (0 if number == len(runs) else {"kill": 9, "full": 2}[how]), (number, said)
        if first == 2:
            assert "/results" in said and "No space left on device. Make room; the same command goes on" in said, said
        assert "Traceback" not in said and last == 0, (number, said, (run / "said_last").read_text())
        results = run / "results"
        lines = [json.loads(line) for line in (results / "manifest.jsonl").read_bytes().splitlines()][1:]
        assert [line["folder"] for line in lines if line["state"] == "done"] == ["first_2", "second_2"], number
        for name, text in (("first_2", "a"), ("second_2", "b")):
            assert sorted(path.name for path in (results / name).iterdir()) == [
                f"{text}.png",
                "outputs.json",
                "prompt.json",
            ]
            assert (results / name / f"{text}.png").read_bytes() == b"picture"
        assert (results / "mine.txt").read_text() == (results / "first" / "mine.txt").read_text() == "mine"
        assert [path.name for path in (results / "first").iterdir()] == ["mine.txt"]
        assert os.readlink(results / "second") == str(results / "nowhere") and not (results / "nowhere").exists()
        left = {path.name for path in results.iterdir()} - {"mine.txt", "first", "second", "first_2", "second_2"}
        assert left <= {".lock", ".partial", "manifest.jsonl"}, (number, left)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the folder is one that no one can make."""
    (tmp_path / "workflow.json").write_text(json.dumps(PROMPT))
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, str(ROOT / "tools" / "run_workflow.py"), "workflow.json", "--output", "file/results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "file" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_was_taken_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without links the name is taken before the file gets it."""

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "link", fails)
    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(OSError, match="Input/output error"), new_file(tmp_path / "a") as file:
        file.write(b"one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_links", [True, False])
def test_new_file_is_never_written_over_what_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:  # as on an exFAT stick

        def no_links(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(files.os, "link", no_links)
    with new_file(tmp_path / "a") as file:
        file.write(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError, match="choose another name"), new_file(tmp_path / name) as file:
            file.write(b"two")
    # Someone made it while it was written.
    with pytest.raises(FileExistsError), new_file(tmp_path / "b") as file:
        (tmp_path / "b").write_text("mine")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "c"):
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "link"}
    assert (tmp_path / "a").read_bytes() == b"one" and (tmp_path / "b").read_text() == "mine"
