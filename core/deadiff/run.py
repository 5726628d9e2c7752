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
from ..patches.region import check_mask_batch, region_weights, require_all_pictures, require_whole_picture
from ..patches.schedule import NoiseRange
from .kernel import Joint, join, joint_attention
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


Joints = dict[Layer, list[Joint]]


class DEADiffRun(Run):
    """One sampling run: the style, and what is computed once for all steps."""

    def __init__(
        self, settings: DEADiffSettings, guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor
    ) -> None:
        check_mask_batch(settings.mask, noise_shape[0], NODE)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.settings = settings
        self.latent_size = tuple(noise_shape[-2:])
        self._pictures = tuple(noise_shape[:-2])
        self._range = NoiseRange.of(sampling, settings.start_percent, settings.end_percent)
        self._conditionings = Conditionings(guider.conds)
        self._kept: dict[tuple[Any, ...], tuple[Tensor | list[Tensor], Joints]] = {}
        self._images: dict[tuple[Layer, torch.device], tuple[Tensor, Tensor]] = {}
        self._regions: dict[tuple[tuple[int, int], int, torch.device], Tensor] = {}

    def evaluation(self, asked: Asked) -> DEADiffEvaluation | None:
        """In the style's part of the schedule, one that knows which conditionings it consists of."""
        # Over the whole schedule sigma is not read: a GPU would have to wait.
        if not self.settings.whole_schedule and asked.level not in self._range:
            return None
        if self.settings.mask is not None and is_reference_pass(asked.options):
            return None  # the mask limits the style to a region of the picture, in which the reference does not lie
        if self.settings.mask is not None and len(self.settings.mask) > 1:
            why, cure = "and there is a mask for each picture", "Give one mask for all"
            require_all_pictures(asked, self._pictures, NODE, why, cure)
        return DEADiffEvaluation(self, asked, self._prompts(asked))

    def _prompts(self, asked: Asked) -> dict[Chunk, Prompt]:
        prompts = {}
        for index, (role, entries) in enumerate(zip(self._conditionings.roles(asked.conds), asked.conds, strict=True)):
            unconditional = index > 0 if role is None else "negative" in role
            for entry in entries or []:
                text = entry.get("model_conds", {}).get("c_crossattn")
                tokens = None if text is None else text.cond.shape[1]
                is_hooked = entry.get("hooks") is not None
                prompts[index, entry["uuid"]] = Prompt(unconditional, tokens, is_hooked, text and text.cond)
        return prompts

    def kept(self, chunks: tuple[Chunk, ...], context: Tensor, texts: list[Tensor] | None) -> Joints:
        """What earlier forward passes computed for the same chunks and the same text; to be filled further.

        Args:
            context: the text.
            texts: of the chunks, as ComfyUI encoded them, if nothing changes them on the way to the model. Else the
                text itself is compared, for which the program has to wait for the device.
        """
        place = chunks, context.shape, context.dtype, context.device
        seen, joints = self._kept.get(place, (None, {}))
        given = context if texts is None else texts
        if not _is_same_text(seen, given):
            joints = {}
            self._kept[place] = given, joints
        return joints

    def image(self, layer: Layer, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the style in a layer, (1 or rows, T, C), brought to a device once."""
        if layer not in self.settings.image:
            return None
        if (layer, device) not in self._images:
            keys, values = self.settings.image[layer]
            self._images[layer, device] = keys.to(device), values.to(device)
        return self._images[layer, device]

    def region(self, call: AttentionCall) -> float | Tensor:
        """Share of the style for each token: 1.0, or (1 or G * B, N, 1) with a mask."""
        if self.settings.mask is None:
            return 1.0
        place = call.grid, len(call.chunks), call.q.device
        if place not in self._regions:
            weights = region_weights(self.settings.mask, call, NODE)
            self._regions[place] = weights if len(weights) == 1 else weights.repeat(len(call.chunks), 1, 1)
        return self._regions[place].to(call.q.dtype)


class DEADiffEvaluation(Evaluation):
    """One evaluation of the sampler.

    Args:
        prompts: what is known of its chunks.
    """

    def __init__(self, run: DEADiffRun, asked: Asked, prompts: dict[Chunk, Prompt]) -> None:
        self.run = run
        self.blocks = frozenset(block for block, _ in run.settings.image)
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
        if self.run.settings.mask is not None:
            require_whole_picture(x, self._asked, self.run.latent_size, NODE)
        check_no_replacement(options, self.run.settings.image)
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
        """Leaves the text out of a layer whose keys and values are kept, so that nothing is projected again."""
        if self._joints is None:
            texts = self._evaluation.texts(chunks)
            self._joints = self._run.kept(chunks, context, texts) if self._is_constant else {}
        if layer in self._joints:
            return context[:, :0], value[:, :0]
        return context, value

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention to text and image."""
        self._run.acted.add(call.block)
        known = {} if self._joints is None else self._joints
        if call.layer not in known:
            known[call.layer] = _merged(_joints(self._evaluation, call))
        return joint_attention(call.attend, call.q, known[call.layer], self._run.region(call))


def _joints(evaluation: DEADiffEvaluation, call: AttentionCall) -> Iterator[Joint]:
    """Keys and values of each chunk."""
    settings = evaluation.run.settings
    samples = len(call.k) // len(call.chunks)
    image = evaluation.run.image(call.layer, call.k.device)
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
