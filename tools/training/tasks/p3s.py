"""P3S-Diffusion: a folder of pictures of one subject, of any number and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from refattention.core.models.base import fingerprint
from refattention.core.models.checkpoint import check, shapes
from refattention.core.p3s.adapter import Origin, TrainedAdapter, trainable, trained_weights
from refattention.core.p3s.files import load_adapter, save_adapter
from refattention.core.p3s.kernel import AVERAGES
from refattention.core.p3s.network import P3SNetwork
from refattention.core.p3s.objective import DROPS, WHERE, Inputs, Objective, Settings
from refattention.core.p3s.settings import BOTH
from refattention.core.patches.selection import Tokens
from refattention.core.patches.training import Prompt, encode, in_rows
from refattention.core.patches.unet import family, require_image_unet
from torch import Tensor

from ..config import Config, ConfigError, Phase, Train
from ..data import Looked, require_good, upright_size
from ..loop import settings_of
from ..models import Encoder, Memory, conditioning, file_of, load_base, load_vision
from ..pictures import Crop, Size, mask, picture
from ..plan import Key, Plan, generator_of
from .common import chance, noise_of, one_of, paint, paths_of, too_small, whole

DEFAULTS = {"learning_rate": 1e-5}
ANY, SAME = "any", "same"
REFERENCES = ANY, SAME
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
        where: cross-attentions that L_ac compares: last, all (their mean), all summed, or none.
        average: what L_ac is divided by.
        condition_drop: part of the pictures that are seen without their conditions.
        dropped: which conditions those are: text and reference, or text.
        value_strength: lambda of Eq. 7.
        rngr: whether the RNGR encoder is trained.
        learned_weight: whether the weight of the injection is learnt, instead of 1; P3S Inject's schedule "learned".
        reference: what the adapter reads: any of the pictures, drawn, or the same that is to be denoised.
    """

    gamma: float = 0.1
    where: str = "last"
    average: str = "mean"
    condition_drop: float = 0.1
    dropped: str = BOTH
    value_strength: float = 0.2
    rngr: bool = True
    learned_weight: bool = False
    reference: str = ANY


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
        check_options(config)
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
        self._drop, self._dropped, self._reads = options.condition_drop, options.dropped, options.reference
        self._choose_sizes(train)
        self.objective.settings = Settings(
            learning_rate=train.learning_rate,
            gamma=options.gamma,
            where=options.where,
            average=options.average,
            condition_drop=options.condition_drop,
            dropped=options.dropped,
            batch_size=train.batch_size,
            value_strength=options.value_strength,
            rngr=options.rngr,
            learned_weight=options.learned_weight,
            gradient_checkpointing=train.gradient_checkpointing,
            mixed_precision=train.precision != "no",
        )
        self._said = settings_of(phase)
        if options.reference == SAME and train.batch_size > 1 and any(each.mask for each in self._records):
            raise ConfigError(
                "[method] reference is 'same', so each picture of a batch has a mask of its own, but a batch can have "
                "only one. Set batch_size to 1, and accumulate to what it was."
            )

    def plan(self, step_size: int, seed: int) -> Plan:
        """Every picture once an epoch, in batches of one size."""
        return Plan([], [], self._sizes, step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> Sample:
        """Draws the noise level, and which picture the adapter reads: one for all of a step, unless each its own."""
        number, seed, step = key
        generator = generator_of(seed)
        return Sample(
            number,
            number if self._reads == SAME else whole(self.records, generator_of(step)),
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
        texts = in_rows(prompts, device)
        references = list(dict.fromkeys(each.reference for each in samples))
        if len(references) > 1:
            references = [each.reference for each in samples]
        record = self._records[references[0]]
        absent = torch.tensor([each.is_dropped for each in samples]) if self._dropped == BOTH else None
        return Inputs(
            torch.cat(latents).to(device),
            torch.cat([self._latent(each) for each in references]).to(device),
            torch.cat([self._seen(each) for each in references]).to(device),
            Tokens(self._cut_mask(references[0]) if record.mask else None),
            texts.context,
            texts.y,
            torch.tensor([each.timestep for each in samples]),
            torch.cat(noise).to(device),
            absent,
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
            is_read = not (each.is_dropped and self._dropped == BOTH)
            lines.append(
                [
                    (f"t = {each.timestep}: {text}", self._picture(each.record)),
                    (
                        "read" if is_read else "not read",
                        torch.where(inside[..., None] > 0, reference, reference * 0.4) * is_read,
                    ),
                ]
            )
        return lines

    def painted(self, batch: Inputs, steps: int) -> Tensor:
        """What the model paints with the adapter."""
        return self._encode.decode(paint(self.objective, batch, self._sampling, steps))

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
        options: Options = config.phases[0].method
        network = trainable(base.model, self._width, config.common.seed, options.rngr, options.learned_weight)
        if config.models.start:
            adapter = load_adapter(file_of(config, config.models.start, ["model_patches"], "models.start"))
            start_from(network, adapter)
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


def check_options(config: Config) -> None:
    """Checks `[method]`.

    Raises:
        ConfigError: a value is unknown, or phases differ in what the adapter consists of.
    """
    for phase in config.phases:
        options: Options = phase.method
        for name, choices in {"where": WHERE, "average": AVERAGES, "dropped": DROPS, "reference": REFERENCES}.items():
            one_of(getattr(options, name), tuple(choices), f"[method] {name}")
        for name in ("rngr", "learned_weight"):
            if getattr(options, name) != getattr(config.phases[0].method, name):
                raise ConfigError(
                    f"[method] {name} is not the same in all phases, but an adapter has it or has it not."
                )


def start_from(network: P3SNetwork, adapter: TrainedAdapter) -> None:
    """Takes over the weights of a trained adapter; without the encoder, all but its.

    Raises:
        RuntimeError: they do not fit.
    """
    check(shapes(adapter.weights), shapes(network.state_dict()), f"The adapter of '{adapter.origin.class_word}'")
    own = {name: weight for name, weight in network.named_parameters() if not weight.requires_grad}
    network.load_state_dict({name: own.get(name, each).float() for name, each in adapter.weights.items()})


def shape_of(path: Path) -> Size:
    """(height, width) of a picture as it is seen."""
    with Image.open(path) as file:
        width, height = upright_size(file)
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
