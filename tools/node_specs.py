"""The inputs of a node class as /object_info describes them, with those that a dynamic combo brings, and what of a
workflow does not fit them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
# Types whose inputs come under other names than their own.
DYNAMIC = "COMFY_"
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")
NUMBERS = {"INT": (int, "a whole number"), "FLOAT": (float, "a number")}
MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
MOST_NAMES = 6


class Spec(NamedTuple):
    """One input; inside of a dynamic combo its name is `combo.name`."""

    name: str
    kind: str
    options: Mapping[str, Any]
    required: bool = True

    @property
    def takes_files(self) -> bool:
        """Whether it chooses a file that may be uploaded."""
        return self.kind == "COMBO" and any(self.options.get(each) for each in UPLOADS)


class Fault(NamedTuple):
    """What a host would refuse a workflow for.

    Attributes:
        node: id of the node, or nothing.
        name: of its input, or nothing.
        file: the name of a file that is not among the choices; the host may have it in a folder below.
    """

    node: str
    name: str
    text: str
    file: str = ""


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
            yield Spec(prefix + name, kind, options, section == "required")


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


def faults(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> Iterator[Fault]:
    """What in a workflow in API format does not fit the host's node classes, as far as it describes them.

    Like the host, it looks at the inputs of those nodes only that lead to an output. A class may have checks of its
    own, which are not described: the host may refuse more, and take a value that is none of the choices.
    """
    strange = [node for node, each in prompt.items() if each["class_type"] not in object_info]
    for node in strange:
        yield Fault(node, "", f"the host has no node {prompt[node]['class_type']!r}; install its pack")
    if strange:
        return
    waiting = [node for node, each in prompt.items() if object_info[each["class_type"]].get("output_node")]
    if not waiting:
        yield Fault("", "", "no node of the workflow saves or shows anything")
    seen = set(waiting)
    while waiting:
        node = waiting.pop(0)
        yield from _node_faults(prompt, node, object_info[prompt[node]["class_type"]])
        links = (value[0] for value in prompt[node]["inputs"].values() if _is_link(value, prompt))
        new = [each for each in dict.fromkeys(links) if each not in seen]
        seen.update(new)
        waiting += new


def _is_link(value: Any, prompt: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt


def _node_faults(prompt: Mapping[str, Any], node: str, info: Mapping[str, Any]) -> Iterator[Fault]:
    inputs = prompt[node]["inputs"]
    for spec in live_specs(info, inputs):
        if spec.name not in inputs:
            if spec.required and not str(spec.kind).startswith(DYNAMIC):
                yield Fault(node, spec.name, "it needs a value or a connection")
            continue
        value = inputs[spec.name]
        if isinstance(value, list):
            if not _is_link(value, prompt):
                yield Fault(node, spec.name, f"{value} is no output of a node of the workflow")
            continue
        # How a list is given as a value: a list by itself would be a connection.
        value = value.get("__value__", value) if isinstance(value, dict) else value
        if text := _value_fault(value, spec):
            yield Fault(node, spec.name, text, str(value) if spec.takes_files else "")


def _value_fault(value: Any, spec: Spec) -> str | None:
    if spec.kind in NUMBERS:
        return _number_fault(value, spec)
    if spec.kind == "BOOLEAN" and isinstance(value, str):  # of which the host takes every one for true, "false" too
        return f"{value!r} is neither true nor false"
    options = spec.options.get("options") or ()
    if spec.kind == DYNAMIC_COMBO:
        options = [option["key"] for option in options]
    elif spec.kind != "COMBO" or spec.options.get("remote"):
        return None  # not a choice, or one that only the editor knows
    elif not options and not spec.takes_files:
        # Filled by the editor, or a host without any model of the kind.
        return f"the host has no {value!r}, nor any other" if str(value).endswith(MODELS) else None
    values = value if spec.options.get("multiselect") and isinstance(value, list) else [value]
    wrong = [each for each in values if each not in options]
    return f"{wrong[0]!r} is not one of {some_of(options, wrong[0])}" if wrong else None


def _number_fault(value: Any, spec: Spec) -> str | None:
    convert, kind = NUMBERS[spec.kind]
    try:
        number = convert(value)
    except (ValueError, TypeError, OverflowError):
        return f"{value!r} is not {kind}"
    if isinstance(value, float) and number != value:  # the host would cut off what stands behind the point
        return f"{value!r} is not {kind}"
    least, most = spec.options.get("min"), spec.options.get("max")
    if least is not None and number < least:
        return f"{value} is less than {least}"
    if most is not None and number > most:
        return f"{value} is more than {most}"
    return None


def some_of(names: Iterable[Any], wanted: Any) -> str:
    """The names, the one most like `wanted` first, and if there are many their number."""
    texts = [str(name) for name in names]
    near = difflib.get_close_matches(str(wanted), texts, 1)
    shown = list(dict.fromkeys([*near, *texts]))
    more = f", … ({len(shown)} in all)" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more
