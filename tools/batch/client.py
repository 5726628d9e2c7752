"""The host's HTTP and websocket interface, as far as a batch needs it. What it answers is believed in no point."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from batch.answers import Unusable, describe_refusal, printable, understood
from batch.files import digest, parse_json

POLL_SECONDS = 0.5
# The node descriptions of a host with a hundred packs are some 20 MB.
MOST_JSON = 64 << 20
MOST_FILE = 16 << 30
MOST_MESSAGE = 16 << 20
CONNECTION_ERRORS = (
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    aiohttp.ServerTimeoutError,
    asyncio.TimeoutError,
    ConnectionError,
)

Progress = Callable[[str, int, int], None]


class Refused(RuntimeError):
    """The host will not run the workflow; the text names nodes and inputs."""


class Lost(RuntimeError):
    """The host answers but no longer knows the workflow: it was started anew."""


class FileChanged(RuntimeError):
    """A file is not what it was when the row was checked."""


class Client:
    """One host; an asynchronous context manager.

    Args:
        url: its address, such as `http://127.0.0.1:8188`.
        client_id: what the host tells its progress messages apart by.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = client_id
        self._uploaded: dict[str, str] = {}

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """The JSON the host answers to a GET request.

        Raises: Unusable when it is none, too long, or a redirect.
        """
        async with self._request("GET", path) as answer:
            return await _json(answer)

    async def answers(self) -> bool:
        """Whether a host is there."""
        try:
            await self.get("/system_stats")
        except (*CONNECTION_ERRORS, aiohttp.ClientError):
            return False
        return True

    async def queue(self, prompt: Mapping[str, Any], prompt_id: str) -> None:
        """Queues a workflow in API format under an id of our own.

        Raises: Refused when it is not valid there.
        """
        data = {"prompt": prompt, "prompt_id": prompt_id, "client_id": self.client_id}
        async with self._request("POST", "/prompt", (400,), json=data) as answer:
            if answer.status == 400:
                raise Refused(describe_refusal(await _json(answer)))

    async def entry(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a workflow that has ended."""
        history = await self.get(f"/history/{prompt_id}")
        with understood("a workflow that ended"):
            entry = history.get(prompt_id)
            return None if entry is None else dict(entry)

    async def is_queued(self, prompt_id: str) -> bool:
        """Whether a workflow runs or waits."""
        queue = await self.get("/queue")
        with understood("its queue"):
            return any(item[1] == prompt_id for item in [*queue["queue_running"], *queue["queue_pending"]])

    async def wait(self, prompt_id: str, progress: Progress) -> dict[str, Any]:
        """The history entry of a queued workflow once it has ended, well or badly.

        Args:
            progress: called with node id, step and number of steps while it runs.

        Raises: Lost when the host does not know it any more.
        """
        async with self._watching(prompt_id, progress):
            while True:
                queued = await self.is_queued(prompt_id)
                if entry := await self.entry(prompt_id):
                    return entry
                # Looked at in this order, a workflow that ends in between is in the history.
                if not queued:
                    raise Lost("The host was started anew while the workflow ran.")
                await asyncio.sleep(POLL_SECONDS)

    @contextlib.asynccontextmanager
    async def _watching(self, prompt_id: str, progress: Progress) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch(prompt_id, progress))
        try:
            yield
        finally:
            task.cancel()
            # Only for the progress bar: whether a workflow has ended is asked for, so nothing is lost with a message.
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, prompt_id: str, progress: Progress) -> None:
        url = f"{self.url}/ws?clientId={self.client_id}"
        async with self._session.ws_connect(url, max_msg_size=MOST_MESSAGE) as socket:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                with contextlib.suppress(Unusable), understood("its progress"):
                    event = parse_json(message.data)
                    data = event["data"]
                    if event["type"] == "progress" and data["prompt_id"] == prompt_id:
                        progress(printable(str(data.get("node", ""))), int(data["value"]), int(data["max"]))

    async def download(self, file: Mapping[str, str], target: Path) -> None:
        """One output file of the host, under a name that was not there before."""
        params = {key: file[key] for key in ("filename", "subfolder", "type")}
        async with self._request("GET", "/view", params=params) as answer:
            with open(target, "xb") as out:
                size = 0
                async for chunk in answer.content.iter_chunked(1 << 20):
                    if (size := size + len(chunk)) > MOST_FILE:
                        raise Unusable(f"{file['filename']} is longer than {MOST_FILE >> 30} GiB.")
                    out.write(chunk)

    async def upload(self, path: Path, name: str, sha256: str) -> str:
        """Sends a file to the host's input folder, once, and returns the name it got there.

        Raises: FileChanged when the content is not that of the digest.
        """
        if sha256 not in self._uploaded:
            if digest(path) != sha256:
                raise FileChanged(f"{path} was changed while the batch ran; start it again.")
            with open(path, "rb") as file:
                form = aiohttp.FormData()
                # Without "overwrite" the host gives another name to another file and keeps an equal one.
                form.add_field("image", file, filename=name)
                async with self._request("POST", "/upload/image", data=form) as answer:
                    stored = await _json(answer)
            with understood("a file that was sent"):
                parts = [part for part in (stored.get("subfolder"), stored["name"]) if part]
                self._uploaded[sha256] = "/".join(parts)
        return self._uploaded[sha256]

    async def has_input(self, name: str) -> bool:
        """Whether a file that a node may name is in the host's input folder (or, with ` [output]` behind, there)."""
        folder, _, file = name.replace("\\", "/").rpartition("/")
        params = {"filename": file, "subfolder": folder, "type": "input"}
        missing = (400, 403, 404)
        async with self._request("HEAD", "/view", (*missing, 405), params=params) as answer:
            return answer.status not in missing  # where nobody can ask (405), it may be there

    def has_sent(self, sha256: str) -> bool:
        """Whether the host has a file of this content from us."""
        return sha256 in self._uploaded

    def forget_uploads(self) -> None:
        """Makes it send files again: the host may be another one now."""
        self._uploaded.clear()

    async def cancel(self, prompt_id: str) -> None:
        """Takes a workflow from the queue, or interrupts it if it runs."""
        await self._post("/queue", {"delete": [prompt_id]})
        await self._post("/interrupt", {"prompt_id": prompt_id})

    async def forget(self, prompt_id: str) -> None:
        """Takes a workflow that has ended from the history."""
        await self._post("/history", {"delete": [prompt_id]})

    async def _post(self, path: str, data: Mapping[str, Any]) -> None:
        async with self._request("POST", path, json=data):
            pass

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, fine: tuple[int, ...] = (), **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A redirect could lead anywhere, with the files that are sent; ComfyUI never answers with one."""
        url = self.url + path
        async with self._session.request(method, url, allow_redirects=False, **options) as answer:
            if 300 <= answer.status < 400:
                where = printable(answer.headers.get("Location", "another place"))
                raise Unusable(f"{url} is redirected to {where}; give that address if it is the host's.")
            if answer.status not in fine:
                answer.raise_for_status()
            yield answer


async def _json(answer: aiohttp.ClientResponse) -> Any:
    body = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 20):
        body += chunk
        if len(body) > MOST_JSON:
            raise Unusable(f"The host's answer to {answer.url.path} is longer than {MOST_JSON >> 20} MiB.")
    try:
        return parse_json(bytes(body))
    except ValueError as error:
        raise Unusable(f"The host's answer to {answer.url.path} is no JSON: {error}") from error
