"""The host's HTTP and websocket interface, as far as a batch needs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from batch.answers import describe_refusal

POLL_SECONDS = 0.5
CONNECTION_ERRORS = (aiohttp.ClientConnectionError, aiohttp.ServerTimeoutError, asyncio.TimeoutError, ConnectionError)

Progress = Callable[[str, int, int], None]


class Refused(RuntimeError):
    """The host will not run the workflow; the text names nodes and inputs."""


class Lost(RuntimeError):
    """The host answers but no longer knows the workflow: it was started anew."""


class Client:
    """One host; an asynchronous context manager.

    Args:
        url: its address, such as `http://127.0.0.1:8188`.
        client_id: what the host tells its progress messages apart by.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = client_id

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """The JSON the host answers to a GET request."""
        async with self._session.get(self.url + path, raise_for_status=True) as answer:
            return await answer.json()

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
        async with self._session.post(self.url + "/prompt", json=data) as answer:
            if answer.status == 400:
                raise Refused(describe_refusal(await answer.json()))
            answer.raise_for_status()

    async def entry(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a workflow that has ended."""
        entry: dict[str, Any] | None = (await self.get(f"/history/{prompt_id}")).get(prompt_id)
        return entry

    async def is_queued(self, prompt_id: str) -> bool:
        """Whether a workflow runs or waits."""
        queue = await self.get("/queue")
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
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
                await task

    async def _watch(self, prompt_id: str, progress: Progress) -> None:
        """Only for the progress bar: whether a workflow has ended is asked for, so a lost message loses nothing."""
        async with self._session.ws_connect(f"{self.url}/ws?clientId={self.client_id}", max_msg_size=0) as socket:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event.get("data", {})
                if event.get("type") == "progress" and data.get("prompt_id") == prompt_id:
                    progress(str(data.get("node", "")), int(data["value"]), int(data["max"]))

    async def download(self, file: Mapping[str, str], target: Path) -> None:
        """One output file of the host; it appears under its name only when it is complete."""
        params = {key: file[key] for key in ("filename", "subfolder", "type")}
        part = target.with_name(f".{target.name}.part")
        async with self._session.get(self.url + "/view", params=params, raise_for_status=True) as answer:
            with open(part, "wb") as out:
                async for chunk in answer.content.iter_chunked(1 << 20):
                    out.write(chunk)
        os.replace(part, target)

    async def upload(self, path: Path) -> str:
        """Sends a picture to the host's input folder and returns the name it got there."""
        with open(path, "rb") as file:
            # Without "overwrite" the host gives another name to another picture and keeps an equal one.
            form = aiohttp.FormData({"image": file})
            async with self._session.post(self.url + "/upload/image", data=form, raise_for_status=True) as answer:
                stored = await answer.json()
        return "/".join(part for part in (stored["subfolder"], stored["name"]) if part)

    async def cancel(self, prompt_id: str) -> None:
        """Takes a workflow from the queue, or interrupts it if it runs."""
        for path, data in (("/queue", {"delete": [prompt_id]}), ("/interrupt", {"prompt_id": prompt_id})):
            async with self._session.post(self.url + path, json=data) as answer:
                await answer.read()
