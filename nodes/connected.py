"""What arrives at a node's sockets: other nodes send None, and sockets that take everything send anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from comfy_api.latest import io

# What shows that a thing is of a type, by what nodes do with it.
USED_FOR = {"MODEL": "model", "CLIP": "tokenize", "VAE": "encode", "CLIP_VISION": "encode_image"}


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Put on a node's `execute`: refuses None where something is needed, and what is of another type.

    Raises:
        ValueError: names the input, what came, and what is needed.
    """
    signature = inspect.signature(execute)

    @wraps(execute)
    def execute_checked(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        given = signature.bind(cls, *args, **inputs)
        given.apply_defaults()
        schema = cls.define_schema()
        for each in schema.inputs:
            value = given.arguments[each.id]
            for one in value if schema.is_input_list and isinstance(value, list) else [value]:
                if one is not None or not each.optional:
                    _require(one, each.get_io_type(), each.id)
        return execute(cls, *args, **inputs)

    return execute_checked


def _require(value: Any, needed: str, name: str) -> None:
    if value is None:
        raise ValueError(
            f"{name} is None, but {needed} is needed: the node that it is connected to gave nothing, as a loader does "
            "whose file holds none. Connect one that does, such as Load VAE or Load CLIP."
        )
    if not _is(value, needed):
        raise ValueError(f"{name} is of the type {type(value).__name__}, but {needed} is needed.")


def _is(value: Any, needed: str) -> bool:
    """Whether a thing can be what is needed; pictures and masks, which come in many forms, have a gate of their own."""
    if needed == "LATENT":
        return isinstance(value, dict) and "samples" in value
    if needed == "CONDITIONING":
        return isinstance(value, list | tuple)
    # Text can be encoded, too.
    return needed not in USED_FOR or (hasattr(value, USED_FOR[needed]) and not isinstance(value, str))
