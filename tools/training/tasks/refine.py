"""Refine-by-Align: objects in two pictures, a part of which is completed from a reference, in both modes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from refattention.core.kernels.grid import STRETCH
from refattention.core.models.base import fingerprint
from refattention.core.models.vision import PatchEncoder
from refattention.core.patches.unet import family, require_image_unet
from refattention.core.refine_by_align.adapter import Origin, TrainedAdapter, new_network, trained_weights
from refattention.core.refine_by_align.files import load_adapter, save_adapter
from refattention.core.refine_by_align.match import bounding_box, grown
from refattention.core.refine_by_align.reader import LAYER, patches_of
from refattention.core.refine_by_align.training import (
    REFINEMENT,
    Batch,
    Completion,
    Draw,
    Example,
    Preparing,
    Settings,
    carried,
    draw,
    drawn_part,
    shown,
)
from torch import Tensor

from ..config import Config, ConfigError, Phase
from ..data import Looked, require_good
from ..loop import settings_of
from ..models import Memory, conditioning, file_of, load_base, load_vision
from ..pictures import Crop, Size, mask, picture
from ..plan import Key, Plan, generator_of
from .common import ListData, chance, paint, paths_of, read_jsonl, too_small

DEFAULTS = {"learning_rate": 1e-5, "height": 512, "width": 512}
Data = ListData
MARGIN = 0.1  # around the whole object, as a share of its longer side


@dataclass(frozen=True)
class Options(Settings):
    """`[method]`.

    Attributes:
        flip: mirrors half of the references that are cut from the picture itself.
    """

    flip: bool = True


@dataclass(frozen=True)
class Record:
    """An object; the fields of the list's lines. Files are named from the root.

    Attributes:
        image: the picture to be completed.
        mask: the object in it, white.
        reference: the object in another picture. Without one, the picture itself is the reference.
        reference_mask: the object in the reference, white; without one all of the reference is shown.
        correspondence: .npy (H, W, 2), x and y in the reference of each pixel of the image, NaN where it is hidden.
            Without it, refinement cuts its reference from the picture itself.
    """

    image: str
    mask: str
    reference: str = ""
    reference_mask: str = ""
    correspondence: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is to be completed, and what is drawn for it."""

    example: Example
    drawn: Draw


