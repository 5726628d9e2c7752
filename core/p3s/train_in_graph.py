"""A training as a node runs it: pictures in, adapter and losses out; what was learnt is kept if it ends early."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import torch
from torch import Tensor

from ..models.base import fingerprint
from ..patches.reference_pass import Reference
from ..patches.training import encode
from ..patches.unet import family
from ..pictures.curve import curves
from ..pictures.grid import to_pillow
from .adapter import Origin, TrainedAdapter, for_model, trainable, trained_weights
from .objective import Settings
from .resume import Resumable
from .settings import LEARNED, Adapter, P3SSettings, Schedule
from .training import Pictures, Trainer, Watch, train
from .wrappers import apply_p3s

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREVIEW_SIDE, PREVIEW_STEPS, PREVIEW_CFG = 512, 12, 7.5
LOSSES = "L_LDM, denoising", "L_ac, attention consistency"


@dataclass(frozen=True, eq=False)
class Examples:
    """P pictures of a subject, of one size, as the networks take them.

    Attributes:
        samples: (P, c, h, w), latents as the VAE gives them.
        vision: (P, L, width), the vision encoder's tokens.
        masks: P of (H, W), the subject in each; None is all of them.
        positive, negative: the subject's prompt and the empty one, in ComfyUI's form.
    """

    samples: Tensor
    vision: Tensor
    masks: Sequence[Tensor] | None
    positive: list[Any]
    negative: list[Any]


# ComfyUI runs nodes in a mode whose tensors take no part in gradients.
@torch.enable_grad()
@torch.inference_mode(False)
def train_in_graph(
    model: ModelPatcher,
    decode: Callable[[Tensor], Tensor],
    examples: Sequence[Examples],
    words: tuple[str, str, str],
    settings: Settings,
    preview_every: int,
    keep: Callable[[TrainedAdapter], str],
    states: str | None = None,
) -> tuple[TrainedAdapter, Tensor]:
    """Trains an adapter.

    Args:
        model: the base model; it is not touched.
        decode: the VAE's way back to pictures, for previews.
        examples: what to learn from; one for each size.
        words: identifier, class word and prompt of the subject.
        preview_every: steps from one preview to the next, 0 for none.
        keep: saves an adapter whose training ends early, and returns a sentence that says where.
        states: folder in which the training leaves its state when it ends, early or not, and from which the same one
            goes on; None leaves nothing.

    Returns:
        The adapter, and both losses over the steps as a picture (1, H, W, 3).

    Raises:
        Whatever ends the training early, be it Cancel or a lack of memory, after what was learnt has been kept.
        RuntimeError: there is a state of the training, but it cannot be read.
    """
    width = examples[0].vision.shape[-1]
    origin = Origin(family(model), fingerprint(model), width, *words, dataclasses.asdict(settings))
    network = trainable(model, width, settings.seed, settings.rngr, settings.learned_weight)

    def adapter() -> TrainedAdapter:
        return TrainedAdapter(trained_weights(network, model), origin)

    @torch.inference_mode()
    def preview() -> Any:
        latent = _preview(model, adapter(), examples[0], settings)
        return "JPEG", to_pillow(decode(latent)[0]), PREVIEW_SIDE

    pictures = [_pictures(model, each) for each in examples]
    trainer = Trainer(model, network, pictures, settings)
    resumable = None if states is None else Resumable(states, trainer, pictures)
    if resumable is not None:
        resumable.load()
    before = len(trainer.history)
    try:
        history = train(trainer, Watch(preview, preview_every))
    except BaseException as error:
        _keep(adapter(), len(trainer.history) - before, keep, error, resumable)
        raise
    if resumable is not None and (said := resumable.save()):
        logging.getLogger(__name__).info("%s", said)
    return adapter(), curves({name: [step[at] for step in history] for at, name in enumerate(LOSSES)})


def _pictures(model: ModelPatcher, examples: Examples) -> Pictures:
    samples = model.model.process_latent_in(examples.samples)
    texts = (encode(model, text, samples[:1]) for text in (examples.positive, examples.negative))
    return Pictures(samples, examples.vision, examples.masks, *texts)


def _keep(
    adapter: TrainedAdapter,
    steps: int,
    keep: Callable[[TrainedAdapter], str],
    error: BaseException,
    resumable: Resumable | None,
) -> None:
    """Keeps what a training that ends early has learnt, and says where in the log and in the error's own message."""
    if not steps or not all(weight.isfinite().all() for weight in adapter.weights.values()):
        return
    said = " ".join(filter(None, [keep(adapter), resumable.save() if resumable is not None else ""]))
    logging.getLogger(__name__).warning("Training ended after %d steps. %s", steps, said)
    if error.args:
        error.args = (f"{error} {said}",)


def _preview(model: ModelPatcher, adapter: TrainedAdapter, examples: Examples, settings: Settings) -> Tensor:
    """(1, c, h, w): the subject's prompt, sampled in few steps with the adapter as it is."""
    part = Adapter(for_model(adapter, model, adapter.origin.family), examples.vision[:1])
    mask = None if examples.masks is None else examples.masks[0].unsqueeze(0)
    reference = Reference(examples.samples[:1], None, settings.seed)
    schedule = Schedule(LEARNED) if settings.learned_weight else Schedule()
    strength, negative = settings.value_strength, adapter.negative
    subject = P3SSettings(reference, part, mask, value_strength=strength, schedule=schedule, negative=negative)
    patched = apply_p3s(model, subject)
    noise = torch.randn(examples.samples[:1].shape, generator=torch.Generator().manual_seed(settings.seed))
    sampler, prompts = (PREVIEW_STEPS, PREVIEW_CFG, "ddim", "ddim_uniform"), (examples.positive, examples.negative)
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(patched, noise, *sampler, *prompts, empty, seed=settings.seed, disable_pbar=True)
