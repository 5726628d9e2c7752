"""Who appears in the demo: drawn characters, so that what a method should do can be seen at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_host import demo_module

if TYPE_CHECKING:
    from refattention_demo.world.record import Character, Pose, Record

record = demo_module("world.record")
STANDING, WAVING, CHEERING = (record.Pose(name, *record.ARMS[name]) for name in ("standing", "waving", "cheering"))

CAT = record.Character("cat", "orange", record.Shirt("blue", "white", "stripes"))
SAME_CAT = record.Character("cat", "orange", record.Shirt("red", "white", logo="star"))
RABBIT = record.Character("rabbit", "white", record.Shirt("green", "yellow", logo="heart"), eyes="glasses")
ROBOT = record.Character("robot", "pink", record.Shirt("yellow", "red"))
BEAR = record.Character("bear", "yellow", record.Shirt("purple", "white", logo="star"))


def alone(character: Character, pose: Pose = STANDING, scene: str = "room", style: str = "flat") -> Record:
    """One character, filling the picture."""
    return record.Record((record.Figure(character, pose),), scene, style)


def together(first: Character, second: Character, scene: str = "snow") -> Record:
    """Two characters side by side."""
    places = record.Figure(first, STANDING, 0.26, 1.0, 0.66), record.Figure(second, STANDING, 0.74, 1.0, 0.66)
    return record.Record(places, scene)
