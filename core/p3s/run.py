"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..kernels.masks import covered_tokens
from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.reference_pass import Recording, ReferencePass
from ..patches.self_attention import SelfAttentionCall
from ..patches.unet import self_attention_blocks
from .kernel import injected, on_grid
from .settings import NODE, Injection

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

TIME_DIGITS = 6  # how finely a noise level is placed on the schedule


class P3SRun:
    """One sampling run: the injection, and what is computed once for all steps."""

    def __init__(self, injection: Injection, guider: CFGGuider) -> None:
        self.injection = injection
        self.reference = ReferencePass(injection.reference, guider.conds)
        self._sampling = guider.model_patcher.get_model_object("model_sampling")
        self._layers: dict[Block, int] = self_attention_blocks(guider.model_patcher.model.diffusion_model)
        self._first, self._last = map(self._sampling.percent_to_sigma, (injection.start_percent, injection.end_percent))
        self._subject = Subject(injection.subject_mask)

    def epsilon(self, sigma: float) -> float:
        """Weight of the injection at a noise level; 0 where nothing is to be done."""
        if not self._first >= sigma >= self._last:
            return 0.0
        return self.injection.strength * self.injection.schedule.weight(time_of(self._sampling, sigma))

    def recording(self) -> Recording:
        """What a reference pass records into."""
        return Recording(frozenset(self._layers), self._layers, NODE)

    def injecting(self, hidden: Hidden, epsilon: float) -> Injecting:
        """What serves one evaluation at a weight other than 0."""
        return Injecting(self._subject, hidden, epsilon, self.injection.value_strength)


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

    def keys_values(self, call: SelfAttentionCall) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """W_K f and W_V f, (G, M, C), and the (h, w) of their M tokens."""

    def used(self, call: SelfAttentionCall) -> Tensor | None:
        """Indices of the tokens that may be attended to; None is all of them."""


class Recorded:
    """Without training: what the model itself had in the same layer when it read the reference."""

    def __init__(self, bank: KeyValueBank) -> None:
        self._bank = bank

    def keys_values(self, call: SelfAttentionCall) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The recorded keys and values are the projections of f already."""
        layer = call.block, call.depth
        ((keys, values),) = self._bank.keys_values(layer, call.chunks, call.k)
        return keys, values, self._bank.grid(layer)

    def used(self, call: SelfAttentionCall) -> None:
        """All of them."""
        return None


class Injecting:
    """One evaluation of the model: every self-attention is given the hidden states of the subject.

    Args:
        subject: which of them are given.
        hidden: where they come from.
        epsilon: weight of the injection.
        value_strength: lambda.
    """

    def __init__(self, subject: Subject, hidden: Hidden, epsilon: float, value_strength: float) -> None:
        self._subject = subject
        self._hidden = hidden
        self._epsilon = epsilon
        self._value_strength = value_strength

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Computes one self-attention with the subject's keys and values beside the picture's own."""
        _check_tokens(call)
        f_keys, f_values, grid = self._hidden.keys_values(call)
        subject, used = self._subject.tokens(grid, call.k.device), self._hidden.used(call)
        everywhere = f_values
        if subject is not None:
            everywhere = torch.zeros_like(f_values).index_copy(1, subject, f_values[:, subject])
            used = subject if used is None else subject[torch.isin(subject, used)]
        if used is not None:
            f_keys, f_values = f_keys[:, used], f_values[:, used]
        halves = len(call.chunks)
        keys, values = injected(
            call.k.unflatten(0, (halves, -1)),
            call.v.unflatten(0, (halves, -1)),
            f_keys.unsqueeze(1),
            f_values.unsqueeze(1),
            on_grid(everywhere, grid, call.grid).unsqueeze(1),
            self._epsilon,
            self._value_strength,
        )
        return call.attend(call.q, keys.flatten(0, 1), values.flatten(0, 1))


def _check_tokens(call: SelfAttentionCall) -> None:
    if call.q.shape[0] != call.k.shape[0] or call.k.shape[1] != call.grid[0] * call.grid[1]:
        raise RuntimeError(
            f"{NODE} needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block} in one piece, but another "
            "patch merges or tiles them. Remove that patch (token merging, HyperTile)."
        )


def time_of(sampling: Any, sigma: float) -> float:
    """t / T of a noise level, from 1 (noise) to 0 (picture), by bisection, so for any noise schedule of the host."""
    low, high = 0.0, 1.0  # parts of the sampling schedule, along which sigma falls
    while high - low > 10**-TIME_DIGITS / 4:
        middle = (low + high) / 2
        if sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return round(1 - high, TIME_DIGITS)
