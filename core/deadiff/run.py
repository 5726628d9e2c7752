"""State of one sampling run, of one evaluation of the model in it, and of one forward pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..patches.attention import AttentionCall, Chunk, Options, chunks_of, route_cross_attention
from ..patches.binding import Evaluation, Run
from ..patches.blocks import Layer
from ..patches.conditionings import Conditionings
from ..patches.passes import Asked, is_reference_pass, may_change_inputs
from ..patches.region import (
    check_mask,
    region_weights,
    require_all_pictures,
    require_whole_picture,
)
from ..patches.schedule import NoiseRange
from .kernel import Joint, in_turn, join, joint_attention
from .settings import NODE, DEADiffSettings, check_no_replacement

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is known about the conditioning of a chunk."""

    unconditional: bool
    tokens: int | None  # length of its text before ComfyUI repeats it to match a longer one; None if unknown
    hooked: bool  # carries hooks, so that the model's weights may change from step to step
    text: Tensor | None = None  # as ComfyUI encoded it; None if unknown


Joints = dict[Layer, list[list[Joint]]]  # of each style
Styles = tuple[DEADiffSettings, ...]


class DEADiffRun(Run):
    """One sampling run: the styles, and what is computed once for all steps.

    Args:
        asked: of each node of the model; where there are several, each has a mask.
        guider, noise_shape, sigmas: of the run.
    """

    def __init__(self, asked: Styles, guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor) -> None:
        self.latent_size = tuple(noise_shape[-2:])
        for each in asked:
            check_mask(each.mask, noise_shape, NODE)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._pictures = tuple(noise_shape[:-2])
        self._ranges = {each: NoiseRange.of(sampling, each.start_percent, each.end_percent) for each in asked}
        self._conditionings = Conditionings(guider.conds)
        self._kept: dict[tuple[Any, ...], tuple[Tensor | list[Tensor], Joints]] = {}
        self._images: dict[tuple[DEADiffSettings, Layer, torch.device], tuple[Tensor, Tensor]] = {}
        self._regions: dict[tuple[Styles, tuple[int, int], int, torch.device], list[Tensor]] = {}

    def evaluation(self, asked: Asked) -> DEADiffEvaluation | None:
        """In the styles' parts of the schedule, one that knows which conditionings it consists of."""
        # Over the whole schedule sigma is not read: a GPU would have to wait.
        styles = tuple(each for each, where in self._ranges.items() if each.whole_schedule or asked.level in where)
        masks = [each.mask for each in styles if each.mask is not None]
        if not styles or (masks and is_reference_pass(asked.options)):
            return None  # a mask limits the style to a region of the picture, in which the reference does not lie
        if any(len(mask) > 1 for mask in masks):
            why, cure = "and there is a mask for each picture", "Give one mask for all"
            require_all_pictures(asked, self._pictures, NODE, why, cure)
        return DEADiffEvaluation(self, asked, styles, self._prompts(asked))

    def _prompts(self, asked: Asked) -> dict[Chunk, Prompt]:
        prompts, negatives = {}, self._conditionings.negatives(asked.conds)
        for index, entries in enumerate(asked.conds):
            for entry in entries or []:
                text = entry.get("model_conds", {}).get("c_crossattn")
                tokens = None if text is None else text.cond.shape[1]
                is_hooked = entry.get("hooks") is not None
                prompts[index, entry["uuid"]] = Prompt(index in negatives, tokens, is_hooked, text and text.cond)
        return prompts

    def kept(self, styles: Styles, chunks: tuple[Chunk, ...], context: Tensor, texts: list[Tensor] | None) -> Joints:
        """What earlier forward passes computed for the same chunks and the same text; to be filled further.

        Args:
            context: the text.
            texts: of the chunks, as ComfyUI encoded them, if nothing changes them on the way to the model. Else the
                text itself is compared, for which the program has to wait for the device.
        """
        place = styles, chunks, context.shape, context.dtype, context.device
        seen, joints = self._kept.get(place, (None, {}))
        given = context if texts is None else texts
        if not _is_same_text(seen, given):
            joints = {}
            self._kept[place] = given, joints
        return joints

    def image(self, style: DEADiffSettings, layer: Layer, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a style in a layer, (1 or rows, T, C), brought to a device once."""
        if layer not in style.image:
            return None
        if (style, layer, device) not in self._images:
            keys, values = style.image[layer]
            self._images[style, layer, device] = keys.to(device), values.to(device)
        return self._images[style, layer, device]

    def regions(self, styles: Styles, call: AttentionCall) -> Sequence[float | Tensor]:
        """For `joint_attention`, of each style: 1.0, or (1 or G * B, N, 1) with masks."""
        if styles[0].mask is None:
            return [1.0]
        place = styles, call.grid, len(call.chunks), call.q.device
        if place not in self._regions:
            weights = in_turn([region_weights(each.mask, call, NODE) for each in styles if each.mask is not None])
            rows = [each if len(each) == 1 else each.repeat(len(call.chunks), 1, 1) for each in weights]
            self._regions[place] = rows
        return [weights.to(call.q.dtype) for weights in self._regions[place]]


class DEADiffEvaluation(Evaluation):
    """One evaluation of the sampler.

    Args:
        styles: those that act in it.
        prompts: what is known of its chunks.
    """

    def __init__(self, run: DEADiffRun, asked: Asked, styles: Styles, prompts: dict[Chunk, Prompt]) -> None:
        super().__init__()
        self.run = run
        self.styles = styles
        self.blocks = frozenset(block for each in styles for block, _ in each.image)
        self._asked = asked
        self._prompts = prompts

    def prompt(self, chunk: Chunk) -> Prompt:
        """What is known about a chunk; one that no sampler announced is judged by its place."""
        return self._prompts.get(chunk, Prompt(chunk[0] > 0, None, False))

    def texts(self, chunks: tuple[Chunk, ...]) -> list[Tensor] | None:
        """The texts of some chunks, if they are sure to be those that reach the model."""
        texts = [self.prompt(chunk).text for chunk in chunks]
        known = [text for text in texts if text is not None]
        return None if len(known) < len(texts) or may_change_inputs(self._asked.model_options) else known

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass; a part of the picture is refused where there is a mask over the whole of it."""
        *inputs, options = args
        if self.styles[0].mask is not None:
            require_whole_picture(x, self._asked, self.run.latent_size, NODE)
        for each in self.styles:
            check_no_replacement(options, each.image)
        return executor(x, *inputs, route_cross_attention(options, _ForwardPass(self, options)), **kwargs)


class _ForwardPass:
    """What handles the cross-attentions of one forward pass."""

    def __init__(self, evaluation: DEADiffEvaluation, options: Options) -> None:
        self._run = evaluation.run
        self._evaluation = evaluation
        # With hooks the weights, and with patches of other nodes the text, may differ from step to step.
        patched = bool(options.get("patches", {}).get("attn2_patch"))
        self._is_constant = not patched and not any(evaluation.prompt(chunk).hooked for chunk in chunks_of(options))
        self._joints: Joints | None = None

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves the text out of a layer whose keys and values are kept, so that nothing is projected again.

        Raises:
            RuntimeError: another patch changed how many texts there are.
        """
        if len(context) != len(chunks) * self._evaluation.pictures:
            raise RuntimeError(
                f"{NODE}: another node of this model (Attention Couple, regional prompts) gives some pictures several "
                "texts in the cross-attentions, and nothing tells which of them are negative. Remove it, or limit the "
                "prompts themselves by masks."
            )
        if self._joints is None:
            texts = self._evaluation.texts(chunks)
            self._joints = self._run.kept(self._evaluation.styles, chunks, context, texts) if self._is_constant else {}
        if layer in self._joints:
            return context[:, :0], value[:, :0]
        return context, value

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention to text and image, that of later styles laid over that of earlier ones."""
        self._evaluation.acted.add(call.block)
        styles = self._evaluation.styles
        known = {} if self._joints is None else self._joints
        if call.layer not in known:
            known[call.layer] = [_merged(_joints(self._evaluation, each, call)) for each in styles]
        out: Tensor | None = None
        for joints, region in zip(known[call.layer], self._run.regions(styles, call), strict=True):
            out = joint_attention(call.attend, call.q, joints, region, out)
        assert out is not None
        return out


def _joints(evaluation: DEADiffEvaluation, settings: DEADiffSettings, call: AttentionCall) -> Iterator[Joint]:
    """Keys and values of each chunk."""
    samples = len(call.k) // len(call.chunks)
    image = evaluation.run.image(settings, call.layer, call.k.device)
    for number, chunk in enumerate(call.chunks):
        rows = slice(number * samples, (number + 1) * samples)
        prompt = evaluation.prompt(chunk)
        text = _own_length(prompt, call.k.shape[1])
        keys, values = call.k[rows, :text], call.v[rows, :text]
        if image is not None and (settings.zero_tokens or not prompt.unconditional):
            weight = 0.0 if prompt.unconditional else settings.strength
            keys, values = join(keys, image[0], weight), join(values, image[1], weight)
        yield Joint(rows, keys, values, text)


def _is_same_text(seen: Tensor | list[Tensor] | None, given: Tensor | list[Tensor]) -> bool:
    if isinstance(seen, Tensor) and isinstance(given, Tensor):
        return torch.equal(seen, given)
    return isinstance(seen, list) and isinstance(given, list) and all(map(operator.is_, seen, given))


def _own_length(prompt: Prompt, tokens: int) -> int:
    """Length of a text without the repetitions that ComfyUI pads with: they change a softmax over more than text."""
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
