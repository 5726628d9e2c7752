"""A host of a few lines on 127.0.0.1 that answers what a test wants, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

INFO: dict[str, Any] = {
    "Source": {"input": {"required": {"text": ["STRING", {}], "number": ["INT", {}]}}, "output_node": False},
    "Load": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}, "output_node": False},
    "Save": {"input": {"required": {"source": ["*"]}}, "output_node": True},
}
PROMPT: dict[str, Any] = {
    "1": {"class_type": "Source", "inputs": {"text": "", "number": 1}},
    "2": {"class_type": "Save", "inputs": {"source": ["1", 0]}},
}
STATS = {"system": {"comfyui_version": "0.30.0", "argv": []}, "devices": [{"name": "stub"}]}


def image(name: Any, **more: Any) -> dict[str, Any]:
    """The outputs of a workflow that saved one picture."""
    return {"2": {"images": [{"filename": name, "subfolder": "", "type": "output", **more}]}}


class StubHost:
    """Runs a workflow at once; `outputs` says what it made, from the text of node 1.

    Attributes:
        routes: path -> handler that takes the place of the usual one.
        queued: the workflows that came, in order.
        uploads: names of the files that came.
        inputs: files in its input folder.
        hold: whether a workflow runs until it is cancelled, by the text of node 1.
        lets_go: seconds until what is cancelled ends.
    """

    def __init__(self, outputs: Callable[[str], Any] = lambda text: image(f"{text or 'picture'}.png")) -> None:
        self.outputs = outputs
        self.routes: dict[str, Callable[[web.Request], Any]] = {}
        self.queued: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.inputs: set[str] = set()
        self.cancelled: list[str] = []
        self.hold: Callable[[str], bool] = lambda text: False
        self.lets_go = 0.0
        self.file = b"picture"
        self.socket_text = '{"type": "progress", "data": null}'
        self.info = INFO
        self._entries: dict[str, Any] = {}
        self._running: list[str] = []

    def __enter__(self) -> StubHost:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        for prefix, handler in self.routes.items():
            if path.startswith(prefix) and (answer := await handler(request)) is not None:
                return answer
        if path == "/prompt":
            data = await request.json()
            self.queued.append(data["prompt"])
            text = data["prompt"]["1"]["inputs"].get("text", "")
            if self.hold(text):
                self._running.append(data["prompt_id"])
            else:
                status = {"status_str": "success", "messages": []}
                self._entries[data["prompt_id"]] = {"status": status, "outputs": self.outputs(text)}
            return web.json_response({})
        if path.startswith("/history/"):
            prompt_id = path.rpartition("/")[2]
            known = {prompt_id: self._entries[prompt_id]} if prompt_id in self._entries else {}
            return web.json_response(known)
        if path == "/history":
            for prompt_id in (await request.json())["delete"]:
                self._entries.pop(prompt_id, None)
            return web.json_response({})
        if path == "/interrupt":
            self._interrupt((await request.json())["prompt_id"])
            return web.json_response({})
        if path == "/queue":
            if request.method == "POST":
                self.cancelled += (await request.json())["delete"]
                return web.json_response({})
            return web.json_response({"queue_running": [[0, each] for each in self._running], "queue_pending": []})
        if path == "/upload/image":
            field = await (await request.multipart()).next()
            self.uploads.append(field.filename)
            return web.json_response({"name": field.filename, "subfolder": ""})
        if path == "/ws":
            return await self._socket(request)
        if path == "/view":
            if request.method == "HEAD":
                name = f"{request.query['subfolder']}/{request.query['filename']}".lstrip("/")
                return web.Response(status=200 if name in self.inputs else 404)
            return web.Response(body=self.file)
        answers: dict[str, Any] = {"/system_stats": STATS, "/object_info": self.info}
        return web.json_response(answers.get(path, {}))

    def _interrupt(self, prompt_id: str) -> None:
        """A host that takes its time: what runs goes on for `lets_go` seconds."""
        if prompt_id in self._running:
            self._loop.call_later(self.lets_go, self._end_interrupted, prompt_id)

    def _end_interrupted(self, prompt_id: str) -> None:
        self._running.remove(prompt_id)
        message = ["execution_interrupted", {"node_id": "1", "node_type": "Source"}]
        status = {"status_str": "error", "messages": [message]}
        self._entries[prompt_id] = {"status": status, "outputs": {}}

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(self.socket_text)
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket
