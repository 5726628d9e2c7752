"""Which block of the simplified copy is made of which block of the frozen U-Net, and which blocks it feeds.

The copy has one residual block in each level where the U-Net has several. Going up, a level needs one more than going
down, because every skip connection ends in one: first and last of the level.

    SD1.5        copy        is made of   feeds
    down 0       input.1     input.1      input.1, input.2
    down 1       input.3     input.4      input.4, input.5
    down 2       input.5     input.7      input.7, input.8
    middle       middle.0    middle.0     middle.0
    up 2         output.2    output.3     output.3, output.4
                 output.3    output.5     output.5
    up 1         output.4    output.6     output.6, output.7
                 output.5    output.8     output.8
    up 0         output.6    output.9     output.9, output.10
                 output.7    output.11    output.11
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..patches.blocks import Block, Layer

Config = dict[str, Any]  # of a U-Net, in ComfyUI's form


@dataclass(frozen=True)
class CopiedBlock:
    """One block of the copy.

    Attributes:
        block: its label in the copy.
        source: the frozen block whose weights it starts from.
        feeds: the frozen blocks that are given its hidden states; none where it has no attention.
    """

    block: Block
    source: Block
    feeds: tuple[Block, ...]


def simplified(config: Config) -> Config:
    """The configuration of the copy of a U-Net."""
    residual = _residual_blocks(config)
    down, up = _by_level(config)
    return {
        **config,
        "num_res_blocks": [1] * len(residual),
        "transformer_depth": [depths[0] for depths in down],
        # ComfyUI lists a level's blocks backwards.
        "transformer_depth_output": [depth for depths in up for depth in (depths[-1], depths[0])],
    }


def table(config: Config) -> list[CopiedBlock]:
    """All blocks of the copy of a U-Net, in the order they run."""
    residual = _residual_blocks(config)
    levels = range(len(residual))
    down, up = _by_level(config)
    rows = [CopiedBlock(("input", 0), ("input", 0), ())]
    first = 1
    for level in levels:
        attended = tuple(("input", first + k) for k in range(residual[level]) if down[level][k])
        rows.append(CopiedBlock(("input", 2 * level + 1), ("input", first), attended))
        first += residual[level]
        if level + 1 < len(residual):  # the block that halves the picture
            rows.append(CopiedBlock(("input", 2 * level + 2), ("input", first), ()))
            first += 1
    has_attention = config["transformer_depth_middle"] > 0
    rows.append(CopiedBlock(("middle", 0), ("middle", 0), (("middle", 0),) if has_attention else ()))
    first = 0
    for number, level in enumerate(reversed(levels)):
        last = first + residual[level]
        attended = tuple(("output", first + k) for k, depth in enumerate(up[level]) if depth)
        rows.append(CopiedBlock(("output", 2 * number), ("output", first), attended[:-1]))
        rows.append(CopiedBlock(("output", 2 * number + 1), ("output", last), attended[-1:]))
        first = last + 1
    return rows


def fed_layers(config: Config) -> dict[Layer, Layer]:
    """Which transformer layer of the copy feeds each of the frozen U-Net.

    They correspond one to one; where a frozen block is deeper than the copy's, the last layer feeds the rest.
    """
    depths, copied = _depths(config), _depths(simplified(config))
    return {
        (block, depth): (row.block, min(depth, copied[row.block] - 1))
        for row in table(config)
        for block in row.feeds
        for depth in range(depths[block])
    }


def copied_layers(config: Config) -> list[Layer]:
    """The transformer layers of the copy, in the order they run."""
    depths = _depths(simplified(config))
    return [(row.block, depth) for row in table(config) for depth in range(depths.get(row.block, 0))]


def source_name(name: str, rows: list[CopiedBlock]) -> str:
    """The name in the frozen U-Net of the weight that a weight of the copy starts from."""
    side, number, *rest = name.split(".")
    if side not in ("input_blocks", "output_blocks"):
        return name
    label = side.removesuffix("_blocks"), int(number)
    source = next(row.source for row in rows if row.block == label)
    return ".".join([side, str(source[1]), *rest])


def _residual_blocks(config: Config) -> list[int]:
    """How many residual blocks each level has."""
    number = config["num_res_blocks"]
    return [number] * len(config["channel_mult"]) if isinstance(number, int) else list(number)


def _by_level(config: Config) -> tuple[list[list[int]], list[list[int]]]:
    """Transformer layers in each block of a level, going down and going up (in the order the blocks run)."""
    residual = _residual_blocks(config)
    depths, depths_up = list(config["transformer_depth"]), list(config["transformer_depth_output"])
    down = [[depths.pop(0) for _ in range(number)] for number in residual]
    up = [[depths_up.pop(0) for _ in range(number + 1)] for number in residual]
    return down, [level[::-1] for level in up]


def _depths(config: Config) -> dict[Block, int]:
    """Transformer layers in each block."""
    down, up = _by_level(config)
    depths: dict[Block, int] = {("middle", 0): config["transformer_depth_middle"]}
    first = 1
    for level in down:
        depths.update({("input", first + k): depth for k, depth in enumerate(level)})
        first += len(level) + 1
    in_order = [depth for level in reversed(up) for depth in level]
    return depths | {("output", number): depth for number, depth in enumerate(in_order)}
