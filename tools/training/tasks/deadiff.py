"""DEADiff: pairs of pictures that share their style or their subject, and both branches that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from refattention.core.deadiff.extract import write_file
from refattention.core.deadiff.loaded import CONTENT, STYLE, load
from refattention.core.deadiff.network import Readers, Sizes
from refattention.core.deadiff.preprocess import FITS, SQUASH, encoder_input
from refattention.core.deadiff.training import (
    BRANCHES,
    RECONSTRUCTION,
    TEXT_TOKENS,
    Batch,
    Settings,
    Stylising,
    attention_prefixes,
    new_attentions,
    new_readers,
    readers_from,
    trained_weights,
)
from refattention.core.deadiff.vision import VisionTower, tower_from_clip_vision
from refattention.core.models import checkpoint
from refattention.core.patches.training import encode
from torch import Tensor

from ..config import Config, ConfigError, Phase
from ..data import Looked, require_good
from ..models import Encoder, Memory, conditioning, file_of, load_base, load_vision
from ..pictures import Crop, Size, picture
from ..plan import Key, Plan, generator_of
from .common import ListData, chance, noise_of, one_of, paint, paths_of, read_jsonl, too_small, whole

DEFAULTS = {"learning_rate": 1e-4, "warmup": 10000, "height": 512, "width": 512}
Data = ListData
VISION = ".visual_encoder."
FOLDERS = ("model_patches", "checkpoints")  # DEADiff Loader's


@dataclass(frozen=True)
class Options:
    """`[method]`; what the authors' configuration says is the default.

    Attributes:
        mix: samples of same style, same subject and reconstruction that come one after the other.
        drops: parts of each of them whose tokens are zeros.
        fit: how a reference that is not square meets the encoder: squash, pad or crop.
        queries, layers: of Q-Formers that start from nothing.
        qformer: a file that both Q-Formers start from instead: BLIP-Diffusion's, as the authors took it.
    """

    mix: tuple[int, ...] = (1, 1, 1)
    drops: tuple[float, ...] = (0.15, 0.15, 0.0)
    fit: str = SQUASH
    queries: int = 16
    layers: int = 12
    qformer: str = ""


@dataclass(frozen=True)
class Record:
    """A pair; the fields of the list's lines. Files are named from the root.

    Attributes:
        kind: style, subject or reconstruction: what the two pictures share.
        target: what is painted.
        reference: what the tokens are read from; the target itself, for reconstruction.
        prompt: text of the target; without one it is made of
        subject, style: words for what is shown, and how.
    """

    kind: str
    target: str
    reference: str = ""
    prompt: str = ""
    subject: str = ""
    style: str = ""

    @property
    def text(self) -> str:
        """What the U-Net is told. What the tokens are to bring is left out."""
        if self.kind == RECONSTRUCTION:
            return ""
        return self.prompt or (
            self.subject if self.kind == STYLE else ", ".join(filter(None, (self.subject, self.style)))
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """A record's pictures, (H, W, 3) in [0, 1], and what is drawn for it."""

    record: int
    target: Tensor
    reference: Tensor
    timestep: int
    seed: int
    is_dropped: bool


