"""Keys and values of references at one noise level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Chunk
from .blocks import Block, Layer
from .selection import KeysValues
from .transfer import Arriving

Rename = Callable[[Chunk], Chunk]


@dataclass(frozen=True, eq=False)
class Record:
    """What one forward pass recorded at one layer.

    Attributes:
        chunks: the G chunks of the forward pass.
        grid: (h, w) of the layer's tokens, before a mask selected some.
        pairs: keys and values of each reference: (G, M, C), or (G, P, M, C) where P pictures have prompts of their own.
    """

    chunks: tuple[Chunk, ...]
    grid: tuple[int, int]
    pairs: list[KeysValues]


class KeyValueBank:
    """Keys and values of references at one noise level.

    Args:
        node: for messages.
        share_conditional: whether a half of the guidance without a recording of its own uses that of the other.

    Attributes:
        dropped: blocks that were recorded and then dropped to make room.
    """

    def __init__(self, node: str, share_conditional: bool = False) -> None:
        self.dropped: frozenset[Block] = frozenset()
        self._node = node
        self._share_conditional = share_conditional
        self._records: dict[Layer, list[Record]] = {}
        # By pass and device, the layer that is next in it, and what it will need
        self._ahead: dict[tuple[tuple[Chunk, ...], torch.device], tuple[Layer, Arriving]] = {}

    def store(self, layer: Layer, record: Record) -> None:
        """Keeps a record; ComfyUI may need several forward passes for all chunks."""
        self._records.setdefault(layer, []).append(record)

    def records(self) -> Iterator[tuple[Layer, Record]]:
        """All records, in the order the layers run."""
        for layer, records in self._records.items():
            yield from ((layer, record) for record in records)

    def grid(self, layer: Layer) -> tuple[int, int]:
        """(h, w) of a layer's tokens."""
        return self._records[layer][0].grid

    @property
    def sizes(self) -> dict[Layer, int]:
        """Bytes of each layer's keys and values, in the order the layers run."""
        return {layer: sum(part.nbytes for part in self.parts(layer)) for layer in self._records}

    @property
    def tensors(self) -> list[Tensor]:
        """All keys and values."""
        return [part for layer in self._records for part in self.parts(layer)]

    @property
    def size(self) -> int:
        """Bytes of all keys and values."""
        return sum(self.sizes.values())

    def size_of(self, blocks: frozenset[Block]) -> int:
        """Bytes of some blocks."""
        return sum(size for (block, _), size in self.sizes.items() if block in blocks)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return next(iter(self._records.values()))[0].pairs[0][0].element_size()

    @property
    def blocks(self) -> set[Block]:
        """The blocks that are recorded."""
        return {block for block, _ in self._records}

    @property
    def halves(self) -> set[int]:
        """The recorded halves of the guidance: the first number of the chunks."""
        return {half for _, record in self.records() for half, _ in record.chunks}

    def parts(self, layer: Layer) -> list[Tensor]:
        """All keys and values of a layer."""
        return [part for record in self._records[layer] for pair in record.pairs for part in pair]

    def add(self, other: KeyValueBank, rename: Rename, move: Callable[[Tensor], Tensor] = lambda part: part) -> None:
        """Takes over what another bank holds, with each tensor put through `move` and each chunk through `rename`."""
        for layer, record in other.records():
            chunks = tuple(rename(chunk) for chunk in record.chunks)
            self.store(layer, Record(chunks, record.grid, [(move(k), move(v)) for k, v in record.pairs]))

    def drop(self, blocks: frozenset[Block]) -> None:
        """Drops what is recorded of some blocks."""
        self._records = {layer: records for layer, records in self._records.items() if layer[0] not in blocks}
        self.dropped |= blocks

    def copied(self, rename: Rename, move: Callable[[Tensor], Tensor] = lambda part: part) -> KeyValueBank:
        """The bank with each tensor put through `move` and each chunk through `rename`."""
        bank = KeyValueBank(self._node, self._share_conditional)
        bank.add(self, rename, move)
        bank.dropped = self.dropped
        return bank

    def keys_values(self, layer: Layer, chunks: tuple[Chunk, ...], like: Tensor) -> list[KeysValues]:
        """Keys and values of each reference for the chunks of a pass, of `like`'s device and dtype.

        (G, M, C), or (G, P, M, C) where P pictures have prompts of their own; `of_each_picture` lays these out.
        What lies in main memory is brought one layer ahead.
        """
        ahead, arriving = self._ahead.pop((chunks, like.device), (None, None))
        if arriving is None or ahead != layer:
            arriving = Arriving(self._parts(layer, chunks), like.device)
        if arriving.is_moving and (following := self._behind(layer)) is not None:
            self._ahead[chunks, like.device] = following, Arriving(self._parts(following, chunks), like.device)
        parts = [part.to(like.dtype) for part in arriving.tensors()]
        if not self._is_whole(layer, chunks):
            parts = [torch.stack(parts[start : start + len(chunks)]) for start in range(0, len(parts), len(chunks))]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _is_whole(self, layer: Layer, chunks: tuple[Chunk, ...]) -> bool:
        """Whether a pass has the halves of one record in the same order, as usual, so that nothing is put together."""
        rows = [self._find(layer, chunk) for chunk in chunks]
        return rows == [(rows[0][0], row) for row in range(len(rows[0][0].chunks))]

    def _parts(self, layer: Layer, chunks: tuple[Chunk, ...]) -> list[Tensor]:
        """Keys and values of each reference in turn: (G, M, C), or one after the other for each of the G chunks."""
        rows = [self._find(layer, chunk) for chunk in chunks]
        whole = [part for pair in rows[0][0].pairs for part in pair]
        if self._is_whole(layer, chunks):
            return whole
        references = range(len(rows[0][0].pairs))
        return [source.pairs[one][part][row] for one in references for part in (0, 1) for source, row in rows]

    def _behind(self, layer: Layer) -> Layer | None:
        """The recorded layer that runs next."""
        layers = list(self._records)
        number = layers.index(layer) + 1
        return layers[number] if number < len(layers) else None

    def _find(self, layer: Layer, chunk: Chunk) -> tuple[Record, int]:
        # The same prompt has the same uuid in both passes. A prompt of the reference's own, or the copy of a
        # conditioning that ComfyUI makes for an area, does not: then the half it belongs to decides.
        places = [(record, row) for record in self._records.get(layer, []) for row in range(len(record.chunks))]
        half = [place for place in places if place[0].chunks[place[1]][0] == chunk[0]]
        if self._share_conditional:
            half = half or places
        same = [place for place in half if place[0].chunks[place[1]] == chunk]
        if not half:
            raise RuntimeError(
                f"{self._node}: the prompt of the reference is switched off at a step where the sampler's prompt is "
                "on. Give reference_positive the whole range from 0 to 1."
            )
        return (same or half)[0]


def of_each_picture(tokens: Tensor, pictures: int, repeats: int = 1) -> Tensor:
    """What was read with the prompt of each picture, (G, P, M, C), laid out for pictures: (G, B, M, C).

    Fewer prompts than pictures are used again from the first, as ComfyUI does.

    Args:
        pictures: in the batch.
        repeats: how many times each picture comes, one after the other.
    """
    rows = torch.arange(pictures, device=tokens.device) % tokens.shape[1]
    return tokens[:, rows.repeat_interleave(repeats)]
