"""Pictures for the try-on demo, drawn over `person.jpg` by hand where a detector would find them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

PERSON = Path(__file__).with_name("person.jpg")
SIZE = 384, 512
SMALL, TRAINED = (240, 320), (768, 1024)  # the latter is what Leffa was trained on, and the templates have
Outline = list[tuple[int, int]]

HAIR: Outline = [(145, 85), (148, 48), (178, 24), (215, 14), (255, 20), (285, 50), (291, 95), (275, 125), (145, 105)]
FACE: Outline = [
    (168, 95),
    (195, 82),
    (245, 85),
    (260, 105),
    (260, 135),
    (245, 170),
    (215, 190),
    (180, 175),
    (167, 130),
]
NECK: Outline = [(178, 172), (243, 172), (265, 240), (235, 255), (190, 250), (150, 210)]
SUIT: Outline = [
    (105, 185), (104, 205), (50, 250), (35, 300), (12, 400), (20, 511), (275, 511), (275, 440), (320, 360), (352, 345),
    (335, 270), (295, 235), (280, 190), (245, 175), (260, 240), (200, 262), (150, 225), (150, 175),
]  # fmt: skip
ARM: Outline = [(50, 250), (35, 300), (12, 400), (20, 511), (95, 511), (85, 420), (80, 330), (90, 250)]
HELMET = 268, 344, 490, 566

# Labels of the parsing map: background 0, hair 2, upper clothes 4, head 11, bag 16 (for what is held), neck 18
PARSING = ((SUIT, 4), (NECK, 18), (HAIR, 2), (FACE, 11))
# DensePose's torso, upper arm and head: the number of the part
BODY = ((SUIT, 2), (ARM, 16), (HAIR, 23), (FACE, 23))
PARULA = {2: (20, 80, 194), 16: (170, 189, 105), 23: (250, 235, 25)}
VIRIDIS = {0: (68, 1, 84), 2: (72, 31, 112), 16: (53, 183, 121), 23: (226, 228, 24)}


def garment() -> Image.Image:
    """A striped shirt on light grey."""
    shirt = [(120, 90), (160, 110), (224, 110), (264, 90), (350, 150), (320, 230), (280, 205), (280, 440), (104, 440)]
    shirt += [(104, 205), (64, 230), (34, 150)]
    stripes = Image.new("RGB", SIZE, (20, 110, 70))
    draw = ImageDraw.Draw(stripes)
    for top in range(90, 440, 40):
        draw.rectangle((0, top, SIZE[0], top + 17), fill=(240, 235, 215))
    picture, shape = Image.new("RGB", SIZE, (205, 205, 210)), Image.new("L", SIZE)
    ImageDraw.Draw(shape).polygon(shirt, fill=255)
    picture.paste(stripes, mask=shape)
    return picture


def parsing() -> Image.Image:
    """Label numbers as grey values."""
    picture = Image.new("L", SIZE)
    draw = ImageDraw.Draw(picture)
    for outline, label in PARSING:
        draw.polygon(outline, fill=label)
    draw.ellipse(HELMET, fill=16)
    return picture.convert("RGB")


def densepose() -> Image.Image:
    """The body in DensePose's colours, about where it is."""
    return _coloured(PARULA, (0, 0, 0))


def densepose_viridis() -> Image.Image:
    """The same body in Viridis."""
    return _coloured(VIRIDIS, VIRIDIS[0])


def _coloured(colours: dict[int, tuple[int, int, int]], background: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", SIZE, background)
    draw = ImageDraw.Draw(picture)
    for outline, part in BODY:
        draw.polygon(outline, fill=colours[part])
    draw.ellipse(HELMET, fill=background)
    return picture


def densepose_uvi() -> Image.Image:
    """The same body as U, V and part number; U runs across each part, and V down."""
    parts, u, v = (Image.new("L", SIZE) for _ in range(3))
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    for outline, part in BODY:
        shape = Image.new("L", SIZE)
        ImageDraw.Draw(shape).polygon(outline, fill=255)
        box = shape.getbbox()
        assert box is not None
        inside, size = shape.crop(box), (box[2] - box[0], box[3] - box[1])
        for channel, values in ((u, across.resize(size)), (v, down.resize(size)), (parts, Image.new("L", size, part))):
            channel.paste(values, box[:2], inside)
    picture = Image.merge("RGB", (u, v, parts))
    ImageDraw.Draw(picture).ellipse(HELMET, fill="black")
    return picture


def write_pictures(folder: Path, size: tuple[int, int] = SMALL) -> None:
    """Writes what the workflows load, by default at a size that a CPU does in seconds."""
    pictures = {"garment": garment(), "parsing": parsing(), "densepose": densepose(), "densepose_uvi": densepose_uvi()}
    for name, picture in pictures.items():
        picture.resize(size, Image.Resampling.NEAREST).save(folder / f"refattention_{name}.png", optimize=True)
    with Image.open(PERSON) as photograph:
        scaled = photograph.resize(size, Image.Resampling.LANCZOS)
        scaled.save(folder / f"refattention_{PERSON.name}", quality=80, optimize=True)