class Task:
    """Refine-by-Align as the loop sees it."""

    name = "refine"

    def __init__(self, config: Config) -> None:
        self._root = config.path(config.data.root)
        found = read_jsonl(config, f"{config.data.root}/{config.data.file}", Record)
        self._records, self.digest = require_good(
            found, self._files, self._complaints, config.output, config.common.allow_bad
        )
        self.records = len(self._records)
        self._load(config)
        self.begin(config.phases[0])

    def begin(self, phase: Phase) -> None:
        """Takes on the settings of a phase."""
        train, self._options = phase.train, phase.method
        self._size: Size = train.height, train.width
        self.objective.gradient_checkpointing = train.gradient_checkpointing
        self._said = settings_of(phase)

    def plan(self, step_size: int, seed: int) -> Plan:
        """Every record once an epoch."""
        return Plan([range(self.records)], [1], [], step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> Sample:
        """Reads an object, and draws the part that is missing, the mode, and the noise level."""
        number, seed, _ = key
        record, generator = self._records[number], generator_of(seed)
        settings = self._options if drops else replace(self._options, condition_drop=0.0)
        drawn = draw(settings, self._timesteps, generator)
        return Sample(self._example(record, drawn.mode == REFINEMENT, generator), drawn)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Encodes pictures and references."""
        self._samples = samples  # for the sheet of this batch
        return self._preparing.batch([each.example for each in samples], [each.drawn for each in samples])

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Writes an adapter for Refine Align Load."""
        weights = trained_weights(self.objective.network, self.objective.unet.state_dict(), self._model)
        origin = Origin(family(self._model), self._fingerprint, self._width, self._image_size, self._said)
        save_adapter(TrainedAdapter({name: each.to(dtype) for name, each in weights.items()}, origin), path)

    def shown(self, batch: Batch) -> list[list[tuple[str, Tensor]]]:
        """Picture, what is missing, and the reference as it is shown, with the part outlined in the whole."""
        lines = []
        for sample in self._samples:
            example, drawn = sample.example, sample.drawn
            missing = torch.where(example.mask[..., None] > 0, torch.tensor(0.5), example.picture[0])
            whole = torch.where(example.region[..., None] > 0, example.reference[0], example.reference[0] * 0.4)
            lines.append(
                [
                    (f"picture, t = {drawn.timestep}", example.picture[0]),
                    ("missing", missing),
                    ("the same part", whole),
                    (f"{drawn.mode}{', dropped' * drawn.is_dropped}", shown(example, drawn)[0]),
                ]
            )
        return lines

    def painted(self, batch: Batch, steps: int) -> Tensor:
        """The pictures completed; what is not missing is kept at the end."""
        latents = paint(self.objective, batch, self._sampling, steps)
        kept = torch.where(batch.masks > 0, latents, batch.latents)
        with torch.inference_mode():
            unscaled = self._model.model.process_latent_out(kept.cpu())
            return self._vae.decode(unscaled).float().cpu().clone()

    def _load(self, config: Config) -> None:
        base = load_base(config)
        require_image_unet(base.model, "Training")
        self._model, self._vae = base.model, base.vae
        self._fingerprint = fingerprint(base.model)
        self._sampling = base.model.get_model_object("model_sampling")
        self._timesteps = len(self._sampling.sigmas)
        vision = PatchEncoder(load_vision(config), LAYER, STRETCH)
        self._image_size = vision.side * vision.patch
        self._width = patches_of(vision, torch.zeros(1, self._image_size, self._image_size, 3)).shape[-1]
        network = new_network(base.model, self._width, config.common.seed)
        self.objective = Completion(base.model, network)
        if config.models.start:
            self._start(load_adapter(file_of(config, config.models.start, ["model_patches"], "models.start")))

        # A record's picture is the same in every epoch; what an inpainting model is shown of it is not.
        memory = Memory(0) if base.model.model.concat_keys else Memory()

        def encode(image: Tensor) -> Tensor:
            def make() -> Tensor:
                with torch.inference_mode():
                    return self._vae.encode(image)

            return memory.get(hashlib.sha256(image.numpy().tobytes()).digest(), make)

        def read(image: Tensor) -> Tensor:
            with torch.inference_mode():
                return patches_of(vision, image)

        self._preparing = Preparing(base.model, read, encode, conditioning(base.clip, ""))

    def _start(self, adapter: TrainedAdapter) -> None:
        places: dict[str, Any] = {
            **{f"tokens.{name}": each for name, each in self.objective.network.state_dict().items()},
            **{f"unet.{name}": each for name, each in self.objective.unet.state_dict().items()},
        }
        with torch.no_grad():
            for name, weight in adapter.weights.items():
                if name not in places or places[name].shape != weight.shape:
                    raise ConfigError(f"models.start does not fit the base model: {name} is not the same there.")
                places[name].copy_(weight)

    def _files(self, record: Record) -> dict[str, Path]:
        return paths_of(self._root, **vars(record))

    def _complaints(self, record: Record, files: Mapping[str, Looked]) -> Iterable[str]:
        """Masks fit their pictures and show something."""
        for role, of in (("mask", "image"), ("reference_mask", "reference"), ("correspondence", "image")):
            if role not in files:
                continue
            if of not in files:
                yield f"there is a {role}, but no {of}."
            elif files[role].size != files[of].size:
                (w, h), (width, height) = files[role].size, files[of].size
                yield f"{role} is {w} x {h}, but {of} is {width} x {height}."
            elif role != "correspondence" and files[role].brightest < 128:
                yield f"{role} is black, so it shows no object."
        if record.correspondence and not record.reference:
            yield "there is a correspondence, but no reference."
        yield from too_small(files)

    def _example(self, record: Record, refines: bool, generator: torch.Generator) -> Example:
        files = self._files(record)
        image, inside = picture(files["image"]), mask(files["mask"])
        box = bounding_box(inside.numpy() > 0)
        crop = Crop((image.shape[0], image.shape[1]), self._size, (box.y + box.height / 2, box.x + box.width / 2))
        image, inside = crop.picture(image), crop.mask(inside)
        if not inside.any():
            raise ValueError(f"{files['mask']} shows an object too small for {self._size[1]} x {self._size[0]} pixels.")
        part = drawn_part(inside, generator)
        mirrored = self._options.flip and chance(generator) < 0.5
        if record.reference:
            other = self._other(files, crop, part, refines)
            if other is not None:
                return Example(image[None], part, *other)
        window = grown(bounding_box(inside.numpy() > 0), MARGIN, (image.shape[0], image.shape[1]))
        reference, region = window.cut(image[None]), window.cut(part[None, ..., None])[0, ..., 0]
        if mirrored:
            reference, region = reference.flip(2), region.flip(1)
        return Example(image[None], part, reference, region)

    def _other(
        self, files: Mapping[str, Path], crop: Crop, part: Tensor, refines: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The object in the other picture, and the part there; None if it is not known, but needed."""
        reference = picture(files["reference"])
        size = reference.shape[0], reference.shape[1]
        region = torch.zeros(size)
        if "correspondence" in files:
            places = torch.from_numpy(numpy.load(files["correspondence"], allow_pickle=False)).float()
            region = carried(part, crop.map(places), size, math.ceil(1 / crop.scale) + 1)
        if not region.any():
            if refines:
                return None
            region = torch.ones(size)
        if "reference_mask" in files:
            window = grown(bounding_box(mask(files["reference_mask"]).numpy() > 0), MARGIN, size)
            inside = window.cut(region[None, ..., None])[0, ..., 0]
            if inside.any():
                return window.cut(reference[None]), inside
        return reference[None], region
