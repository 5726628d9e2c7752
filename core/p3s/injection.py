"""Eq. 7 of P3S-Diffusion (arXiv 2412.19533) in the self-attentions of one forward pass, for one subject or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..patches.attention import AttentionCall, Chunk, TokenSequence, rows_of_chunks
from ..patches.bank import KeyValueBank, of_each_picture
from ..patches.blocks import Block
from ..patches.selection import EVERYWHERE, Tokens
from .kernel import injected, on_grid
from .settings import NODE


class Hidden(Protocol):
    """Where an injection gets the subject's hidden states from."""

    def keys_values(self, call: AttentionCall, chunks: list[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """W_K f and W_V f, (G, P, M, C) for P prompts, and the (h, w) of their M tokens.

        Args:
            chunks: which G of the call's.
        """

    def used(self, call: AttentionCall) -> Tensor | None:
        """Indices of the subject's tokens that may be attended to; None is all of them."""


class ReadByModel:
    """Without training: what the model itself had in the same layer when it read the reference."""

    def __init__(self, bank: KeyValueBank) -> None:
        self._bank = bank

    def keys_values(self, call: AttentionCall, chunks: list[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The recorded keys and values are the projections of f already."""
        chosen: tuple[Chunk, ...] = tuple(call.chunks[number] for number in chunks)
        ((keys, values),) = self._bank.keys_values(call.layer, chosen, call.k)
        if keys.ndim == call.k.ndim:
            keys, values = keys.unsqueeze(1), values.unsqueeze(1)
        return keys, values, self._bank.grid(call.layer)

    def used(self, call: AttentionCall) -> None:
        """All of them."""
        return None


@dataclass(frozen=True, eq=False)
class Part:
    """One subject in one forward pass.

    Attributes:
        subject: which tokens of the reference are injected.
        hidden: where they come from.
        epsilon: weight of the injection.
        value_strength: lambda.
        region: which tokens of the picture they are injected into.
        without: numbers of the conditionings that the subject is kept out of.
    """

    subject: Tokens
    hidden: Hidden
    epsilon: float
    value_strength: float
    region: Tokens = EVERYWHERE
    without: frozenset[int] = frozenset()


Place = tuple[list[Part], Tensor | None]  # the subjects that act in a place of the picture, and its tokens; None = all


class Injection:
    """Gives every self-attention of a forward pass the hidden states of its subjects.

    Args:
        parts: the subjects. Those that act in the same place are keys of one softmax.

    Attributes:
        acted: the blocks that were given some.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.acted: set[Block] = set()
        self._places: dict[tuple[tuple[Part, ...], tuple[int, int]], list[Place]] = {}

    def inject(self, call: AttentionCall) -> Tensor:
        """Computes one self-attention with the subjects' keys and values beside the picture's own."""
        _check_tokens(call)
        self.acted.add(call.block)
        halves: dict[tuple[Part, ...], list[int]] = {}
        for number, (conditioning, _) in enumerate(call.chunks):
            acting = tuple(part for part in self._parts if conditioning not in part.without)
            halves.setdefault(acting, []).append(number)
        if len(halves) == 1:
            ((parts, chunks),) = halves.items()
            return self._in_regions(_rows(call, chunks), parts)
        out = torch.empty_like(call.q).unflatten(0, (len(call.chunks), -1))
        for parts, chunks in halves.items():
            found = self._in_regions(_rows(call, chunks), parts)
            for number, own in zip(chunks, found.chunk(len(chunks)), strict=True):
                out[number] = own
        return out.flatten(0, 1)

    def _in_regions(self, rows: _Rows, parts: tuple[Part, ...]) -> Tensor:
        """The attention of some chunks, place by place: all queries of a place have the same subjects."""
        out, grid = torch.empty_like(rows.q), rows.call.grid
        if (parts, grid) not in self._places:
            self._places[parts, grid] = _by_place(parts, grid, rows.q.device)
        for acting, tokens in self._places[parts, grid]:
            keys, values = self._keys_values(rows, acting)
            if tokens is None:
                return rows.attend(None, keys, values)
            _check_tokens(rows.call, are_placed=True)
            out[:, tokens] = rows.attend(tokens, keys, values)
        return out

    @staticmethod
    def _keys_values(rows: _Rows, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """K' and V'."""
        call, device = rows.call, rows.k.device
        keys, values = (each.unflatten(0, (len(rows.chunks), -1)) for each in (rows.k, rows.v))
        for part in parts:
            f_keys, f_values, grid = part.hidden.keys_values(call, rows.chunks)
            subject, used = part.subject.on(grid, device), part.hidden.used(call)
            in_place = f_values
            if subject is not None:
                in_place = torch.zeros_like(f_values).index_copy(2, subject, f_values[:, :, subject])
            if used is None:
                used = subject
            if used is not None:
                f_keys, f_values = f_keys[:, :, used], f_values[:, :, used]
            in_place = on_grid(in_place, grid, call.grid)
            region = part.region.on(call.grid, device)
            if region is not None:
                in_place = torch.zeros_like(in_place).index_copy(2, region, in_place[:, :, region])
            if f_keys.shape[1] > 1:
                pictures = keys.shape[1]
                f_keys, f_values, in_place = (of_each_picture(t, pictures) for t in (f_keys, f_values, in_place))
            keys, values = injected(keys, values, f_keys, f_values, in_place, part.epsilon, part.value_strength)
        return keys.flatten(0, 1), values.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What some chunks have of an attention.

    Attributes:
        call: the attention.
        chunks: their numbers in it.
        q, k, v: (g * B, N, C), of the picture.
        sequence: all tokens, where the picture's are only a part of them.
    """

    call: AttentionCall
    chunks: list[int]
    q: Tensor
    k: Tensor
    v: Tensor
    sequence: TokenSequence | None

    def attend(self, tokens: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
        """The attention of some of the picture's tokens, or all, to K' and V' and to what else they see."""
        q = self.q if tokens is None else self.q[:, tokens]
        if self.sequence is None:
            return self.call.attend(q, keys, values)
        return self.sequence.attend_to_more(q, tokens, keys, values)


def _rows(call: AttentionCall, chunks: list[int]) -> _Rows:
    sequence = None if call.sequence is None else call.sequence()
    count = len(call.chunks)
    if len(chunks) == count:
        return _Rows(call, chunks, call.q, call.k, call.v, sequence)
    q, k, v = (rows_of_chunks(each, chunks, count) for each in (call.q, call.k, call.v))
    return _Rows(call, chunks, q, k, v, None if sequence is None else sequence.of_chunks(chunks, count))


def _by_place(parts: tuple[Part, ...], grid: tuple[int, int], device: torch.device) -> list[Place]:
    """The places of a picture that differ in their subjects."""
    regions = [part.region.on(grid, device) for part in parts]
    if all(region is None for region in regions):
        return [(list(parts), None)]
    codes = torch.zeros(grid[0] * grid[1], dtype=torch.int64, device=device)
    for number, region in enumerate(regions):
        codes[slice(None) if region is None else region] += 1 << number
    places = [(code, (codes == code).nonzero().squeeze(1)) for code in codes.unique().tolist()]
    return [([part for number, part in enumerate(parts) if code >> number & 1], tokens) for code, tokens in places]


def _check_tokens(call: AttentionCall, are_placed: bool = False) -> None:
    """Checks that the keys are those of a whole picture, and the queries, too, if they are told by their places."""
    tokens = call.grid[0] * call.grid[1]
    is_merged = are_placed and call.q.shape[1] != tokens
    if call.q.shape[0] != call.k.shape[0] or call.k.shape[1] != tokens or is_merged:
        raise RuntimeError(
            f"{NODE} needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block} in one piece, but another "
            "patch merges or tiles them. Remove that patch (token merging, HyperTile)."
        )
