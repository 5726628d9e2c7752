"""P3S-Diffusion: a folder of pictures of one subject, of any number and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from refattention.core.models.base import fingerprint
from refattention.core.p3s.adapter import Origin, TrainedAdapter, trainable, trained_weights
from refattention.core.p3s.files import load_adapter, save_adapter
from refattention.core.p3s.kernel import AVERAGES
from refattention.core.p3s.run import Subject
from refattention.core.p3s.training import WHERE, Inputs, Objective, Settings
from refattention.core.patches.frozen import Prompt, encode
from refattention.core.patches.unet import family, require_image_unet
from torch import Tensor

from ..config import Config, ConfigError, Phase, Train
from ..data import Looked, require_good
from ..loop import settings_of
from ..models import Encoder, Memory, conditioning, file_of, load_base, load_vision
from ..pictures import Crop, Size, mask, picture
from ..plan import Key, Plan, generator_of
from .common import chance, noise_of, one_of, paint, paths_of, too_small, whole

DEFAULTS = {"learning_rate": 1e-5}
PICTURE = re.compile(r".+\.(png|jpe?g|webp|bmp)", re.IGNORECASE)
SIDE = 64  # the sides of pictures are multiples of it, so that few sizes stand for many


@dataclass(frozen=True)
class Data:
    """`[data]`.

    Attributes:
        root: folder of the pictures; a mask of NAME.jpg, the subject in white, may lie there as NAME.mask.png.
        identifier, class_word: how a prompt names the subject.
        prompt: text of all pictures.
    """

    root: str
    identifier: str = "sks"
    class_word: str = "subject"
    prompt: str = "a photo of {identifier} {class_word}"


@dataclass(frozen=True)
class Options:
    """`[method]`; what the paper says is the default.

    Attributes:
        gamma: weight of L_ac.
        where: cross-attentions that L_ac compares, last or all.
        average: what L_ac is divided by.
        condition_drop: part of the pictures that are seen with the empty prompt.
        value_strength: lambda of Eq. 7.
    """

    gamma: float = 0.1
    where: str = "last"
    average: str = "mean"
    condition_drop: float = 0.1
    value_strength: float = 0.2


@dataclass(frozen=True)
class Record:
    """A picture of the subject, and the subject in it."""

    image: str
    mask: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture, the one that is read for its step, and what is drawn for it."""

    record: int
    reference: int
    timestep: int
    seed: int
    is_dropped: bool


