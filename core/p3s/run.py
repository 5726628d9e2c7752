"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor
from torch.nn import functional as F

from ..kernels.masks import to_grid
from ..patches.attention import Options
from ..patches.binding import Evaluation, Run
from ..patches.blocks import Block
from ..patches.conditionings import Conditionings
from ..patches.families.table import picture_attentions
from ..patches.families.unet import UNetAttentions
from ..patches.passes import OURS, Asked, evaluation_key
from ..patches.reference_pass import Recording, ReferencePass
from ..patches.region import check_mask, require_all_pictures, require_whole_picture
from ..patches.schedule import NoiseRange, on_cpu
from ..patches.selection import Tokens
from ..patches.unet import family
from .features import FeaturesOf
from .injection import Hidden, Injection, Part, ReadByModel
from .network import P3SNetwork
from .settings import EMPTY, KEY, LEARNED, NODE, NONE, P3SSettings
from .trained import ReadByAdapter, with_cross

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

TIME_DIGITS = 6  # how finely a noise level is placed on the schedule


class P3SRun(Run):
    """One sampling run: what the nodes asked for, and what is computed once for all steps.

    Args:
        asked: of each node of the model, a subject.
        guider, noise_shape, sigmas: of the run.
    """

    def __init__(
        self, asked: tuple[P3SSettings, ...], guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor
    ) -> None:
        model = guider.model_patcher
        self._sampling = on_cpu(model.get_model_object("model_sampling"))
        self.base: BaseModel = model.model
        self.attentions = picture_attentions(model, NODE)
        self.subjects = [SubjectRun(settings, guider, self._sampling) for settings in asked]
        self._held = sum(each.reference.held(self.attentions, self.blocks, guider) for each in self.subjects)
        self.latent_size = tuple(noise_shape[-2:])
        for each in asked:
            check_mask(each.mask, noise_shape, NODE)
        self._pictures = tuple(noise_shape[:-2])
        self._conditionings = Conditionings(guider.conds)

    @property
    def latents(self) -> list[Tensor]:
        """The references."""
        return [each.reference.latents for each in self.subjects]

    @property
    def held(self) -> int:
        """The references' keys and values, or features of adapters, which are as many."""
        return self._held

    @property
    def blocks(self) -> frozenset[Block]:
        """All that have self-attention."""
        return frozenset(self.attentions.blocks)

    @property
    def prompts_each(self) -> int:
        """How many pictures of the batch have a prompt of their own."""
        return self.subjects[0].reference.prompts_each

    def noise(self, noise: Tensor) -> Tensor:
        """Adds the references' latents as far as the nodes ask for it; what has no noise gets none."""
        if not noise.any():
            return noise
        for each in self.subjects:
            if each.settings.noise_bias:
                noise = noise + each.bias(self.base, self.latent_size).to(noise)
        return noise

    def evaluation(self, asked: Asked) -> Evaluation | None:
        """One of the subjects that act at its noise level, with what the model itself has just read of theirs."""
        negatives, active = self._conditionings.negatives(asked.conds), []
        for number, (subject, network) in enumerate(self.with_networks(asked.model.current_patcher)):
            if epsilon := subject.epsilon(asked, network):
                active.append(ActiveSubject(number, subject, epsilon, negatives))
        if not active:
            return None
        for each in active:
            if each.subject.settings.adapter is None:
                self._require_all_pictures(asked)
                each.read_by_model(self, asked)
        return P3SEvaluation(self, asked, active)

    def with_networks(self, model: ModelPatcher) -> list[tuple[SubjectRun, P3SNetwork | None]]:
        """The subjects, each with its adapter's network, of a model that may be a copy for another device."""
        loaded = iter(model.get_additional_models_with_key(KEY))
        return [(each, None if each.settings.adapter is None else next(loaded).model) for each in self.subjects]

    def _require_all_pictures(self, asked: Asked) -> None:
        if self.prompts_each > 1:
            why, cure = "and each picture has a prompt of its own", "Give one prompt for all"
            require_all_pictures(asked, self._pictures, NODE, why, cure)


