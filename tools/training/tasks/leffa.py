"""Leffa: persons, what they wear, and both U-Nets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from refattention.core.leffa import body_map, loader, masks
from refattention.core.leffa.inputs import GREY
from refattention.core.leffa.layout import GENERATIVE, REFERENCE, VAE
from refattention.core.leffa.training import (
    TIMESTEPS,
    Batch,
    Settings,
    TryOn,
    family_of,
    official,
    official_names,
    vae_to_diffusers,
)
from refattention.core.models import checkpoint
from refattention.core.models.base import unet_weights
from refattention.core.pictures.grid import binary_mask, to_cells
from torch import Tensor

from ..config import Config, ConfigError, Phase
from ..data import Looked, require_good
from ..models import Encoder, file_of, load_base, load_vae
from ..pictures import Size, labels, mask, picture
from ..plan import Key, Plan, generator_of
from . import leffa_data
from .common import chance, noise_of, one_of, paint, paths_of, too_small, whole
from .leffa_data import DRESS_CODE, POSE_TRANSFER, TRY_ON, Record, frame_of, records_of

DEFAULTS = {"learning_rate": 1e-5, "height": 512, "width": 384}
Data = leffa_data.Data
RULES = (masks.CLEAN, masks.VITON_HD, masks.DRESS_CODE)
PROBED = 64  # records whose maps are read before the first step: what is wrong with the kind of maps shows in each


@dataclass(frozen=True)
class Options:
    """`[method]`; all that is said of L_leffa is the paper's.

    Attributes:
        task: try_on, or pose_transfer, where all of the picture is painted.
        leffa: adds L_leffa, for the last phase.
        weight, temperature: its lambda and tau.
        max_timestep: it is for timesteps below this one, of 1000.
        min_ratio: and for layers whose grid is at least this part of the picture's height.
        condition_drop: fraction of the samples without a reference, which guidance compares with.
    """

    task: str = TRY_ON
    leffa: bool = False
    weight: float = 1e-3
    temperature: float = 2.0
    max_timestep: int = 500
    min_ratio: float = 1 / 32
    condition_drop: float = 0.1


@dataclass(frozen=True, eq=False)
class Sample:
    """A record's pictures, (H, W, 3) in [0, 1] and (H, W), and what is drawn for it."""

    record: int
    person: Tensor
    reference: Tensor
    densepose: Tensor
    mask: Tensor
    timestep: int
    seed: int
    is_dropped: bool


