"""What Refine-by-Align's training starts from: tokens that do in the U-Net what a caption does, and are looked up.

The base's cross-attentions know what to do with a caption. Here they, and the new network of the tokens, learn two
things without a gradient through the U-Net: first to answer every query from a picture as they did from its caption,
then also to look, from a place whose counterpart in the reference is known, at that counterpart. The second is no part
of the paper's training, where it has to come of itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from refattention_demo.world import captions, draw, record, truth
from refattention_demo.world.record import Record
from torch import Tensor, nn
from torch.nn import functional as F

from . import data_sets, state
from .config import ROOT, STATE
from .vision import SIDE

BATCH, RATE, WARM_UP = 8, 2e-3, 30
PARTS = (400, 0.0), (600, 0.2), (1000, 0.2)  # steps, and the weight of looking at the counterpart
SMALLEST = 8  # side of the grids that are told where to look
CURVE = STATE / "curves" / "refine_start.jsonl"
Seen = dict[str, tuple[Tensor, Tensor]]


def write(path: Path, settings: Path, changes: list[str]) -> None:
    """Writes the file, unless it is there; the training's own task makes the batches.

    Args:
        settings, changes: of the training.
    """
    if path.exists():
        return
    sys.path.insert(0, str(ROOT / "tools"))
    from pack import import_pack
    from training.config import build, read

    table = read(settings, [*changes, "method.alignment_share=1.0", "method.flip=false"])
    import_pack(cpu=True)
    from training import models
    from training.tasks import refine

    config = build(table, settings.parent, refine.Data, refine.Options, refine.DEFAULTS)
    models.extend(config)
    task, base = refine.Task(config), models.load_base(config)
    for number, (steps, looking) in enumerate(PARTS):
        _train(task, base, steps, looking, number)
    task.save(path, torch.float32)


def _train(task: Any, base: Any, steps: int, looking: float, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    lesson = Lesson(task, base)
    weights = [each for each in task.objective.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=WARM_UP / steps)
    rng, shown = np.random.default_rng(seed), np.zeros(2)
    for step in range(1, steps + 1):
        chosen = rng.choice(task.records, BATCH, replace=False).tolist()
        losses = lesson.losses(chosen, rng.integers(1 << 40, size=BATCH).tolist())
        optimiser.zero_grad()
        (losses[0] + looking * losses[1]).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        shown = 0.95 * shown + 0.05 * losses.detach().numpy() if step > 1 else losses.detach().numpy()
        if step % 20 == 0:
            state.log(CURVE, part=seed, step=step, not_answered=float(shown[0]), not_looked=float(shown[1]))


class Lesson:
    """What the cross-attentions are told: the answers that the base gives with the captions, and where to look.

    Args:
        task: whose objective learns.
        base: the models it starts from.
    """

    def __init__(self, task: Any, base: Any) -> None:
        from refattention.core.patches.training import differentiable, frozen_copy

        self._task, self._sampling = task, base.model.get_model_object("model_sampling")
        self._teacher = frozen_copy(base.model, torch.float32)
        self._seen, self._learner = _watched(self._teacher), dict(task.objective.unet.named_modules())
        self._texts, self._known, self._places = _told(base.clip, task.records)
        self._options = {"optimized_attention_override": differentiable}

    def losses(self, chosen: list[int], seeds: list[int]) -> Tensor:
        """(2,), `not_answered` and `not_looked` for some of the records, means over the layers."""
        from refattention.core.patches.training import Noised

        task = self._task
        keys = [(number, seed, seed) for number, seed in zip(chosen, seeds, strict=True)]
        batch = task.batch([task.sample(key, drops=False) for key in keys])
        noised = Noised(self._sampling, batch.latents, batch.noise, batch.timesteps, torch.float32)
        missed, astray = [], []
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                self._teacher(noised.entering, noised.timesteps, self._texts[chosen], None, None, dict(self._options))
            tokens = task.objective.network(batch.patches)
            for name, (n, wanted) in self._seen.items():
                layer = self._learner[name]
                found = layer(n, context=tokens, transformer_options=dict(self._options))
                missed.append(not_answered(found, wanted, self._known[chosen]))
                if n.shape[1] >= SMALLEST**2:
                    astray.append(not_looked(layer.to_q(n), layer.to_k(tokens), layer.heads, self._places[chosen]))
            return torch.stack([torch.stack(missed).mean(), torch.stack(astray).mean()])


def _watched(unet: nn.Module) -> Seen:
    """What goes into and comes out of the cross-attentions of a U-Net by their names, as it runs."""
    seen: Seen = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return keep

    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            module.register_forward_hook(watch(name))
    return seen


def _told(clip: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the records: the captions (N, 77, C), where their references show what these say (N, 1, H, W), 0 and 1; and
    `counterparts`, (N, 16, 16)."""
    texts, known, places = [], [], []
    for number in range(count):
        rng = data_sets.generator("refine", number)
        shown = data_sets.completed(rng)
        other = None if data_sets.is_by_itself(number) else record.another_view(shown, rng)
        said = captions.caption(shown, rng, captions.EVERYTHING)
        texts.append(clip.encode_from_tokens(clip.tokenize(said)).float().clone())
        known.append(truth.subject(shown)[None] if other else np.ones((1, draw.SIZE, draw.SIZE)))
        places.append(counterparts(shown, other))
    return torch.cat(texts), torch.from_numpy(np.stack(known)).float(), torch.from_numpy(np.stack(places))


def counterparts(shown: Record, other: Record | None) -> NDArray[np.int64]:
    """(16, 16): the number of the token of the other picture that shows each place of the first; -1 where not known.

    Args:
        other: None for the picture by itself.
    """
    if other is None:
        return np.arange(SIDE**2).reshape(SIDE, SIDE)
    cell = draw.SIZE // SIDE
    x, y = np.moveaxis(truth.flow(shown, other)[cell // 2 :: cell, cell // 2 :: cell], -1, 0) // cell
    return np.where(np.isnan(x), -1, np.nan_to_num(y) * SIDE + np.nan_to_num(x)).astype(np.int64)


def not_answered(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """The share of a layer's answers (B, N, C) that is not as wanted, where that can be known (B, 1, H, W)."""
    side = round(wanted.shape[1] ** 0.5)
    counts = F.adaptive_avg_pool2d(known, side).flatten(2).movedim(1, 2)
    wanted, found = wanted.float(), found.float()
    spread = wanted - wanted.mean((0, 1))
    return ((found - wanted).square() * counts).sum() / (spread.square() * counts).sum()


def not_looked(q: Tensor, k: Tensor, heads: int, places: Tensor) -> Tensor:
    """Minus the logarithm of the attention, a mean over heads, from each place to its counterpart; mean over the known.

    Args:
        q: (B, N, C) queries on a square grid; k: (B, M, C) keys.
        places: (B, 16, 16) as `counterparts` gives them.
    """
    side = round(q.shape[1] ** 0.5)
    step = places.shape[-1] // side
    wanted = places[:, step // 2 :: step, step // 2 :: step].flatten(1)
    q, k = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
    with torch.autocast(q.device.type, enabled=False):  # logarithms of small numbers
        seen = (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    found = seen.gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
    return -(found[wanted >= 0] + 1e-6).log().mean()
