"""What a picture shows, as plain values: a record is all that drawing, captions and truth go by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from numpy.random import Generator

SPECIES = ("cat", "rabbit", "bear", "robot", "girl")
BODY_COLOURS = ("orange", "pink", "white", "blue", "green", "yellow")
SHIRT_COLOURS = ("red", "yellow", "green", "blue", "purple", "white", "black")
PATTERNS = ("plain", "stripes", "dots", "checks")
LOGOS = ("none", "star", "heart", "ring", "cross", "bolt")
EYES = ("open", "closed", "glasses")
HAIR_COLOURS = ("brown", "black", "yellow", "red")
TROUSERS = ("blue", "black", "green", "brown")
POSES = ("standing", "waving", "cheering", "pointing")
SCENES = ("beach", "forest", "city", "snow", "room")
STYLES = ("flat", "ink", "blueprint", "neon", "watercolor")

# Degrees outwards from straight down, of upper and lower arm: first the arm that acts, then the other one.
REST = (20.0, 10.0)
ARMS = {
    "standing": (REST, REST),
    "waving": ((112.0, 168.0), REST),
    "cheering": ((112.0, 168.0), (112.0, 168.0)),
    "pointing": ((86.0, 94.0), REST),
}


@dataclass(frozen=True)
class Shirt:
    """A garment.

    Attributes:
        second: the colour of the pattern and of the logo.
        spoiled: the seed of a garbled logo.
        quilt: the seed of patches over all of it, of which no two have the same colour.
    """

    colour: str
    second: str
    pattern: str = "plain"
    logo: str = "none"
    spoiled: int | None = None
    quilt: int | None = None


@dataclass(frozen=True)
class Character:
    """Who it is: what stays the same from picture to picture."""

    species: str
    body: str
    shirt: Shirt
    eyes: str = "open"
    hair: str = "brown"
    trousers: str = "blue"


@dataclass(frozen=True)
class Pose:
    """How somebody stands. Angles in degrees; an arm is (upper, lower), outwards from straight down."""

    name: str
    left: tuple[float, float]
    right: tuple[float, float]
    tilt: float = 0.0
    head_tilt: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A character in a pose at a place: `x` of the middle and `y` of the feet's end, in sides of the picture."""

    character: Character
    pose: Pose
    x: float = 0.5
    y: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Record:
    """One picture. `seed` varies what nobody names: where trees stand, the colour of a wall."""

    figures: tuple[Figure, ...]
    scene: str = "room"
    style: str = "flat"
    seed: int = 0

    @property
    def are_twins(self) -> bool:
        """Whether the same character is there twice."""
        return len(self.figures) == 2 and self.figures[0].character == self.figures[1].character


def random_shirt(rng: Generator) -> Shirt:
    """Every second shirt has a logo; hardly any has both a logo and a pattern."""
    colour = _choice(rng, SHIRT_COLOURS)
    second = _choice(rng, [other for other in SHIRT_COLOURS if other != colour])
    logo = _choice(rng, LOGOS[1:]) if rng.random() < 0.5 else "none"
    patterned = rng.random() < (0.1 if logo != "none" else 0.65)
    return Shirt(colour, second, _choice(rng, PATTERNS[1:]) if patterned else "plain", logo)


def random_character(rng: Generator) -> Character:
    """A character; the shirt never has the colour of the body."""
    body = _choice(rng, BODY_COLOURS)
    shirt = random_shirt(rng)
    while shirt.colour == body:
        shirt = random_shirt(rng)
    eyes = EYES[min(2, int(rng.random() * 4) // 2 * (1 + int(rng.random() < 0.5)))]
    return Character(_choice(rng, SPECIES), body, shirt, eyes, _choice(rng, HAIR_COLOURS), _choice(rng, TROUSERS))


def random_pose(rng: Generator, name: str | None = None) -> Pose:
    """A pose of that name, or of any, a little different each time and as often mirrored."""
    name = name or _choice(rng, POSES)
    arms = [(upper + rng.uniform(-8, 8), lower + rng.uniform(-8, 8)) for upper, lower in ARMS[name]]
    if rng.random() < 0.5:
        arms.reverse()
    return Pose(name, arms[0], arms[1], rng.uniform(-5, 5), rng.uniform(-8, 8))


def random_record(rng: Generator, people: int = 1) -> Record:
    """A picture of one character, or of two different ones."""
    figures = tuple(_placed(rng, random_character(rng), place, people) for place in range(people))
    return Record(figures, _choice(rng, SCENES), _choice(rng, STYLES), int(rng.integers(1 << 30)))


def twins(rng: Generator) -> Record:
    """A picture with the same character twice, in two poses."""
    character = random_character(rng)
    figures = tuple(_placed(rng, character, place, 2) for place in range(2))
    return Record(figures, _choice(rng, SCENES), _choice(rng, STYLES), int(rng.integers(1 << 30)))


def look_alikes(rng: Generator) -> Record:
    """A picture of two characters of one species and colour, who differ in their shirts only."""
    record = twins(rng)
    first, second = record.figures
    shirt = random_shirt(rng)
    while shirt.colour in (first.character.shirt.colour, first.character.body):
        shirt = random_shirt(rng)
    other = replace(second, character=replace(second.character, shirt=shirt))
    return replace(record, figures=(first, other))


def another_view(record: Record, rng: Generator) -> Record:
    """The same characters in other poses and another scene, in the same style."""
    people = len(record.figures)
    figures = tuple(_placed(rng, figure.character, place, people) for place, figure in enumerate(record.figures))
    scene = _choice(rng, [name for name in SCENES if name != record.scene])
    return Record(figures, scene, record.style, int(rng.integers(1 << 30)))


def another_subject(record: Record, rng: Generator) -> Record:
    """Another character in another scene, in the same style."""
    return replace(random_record(rng, len(record.figures)), style=record.style)


def dressed(record: Record, shirt: Shirt) -> Record:
    """The same picture with another shirt on its first character."""
    first = record.figures[0]
    worn = replace(first, character=replace(first.character, shirt=shirt))
    return replace(record, figures=(worn, *record.figures[1:]))


def spoiled(record: Record, rng: Generator) -> Record:
    """The same picture with the logo of its first character garbled.

    Raises:
        ValueError: that character has no logo.
    """
    shirt = record.figures[0].character.shirt
    if shirt.logo == "none":
        raise ValueError("A logo can be spoiled only where there is one: the first character's shirt has none.")
    return dressed(record, replace(shirt, spoiled=int(rng.integers(1 << 30))))


def _placed(rng: Generator, character: Character, place: int, people: int) -> Figure:
    pose = random_pose(rng)
    if people == 1:
        return Figure(
            character, pose, 0.5 + rng.uniform(-0.05, 0.05), 1 + rng.uniform(-0.02, 0.04), rng.uniform(0.94, 1.06)
        )
    x = (0.26, 0.74)[place] + rng.uniform(-0.02, 0.02)
    return Figure(character, pose, x, 1 + rng.uniform(-0.03, 0.02), rng.uniform(0.6, 0.68))


def _choice(rng: Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]
