"""What is true of a picture, pixel by pixel. Maps are square, of any size; left and right are the picture's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import figure as figures
from .draw import SIZE, fill
from .garment import LOGO_CENTRE, LOGO_RADIUS
from .record import Record
from .shapes import Map, Points, Shape, similarity

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Field = NDArray[np.float64]

# Parts of DensePose. Figures face the viewer, so what is on the picture's left is their right.
DENSEPOSE = {
    "torso": 2,
    "left hand": 3,
    "right hand": 4,
    "right leg": 8,
    "left leg": 7,
    "right upper arm": 15,
    "left upper arm": 16,
    "right sleeve": 15,
    "left sleeve": 16,
    "right lower arm": 19,
    "left lower arm": 20,
}
RIGHT_HALF_OF_HEAD, LEFT_HALF_OF_HEAD = 23, 24
# Labels of the ATR data set
PARSING = {
    "hair": 2,
    "torso": 4,
    "left sleeve": 4,
    "right sleeve": 4,
    "left leg": 6,
    "right leg": 6,
    "head": 11,
    "ears": 11,
    "left upper arm": 15,
    "left lower arm": 15,
    "left hand": 15,
    "right upper arm": 14,
    "right lower arm": 14,
    "right hand": 14,
}
# Places of OpenPose's 18 joints that a figure has; what is out of the picture is (0, 0).
JOINTS = {
    "nose": 0, "neck": 1, "left shoulder": 2, "left elbow": 3, "left wrist": 4, "right shoulder": 5, "right elbow": 6,
    "right wrist": 7,
}  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """What is in front at each pixel.

    Attributes:
        owner: (H, W), the number of the figure, counted from 1; 0 is the scene.
        index: (H, W), the number of its shape, counted from 0.
        shapes: the shapes of each figure.
    """

    owner: Labels
    index: Labels
    shapes: tuple[tuple[Shape, ...], ...]

    def mask(self, figure: int, *parts: str) -> Mask:
        """(H, W): where these parts of a figure (0 is the first) are in front; without parts, where any of it is."""
        chosen = [number for number, shape in enumerate(self.shapes[figure]) if not parts or shape.part in parts]
        return (self.owner == figure + 1) & np.isin(self.index, chosen)


def layers(record: Record, size: int = SIZE) -> Layers:
    """Figures and shapes in front, by drawing the very polygons of the picture."""
    owner, index = np.zeros((2, size, size), np.uint8)
    shapes = tuple(tuple(figures.shapes(figure)) for figure in record.figures)
    for number, own in enumerate(shapes):
        for place, shape in enumerate(own):
            fill(owner, shape.points, number + 1, smooth=False)
            fill(index, shape.points, place, smooth=False)
    return Layers(owner, index, shapes)


def subject(record: Record, figure: int = 0, size: int = SIZE) -> Mask:
    """(H, W): the visible pixels of a figure."""
    return layers(record, size).mask(figure)


def shirt(record: Record, figure: int = 0, size: int = SIZE) -> Mask:
    """(H, W): the visible pixels of its shirt."""
    return layers(record, size).mask(figure, "torso", "left sleeve", "right sleeve")


def logo(record: Record, figure: int = 0, size: int = SIZE) -> Mask:
    """(H, W): the square around the logo, as far as the shirt is in front there."""
    flat = on_flat_shirt(record, figure, size)
    with np.errstate(invalid="ignore"):
        inside: Mask = np.all(np.abs(flat - LOGO_CENTRE) <= 1.1 * LOGO_RADIUS, axis=-1)
    return inside


def parsing(record: Record, figure: int = 0, size: int = SIZE) -> Labels:
    """(H, W) of ATR labels."""
    return _by_part(layers(record, size), figure, PARSING)


def densepose(record: Record, figure: int = 0, size: int = SIZE) -> Labels:
    """(H, W, 3) of DensePose's I (0 to 24), U and V (0 to 255): the part, and the place on it.

    U and V run along and across each part in the part's own frame, so that they turn with a limb and do not
    depend on where the figure stands. They are not those of the SMPL body.
    """
    found = layers(record, size)
    part = _by_part(found, figure, DENSEPOSE)
    uv = np.zeros((size, size, 2))
    place = figures.placed(record.figures[figure]).inverse()
    local = place(_pixels(size))
    head = found.mask(figure, "head", "ears", "hair")
    part[head] = np.where(local[head][:, 0] < 0, RIGHT_HALF_OF_HEAD, LEFT_HALF_OF_HEAD)
    uv[head] = (local[head] - (-0.3, 0.0)) / (0.6, 0.5)
    for name in DENSEPOSE:
        mask = found.mask(figure, name)
        if mask.any():
            frame = _frame(record, figure, name, next(shape for shape in found.shapes[figure] if shape.part == name))
            uv[mask] = frame(_pixels(size)[mask])
    return np.dstack([part, np.round(255 * np.clip(uv, 0, 1)).astype(np.uint8)]) * (part > 0)[..., None]


def _frame(record: Record, figure: int, name: str, shape: Shape) -> Map:
    """The picture's coordinates -> those of a part, about the unit square."""
    if name == "torso" or name.endswith("leg"):
        to_figure = figures.placed(record.figures[figure]).inverse()
        return Map(np.eye(2) / 0.5, np.array([0.5, -0.9])).after(to_figure)
    side = name.split()[0]
    joints = figures.joints(record.figures[figure])
    ends = {"hand": ("elbow", "wrist"), "lower arm": ("elbow", "wrist")}.get(
        name.removeprefix(f"{side} "), ("shoulder", "elbow")
    )
    start, end = (np.array(joints[f"{side} {joint}"]) for joint in ends)
    angle = float(np.degrees(np.arctan2(*(end - start)[::-1])))
    along = similarity(1 / 0.3, -angle, start.tolist(), (0.25, 0.5))
    return along.after(figures.placed(record.figures[figure]).inverse())


