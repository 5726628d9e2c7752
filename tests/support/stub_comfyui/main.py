"""Answers like a ComfyUI, within milliseconds and without models: its one node sleeps, fails, dies or hangs as told."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

parser = argparse.ArgumentParser()
parser.add_argument("--listen")
parser.add_argument("--port", type=int)
parser.add_argument("--disable-auto-launch", action="store_true")
parser.add_argument("--output-directory", type=Path)
parser.add_argument("--temp-directory")
parser.add_argument("--database-url")
parser.add_argument("--base-directory", type=Path)
parser.add_argument("--journal", type=Path, help="gets a line for each start of the host and of a row")
options = parser.parse_args()

CHECKPOINTS = options.base_directory / "models" / "checkpoints"
INPUT = options.base_directory / "input"
OUTPUT = options.output_directory or options.base_directory / "output"
history: dict[str, Any] = {}
queued: dict[str, Any] = {}


def journal(**entry: Any) -> None:
    line = json.dumps({"pid": os.getpid(), "guard": os.getppid(), "time": time.time(), **entry}) + "\n"
    with open(options.journal, "a", encoding="utf-8") as file:
        file.write(line)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def object_info() -> dict[str, Any]:
    inputs = {
        "seconds": ["FLOAT", {"default": 0.0}],
        "mode": ["COMBO", {"options": ["ok", "err", "die", "hang"]}],
        "seed": ["INT", {"default": 0}],
        "checkpoint": [files(CHECKPOINTS)],
        "image": [files(INPUT), {"image_upload": True}],
    }
    return {
        "Stub": {
            "input": {"required": inputs},
            "input_order": {"required": list(inputs)},
            "output_node": True,
            "python_module": "custom_nodes.stub_pack",
        }
    }


async def work(prompt_id: str, inputs: dict[str, Any]) -> None:
    journal(row=inputs["seed"], mode=inputs["mode"])
    if inputs["mode"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(100_000 if inputs["mode"] == "hang" else inputs["seconds"])
    if inputs["mode"] == "err":
        failure = {"node_id": "1", "node_type": "Stub", "exception_message": "told to fail"}
        history[prompt_id] = {"status": {"status_str": "error", "messages": [["execution_error", failure]]}}
    else:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        name = f"stub_{uuid.uuid4().hex[:8]}.txt"
        shown = dict(inputs)
        if (INPUT / inputs["image"]).is_file():
            shown["image"] = (INPUT / inputs["image"]).read_text()
        (OUTPUT / name).write_text(json.dumps(shown))
        made = {"1": {"texts": [{"filename": name, "subfolder": "", "type": "output"}]}}
        history[prompt_id] = {"status": {"status_str": "success", "messages": []}, "outputs": made}
    del queued[prompt_id]


routes = web.RouteTableDef()


@routes.get("/system_stats")
async def system_stats(request: web.Request) -> web.Response:
    system = {"comfyui_version": "0.30.0", "pytorch_version": "2", "python_version": "3", "argv": sys.argv}
    return web.json_response({"system": system, "devices": [{"name": "cpu"}]})


@routes.get("/object_info")
@routes.get("/object_info/{kind}")
async def nodes(request: web.Request) -> web.Response:
    return web.json_response(object_info())


@routes.get("/experiment/models")
async def model_folders(request: web.Request) -> web.Response:
    return web.json_response([{"name": "checkpoints", "folders": [str(CHECKPOINTS)]}])


@routes.get("/experiment/models/{kind}")
async def models(request: web.Request) -> web.Response:
    return web.json_response([{"name": name, "pathIndex": 0} for name in files(CHECKPOINTS)])


@routes.post("/prompt")
async def prompt(request: web.Request) -> web.Response:
    data = await request.json()
    inputs = data["prompt"]["1"]["inputs"]
    if inputs["seed"] < 0:
        error = {"message": "Value too small", "details": "seed"}
        node_errors = {"1": {"class_type": "Stub", "errors": [error]}}
        return web.json_response({"error": {"message": "Invalid"}, "node_errors": node_errors}, status=400)
    queued[data["prompt_id"]] = asyncio.create_task(work(data["prompt_id"], inputs))
    return web.json_response({"prompt_id": data["prompt_id"]})


@routes.get("/queue")
async def queue(request: web.Request) -> web.Response:
    return web.json_response({"queue_running": [[0, each] for each in queued], "queue_pending": []})


@routes.get("/history/{prompt_id}")
async def past(request: web.Request) -> web.Response:
    key = request.match_info["prompt_id"]
    return web.json_response({key: history[key]} if key in history else {})


@routes.get("/view")
async def view(request: web.Request) -> web.FileResponse:
    return web.FileResponse(OUTPUT / request.query["filename"])


@routes.post("/upload/image")
async def upload(request: web.Request) -> web.Response:
    field = (await request.post())["image"]
    assert isinstance(field, web.FileField)
    INPUT.mkdir(exist_ok=True)
    data = field.file.read()
    name = field.filename
    # The host gives another name to another file of the same name.
    while (INPUT / name).exists() and (INPUT / name).read_bytes() != data:
        name = f"again-{name}"
    (INPUT / name).write_bytes(data)
    journal(upload=name)
    return web.json_response({"name": name, "subfolder": "", "type": "input"})


@routes.get("/ws")
async def socket(request: web.Request) -> web.WebSocketResponse:
    connection = web.WebSocketResponse()
    await connection.prepare(request)
    async for _ in connection:
        pass
    return connection


journal(host=True)
application = web.Application()
application.add_routes(routes)
web.run_app(application, host=options.listen, port=options.port, print=None)
