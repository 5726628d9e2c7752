"""A headless ComfyUI on 127.0.0.1 with its own base directory, started, awaited and stopped from Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from batch.answers import describe_failure, describe_refusal
from host_process import HostError, HostProcess, free_port

PACK_NAME = "ComfyUI-RefAttention"
TINY_WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
BASE_FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user")


class WorkflowError(RuntimeError):
    """A workflow was refused or failed while it ran; the text names node and reason."""


def host_dir() -> Path:
    """The ComfyUI to run: COMFYUI_DIR if it is set, else the managed one.

    Raises: FileNotFoundError when there is none.
    """
    own = os.environ.get("COMFYUI_DIR")
    folder = Path(own).expanduser().resolve() if own else ROOT / ".host" / "ComfyUI"
    if not (folder / "main.py").is_file():
        todo = "Set COMFYUI_DIR to the folder that holds it." if own else "Run `make setup` first."
        raise FileNotFoundError(f"There is no ComfyUI main.py in {folder}. {todo}")
    return folder


def import_seconds(log: str) -> float:
    """Seconds the pack took to load, from the host's own report of import times.

    Raises: ValueError when the report does not name the pack.
    """
    match = re.search(rf"(\d+\.\d+) seconds.*/custom_nodes/{re.escape(PACK_NAME)}$", log, re.MULTILINE)
    if match is None:
        raise ValueError(f"The host's log has no import time for {PACK_NAME}:\n{log[-2000:]}")
    return float(match[1])


def answers(port: int) -> bool:
    """Whether something listens on a TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class HeadlessHost(HostProcess):
    """Runs ComfyUI as a child process; use it as a context manager so that it is always stopped.

    Args:
        packs: folder name in custom_nodes (no dots) -> folder to link there; the pack itself by default.
        base: base directory to use and keep; a temporary one, removed at the end, by default.
        port: TCP port of 127.0.0.1, a free one by default.
        start_timeout: seconds the host may take to answer.
    """

    def __init__(
        self,
        packs: Mapping[str, Path] | None = None,
        base: Path | None = None,
        port: int | None = None,
        start_timeout: float = 180.0,
    ) -> None:
        base_folder = Path(tempfile.mkdtemp(prefix="refattention-host-")) if base is None else base.resolve()
        super().__init__(base_folder / "host.log", port, start_timeout)
        self.packs = dict(packs) if packs is not None else {PACK_NAME: ROOT}
        self.temporary = base is None
        self.base = base_folder
        self.environment: dict[str, str] = {}
        for folder in BASE_FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> HeadlessHost:
        # KeyboardInterrupt during the start must not leave the child behind either.
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the host and returns once it answers.

        Raises: HostError when the port is taken; with the end of the log when it dies or does not answer in time.
        """
        comfy = host_dir()
        self.link_packs()
        self.port = self.port or free_port()
        # Otherwise another ComfyUI would answer in place of this one.
        if answers(self.port):
            raise HostError(f"Port {self.port} of 127.0.0.1 is taken by another program. Choose another one.")
        arguments = [
            "--cpu",
            "--use-pytorch-cross-attention",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        arguments += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        # The cloud nodes take a third of the start time and are of no use here.
        arguments += ["--disable-auto-launch", "--disable-api-nodes"]
        environment = {**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"}
        if os.environ.get("COMFYUI_DIR"):
            # The user's own folder is only read, not even byte code is written into it.
            environment["PYTHONPYCACHEPREFIX"] = str(ROOT / "out" / "pycache")
        command = [str(ROOT / ".venv" / "bin" / "python"), str(comfy / "main.py"), *arguments]
        self.launch(command, self.base, environment)

    def post(self, path: str, data: Mapping[str, Any]) -> Any:
        """The JSON the host answers to a POST request, None for an empty answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def reset_peak_rss(self) -> None:
        """Makes `peak_rss_bytes` start again from what the process holds now (Linux)."""
        Path(f"/proc/{self.alive().pid}/clear_refs").write_text("5", encoding="ascii")

    def peak_rss_bytes(self) -> int:
        """The most memory the host's process held since the last reset (Linux)."""
        status = Path(f"/proc/{self.alive().pid}/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Seconds of a core that the host's process has used so far (Linux)."""
        fields = Path(f"/proc/{self.alive().pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def join(self) -> None:
        """Waits until the host ends by itself.

        Raises: HostError, because it is not meant to.
        """
        self.alive().wait()
        self.alive()

    def link_packs(self) -> None:
        """Makes the packs appear in custom_nodes; `start` does it too."""
        for name, folder in self.packs.items():
            link = self.base / "custom_nodes" / name
            if link.is_symlink():
                link.unlink()
            link.symlink_to(Path(folder).resolve(), target_is_directory=True)

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queues a workflow in API format and returns its id.

        Raises: WorkflowError naming nodes and inputs when the host refuses it.
        """
        try:
            prompt_id: str = self.post("/prompt", {"prompt": prompt})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise HostError(f"The host answered {error.code}.\n{self._log_end()}") from error
            raise WorkflowError(describe_refusal(json.load(error))) from error
        return prompt_id

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """The history entry of a workflow once it has finished, well or badly.

        Raises: TimeoutError when it is not done in time, HostError when the host died.
        """
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            self.alive()
            entry: dict[str, Any] | None = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.03)
        raise TimeoutError(f"The workflow did not finish within {timeout:.0f} s.\n{self._log_end()}")

    def run(self, prompt: Mapping[str, Any], timeout: float = 600.0) -> dict[str, Any]:
        """Queues a workflow, waits for it and returns its history entry.

        Raises: WorkflowError naming node id, node type and reason when it is refused or fails.
        """
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise WorkflowError(describe_failure(entry["status"]["messages"]))
        return entry

    def images(self, entry: Mapping[str, Any]) -> list[Path]:
        """Files of the pictures a finished workflow wrote, in the order of its output nodes."""
        pictures = [picture for output in entry["outputs"].values() for picture in output.get("images", ())]
        return [self.base / each["type"] / each["subfolder"] / each["filename"] for each in pictures]

    def interrupt(self) -> None:
        """Cancels the workflow that runs now."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Has the host unload its models and drop its caches; that is done before the next workflow begins.

        The host looks at such a request between two workflows only, and may take up one that comes at the
        same moment first. A tiny one after the request makes sure that the next finds everything dropped.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run(TINY_WORKFLOW)

    def object_info(self) -> dict[str, Any]:
        """What the host knows about every node class."""
        info: dict[str, Any] = self.get("/object_info")
        return info

    def close(self) -> None:
        """Stops the host and removes its base directory if that was a temporary one."""
        self.stop()
        if self.temporary:
            shutil.rmtree(self.base, ignore_errors=True)
