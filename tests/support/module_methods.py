"""The methods written a second time inside of a U-Net's attention modules, below everything that a node can patch.

Each takes the place of the modules' `forward` for one sampling run. A reference of the picture's size is passed through
the model at each noise level by ComfyUI's own `_calc_cond_batch`, with the patches inside of the model and without the
wrappers around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from naive import labelled_layers
from torch import Tensor

Read = dict[Any, tuple[Tensor, Tensor]]  # by conditioning: what is projected to keys and values, (M, C)
Act = Callable[..., Tensor]


class Modules:
    """What is in the place of the modules' `forward`.

    Args:
        patcher: that is sampled with.
        act: (module, forward, what was read, chunks, x, context, value, options) -> output of a module.
        reference: (1, c, h, w) as a VAE gives it, of the picture's size; None where nothing is read.
        cross: whether the cross-attentions are replaced, instead of the self-attentions.
    """

    def __init__(self, patcher: Any, act: Act, reference: Tensor | None, cross: bool = False) -> None:
        self._layers = {
            label_depth: layer.attn2 if cross else layer.attn1 for label_depth, layer in _numbered(patcher).items()
        }
        self._act = act
        self._reading: dict[Any, Read] | None = None
        self._read: dict[Any, Read] = {}
        self._reference = reference
        self._negative: set[Any] = set()

    @contextmanager
    def attached(self, patcher: Any) -> Iterator[Any]:
        """A clone of the model to sample with; the modules are themselves again afterwards."""
        patched = patcher.clone()
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "oracle", self._calc_cond_batch)
        for place, module in self._layers.items():
            module.forward = self._replaced(place, module, type(module).forward.__get__(module))
        try:
            yield patched
        finally:
            for module in self._layers.values():
                del module.forward

    def _calc_cond_batch(self, executor: Any, model: Any, conds: Any, x: Tensor, t: Tensor, options: Any) -> Any:
        if len(conds) == 2:  # other nodes evaluate the negative prompt alone, in the first place
            self._negative |= {entry["uuid"] for entry in conds[1] or ()}
        if self._reference is not None:
            generator = torch.Generator().manual_seed(5)
            noise = torch.randn(self._reference.shape, generator=generator)
            noised = model.model_sampling.noise_scaling(t[:1], noise, model.process_latent_in(self._reference))
            inner = {**options, "transformer_options": {**options["transformer_options"], "wrappers": {}}}
            for name in ("model_function_wrapper", "context_handler"):
                inner.pop(name, None)
            self._reading = self._read = {}
            comfy.samplers._calc_cond_batch(model, conds, noised.to(x), t[:1], inner)
            self._reading = None
        return executor(model, conds, x, t, options)

    def _replaced(self, place: Any, module: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def replaced(
            x: Tensor, context: Any = None, value: Any = None, mask: Any = None, transformer_options: Any = None
        ) -> Tensor:
            chunks = [(name, name in self._negative) for name in transformer_options["uuids"]]
            keys_of = x if context is None else context
            values_of = keys_of if value is None else value
            if self._reading is not None:
                for row, (name, _) in enumerate(chunks):
                    self._reading.setdefault(place, {})[name] = keys_of[row], values_of[row]
                return forward(x, context, value, mask, transformer_options)
            read = self._read.get(place, {})
            return self._act(place, module, forward, read, chunks, x, keys_of, values_of, transformer_options)

        return replaced


def _numbered(patcher: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for label, layer in labelled_layers(patcher):
        found[label, sum(known == label for known, _ in found)] = layer
    return found


def refdrop(strength: float) -> Act:
    """(1 - c) Att(Q, K, V) + c Att(Q, K_ref, V_ref); the output projection of the two is the projection of the sum."""

    def act(
        place: Any, module: Any, forward: Any, read: Read, chunks: Any, x: Tensor, k: Tensor, v: Tensor, options: Any
    ) -> Tensor:
        rows = len(x) // len(chunks)
        keys, values = (
            torch.stack([read[name][part] for name, _ in chunks]).repeat_interleave(rows, 0) for part in (0, 1)
        )
        reference = forward(x, keys, values, None, options)
        return (1 - strength) * forward(x, k, v, None, options) + strength * reference

    return act


def refdrop_in_the_batch(strength: float) -> Act:
    """The same with the first picture of the batch as the reference for the others."""

    def act(
        place: Any, module: Any, forward: Any, read: Read, chunks: Any, x: Tensor, k: Tensor, v: Tensor, options: Any
    ) -> Tensor:
        rows = len(x) // len(chunks)
        own = forward(x, k, v, None, options)
        keys, values = (t.unflatten(0, (len(chunks), -1))[:, :1].expand(-1, rows, -1, -1).flatten(0, 1) for t in (k, v))
        mixed = (1 - strength) * own + strength * forward(x, keys, values, None, options)
        is_reference = (torch.arange(len(x)) % rows == 0)[:, None, None]
        return torch.where(is_reference, own, mixed)

    return act


def p3s(epsilon: float, value_strength: float) -> Act:
    """K' = W_K [z, eps f], V' = W_V [z + lambda eps f, eps f]."""

    def act(
        place: Any, module: Any, forward: Any, read: Read, chunks: Any, x: Tensor, k: Tensor, v: Tensor, options: Any
    ) -> Tensor:
        rows = len(x) // len(chunks)
        f_keys, f_values = (
            epsilon * torch.stack([read[name][part] for name, _ in chunks]).repeat_interleave(rows, 0)
            for part in (0, 1)
        )
        keys = torch.cat([module.to_k(k), module.to_k(f_keys)], 1)
        values = torch.cat([module.to_v(v + value_strength * f_values), module.to_v(f_values)], 1)
        out = optimized_attention(module.to_q(x), keys, values, module.heads, transformer_options=options)
        return module.to_out(out)

    return act


def deadiff(image: dict[Any, tuple[Tensor, Tensor]]) -> Act:
    """Text and image in one softmax, the image of the negative prompt being zeros."""

    def act(
        place: Any, module: Any, forward: Any, read: Read, chunks: Any, x: Tensor, k: Tensor, v: Tensor, options: Any
    ) -> Tensor:
        rows = len(x) // len(chunks)
        weights = torch.tensor([float(not is_negative) for _, is_negative in chunks]).repeat_interleave(rows)
        keys, values = (
            torch.cat([project(of), weights[:, None, None] * shown], 1)
            for project, of, shown in zip((module.to_k, module.to_v), (k, v), image[place], strict=True)
        )
        out = optimized_attention(module.to_q(x), keys, values, module.heads, transformer_options=options)
        return module.to_out(out)

    return act
