"""DEADiff's U-Net: recorded tokens through DEADiffStyle into the host's U-Net, against the official network."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import deadiff_support as deadiff
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

TOLERANCE = 2e-5


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for each recorded output."""
    t = golden.tensors
    model, weights, info = deadiff.golden_unet(golden.path.parent, golden.info["name"])
    inputs = t["x"], t["t"], t["text"], t["uncond_text"]

    def styled(layers: str, mode: str, strength: float) -> Any:
        tokens = t["style_tokens"], t["content_tokens"], info["content_layers_tested"][layers]
        recorded = deadiff.RecordedTokens(weights, *tokens)
        return deadiff.apply(model, recorded, mode=deadiff.NODE_MODES[mode], strength=strength)

    @functools.cache
    def halves(layers: str, mode: str, strength: float) -> tuple[Tensor, Tensor]:
        return deadiff.evaluate(styled(layers, mode, strength), *inputs)

    equal = info.get("bitwise_equal_to", {})
    for name in sorted({name for name in [*t, *equal] if name.startswith("out.") and ".plain." not in name}):
        layers, mode, strength = deadiff.parse(name)
        got = halves(layers, "style", strength)[1] if mode == "uncond" else halves(layers, mode, strength)[0]
        yield name, got, t[equal.get(name, name)], TOLERANCE
    for name, got in zip(("text", "uncond_text"), deadiff.evaluate(model, *inputs), strict=True):
        if f"out.plain.{name}" in t:
            yield f"out.plain.{name}", got, t[f"out.plain.{name}"], TOLERANCE
    for name in sorted(name for name in t if name.startswith("cfg")):
        scale, _, rest = name.removeprefix("cfg").partition(".")
        _, mode, strength = deadiff.parse(f"out.official.{rest}")
        cond, uncond = halves("official", mode, strength)
        # Guidance multiplies the difference of two predictions, and their errors.
        yield name, uncond + float(scale) * (cond - uncond), t[name], TOLERANCE * float(scale)
    yield from _layers(styled("official", "both", 0.6), inputs, t)


def _layers(
    model: Any, inputs: tuple[Tensor, ...], t: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Hidden states that enter and leave single cross-attentions, in the conditional half."""
    seen: dict[str, Tensor] = {}

    def conditional(x: Tensor, options: dict[str, Any]) -> Tensor:
        return x.chunk(len(options["cond_or_uncond"]))[options["cond_or_uncond"].index(0)].clone()

    def before(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        seen[f"dbg.layer{options['transformer_index']}.attn2_in"] = conditional(n, options)
        return n, context, value

    def after(out: Tensor, options: dict[str, Any]) -> Tensor:
        seen[f"dbg.layer{options['transformer_index']}.attn2_out"] = conditional(out, options)
        return out

    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(after)
    deadiff.evaluate(model, *inputs)
    for name in sorted(name for name in t if name.startswith("dbg.")):
        yield name, seen[name], t[name], TOLERANCE
