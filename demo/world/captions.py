"""What one says of a picture: sentences that name only some of what is there."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from . import record, scenes
from .record import Figure, Record
from .styles import STYLES

PATTERN_WORDS = {"plain": "", "stripes": "striped ", "dots": "dotted ", "checks": "checked "}
EYE_WORDS = {"open": "", "closed": "sleepy ", "glasses": ""}


@dataclass(frozen=True)
class Named:
    """What a caption names, each by a chance from 0 to 1."""

    body: float = 0.8
    eyes: float = 0.5
    pose: float = 0.7
    shirt: float = 0.85
    pattern: float = 0.8
    logo: float = 0.8
    scene: float = 0.85
    style: float = 0.9


EVERYTHING = Named(*[1.0] * 8)


def caption(shown: Record, rng: Generator, named: Named = Named()) -> str:
    """One sentence about a picture. The words are those of `words()`."""

    def says(chance: float) -> bool:
        return rng.random() < chance

    if shown.are_twins:
        text = "two of the same, " + _person(shown.figures[0], rng, named, pose=False)
    else:
        text = " and ".join(_person(figure, rng, named) for figure in shown.figures)
    if says(named.scene):
        text += " " + scenes.WORDS[shown.scene]
    if says(named.style):
        text += ", " + STYLES[shown.style].words
    return text


def setting(shown: Record) -> str:
    """Where a picture is set and in which style, and nothing of whom it shows."""
    return f"{scenes.WORDS[shown.scene]}, {STYLES[shown.style].words}"


def _person(figure: Figure, rng: Generator, named: Named, pose: bool = True) -> str:
    def says(chance: float) -> bool:
        return rng.random() < chance

    who, shirt = figure.character, figure.character.shirt
    text = ""
    if says(named.eyes):
        text += EYE_WORDS[who.eyes]
    if says(named.body):
        text += who.body + " "
    text += who.species
    if who.eyes == "glasses" and says(named.eyes):
        text += " with glasses"
    text = ("an " if text[0] == "o" else "a ") + text
    if pose and says(named.pose):
        text += " " + figure.pose.name
    if not says(named.shirt):
        return text
    pattern = PATTERN_WORDS[shirt.pattern] if says(named.pattern) else ""
    text += f" wearing a {shirt.colour} {pattern}shirt"
    if shirt.logo != "none" and says(named.logo):
        text += f" with a {shirt.second} {shirt.logo}"
    return text


def spoken(caption: str) -> dict[str, str]:
    """What a caption names: "scene" and "style", and for each figure "first species" and so on.

    The inverse of `caption`, as far as a caption says it.
    """
    found: dict[str, str] = {}
    for name, words in scenes.WORDS.items():
        if f" {words}" in caption:
            found["scene"] = name
    body, *last = caption.removeprefix("two of the same, ").split(",")
    for name, style in STYLES.items():
        if last and last[-1].strip() == style.words:
            found["style"] = name
    for place, phrase in zip(("first", "second"), body.split(" and "), strict=False):
        found |= {f"{place} {name}": value for name, value in _said_of_figure(phrase).items()}
    return found


def _said_of_figure(phrase: str) -> dict[str, str]:
    who, _, clothes = phrase.partition(" wearing ")
    found = {name: word for word in who.split() for name, options in _WHO.items() if word in options}
    if "sleepy" in who.split() or "glasses" in who.split():
        found["eyes"] = "closed" if "sleepy" in who.split() else "glasses"
    if not clothes:
        return found
    shirt, _, logo = clothes.partition(" shirt")
    found["shirt"] = shirt.split()[1]
    said = [name for name, word in PATTERN_WORDS.items() if word and word.strip() in shirt.split()]
    if said:
        found["pattern"] = said[0]
    words = logo.split()
    if words[:1] == ["with"]:
        found |= {"second": words[2], "logo": words[3]}
    return found


_WHO = {"species": record.SPECIES, "body": record.BODY_COLOURS, "pose": record.POSES}
