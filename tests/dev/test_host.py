"""The parts of the headless host that need no running server."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from demo_host import set_inputs
from host import HeadlessHost, HostError, describe_failure, describe_refusal, host_dir


def test_own_folder_without_comfy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no ComfyUI main\.py in .*Set COMFYUI_DIR"):
        host_dir()


def test_host_that_dies_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "comfy"
    broken.mkdir()
    (broken / "main.py").write_text("print('the reason')\nraise SystemExit(5)\n")
    monkeypatch.setenv("COMFYUI_DIR", str(broken))
    with (
        pytest.raises(HostError, match=r"(?s)ended with status 5.*the reason"),
        HeadlessHost(base=tmp_path / "base"),
    ):
        pass


def test_host_that_never_answers_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "comfy"
    silent.mkdir()
    (silent / "main.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("COMFYUI_DIR", str(silent))
    host = HeadlessHost(start_timeout=1)
    with pytest.raises(HostError, match="did not answer within 1 s"), host:
        pass
    assert host.process is None and not host.base.exists()


def test_a_port_that_another_program_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(HostError, match=f"Port {port} of 127.0.0.1 is taken by another program"):
            HeadlessHost(base=tmp_path / "base", port=port).start()


def test_a_host_says_how_long_it_kept_a_core_busy(tmp_path: Path) -> None:
    host = HeadlessHost(base=tmp_path)
    busy = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    host.process = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        host.process.stdout.readline()
        assert 0.35 < host.cpu_seconds() < 2
    finally:
        host.stop()


def test_refusal_names_node_and_input() -> None:
    errors = [{"message": "Value 2.0 bigger than max of 1.0", "details": "strength"}]
    answer = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"9": {"class_type": "RefDropApply", "errors": errors}},
    }
    text = describe_refusal(answer)
    assert text.endswith("node 9 (RefDropApply): Value 2.0 bigger than max of 1.0: strength")


def test_failure_names_node_and_reason() -> None:
    data = {"node_id": "3", "node_type": "KSampler", "exception_message": "boom\n"}
    assert describe_failure([["execution_start", {}], ["execution_error", data]]) == "node 3 (KSampler): boom"


def test_set_inputs_copies_and_refuses_unknown_names() -> None:
    workflow = {"1": {"class_type": "KSampler", "inputs": {"steps": 20}}}
    assert set_inputs(workflow, "KSampler", steps=2)["1"]["inputs"] == {"steps": 2}
    assert workflow["1"]["inputs"] == {"steps": 20}
    with pytest.raises(KeyError, match="no input stepz"):
        set_inputs(workflow, "KSampler", stepz=2)
    with pytest.raises(KeyError, match="no SaveImage"):
        set_inputs(workflow, "SaveImage", steps=2)
