"""Where a picture's pixels lie on the patch grid of a vision transformer that reads square pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STRETCH, PAD, TILES = "stretch", "pad", "tiles"
FITS = [STRETCH, PAD, TILES]


@dataclass(frozen=True)
class Axis:
    """One axis: `pixels` of the picture are resized to `content` pixels of the encoder, `patch` of them to a patch.

    A pixel belongs to the patch that holds its centre. All is integer arithmetic, so both directions agree for any
    size. Where `content` is no multiple of `patch`, the last patch is only partly filled.
    """

    pixels: int
    content: int
    patch: int

    @property
    def patches(self) -> int:
        """Patches that hold any of the picture."""
        return -(-self.content // self.patch)

    def patch_of(self, pixel: int) -> int:
        """The patch that holds the centre of a pixel, both counted from 0."""
        return (2 * pixel + 1) * self.content // (2 * self.pixels * self.patch)

    def pixels_of(self, patch: int) -> range:
        """The pixels with their centre in a patch; none where patches are smaller than pixels."""
        return range(self._first(patch), self._first(patch + 1))

    def _first(self, patch: int) -> int:
        return min(self.pixels, -((self.content - 2 * self.pixels * self.patch * patch) // (2 * self.content)))

    def interpolation(self) -> Tensor:
        """Linear interpolation from patch centres to pixel centres, constant beyond the outer centres.

        Returns:
            (pixels, patches) float32, rows sum to 1.
        """
        scale = self.content / (self.pixels * self.patch)
        position = (torch.arange(self.pixels, dtype=torch.float64) + 0.5) * scale - 0.5
        position = position.clamp(0, self.patches - 1)
        distance = (position[:, None] - torch.arange(self.patches, dtype=torch.float64)).abs()
        return (1 - distance).clamp(min=0).float()


@dataclass(frozen=True)
class Layout:
    """How a picture is laid out in one or more squares of `side` x `side` patches.

    `rows` and `columns` map the picture to one patch grid; a square begins at (row, column) of that grid, which is
    negative where the square is padded before the picture.
    """

    rows: Axis
    columns: Axis
    side: int
    squares: tuple[tuple[int, int], ...]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), patches down and across the picture."""
        return self.rows.patches, self.columns.patches

    def patch_of(self, x: int, y: int) -> tuple[int, int]:
        """(row, column) of the patch that holds a pixel."""
        return self.rows.patch_of(y), self.columns.patch_of(x)

    def cut(self, image: Tensor, fill: Sequence[float]) -> Tensor:
        """The squares an encoder reads.

        Args:
            image: (H, W, 3) in [0, 1].
            fill: 3 values in [0, 1] for what lies outside the picture.

        Returns:
            (squares, S, S, 3) with S = side * patch, not clamped to [0, 1].
        """
        size, patch = (self.rows.content, self.columns.content), self.rows.patch
        picture = image.movedim(-1, 0).unsqueeze(0)
        if picture.shape[2:] != size:
            picture = F.interpolate(picture, size=size, mode="bicubic", antialias=True)
        edge = self.side * patch
        squares = picture.new_tensor(fill).expand(len(self.squares), edge, edge, 3).clone()
        for square, (row, column) in zip(squares, self.squares, strict=True):
            top, left = row * patch, column * patch
            part = picture[0, :, max(top, 0) : top + edge, max(left, 0) : left + edge].movedim(0, -1)
            square[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
        return squares

    def join(self, features: Tensor) -> Tensor:
        """Puts the squares' patch features back on the picture's grid; where squares overlap, their mean.

        Args:
            features: (squares, side, side, C).

        Returns:
            (h, w, C).
        """
        h, w = self.grid
        total = features.new_zeros(h, w, features.shape[-1])
        count = features.new_zeros(h, w, 1)
        for square, (row, column) in zip(features, self.squares, strict=True):
            target = slice(max(row, 0), row + self.side), slice(max(column, 0), column + self.side)
            part = square[max(-row, 0) :, max(-column, 0) :][: h - target[0].start, : w - target[1].start]
            total[target] += part
            count[target] += 1
        return total / count


def layout(height: int, width: int, fit: str, side: int, patch: int) -> Layout:
    """Lays a picture of any size out for an encoder that reads squares.

    Args:
        height, width: of the picture, in pixels.
        fit: "stretch" to a square, "pad" to a square, or "tiles": overlapping squares as high as the short side.
        side: patches along a square.
        patch: pixels along a patch.
    """
    edge, (short, long) = side * patch, sorted((height, width))
    # Both first along (short, long).
    contents, squares = [edge, edge], [(0, 0)]
    if fit == PAD:
        contents[0] = max(1, round(short * edge / long))
        squares = [(-((edge - contents[0]) // 2 // patch), 0)]
    elif fit == TILES:
        # A whole number of patches along the picture, so that the tiles share one grid.
        steps = max(side, round(long * side / short))
        contents[1] = steps * patch
        squares = [(0, start) for start in _starts(steps, side)]
    if height > width:
        contents, squares = contents[::-1], [(column, row) for row, column in squares]
    rows, columns = Axis(height, contents[0], patch), Axis(width, contents[1], patch)
    return Layout(rows, columns, side, tuple(squares))


def _starts(steps: int, side: int) -> list[int]:
    """Evenly spread first patches of the fewest tiles of `side` that cover `steps` patches."""
    tiles = -(-steps // side)
    return [round(index * (steps - side) / max(tiles - 1, 1)) for index in range(tiles)]
