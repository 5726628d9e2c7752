"""The inputs of a node class as /object_info describes them, with those that a dynamic combo brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"


class Spec(NamedTuple):
    """One input; inside of a dynamic combo its name is `combo.name`."""

    name: str
    kind: str
    options: Mapping[str, Any]


def specs(inputs: Mapping[str, Any], order: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[Spec]:
    """The inputs of a node class, without those of dynamic combos, in the order the editor shows them.

    Args:
        inputs: name -> description, by section (required, optional).
        order: names by section, where it is not that of `inputs`.
    """
    for section in ("required", "optional"):
        listed = inputs.get(section) or {}
        for name in (order or {}).get(section, listed):
            kind, *rest = listed[name]
            options = rest[0] if rest else {}
            # A list in place of the type is the older way to write a combo.
            if isinstance(kind, list):
                kind, options = "COMBO", {"options": kind, **options}
            yield Spec(prefix + name, kind, options)


def chosen(spec: Spec, key: Any) -> Iterator[Spec]:
    """The inputs that one choice of a dynamic combo brings."""
    for option in spec.options.get("options", ()):
        if option["key"] == key:
            yield from specs(option["inputs"], prefix=f"{spec.name}.")


def live_specs(info: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Spec]:
    """All inputs a node has while its inputs have these values."""
    waiting = list(specs(info["input"], info.get("input_order")))
    while waiting:
        spec = waiting.pop(0)
        yield spec
        if spec.kind == DYNAMIC_COMBO:
            waiting[:0] = chosen(spec, values.get(spec.name))


def default_of(spec: Spec) -> Any:
    """The value that a new node has there, or None."""
    if "default" in spec.options:
        return spec.options["default"]
    options = spec.options.get("options") or ()
    first = next(iter(options), None)
    return first.get("key") if isinstance(first, dict) else first