class Task:
    """DEADiff as the loop sees it."""

    name = "deadiff"

    def __init__(self, config: Config) -> None:
        options: Options = config.phases[0].method
        if len(options.mix) != len(BRANCHES) or len(options.drops) != len(BRANCHES):
            raise ConfigError(f"[method] mix and drops need a number for each of {', '.join(BRANCHES)}.")
        self._fit = one_of(options.fit, tuple(FITS), "[method] fit")
        self._root = config.path(config.data.root)
        found = read_jsonl(config, f"{config.data.root}/{config.data.file}", Record)
        for each in found:
            one_of(each.kind, tuple(BRANCHES), "kind of a record")
        self._records, self.digest = require_good(
            found, self._files, self._complaints, config.output, config.common.allow_bad
        )
        self.records = len(self._records)
        self._groups = [[n for n, each in enumerate(self._records) if each.kind == kind] for kind in BRANCHES]
        self._load(config, options)
        self.begin(config.phases[0])

    def begin(self, phase: Phase) -> None:
        """Takes on the settings of a phase."""
        train, options = phase.train, phase.method
        self._size: Size = train.height, train.width
        self._mix, self._drops = options.mix, dict(zip(BRANCHES, options.drops, strict=True))
        if min(self._mix) < 0 or not any(self._mix):
            raise ConfigError(f"[method] mix is {list(self._mix)}. Give numbers of at least 0, and one above.")
        for kind, group, share in zip(BRANCHES, self._groups, self._mix, strict=True):
            if share and not group:
                raise ConfigError(f"[method] mix asks for pairs of the kind '{kind}', but the data has none.")
        self.objective.settings = Settings(options.drops, train.gradient_checkpointing)

    def plan(self, step_size: int, seed: int) -> Plan:
        """Pairs of the three sets by turns."""
        return Plan(self._groups, self._mix, [], step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> Sample:
        """Reads a pair, and draws its noise level and whether its tokens are dropped."""
        number, seed, _ = key
        record, generator = self._records[number], generator_of(seed)
        files = self._files(record)
        target = picture(files["target"])
        return Sample(
            number,
            Crop((target.shape[0], target.shape[1]), self._size).picture(target),
            picture(files.get("reference", files["target"])),
            whole(self._timesteps, generator),
            whole(2**62, generator),
            chance(generator) < self._drops[record.kind] * drops,
        )

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Encodes pictures and texts."""
        device = next(self.objective.parameters()).device
        self._pictures = [each.reference for each in samples]  # for the sheet of this batch
        records = [self._records[sample.record] for sample in samples]
        latents = [self._encode(each.target[None], (each.record, self._size)) for each in samples]
        noise = [noise_of(latent, each.seed) for latent, each in zip(latents, samples, strict=True)]
        read_by = [frozenset() if each.is_dropped else BRANCHES[self._records[each.record].kind] for each in samples]
        reads = {branch: torch.tensor([branch in each for each in read_by]) for branch in (STYLE, CONTENT)}
        return Batch(
            torch.cat(latents).to(device),
            torch.cat([self._context(record.text, latents[0]) for record in records]).to(device),
            torch.cat([self._seen(each) for each in samples]).to(device),
            reads,
            torch.tensor([each.timestep for each in samples]),
            torch.cat(noise).to(device),
        )

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Writes what comes on top of a stock SD1.5, as DEADiff Extract does."""
        weights = {**self._kept, **trained_weights(self.objective, self._prefixes)}
        # Vectors and the few rows of embeddings keep their precision.
        stored = {name: each.to("cpu", dtype if each.ndim > 1 else None, copy=True) for name, each in weights.items()}
        write_file({name: each.contiguous() for name, each in stored.items()}, str(path))

    def shown(self, batch: Batch) -> list[list[tuple[str, Tensor]]]:
        """Reference and target of each pair, with what reads the reference."""
        targets = self._encode.decode(batch.target)
        return [[self._reference_cell(batch, row), ("target", each)] for row, each in enumerate(targets)]

    def painted(self, batch: Batch, steps: int) -> Tensor:
        """What the model paints with the target's text and the reference's tokens."""
        return self._encode.decode(paint(self.objective, batch, self._sampling, steps))

    def _reference_cell(self, batch: Batch, row: int) -> tuple[str, Tensor]:
        names = " and ".join(name for name, reads in batch.reads.items() if reads[row]) or "dropped"
        return f"reference: {names}", self._pictures[row]

    def _load(self, config: Config, options: Options) -> None:
        base = load_base(config)
        self._clip, self._model = base.clip, base.model
        self._encode = Encoder(base.vae, base.model.model.latent_format)
        self._sampling = base.model.get_model_object("model_sampling")
        self._timesteps = len(self._sampling.sigmas)
        self._prefixes = attention_prefixes(base.model)
        self._kept: dict[str, Tensor] = {}
        self._texts, self._features = Memory(), Memory()
        clip_vision = load_vision(config) if config.models.clip_vision else None
        width = base.model.model.model_config.unet_config["context_dim"]
        if config.models.start and options.qformer:
            raise ConfigError("[method] qformer and models.start both say what the Q-Formers start from. Name one.")
        if config.models.start:
            weights = checkpoint.load(file_of(config, config.models.start, FOLDERS, "models.start"))
            loaded = load(weights, clip_vision)
            self._tower: VisionTower = loaded.towers[STYLE]
            readers, attentions = loaded.readers.model, loaded.projections.patcher.model
            if clip_vision is None:
                self._kept = {name: each for name, each in weights.items() if VISION in name}
        else:
            if clip_vision is None:
                raise ConfigError("models.clip_vision is empty. Name CLIP ViT-L/14, or a DEADiff file as models.start.")
            self._tower = tower_from_clip_vision(clip_vision)
            readers, attentions = self._new_readers(config, options, width), new_attentions(base.model, width)
        frozen = torch.float32 if config.phases[0].train.precision == "no" else torch.bfloat16
        self.objective = Stylising(base.model, readers, attentions, frozen)

    def _new_readers(self, config: Config, options: Options, width: int) -> Readers:
        """Both Q-Formers for tokens of a width, from a file or from nothing."""
        if not options.qformer:
            inner = 4 * width
            sizes = Sizes(self._tower.width, width, options.queries, options.layers, max(width // 64, 1), inner, inner)
            return new_readers(sizes, config.common.seed)
        path = file_of(config, options.qformer, FOLDERS, "[method] qformer")
        readers = readers_from(checkpoint.load(path), config.common.seed)
        vision, tokens = len(readers.style.vision_norm.weight), readers.style.query_tokens.shape[-1]
        if (vision, tokens) != (self._tower.width, width):
            raise ConfigError(
                f"[method] qformer reads features of width {vision} and makes tokens of {tokens}, but the vision "
                f"encoder's features have {self._tower.width} and the U-Net's text has {width}."
            )
        return readers

    def _files(self, record: Record) -> dict[str, Path]:
        return paths_of(self._root, target=record.target, reference=record.reference)

    def _complaints(self, record: Record, files: Mapping[str, Looked]) -> Iterable[str]:
        """Each kind has what it needs."""
        if record.kind != RECONSTRUCTION and not record.reference:
            yield f"the kind '{record.kind}' needs a reference beside its target."
        if record.kind != RECONSTRUCTION and not record.text:
            yield f"the kind '{record.kind}' needs a prompt, or a word for its subject."
        if record.kind == RECONSTRUCTION and record.reference not in ("", record.target):
            yield "in a reconstruction the reference is the target; leave it out."
        yield from too_small(files)

    def _context(self, text: str, latent: Tensor) -> Tensor:
        """(1, 77, width)."""

        def make() -> Tensor:
            return encode(self._model, conditioning(self._clip, text), latent).context[:, :TEXT_TOKENS]

        return self._texts.get(text, make)

    def _seen(self, sample: Sample) -> Tensor:
        """(1, P, V), the visual encoder's features of a reference."""

        def make() -> Tensor:
            comfy.model_management.load_model_gpu(self._tower.patcher)
            pixels = encoder_input(sample.reference[None], self._tower.image_size, self._fit)
            with torch.no_grad():
                return self._tower.features(pixels.to(self._tower.patcher.load_device))

        return self._features.get(sample.record, make)
