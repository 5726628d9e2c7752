"""What can be asked of a picture or of a caption: each attribute with its values."""

from __future__ import annotations

from refattention_demo.world import record
from refattention_demo.world.record import Figure, Record

FIGURE: dict[str, tuple[str, ...]] = {
    "species": record.SPECIES,
    "body": record.BODY_COLOURS,
    "eyes": record.EYES,
    "pose": record.POSES,
    "shirt": record.SHIRT_COLOURS,
    "pattern": record.PATTERNS,
    "logo": record.LOGOS,
    "second": record.SHIRT_COLOURS,
}
PICTURE: dict[str, tuple[str, ...]] = {"scene": record.SCENES, "style": record.STYLES}
ALL = {**FIGURE, **PICTURE}


def of_figure(figure: Figure) -> dict[str, str]:
    """Every attribute of a figure by name."""
    who, shirt = figure.character, figure.character.shirt
    return {
        "species": who.species, "body": who.body, "eyes": who.eyes, "pose": figure.pose.name, "shirt": shirt.colour,
        "pattern": shirt.pattern, "logo": shirt.logo, "second": shirt.second,
    }  # fmt: skip


def of_picture(record: Record) -> dict[str, str]:
    """Attributes of the first figure and of the picture."""
    return {**of_figure(record.figures[0]), "scene": record.scene, "style": record.style}


def numbers(record: Record) -> list[int]:
    """The same as numbers, in the order of `ALL`."""
    found = of_picture(record)
    return [values.index(found[name]) for name, values in ALL.items()]


def second_is_seen(record: Record) -> bool:
    """Whether the shirt's second colour is there at all."""
    shirt = record.figures[0].character.shirt
    return shirt.logo != "none" or shirt.pattern != "plain"