class Task:
    """Leffa as the loop sees it."""

    name = "leffa"

    def __init__(self, config: Config) -> None:
        options: Options = config.phases[0].method
        self._task = one_of(options.task, (TRY_ON, POSE_TRANSFER), "[method] task")
        self._rule = one_of(config.data.rule, RULES, "[data] rule")
        by_task = body_map.UVI if self._task == POSE_TRANSFER else body_map.PARULA
        usual = body_map.PARTS if config.data.layout == DRESS_CODE else by_task
        self._body = one_of(config.data.body or usual, tuple(body_map.NEEDED_BY), "[data] body")
        self._root = config.path(config.data.root)
        found = records_of(config, self._root, self._task)
        self._records, self.digest = require_good(
            found, self._files, self._complaints, config.output, config.common.allow_bad
        )
        self.records = len(self._records)
        train = config.phases[0].train
        self._size: Size = train.height, train.width
        for record in self._records[:PROBED]:
            files = self._files(record)
            self._body_map(files["densepose"])
            self._mask(record, files)
        self._load(config)
        self.begin(config.phases[0])

    def begin(self, phase: Phase) -> None:
        """Takes on the settings of a phase."""
        train, options = phase.train, phase.method
        if not 0 < options.max_timestep <= TIMESTEPS:
            raise ConfigError(f"[method] max_timestep is {options.max_timestep}. Set it to one of 1 to {TIMESTEPS}.")
        self._size = train.height, train.width
        self._drop = options.condition_drop
        self.objective.settings = Settings(
            options.leffa,
            options.weight,
            options.temperature,
            options.max_timestep,
            options.min_ratio,
            train.gradient_checkpointing,
        )

    def plan(self, step_size: int, seed: int) -> Plan:
        """Every record once an epoch."""
        return Plan([range(self.records)], [1], [], step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> Sample:
        """Reads a record, and draws its noise level and whether its reference is dropped."""
        number, seed, _ = key
        record, generator = self._records[number], generator_of(seed)
        files = self._files(record)
        return Sample(
            number,
            picture(files["person"], self._size),
            picture(files["reference"], self._size),
            self._body_map(files["densepose"]),
            self._mask(record, files),
            whole(TIMESTEPS, generator),
            whole(2**62, generator),
            chance(generator) < self._drop * drops,
        )

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Encodes the pictures."""
        device = next(self.objective.parameters()).device
        target, condition, reference = (torch.cat(each) for each in zip(*map(self._encoded, samples), strict=True))
        shown = torch.tensor([not sample.is_dropped for sample in samples])
        noise = [noise_of(latent, sample.seed) for latent, sample in zip(target, samples, strict=True)]
        person, worn = (
            torch.stack([getattr(sample, name).movedim(-1, 0) for sample in samples]) * 2 - 1
            for name in ("person", "reference")
        )
        return Batch(
            target.to(device),
            condition.to(device),
            (reference * shown[:, None, None, None]).to(device),
            shown,
            torch.tensor([sample.timestep for sample in samples]),
            torch.stack(noise).to(device),
            person.to(device),
            worn.to(device),
            torch.stack([sample.mask[None] for sample in samples]).to(device),
        )

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Writes all of Leffa in the official layout."""
        weights = {**self._kept, **official(self.objective, self._config)}
        # Copies: what both U-Nets have of the base is one tensor, and the format knows no such thing.
        stored = {
            name: each.to("cpu", dtype if each.is_floating_point() else None, copy=True).contiguous()
            for name, each in weights.items()
        }
        checkpoint.save(stored, path, {"about": "Leffa, trained", body_map.METADATA: self._body})

    def shown(self, batch: Batch) -> list[list[tuple[str, Tensor]]]:
        """Person, mask, body map and reference of each sample."""
        lines = []
        for row in range(len(batch.target)):
            person, worn, hole = (each[row].cpu() for each in (batch.person, batch.worn, batch.mask))
            masked = torch.where(hole > 0, torch.zeros_like(person), person)
            body = batch.condition[row, -3:].cpu().repeat_interleave(8, 1).repeat_interleave(8, 2)
            label = "reference" if batch.is_shown[row] else "reference, dropped"
            cells = (
                (f"person, t = {batch.timesteps[row]}", person),
                ("masked", masked),
                ("body map", body),
                (label, worn),
            )
            lines.append([(name, each.movedim(0, -1) / 2 + 0.5) for name, each in cells])
        return lines

    def painted(self, batch: Batch, steps: int) -> Tensor:
        """The persons in what they wear, painted from noise."""
        return self._encode.decode(paint(self.objective, batch, self._sampling, steps))

    def _load(self, config: Config) -> None:
        """Both U-Nets, from a Stable Diffusion or a Leffa file, the VAE, and what the file has besides."""
        if config.models.start:
            path = file_of(config, config.models.start, ["diffusion_models", "checkpoints"], "models.start")
            self._kept = checkpoint.load(path)
            parts = loader.from_state_dict(dict(self._kept), path.name)
            model, vae = parts.generative.model, load_vae(config, parts.vae)
            weights = {
                GENERATIVE: unet_weights(parts.generative),
                REFERENCE: unet_weights(parts.reference),
            }
        else:
            base = load_base(config)
            model, vae = base.model.model, base.vae
            weights = dict.fromkeys((GENERATIVE, REFERENCE), unet_weights(base.model))
            names = official_names(model.model_config.unet_config)
            self._kept = {
                prefix + theirs: weights[prefix][ours]
                for prefix in weights
                for theirs, ours in names.items()
                if ours in weights[prefix] and theirs != "conv_in.weight"
            }
            stored = vae_to_diffusers(vae.first_stage_model.state_dict())
            self._kept |= {VAE + name: weight.cpu() for name, weight in stored.items()}
        self._config, self._sampling = family_of(model.model_config.unet_config)
        self.objective = TryOn(self._sampling, self._config, weights)
        # What learns has its own weights by now; those that it started from would be gigabytes of nothing.
        learnt = official(self.objective, self._config).keys()
        self._kept = {name: weight for name, weight in self._kept.items() if name not in learnt}
        self._encode = Encoder(vae, model.latent_format)

    def _files(self, record: Record) -> dict[str, Path]:
        names = {name: getattr(record, name) for name in ("person", "reference", "densepose")}
        if self._task == TRY_ON:
            names["mask"] = record.mask
            if not record.mask:
                names |= {"parsing": record.parsing, "keypoints": record.keypoints}
        return paths_of(self._root, **names)

    def _complaints(self, record: Record, files: Mapping[str, Looked]) -> Iterable[str]:
        """Parts that belong together have to have the same shape."""
        width, height = files["person"].size
        yield from too_small(files)
        for role in ("densepose", "mask", "parsing"):
            if role not in files:
                continue
            # Some data sets have smaller maps; what matters is that they show the same part.
            other = files[role].size
            if abs(other[0] * height - other[1] * width) > max(width, height):
                yield f"{role} is {other[0]} x {other[1]} pixels, but person is {width} x {height}."
        if "mask" in files and files["mask"].brightest < 128:
            yield "mask is black, so nothing would be painted."
        if self._task == TRY_ON and not record.mask and not record.parsing:
            yield "there is neither a mask nor a parsing to make one of."
        if record.garment_type not in masks.GARMENTS:
            yield f"garment_type is '{record.garment_type}', but must be one of {', '.join(masks.GARMENTS)}."

    def _body_map(self, path: Path) -> Tensor:
        """Of the kind that the checkpoint will be given by the nodes."""
        with naming(path):
            return body_map.convert(picture(path)[None], self._body, None, self._size)[0]

    def _mask(self, record: Record, files: Mapping[str, Path]) -> Tensor:
        """What is painted, (H, W) of 0 and 1."""
        if self._task == POSE_TRANSFER:
            return torch.ones(self._size)
        if record.mask:
            return mask(files["mask"], self._size)
        frame = frame_of(files["keypoints"]) if "keypoints" in files else None
        with naming(files["parsing"]):
            found = labels(files["parsing"])[None]
            made = masks.from_maps(found, [frame], record.garment_type, self._rule, record.labels)
        return binary_mask(made, self._size)[0]

    def _encoded(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Latents as the node LeffaTryOn makes them, each with B = 1."""
        key = sample.record, self._size
        hole = sample.mask[None, ..., None]
        masked = torch.where(hole > 0, torch.tensor(GREY), sample.person[None])
        condition = [
            to_cells(hole),
            self._encode(masked, (*key, "masked")),
            to_cells(sample.densepose[None]) * 2 - 1,
        ]
        target = self._encode(sample.person[None], (*key, "person"))
        return target, torch.cat(condition, dim=1), self._encode(sample.reference[None], (*key, "reference"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
