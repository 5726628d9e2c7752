"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor, nn

from ..kernels.masks import covered_tokens
from ..patches.attention import AttentionCall, route_self_attention
from ..patches.bank import KeyValueBank, of_each_picture
from ..patches.binding import Evaluation, Run
from ..patches.blocks import Block
from ..patches.families.unet import UNetAttentions
from ..patches.passes import Asked
from ..patches.reference_pass import Recording, ReferencePass
from ..patches.region import require_all_pictures
from ..patches.schedule import NoiseRange, on_cpu
from .kernel import injected, on_grid
from .settings import KEY, NODE, Adapter, P3SSettings
from .trained import ReadByAdapter, with_cross

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.samplers import CFGGuider

TIME_DIGITS = 6  # how finely a noise level is placed on the schedule


class P3SRun(Run):
    """One sampling run: what the node asked for, and what is computed once for all steps."""

    def __init__(self, settings: P3SSettings, guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor) -> None:
        self.settings = settings
        self._reference = ReferencePass(settings.reference, guider.conds, KEY)
        self._sampling = on_cpu(guider.model_patcher.get_model_object("model_sampling"))
        self._attentions = UNetAttentions(guider.model_patcher.model.diffusion_model)
        self._range = NoiseRange.of(self._sampling, settings.start_percent, settings.end_percent)
        self.subject = Subject(settings.subject_mask)
        self._pictures = tuple(noise_shape[:-2])
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def latents(self) -> list[Tensor]:
        """The reference."""
        return [self._reference.latents]

    @property
    def blocks(self) -> frozenset[Block]:
        """All that have self-attention."""
        return frozenset(self._attentions.layers)

    @property
    def prompts_each(self) -> int:
        """How many pictures of the batch have a prompt of their own."""
        return self._reference.prompts_each

    def evaluation(self, asked: Asked) -> Evaluation | None:
        """The adapter's, or one with what the model itself has just read."""
        epsilon = self._epsilon(asked.level)
        if epsilon == 0:
            return None
        if self.settings.adapter is not None:
            # Not adapter.network, of which ComfyUI may have made a copy for this device.
            (network,) = asked.model.current_patcher.get_additional_models_with_key(KEY)
            return AdapterEvaluation(self, asked.model, self.settings.adapter, network.model, epsilon)
        if self.prompts_each > 1:
            why, cure = "and each picture has a prompt of its own", "Give one prompt for all"
            require_all_pictures(asked, self._pictures, NODE, why, cure)
        recording = Recording(self._reference, self.blocks, self._attentions, NODE)
        self._reference.run(asked, recording)
        return self.injecting(ReadByModel(recording.bank), epsilon)

    def read_by_adapter(self, model: BaseModel, adapter: Adapter, like: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's latent (1, c, h, w) and its tokens (1, L, width), brought to a device once."""
        place = like.device, like.dtype
        if place not in self._placed:
            latent = model.process_latent_in(self.settings.reference.samples.float())
            self._placed[place] = latent.to(like), adapter.vision.to(like)
        return self._placed[place]

    def injecting(self, hidden: Hidden, epsilon: float) -> P3SEvaluation:
        """What injects at a weight other than 0."""
        injecting = P3SEvaluation(self.subject, hidden, epsilon, self.settings.value_strength, self)
        injecting.blocks = self.blocks
        return injecting

    def _epsilon(self, sigma: float) -> float:
        """Weight of the injection at a noise level; 0 where nothing is to be done."""
        if sigma not in self._range:
            return 0.0
        return self.settings.strength * self.settings.schedule.weight(time_of(self._sampling, sigma))


class Subject:
    """Which tokens of the reference belong to the subject.

    Args:
        mask: (1, H, W); None is all of them.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = mask
        self._tokens: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def tokens(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Their indices on a grid; None is all of them."""
        if self._mask is None:
            return None
        if (grid, device) not in self._tokens:
            self._tokens[grid, device] = covered_tokens(self._mask[0].float(), grid).to(device)
        return self._tokens[grid, device]


class Hidden(Protocol):
    """Where an injection gets the subject's hidden states from."""

    def keys_values(self, call: AttentionCall) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """W_K f and W_V f, (G, P, M, C) for P prompts, and the (h, w) of their M tokens."""

    def used(self, call: AttentionCall) -> Tensor | None:
        """Indices of the subject's tokens that may be attended to; None is all of them."""


class ReadByModel:
    """Without training: what the model itself had in the same layer when it read the reference."""

    def __init__(self, bank: KeyValueBank) -> None:
        self._bank = bank

    def keys_values(self, call: AttentionCall) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The recorded keys and values are the projections of f already."""
        ((keys, values),) = self._bank.keys_values(call.layer, call.chunks, call.k)
        if keys.ndim == call.k.ndim:
            keys, values = keys.unsqueeze(1), values.unsqueeze(1)
        return keys, values, self._bank.grid(call.layer)

    def used(self, call: AttentionCall) -> None:
        """All of them."""
        return None


class P3SEvaluation(Evaluation):
    """One evaluation of the model: every self-attention is given the hidden states of the subject.

    Args:
        subject: which of them are given.
        hidden: where they come from.
        epsilon: weight of the injection.
        value_strength: lambda.
        run: is told of the effect; None in training.
    """

    def __init__(
        self, subject: Subject, hidden: Hidden, epsilon: float, value_strength: float, run: Run | None = None
    ) -> None:
        self._subject = subject
        self._hidden = hidden
        self._epsilon = epsilon
        self._value_strength = value_strength
        self._run = run

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass."""
        *inputs, options = args
        return executor(x, *inputs, route_self_attention(options, self.inject), **kwargs)

    def inject(self, call: AttentionCall) -> Tensor:
        """Computes one self-attention with the subject's keys and values beside the picture's own."""
        _check_tokens(call)
        f_keys, f_values, grid = self._hidden.keys_values(call)
        subject, used = self._subject.tokens(grid, call.k.device), self._hidden.used(call)
        everywhere = f_values
        if subject is not None:
            everywhere = torch.zeros_like(f_values).index_copy(2, subject, f_values[:, :, subject])
        if used is None:
            used = subject
        if used is not None:
            f_keys, f_values = f_keys[:, :, used], f_values[:, :, used]
        everywhere, halves = on_grid(everywhere, grid, call.grid), len(call.chunks)
        if f_keys.shape[1] > 1:
            pictures = len(call.k) // halves
            f_keys, f_values, everywhere = (of_each_picture(t, pictures) for t in (f_keys, f_values, everywhere))
        keys, values = injected(
            call.k.unflatten(0, (halves, -1)),
            call.v.unflatten(0, (halves, -1)),
            f_keys,
            f_values,
            everywhere,
            self._epsilon,
            self._value_strength,
        )
        if self._run is not None:
            self._run.acted.add(call.block)
        return call.attend(call.q, keys.flatten(0, 1), values.flatten(0, 1))


class AdapterEvaluation(Evaluation):
    """One evaluation of the sampler: before each forward pass, the adapter reads the reference for its halves.

    Args:
        adapter: with its network loaded.
        epsilon: weight of the injection.
    """

    def __init__(self, run: P3SRun, model: BaseModel, adapter: Adapter, network: nn.Module, epsilon: float) -> None:
        self._run = run
        self.blocks = run.blocks
        self._model = model
        self._adapter = adapter
        self._network = network
        self._epsilon = epsilon

    def forward(self, executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The U-Net's forward pass, with what the adapter reads for the same timestep and text."""
        timesteps, context, y, control, options = args
        halves = len(options["cond_or_uncond"])
        # The pictures of a half have timestep and text in common, unless each has a prompt of its own.
        read = slice(None, None, len(x) // halves if self._run.prompts_each == 1 else 1)
        timestep, text, label = timesteps[read], context[read], None if y is None else y[read]
        reference = self._run.read_by_adapter(self._model, self._adapter, x)
        latent, vision = (t.expand(len(timestep), *t.shape[1:]) for t in reference)
        features = self._network(latent, vision, timestep, text, label)
        hidden = ReadByAdapter(features, executor.class_obj, self._adapter.identity_at_zero, self._run.subject.tokens)
        injecting = self._run.injecting(hidden, self._epsilon)
        options = with_cross(options, features, self._epsilon)
        return injecting.forward(executor, x, timesteps, context, y, control, options, **kwargs)


def _check_tokens(call: AttentionCall) -> None:
    if call.q.shape[0] != call.k.shape[0] or call.k.shape[1] != call.grid[0] * call.grid[1]:
        raise RuntimeError(
            f"{NODE} needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block} in one piece, but another "
            "patch merges or tiles them. Remove that patch (token merging, HyperTile)."
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
