"""References from outside the batch: passed through the model, they leave their keys and values."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from .attention import AttentionCall
from .bank import KeyValueBank, Record
from .binding import Evaluation
from .blocks import Block, Layer
from .conditionings import Cond, Conditionings
from .families.attentions import Attentions
from .passes import Asked, evaluation_key, read_reference
from .selection import Selection

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.samplers import CFGGuider

# Entries of a conditioning that say where in the generated picture it is for.
REGION_KEYS = frozenset({"area", "mask", "mask_strength", "set_area_to_bounds", "strength", "default"})
# Entries that belong to the generated picture, not to the prompt.
PICTURE_KEYS = frozenset(
    REGION_KEYS
    | {"control", "control_apply_to_uncond", "gligen"}
    | {"concat_latent_image", "concat_mask", "concat_image", "denoise_mask"}
    | {"keyframe_idxs", "guide_attention_entries", "guiding_frame_index", "time_dim_concat", "time_dim_replace"}
    | {"vace_frames", "vace_mask", "vace_strength", "camera_conditions", "control_video", "pose_video_latent"}
    | {"face_video_pixels", "reference_motion", "audio_embed", "ref_audio", "driving_mask_28ch", "ref_mask_28ch"}
    | {"lq_latent"}
)
# Those of them with a latent for each of its frames.
FRAME_KEYS = ("concat_latent_image", "vace_frames")
TEXTS = ("cross_attn", "pooled_output")  # entries of a conditioning that may have a row for each picture


@dataclass(frozen=True, eq=False)
class Reference:
    """Latents from outside the batch.

    Attributes:
        samples: (R, C, H, W) or (R, C, F, H, W), R references of any size; on the CPU.
        positive: their own conditioning in ComfyUI's form; None takes the sampler's.
        seed: seeds the noise that brings them to the noise level of each step.
    """

    samples: Tensor
    positive: list[Any] | None
    seed: int


def require_pictures(samples: Tensor, method: str) -> None:
    """Checks that references of pictures are pictures: a VAE of videos makes one video of a batch.

    Raises:
        ValueError: they have several frames.
    """
    if samples.ndim == 5 and samples.shape[2] > 1:
        raise ValueError(
            f"{method}: reference_latent is a video of {samples.shape[2]} latents, as this model's VAE makes it of a "
            "batch, but the model paints pictures. Encode each picture by itself, with a node for each."
        )


def require_frames(conditioning: Sequence[Cond], samples: Tensor, name: str) -> None:
    """Checks that what a prompt says of each frame is for as many frames as references have.

    Args:
        name: of the conditioning.

    Raises:
        ValueError: it is of a video of another length.
    """
    given = [entry[key] for entry in conditioning for key in FRAME_KEYS if entry.get(key) is not None]
    latents = [each for value in given for each in (value if isinstance(value, list) else [value])]
    for latent in latents:
        if latent.ndim == samples.ndim == 5 and latent.shape[2] != samples.shape[2]:
            raise ValueError(
                f"{name} holds a video of {latent.shape[2]} latent frames beside its text, but the reference has "
                f"{samples.shape[2]}. Connect the text alone, as CLIP Text Encode gives it."
            )


class ReferenceRecorded(Exception):
    """Ends a pass of references early: every key that is needed has been recorded."""


def until_recorded(executor: Callable[..., Tensor], x: Tensor, *args: Any, channels: int, **kwargs: Any) -> Tensor:
    """A forward pass that may end early; nobody uses its prediction, so zeros take its place.

    Args:
        channels: of the prediction; what enters the model may have more.
    """
    try:
        return executor(x, *args, **kwargs)
    except ReferenceRecorded:
        return torch.zeros_like(x[:, :channels])


class Recording(Evaluation):
    """A pass of references: stores what the self-attentions see, up to the last layer that is needed.

    Args:
        passes: what is passed.
        blocks: those to record, at least one.
        attentions: of the model.
        method: for messages.
        selection: what of the references is recorded; None is all.
        share_conditional: whether all halves will use what is recorded.

    Attributes:
        ends: how many forward passes got to the last layer.
    """

    is_reading = True
    ends = 0

    def __init__(
        self,
        passes: ReferencePass,
        blocks: frozenset[Block],
        attentions: Attentions,
        method: str,
        selection: Selection | None = None,
        share_conditional: bool = False,
    ) -> None:
        super().__init__()
        self.bank = KeyValueBank(method, share_conditional)
        self.pictures = len(passes.reference.samples) * passes.prompts_each
        self._references, self._channels = passes.reference.samples.shape[:2]
        self._blocks = blocks
        self._attentions = attentions
        self._selection = selection or Selection(None)
        wanted = [block for block in attentions.blocks if block in blocks]
        self._last: Layer = (wanted[-1], attentions.blocks[wanted[-1]] - 1)

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass, which ends at the last layer."""
        *inputs, options = args
        routed = self._attentions.route(x, kwargs, options, self._record)
        return until_recorded(executor, x, *inputs, routed, channels=self._channels, **kwargs)

    @property
    def is_complete(self) -> bool:
        """Whether there was a forward pass, and all of them got to the last layer."""
        return 0 < self.passes == self.ends

    def _record(self, call: AttentionCall) -> Tensor:
        if call.block in self._blocks:
            shape = len(call.chunks), self._references, -1
            keys, values = (_own(t).unflatten(0, shape) for t in (call.k, call.v))
            if keys.shape[2] == 1:
                keys, values = keys.squeeze(2), values.squeeze(2)
            pairs = self._selection.of(call.grid, keys, values)
            self.bank.store(call.layer, Record(call.chunks, call.grid, pairs))
        if call.layer == self._last:
            self.ends += 1
            raise ReferenceRecorded
        return call.plain()


