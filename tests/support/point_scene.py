"""What the browser tests of the point editor start from: a photograph connected to a PointMask."""

from __future__ import annotations

from frontend import EditorDriver, Frontend, points

POSITIVE, NEGATIVE = "positive_coords", "negative_coords"
PHOTO_SIZE = (451, 300)
EYES = [(150, 150), (330, 165)]
NOSE = (260, 230)
NODES = {
    "load": ["LoadImage", 40, 100, {"image": "refattention_photo.jpg"}, None],
    "mask": ["PointMask", 400, 60, {}, None],
}
LINKS = [["load", 0, "mask", "image"]]


def near(found: list[tuple[int, int]], wanted: list[tuple[float, float]]) -> bool:
    """Whether points are where they were placed; the mouse moves in whole pixels of the screen."""
    return len(found) == len(wanted) and all(
        abs(x - wx) <= 1 and abs(y - wy) <= 1 for (x, y), (wx, wy) in zip(found, wanted, strict=True)
    )


class Scene:
    """A photograph connected to a PointMask, whose editor is ready."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.ids = frontend.add(NODES, LINKS)
        self.node = self.ids["mask"]
        self.editor: EditorDriver = frontend.editor().wait_ready()

    def text(self, name: str) -> str:
        text: str = self.frontend.widget(self.node, name)
        return text

    @property
    def positive(self) -> list[tuple[int, int]]:
        return points(self.text(POSITIVE))

    @property
    def negative(self) -> list[tuple[int, int]]:
        return points(self.text(NEGATIVE))