class Task:
    """P3S as the loop sees it."""

    name = "p3s"

    def __init__(self, config: Config) -> None:
        data: Data = config.data
        options: Options = config.phases[0].method
        one_of(options.where, tuple(WHERE), "[method] where")
        one_of(options.average, tuple(AVERAGES), "[method] average")
        for word in ("identifier", "class_word"):
            if f"{{{word}}}" not in data.prompt or not getattr(data, word).strip():
                raise ConfigError(f"[data] prompt must contain {{{word}}}, and {word} must not be empty.")
        self._root = config.path(data.root)
        self._text = data.prompt.replace("{identifier}", data.identifier).replace("{class_word}", data.class_word)
        self._words = data.identifier.strip(), data.class_word.strip(), self._text
        self._records, self.digest = require_good(
            records_of(self._root), self._files, self._complaints, config.output, config.common.allow_bad
        )
        self.records = len(self._records)
        self._shapes = [shape_of(self._root / each.image) for each in self._records]
        self._load(config)
        self.begin(config.phases[0])

    def begin(self, phase: Phase) -> None:
        """Takes on the settings of a phase."""
        train, options = phase.train, phase.method
        self._drop = options.condition_drop
        self._choose_sizes(train)
        self.objective.settings = Settings(
            learning_rate=train.learning_rate,
            gamma=options.gamma,
            where=options.where,
            average=options.average,
            condition_drop=options.condition_drop,
            batch_size=train.batch_size,
            value_strength=options.value_strength,
            gradient_checkpointing=train.gradient_checkpointing,
            mixed_precision=train.precision != "no",
        )
        self._said = settings_of(phase)

    def plan(self, step_size: int, seed: int) -> Plan:
        """Every picture once an epoch, in batches of one size."""
        return Plan([], [], self._sizes, step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> Sample:
        """Draws the noise level, and which picture the adapter reads, the same for all of a step.

        It is one of the same size, because L_ac compares attention place by place.
        """
        number, seed, step = key
        generator = generator_of(seed)
        alike = [other for other, size in enumerate(self._sizes) if size == self._sizes[number]]
        return Sample(
            number,
            alike[whole(len(alike), generator_of(step))],
            whole(self._timesteps, generator),
            whole(2**62, generator),
            chance(generator) < self._drop * drops,
        )

    def batch(self, samples: Sequence[Sample]) -> Inputs:
        """Encodes the pictures."""
        device = next(self.objective.parameters()).device
        self._samples = samples  # for the sheet of this batch
        latents = [self._latent(each.record) for each in samples]
        noise = [noise_of(latent, each.seed) for latent, each in zip(latents, samples, strict=True)]
        prompts = [self._prompt("" if each.is_dropped else self._text, latents[0]) for each in samples]
        ys = [prompt.y for prompt in prompts if prompt.y is not None]
        reference = samples[0].reference
        record = self._records[reference]
        return Inputs(
            torch.cat(latents).to(device),
            self._latent(reference).to(device),
            self._seen(reference).to(device),
            Subject(self._cut_mask(reference)[None] if record.mask else None),
            torch.cat([prompt.context for prompt in prompts]).to(device),
            torch.cat(ys).to(device) if ys else None,
            torch.tensor([each.timestep for each in samples]),
            torch.cat(noise).to(device),
        )

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Writes an adapter for P3S Load."""
        weights = trained_weights(self.objective.network, self._model)
        origin = Origin(family(self._model), self._fingerprint, self._width, *self._words, self._said)
        save_adapter(TrainedAdapter({name: each.to(dtype) for name, each in weights.items()}, origin), path)

    def shown(self, batch: Inputs) -> list[list[tuple[str, Tensor]]]:
        """Each target, and the picture that is read for it with its subject."""
        lines = []
        for each in self._samples:
            reference = self._picture(each.reference)
            inside = self._cut_mask(each.reference) if self._records[each.reference].mask else torch.ones(1, 1)
            text = "no words" if each.is_dropped else self._text
            lines.append(
                [
                    (f"t = {each.timestep}: {text}", self._picture(each.record)),
                    ("read", torch.where(inside[..., None] > 0, reference, reference * 0.4)),
                ]
            )
        return lines

    def painted(self, batch: Inputs, steps: int) -> list[list[tuple[str, Tensor]]]:
        """What the model paints with the adapter."""
        latents = paint(lambda x, sigma: self.objective.denoised(batch, x, sigma), self._sampling, batch.noise, steps)
        pictures = self._encode.decode(latents)
        return [[*cells, ("painted", each)] for cells, each in zip(self.shown(batch), pictures, strict=True)]

    def _load(self, config: Config) -> None:
        base = load_base(config)
        require_image_unet(base.model, "Training")
        self._model, self._clip = base.model, base.clip
        self._vision = load_vision(config)
        self._fingerprint = fingerprint(base.model)
        self._encode = Encoder(base.vae, base.model.model.latent_format)
        self._sampling = base.model.get_model_object("model_sampling")
        self._timesteps = len(self._sampling.sigmas)
        self._tokens, self._prompts = Memory(), dict[str, Prompt]()
        train = config.phases[0].train
        self._choose_sizes(train)
        self._width = self._seen(0).shape[-1]
        network = trainable(base.model, self._width, config.common.seed)
        if config.models.start:
            adapter = load_adapter(file_of(config, config.models.start, "model_patches", "models.start"))
            network.load_state_dict({name: each.float() for name, each in adapter.weights.items()})
        self.objective = Objective(base.model, network, Settings(mixed_precision=train.precision != "no"))

    def _files(self, record: Record) -> dict[str, Path]:
        return paths_of(self._root, **vars(record))

    def _complaints(self, record: Record, files: Mapping[str, Looked]) -> Iterable[str]:
        """A mask fits its picture and shows something."""
        yield from too_small(files)
        if "mask" in files and files["mask"].size != files["image"].size:
            yield f"the mask of {record.image} has another size than the picture."
        elif "mask" in files and files["mask"].brightest < 128:
            yield f"the mask of {record.image} is black, so it shows no subject."

    def _choose_sizes(self, train: Train) -> None:
        self._sizes = [size_near(train.height * train.width, shape) for shape in self._shapes]

    def _crop(self, number: int, image: Tensor) -> Crop:
        return Crop((image.shape[0], image.shape[1]), self._sizes[number])

    def _picture(self, number: int) -> Tensor:
        image = picture(self._root / self._records[number].image)
        return self._crop(number, image).picture(image)

    def _cut_mask(self, number: int) -> Tensor:
        inside = mask(self._root / self._records[number].mask)
        return self._crop(number, inside).mask(inside)

    def _latent(self, number: int) -> Tensor:
        return self._encode(self._picture(number)[None], (number, self._sizes[number]))

    def _prompt(self, text: str, latent: Tensor) -> Prompt:
        # Some families add the size of the picture.
        key = f"{text} {tuple(latent.shape)}"
        if key not in self._prompts:
            self._prompts[key] = encode(self._model, conditioning(self._clip, text), latent)
        return self._prompts[key]

    def _seen(self, number: int) -> Tensor:
        """(1, L, width), the vision encoder's tokens of a picture."""

        def make() -> Tensor:
            return self._vision.encode_image(self._picture(number)[None], crop=False)["last_hidden_state"]

        return self._tokens.get((number, self._sizes[number]), make)


def shape_of(path: Path) -> Size:
    """(height, width) of a picture as it is seen."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        width, height = ImageOps.exif_transpose(file).size
    return height, width


def size_near(area: int, shape: Size) -> Size:
    """(height, width) near the wanted area, and near a picture's own shape."""
    scale = (area / (shape[0] * shape[1])) ** 0.5
    step = SIDE if area >= (8 * SIDE) ** 2 else 8
    rows, columns = (max(round(side * scale / step), 1) * step for side in shape)
    return rows, columns


def records_of(root: Path) -> list[Record]:
    """The pictures of a folder with their masks.

    Raises:
        ConfigError: there is no such folder, or a mask of no picture.
    """
    if not root.is_dir():
        raise ConfigError(f"[data] root names {root}, which is no folder.")
    names = sorted(path.name for path in root.iterdir() if PICTURE.fullmatch(path.name))
    masks = {name for name in names if name.endswith(".mask.png")}
    pictures = [name for name in names if name not in masks]
    with_mask = {f"{Path(name).stem}.mask.png": name for name in pictures}
    if lonely := sorted(masks - with_mask.keys()):
        raise ConfigError(f"{root / lonely[0]} is the mask of no picture: there is no {lonely[0][:-9]}.jpg or .png.")
    return [Record(name, own if (own := f"{Path(name).stem}.mask.png") in masks else "") for name in pictures]