class ReferencePass:
    """References during one sampling run.

    Args:
        reference: the latents.
        prompts: the sampler's conditionings by their role: "positive", "negative", ...
        key: of the method that reads them.
        of_picture: further entries of the prompts that belong to the generated picture.

    Attributes:
        prompts_each: P, how many pictures of the batch have a prompt of their own; each reference is read with all.
    """

    def __init__(
        self,
        reference: Reference,
        prompts: dict[str, list[Cond]],
        key: str,
        of_picture: frozenset[str] = frozenset(),
    ) -> None:
        self.reference = reference
        self.conditionings = Conditionings(prompts)
        self._key = key
        self._of_picture = PICTURE_KEYS | of_picture
        self._prompts = {role: [self._of_prompt(entry) for entry in entries] for role, entries in prompts.items()}
        if reference.positive is not None:
            self._prompts.pop("positive", None)
        self.prompts_each = max([1, *(_rows(entry) for entries in self._prompts.values() for entry in entries)])
        if reference.positive is not None:
            own = comfy.sampler_helpers.convert_cond(reference.positive)
            require_frames(own, reference.samples, "reference_positive")
            self._prompts["positive"] = [self._for_each_prompt(_without(entry, REGION_KEYS)) for entry in own]
        self._encoded: dict[str, list[Cond]] = {}
        self._on_device: tuple[Tensor, Tensor] | None = None

    @property
    def own_prompts(self) -> list[Cond]:
        """The references' own conditioning; what it carries (a ControlNet, say) must be loaded with the model."""
        return self._prompts["positive"] if self.reference.positive is not None else []

    @property
    def prompts(self) -> dict[str, list[Cond]]:
        """What the references are read with, by role."""
        return self._prompts

    def close(self) -> None:
        """Frees what the references' own conditioning holds on the device; ComfyUI does so for the sampler's."""
        comfy.sampler_helpers.cleanup_models({"positive": self.own_prompts}, [])

    @property
    def latents(self) -> Tensor:
        """(R * P, C, ...), what passes through the model."""
        return self._each(self.reference.samples)

    def held(self, attentions: Attentions, blocks: frozenset[Block], guider: CFGGuider, shared: bool = False) -> int:
        """How many numbers the keys and values of some blocks are, read for all that is evaluated at one noise level.

        Args:
            shared: whether the conditional half is read alone.
        """
        is_guided = not math.isclose(getattr(guider, "cfg", 0.0), 1.0)
        is_alone = shared or not (is_guided or guider.model_options.get("disable_cfg1_optimization"))
        read = [self._prompts["positive"]] if is_alone and "positive" in self._prompts else self._prompts.values()
        each = attentions.recorded(blocks, self.reference.samples.shape[1:])
        return each * len(self.latents) * sum(map(len, read))

    def noised(self, model: BaseModel, sigma: Tensor) -> Tensor:
        """(R, C, ...), the references at noise level `sigma`, (1,), on its device."""
        noise, latent = self._tensors(model, sigma.device)
        return model.model_sampling.noise_scaling(sigma, noise, latent)

    def run(self, asked: Asked, recording: Recording, conds: list[list[Cond] | None] | None = None) -> None:
        """Passes the references through the model at the noise level of an evaluation, for a recording to fill.

        Args:
            conds: what the sampler is about to evaluate, or a part of it; the references get the same halves.
        """
        noise, latent = self._tensors(asked.model, asked.sigma.device)
        prompts = [
            None if entries is None else self._encode(asked.model, entries, self._each(noise), self._each(latent))
            for entries in (asked.conds if conds is None else conds)
        ]
        state = {evaluation_key(self._key): recording}
        read_reference(asked, prompts, self._each(self.noised(asked.model, asked.sigma)), state)

    def _each(self, rows: Tensor) -> Tensor:
        """Rows of the references, each as often as there are prompts to read it with."""
        return rows if self.prompts_each == 1 else rows.repeat_interleave(self.prompts_each, 0)

    def _for_each_prompt(self, entry: Cond) -> Cond:
        """The references' own prompt, which is the same whichever prompt their pass serves."""
        if self.prompts_each == 1:
            return entry
        count = len(self.reference.samples)
        texts = {key: self._each(repeat_to_batch_size(entry[key], count)) for key in TEXTS if _is_text(entry, key)}
        return {**entry, **texts}

    def _tensors(self, model: BaseModel, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._on_device is None:
            samples = self.reference.samples.float()
            # A generator of its own: the sampler's random numbers must not change.
            generator = torch.Generator("cpu").manual_seed(self.reference.seed)
            noise = torch.randn(samples.shape, generator=generator)
            self._on_device = noise.to(device), model.process_latent_in(samples).to(device)
        return self._on_device

    def _encode(self, model: BaseModel, entries: list[Cond], noise: Tensor, latent: Tensor) -> list[Cond]:
        """Conditioning for pictures of the references' size, by ComfyUI's own rules for the model."""

        def encode(prompts: list[Cond], kind: str) -> list[Cond]:
            shapes = [noise.shape]  # some models ask for it, because their latents may come in several parts
            encoded = comfy.samplers.process_conds(
                model, noise, {kind: prompts}, noise.device, latent, seed=self.reference.seed, latent_shapes=shapes
            )
            return [_placed(entry, noise.device) for entry in encoded[kind]]

        (role,) = self.conditionings.roles([entries])
        if role is None:  # made by another node for this call: its text, whatever it is
            return encode([self._of_prompt(entry) for entry in entries], "positive")
        if role not in self._encoded:
            self._encoded[role] = encode(self._prompts[role], role)
        return self._encoded[role]

    def _of_prompt(self, entry: Cond) -> Cond:
        """A conditioning without what belongs to the generated picture."""
        return _without(entry, self._of_picture)


def _without(entry: Cond, keys: frozenset[str]) -> Cond:
    return {key: value for key, value in entry.items() if key not in keys}


def _own(tensor: Tensor) -> Tensor:
    """A tensor whose memory is written by nobody else.

    Compiled blocks may be replayed as CUDA graphs, each time into the same memory. Whoever compiles has imported this.
    """
    return tensor.clone() if tensor.device.type != "cpu" and "torch._dynamo" in sys.modules else tensor


def _placed(entry: Cond, device: torch.device) -> Cond:
    """An encoded conditioning with its tensors on the device; ComfyUI would bring them anew for each pass."""
    placed = {}
    for key, each in entry["model_conds"].items():
        placed[key] = each
        if isinstance(getattr(each, "cond", None), Tensor):
            placed[key] = copy.copy(each)
            placed[key].cond = each.cond.to(device)
    return {**entry, "model_conds": placed}


def _is_text(entry: Cond, key: str) -> bool:
    return isinstance(entry.get(key), Tensor)


def _rows(entry: Cond) -> int:
    """For how many pictures a conditioning has texts."""
    return max([1, *(len(entry[key]) for key in TEXTS if _is_text(entry, key))])