class SubjectRun:
    """One subject during a sampling run."""

    def __init__(self, settings: P3SSettings, guider: CFGGuider, sampling: Any) -> None:
        self.settings = settings
        self.reference = ReferencePass(settings.reference, guider.conds, KEY)
        self.tokens, self.region = (
            Tokens(None if mask is None else mask[0]) for mask in (settings.subject_mask, settings.mask)
        )
        self._sampling = sampling
        self._range = NoiseRange.of(sampling, settings.start_percent, settings.end_percent)
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def read_by_adapter(self, model: BaseModel, like: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's latent (1, c, h, w) and its tokens (1, L, width), brought to a device once."""
        assert self.settings.adapter is not None
        place = like.device, like.dtype
        if place not in self._placed:
            latent = model.process_latent_in(self.settings.reference.samples.float())
            self._placed[place] = latent.to(like), self.settings.adapter.vision.to(like)
        return self._placed[place]

    def epsilon(self, asked: Asked, network: P3SNetwork | None) -> float:
        """Weight of the injection in an evaluation; 0 where nothing is to be done."""
        if asked.level not in self._range:
            return 0.0
        schedule, time = self.settings.schedule, time_of(self._sampling, asked.level)
        if schedule.kind != LEARNED or network is None or network.weight is None:
            return self.settings.strength * schedule.weight(time)
        return self.settings.strength * network.weight(torch.full((1,), time, device=asked.sigma.device)).item()

    def bias(self, model: BaseModel, size: tuple[int, ...]) -> Tensor:
        """(1, c, ..., h, w) that is added to noise of a size: the reference's latent where the subject is, or zeros."""
        settings = self.settings
        latent = model.process_latent_in(settings.reference.samples.float())
        if settings.subject_mask is not None:
            latent = latent * to_grid(settings.subject_mask.float(), tuple(latent.shape[-2:]))[0]
        planes = latent.flatten(1, -3)  # of the one frame, where the model's latents have frames
        planes = F.interpolate(planes, size=size, mode="bilinear", antialias=True)
        latent = planes.view(*latent.shape[:-2], *size)
        if settings.mask is not None:
            latent = latent * to_grid(settings.mask.float(), (size[0], size[1]))[0]
        return settings.noise_bias * latent


class ActiveSubject:
    """One subject in one evaluation of the sampler.

    Args:
        number: of the subject in the run.
        epsilon: weight of the injection.
        negatives: numbers of the conditionings that guidance leads away from.
    """

    def __init__(self, number: int, subject: SubjectRun, epsilon: float, negatives: frozenset[int]) -> None:
        self.number, self.subject = number, subject
        self._epsilon = epsilon
        self._without = negatives if subject.settings.negative == NONE else frozenset[int]()
        self._empty = negatives if subject.settings.negative == EMPTY else frozenset[int]()
        self._recording: Recording | None = None

    def read_by_model(self, run: P3SRun, asked: Asked) -> None:
        """Passes the reference through the model for those halves that are to get its hidden states."""
        conds = [None if number in self._without else each for number, each in enumerate(asked.conds)]
        self._recording = Recording(self.subject.reference, run.blocks, run.attentions, NODE)
        if any(conds):
            self.subject.reference.run(asked, self._recording, conds)

    def hidden(
        self, run: P3SRun, network: P3SNetwork | None, unet: UNetModel, x: Tensor, given: Sequence[Any]
    ) -> tuple[Hidden, FeaturesOf]:
        """The subject's hidden states for a forward pass of x, and of an adapter all that it reads for it.

        Args:
            network: of its adapter; None where the model itself has read the reference.
            given: timesteps, context, y, control and options of a U-Net's forward pass; only an adapter needs them.
        """
        if network is None:
            assert self._recording is not None
            return ReadByModel(self._recording.bank), {}
        timesteps, context, y, _, options = given
        halves = options["cond_or_uncond"]
        # The pictures of a half have timestep and text in common, unless each has a prompt of its own.
        rows = 1 if run.prompts_each > 1 else len(x) // len(halves)
        read = slice(None, None, rows)
        timestep, text, label = timesteps[read], context[read], None if y is None else y[read]
        features = network(*self._reference(run, x, len(timestep), halves), timestep, text, label)
        adapter = self.subject.settings.adapter
        leaves_out = adapter is not None and adapter.identity_at_zero
        return ReadByAdapter(features, unet, leaves_out, self.subject.tokens), features

    def _reference(self, run: P3SRun, like: Tensor, count: int, halves: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What an adapter reads, (G, c, h, w) and (G, L, width): zeros for the halves that read none."""
        reference = self.subject.read_by_adapter(run.base, like)
        rows = [t.expand(count, *t.shape[1:]) for t in reference]
        if not self._empty.isdisjoint(halves):
            each = count // len(halves)
            rows = [t.clone() for t in rows]
            for number, half in enumerate(halves):
                if half in self._empty:
                    for t in rows:
                        t[number * each : (number + 1) * each] *= 0
        return rows[0], rows[1]

    def part(self, hidden: Hidden) -> Part:
        """What is injected."""
        subject = self.subject
        strength = subject.settings.value_strength
        return Part(subject.tokens, hidden, self._epsilon, strength, subject.region, self._without)

    def with_cross(self, options: Options, features: FeaturesOf) -> Options:
        """`transformer_options` with what the adapter adds to the cross-attentions."""
        return with_cross(options, features, self._epsilon, self.subject.region, self._without)


class P3SEvaluation(Evaluation):
    """One evaluation of the sampler; before each forward pass, adapters read their references for its halves."""

    def __init__(self, run: P3SRun, asked: Asked, active: list[ActiveSubject]) -> None:
        super().__init__()
        self._run = run
        self._asked = asked
        self._active = active
        self.blocks = run.blocks

    def forward(self, executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass; a part of the picture is refused where there is a mask over the whole of it."""
        *inputs, options = args
        self._require_alone(options)
        if any(each.subject.settings.mask is not None for each in self._active):
            require_whole_picture(x, self._asked, self._run.latent_size, NODE)
        networks = [network for _, network in self._run.with_networks(self._asked.patcher(options))]
        parts = []
        for each in self._active:
            hidden, features = each.hidden(self._run, networks[each.number], executor.class_obj, x, args)
            parts.append(each.part(hidden))
            if features:
                options = each.with_cross(options, features)
        injection = Injection(parts)
        out = executor(x, *inputs, self._run.attentions.route(x, kwargs, options, injection.inject), **kwargs)
        self.acted |= injection.acted
        return out

    def _require_alone(self, options: Options) -> None:
        """Checks that no other method of the pack routes the attentions of a transformer.

        In a U-Net one finds the other's keys among the picture's; where text shares the attention, it cannot tell.

        Raises:
            RuntimeError: there is one.
        """
        others = [key for key, each in options.items() if key.startswith(OURS) and isinstance(each, Evaluation)]
        if isinstance(self._run.attentions, UNetAttentions) or others == [evaluation_key(KEY)]:
            return
        raise RuntimeError(
            f"{NODE} and another node of this pack, RefDrop Apply or Record, both change the attention of this "
            f"{family(self._asked.model.current_patcher)} model, which works on U-Nets only. Remove one of them."
        )


def time_of(sampling: Any, sigma: float) -> float:
    """t / T of a noise level, from 1 (noise) to 0 (picture), by bisection, so for any noise schedule of ComfyUI."""
    low, high = 0.0, 1.0  # parts of the sampling schedule, along which sigma falls
    while high - low > 10**-TIME_DIGITS / 4:
        middle = (low + high) / 2
        if sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return round(1 - high, TIME_DIGITS)