def keypoints(record: Record, figure: int = 0, size: int = SIZE) -> Points:
    """(18, 2): x and y of OpenPose's joints in pixels, (0, 0) for what is not in the picture."""
    place, found = figures.placed(record.figures[figure]), np.zeros((18, 2))
    for name, (x, y) in figures.joints(record.figures[figure]).items():
        point = place(np.array([[x, y]]))[0]
        if (0 <= point).all() and (point < 1).all():
            found[JOINTS[name]] = point * size
    return found


def on_flat_shirt(record: Record, figure: int = 0, size: int = SIZE) -> Field:
    """(H, W, 2): for each pixel of the shirt its place x, y in the unit square of the flat shirt; elsewhere NaN."""
    found, pixels = layers(record, size), _pixels(size)
    places = np.full((size, size, 2), np.nan)
    for name in ("torso", "left sleeve", "right sleeve"):
        mask = found.mask(figure, name)
        places[mask] = _cloth(found, figure, name).inverse()(pixels[mask])
    return places


def flow(first: Record, second: Record, figures_of: tuple[int, int] = (0, 0), size: int = SIZE) -> Field:
    """(H, W, 2): where each pixel of a shirt in the first picture is in the second one, x and y in pixels.

    NaN where there is no shirt in the first picture, or where its place is hidden in the second one.
    """
    a, b, pixels = layers(first, size), layers(second, size), _pixels(size)
    places = np.full((size, size, 2), np.nan)
    for name in ("torso", "left sleeve", "right sleeve"):
        here, there = a.mask(figures_of[0], name), b.mask(figures_of[1], name)
        moved = _cloth(b, figures_of[1], name).after(_cloth(a, figures_of[0], name).inverse())(pixels[here])
        cell = np.floor(moved * size).astype(int)
        inside = ((cell >= 0) & (cell < size)).all(-1)
        column, row = np.clip(cell, 0, size - 1).T
        places[here] = np.where((inside & there[row, column])[:, None], moved * size, np.nan)
    return places


def _cloth(found: Layers, figure: int, part: str) -> Map:
    texture = next(shape for shape in found.shapes[figure] if shape.part == part).texture
    assert texture is not None
    return texture


def _by_part(found: Layers, figure: int, labels: dict[str, int]) -> Labels:
    table = np.array([labels.get(shape.part, 0) for shape in found.shapes[figure]], np.uint8)
    return np.where(found.owner == figure + 1, table[np.minimum(found.index, len(table) - 1)], 0).astype(np.uint8)


def _pixels(size: int) -> Field:
    """(H, W, 2): the middle of each pixel in sides of the picture."""
    middle = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(middle, middle), -1)
