"""RefDrop written a second time, in the plainest way: explicit passes, explicit attention, no reuse of the pack's code.

`NaiveRefDrop` replaces attention in all self-attentions of a U-Net by float64 softmax attention and mixes in the keys
and values of reference passes that it runs itself, one half at a time.
"""

from __future__ import annotations

from typing import Any

import oracle
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor


def labelled_layers(patcher: ModelPatcher) -> list[tuple[tuple[str, int], BasicTransformerBlock]]:
    """All transformer layers in the order they run, each with its block's label; found without the pack."""
    unet = patcher.model.diffusion_model
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    return [
        ((side, number), layer)
        for side, blocks in sides.items()
        for number, block in enumerate(blocks)
        for layer in block.modules()
        if isinstance(layer, BasicTransformerBlock)
    ]


class HiddenStates:
    """Normed hidden states entering, and outputs leaving, each self-attention, forward pass by forward pass."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def attach(self, patcher: ModelPatcher) -> None:
        def before(n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, ...]:
            self.inputs.append(n.clone())
            return n, context, value

        def after(out: Tensor, extra_options: dict[str, Any]) -> Tensor:
            self.outputs.append(out.clone())
            return out

        patcher.set_model_attn1_patch(before)
        patcher.set_model_attn1_output_patch(after)


class NaiveRefDrop:
    """Two passes per half and step: first each reference alone, then the pictures, which follow what was recorded.

    Args:
        outside: references (strength, latent (1, C, H, W) in model space, noise, text or None for the sampler's).
        batch: (strength, N): the first N samples of the batch are the references instead.
    """

    def __init__(
        self, outside: list[tuple[float, Tensor, Tensor, Tensor | None]] = (), batch: tuple[float, int] | None = None
    ) -> None:
        self.outside = outside
        self.batch = batch
        self.strengths = [batch[0]] * batch[1] if batch else [strength for strength, *_ in outside]
        self.recorded: list[list[tuple[Tensor, Tensor]]] = []
        self.recording: list[tuple[Tensor, Tensor]] | None = None
        self.layer = 0

    def attach(self, patcher: ModelPatcher) -> None:
        layers = labelled_layers(patcher)

        def replace(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            number, self.layer = self.layer, (self.layer + 1) % len(layers)
            heads = extra_options["n_heads"]
            if self.recording is not None:
                self.recording.append((k.clone(), v.clone()))
                return oracle.batched(q, k, v, heads).to(q.dtype)
            pairs = [(record[number][0][0], record[number][1][0]) for record in self.recorded]
            weights = [q.new_full((1, 1), strength) for strength in self.strengths]
            out = [oracle.rfg(*sample, pairs, weights, heads) for sample in zip(q, k, v, strict=True)]
            return torch.stack(out).to(q.dtype)

        for side, number in {label for label, _ in layers}:
            patcher.set_model_attn1_replace(replace, side, number)
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "naive", self._each_half)

    def _each_half(
        self, executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, control: Any, options: dict, **extra: Any
    ) -> Tensor:
        chunks = options["cond_or_uncond"]
        halves = zip(*(tensor.chunk(len(chunks)) for tensor in (x, t, text)), strict=True)
        out = []
        for number, (half, (x_half, t_half, text_half)) in enumerate(zip(chunks, halves, strict=True)):
            extra_half = {key: value.chunk(len(chunks))[number] for key, value in extra.items()}

            def forward(
                x: Tensor, text: Tensor, t: Tensor = t_half[:1], extra: dict[str, Tensor] = extra_half
            ) -> Tensor:
                rows = len(x)
                repeated = {key: value[:1].expand(rows, -1) for key, value in extra.items()}
                return executor(x, t.expand(rows), None, text.expand(rows, -1, -1), None, options, **repeated)

            out.append(self._guided(forward, half, x_half, text_half[:1], t_half[0]))
        return torch.cat(out)

    def _guided(self, forward: Any, half: int, x: Tensor, text: Tensor, sigma: Tensor) -> Tensor:
        if self.batch:
            references = [(x[i : i + 1], text) for i in range(self.batch[1])]
        else:
            references = [
                ((latent + noise * sigma.cpu()).to(x), own_text.to(x) if own_text is not None and half == 0 else text)
                for _, latent, noise, own_text in self.outside
            ]
        self.recorded, predictions = [], []
        for x_ref, text_ref in references:
            self.recording = []
            predictions.append(forward(x_ref, text_ref))
            self.recorded.append(self.recording)
        self.recording = None
        if not self.batch:
            return forward(x, text)
        return torch.cat([*predictions, forward(x[self.batch[1] :], text)])
