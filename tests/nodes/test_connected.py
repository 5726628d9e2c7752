"""None, and things of another type, at every socket of every node: one sentence, before anything else happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from comfy_api.internal import make_locked_method_func
from comfy_api.latest import io
from messages import is_clear
from refattention.nodes import RefAttentionExtension

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SOCKETS = [
    pytest.param(node, each, id=f"{node.GET_SCHEMA().node_id}.{each.id}")
    for node in asyncio.run(RefAttentionExtension().get_node_list())
    for each in node.GET_SCHEMA().inputs
    if each.get_io_type() not in WIDGETS
]


class Anything:
    """Passes for a model, a text encoder, a VAE and a vision encoder."""

    model = tokenize = encode = encode_image = None


GOOD = {
    **dict.fromkeys(("MODEL", "CLIP", "VAE", "CLIP_VISION"), Anything()),
    "LATENT": {"samples": None},
    "CONDITIONING": [],
}


def run(node: type[io.ComfyNode], name: str, value: Any) -> None:
    """Runs a node whose other sockets have something that passes."""
    schema = node.GET_SCHEMA()
    given = {each.id: GOOD.get(each.get_io_type(), Anything()) for each in schema.inputs if not each.optional}
    given[name] = value
    execute = make_locked_method_func(node, "execute", node.PREPARE_CLASS_CLONE(None))  # as the host does
    execute(**({each: [value] for each, value in given.items()} if schema.is_input_list else given))


@pytest.mark.parametrize(("node", "socket"), SOCKETS)
def test_none_is_refused_where_something_is_needed(node: type[io.ComfyNode], socket: io.Input) -> None:
    with pytest.raises(Exception) as caught:  # an optional one goes on, to the other things, which are good for nothing
        run(node, socket.id, None)
    message = str(caught.value)
    assert message.startswith(f"{socket.id} is None, but {socket.get_io_type()} is needed") == (not socket.optional)
    assert socket.optional or is_clear(message)


@pytest.mark.parametrize(("node", "socket"), [each for each in SOCKETS if each.values[1].get_io_type() in GOOD])
def test_another_type_is_refused(node: type[io.ComfyNode], socket: io.Input) -> None:
    for value in ("text", 1.5, {"waveform": None}, torch.zeros(1, 8, 8, 3), len):
        with pytest.raises(ValueError) as caught:
            run(node, socket.id, value)
        kinds = f"{type(value).__name__}, but {socket.get_io_type()}"
        assert str(caught.value) == f"{socket.id} is of the type {kinds} is needed."
        assert is_clear(str(caught.value))
