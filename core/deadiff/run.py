"""State of one sampling run, and of one forward pass of the model in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.masks import token_weights
from ..patches.blocks import Layer
from ..patches.cross_attention import CrossAttentionCall
from ..patches.self_attention import Chunk, Options
from .kernel import Joint, join, joint_attention
from .settings import NODE, Style

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider


@dataclass(frozen=True)
class Prompt:
    """What is known about the conditioning of a chunk."""

    unconditional: bool
    tokens: int | None  # length of its text before the host repeats it to match a longer one; None if unknown
    hooked: bool  # carries hooks, so that the model's weights may change from step to step


Joints = dict[Layer, list[Joint]]


class StyleRun:
    """One sampling run: the style, and what is computed once for all steps."""

    def __init__(self, style: Style, guider: CFGGuider, noise_shape: torch.Size) -> None:
        _check_batch(style, noise_shape[0])
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.style = style
        self.latent_size = tuple(noise_shape[-2:])
        self.has_acted = False
        self._sigmas = sampling.percent_to_sigma(style.start_percent), sampling.percent_to_sigma(style.end_percent)
        self._role_of_uuid = {entry["uuid"]: role for role, entries in guider.conds.items() for entry in entries}
        self._prompts: dict[Chunk, Prompt] = {}
        self._kept: dict[tuple[tuple[Chunk, ...], torch.device], tuple[Tensor, Joints]] = {}
        self._regions: dict[tuple[tuple[int, int], int, torch.device], Tensor] = {}

    def note_prompts(self, conds: list[list[dict[str, Any]] | None]) -> None:
        """Remembers the conditionings that are about to be evaluated."""
        for index, entries in enumerate(conds):
            # Its first entry tells which half a list is: what the host adds for areas has borrowed uuids.
            role = self._role_of_uuid.get(entries[0]["uuid"]) if entries else None
            unconditional = index > 0 if role is None else "negative" in role
            for entry in entries or []:
                text = entry.get("model_conds", {}).get("c_crossattn")
                tokens = None if text is None else text.cond.shape[1]
                self._prompts[index, entry["uuid"]] = Prompt(unconditional, tokens, entry.get("hooks") is not None)

    def prompt(self, chunk: Chunk) -> Prompt:
        """What is known about a chunk; one that no sampler announced is judged by its place."""
        return self._prompts.get(chunk, Prompt(chunk[0] > 0, None, False))

    def is_active(self, options: Options) -> bool:
        """Whether the evaluation lies in the style's part of the schedule."""
        if self.style.whole_schedule:
            return True  # without reading sigma, for which a GPU would have to wait
        return bool(self._sigmas[0] >= options["sigmas"][0].item() >= self._sigmas[1])

    def kept(self, chunks: tuple[Chunk, ...], context: Tensor) -> Joints:
        """What earlier forward passes computed for the same chunks and the same text; to be filled further."""
        place = chunks, context.device
        text, joints = self._kept.get(place, (None, {}))
        # One comparison in a forward pass: some nodes change the text between steps.
        if text is None or text.dtype != context.dtype or not torch.equal(text, context):
            joints = {}
            self._kept[place] = context, joints
        return joints

    def region(self, call: CrossAttentionCall) -> float | Tensor:
        """Share of the style for each token: 1.0, or (1 or G * B, N, 1) with a mask."""
        if self.style.mask is None:
            return 1.0
        if call.q.shape[1] != call.grid[0] * call.grid[1]:
            raise RuntimeError(
                f"{NODE}: the mask needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.layer[0]}, but "
                f"another patch left {call.q.shape[1]} of them. Remove token merging or tiling, or the mask."
            )
        place = call.grid, len(call.chunks), call.q.device
        if place not in self._regions:
            weights = token_weights(self.style.mask.float(), call.grid).to(call.q.device)
            self._regions[place] = weights if len(weights) == 1 else weights.repeat(len(call.chunks), 1, 1)
        return self._regions[place].to(call.q.dtype)


class Styling:
    """One forward pass."""

    def __init__(self, run: StyleRun, options: Options) -> None:
        self._run = run
        # With hooks the weights, and with patches of other nodes the text, may differ from step to step.
        chunks = zip(options["cond_or_uncond"], options["uuids"], strict=True)
        patched = bool(options.get("patches", {}).get("attn2_patch"))
        self._is_constant = not patched and not any(run.prompt(chunk).hooked for chunk in chunks)
        self._joints: Joints | None = None

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves the text out of a layer whose keys and values are kept, so that nothing is projected again."""
        if self._joints is None:
            self._joints = self._run.kept(chunks, context) if self._is_constant else {}
        if layer in self._joints:
            return context[:, :0], value[:, :0]
        return context, value

    def attend(self, call: CrossAttentionCall) -> Tensor:
        """Attention to text and image."""
        self._run.has_acted = True
        known = {} if self._joints is None else self._joints
        if call.layer not in known:
            known[call.layer] = _merged(_joints(self._run, call))
        return joint_attention(call.attend, call.q, known[call.layer], self._run.region(call))


def _joints(run: StyleRun, call: CrossAttentionCall) -> Iterator[Joint]:
    """Keys and values of each chunk."""
    style = run.style
    samples = len(call.k) // len(call.chunks)
    image = style.image.get(call.layer)
    for number, chunk in enumerate(call.chunks):
        rows = slice(number * samples, (number + 1) * samples)
        prompt = run.prompt(chunk)
        text = _own_length(prompt, call.k.shape[1])
        keys, values = call.k[rows, :text], call.v[rows, :text]
        if image is not None and (style.zero_tokens or not prompt.unconditional):
            weight = 0.0 if prompt.unconditional else style.strength
            keys, values = join(keys, image[0], weight), join(values, image[1], weight)
        yield Joint(rows, keys, values, text)


def _own_length(prompt: Prompt, tokens: int) -> int:
    """Length of a text without the repetitions that the host pads with: they change a softmax over more than text."""
    own = prompt.tokens
    return own if own and tokens % own == 0 else tokens


def _merged(joints: Iterator[Joint]) -> list[Joint]:
    """Neighbours of equal length in one, so that one call of the attention serves them."""
    merged: list[Joint] = []
    for joint in joints:
        last = merged[-1] if merged else None
        if last and (last.text, last.keys.shape[1]) == (joint.text, joint.keys.shape[1]):
            keys, values = torch.cat([last.keys, joint.keys]), torch.cat([last.values, joint.values])
            merged[-1] = Joint(slice(last.rows.start, joint.rows.stop), keys, values, joint.text)
        else:
            merged.append(joint)
    return merged


def _check_batch(style: Style, batch: int) -> None:
    if style.mask is not None and len(style.mask) not in (1, batch):
        raise ValueError(
            f"{NODE}: mask holds {len(style.mask)} masks for a batch of {batch}. "
            "Give one mask for all samples, or one for each."
        )
