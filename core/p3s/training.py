"""Training of P3S-Diffusion (arXiv 2412.19533): `L = L_LDM + gamma L_ac`, Eq. 14 and 15, for the adapter alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..patches.selection import Tokens
from ..patches.training import Prompt, in_rows, plain
from .objective import Inputs, Objective, Settings
from .settings import BOTH

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is learnt from. P pictures of one size.

    Attributes:
        latents: (P, c, h, w), as the U-Net takes them.
        vision: (P, L, width), the vision encoder's tokens.
        masks: P of (H, W), the subject in each; None is all of them.
        prompt, empty: the subject's text, and that of dropped conditions.
    """

    latents: Tensor
    vision: Tensor
    masks: Sequence[Tensor] | Tensor | None
    prompt: Prompt
    empty: Prompt


@dataclass(frozen=True, eq=False)
class Batch:
    """The draws of one step. B targets.

    Attributes:
        targets: (B,) which pictures are to be denoised.
        reference: the picture that the adapter reads, for all of them.
        timesteps: (B,).
        noise: (B, c, h, w).
        dropped: (B,) which are seen without their conditions.
    """

    targets: Tensor
    reference: int
    timesteps: Tensor
    noise: Tensor
    dropped: Tensor


class Trainer:
    """Trains an adapter's network; must be made and used outside of ComfyUI's inference mode.

    Args:
        model: the base model; it is not touched.
        network: a P3SNetwork in float32; its weights are changed in place.
        pictures: what to learn from; one for each size.
        settings: how.

    Attributes:
        pictures: how many there are; they are numbered from 0, those of the first size first.
        history: L_LDM and L_ac of each step that `train` has done.
        is_whole: whether weights and optimiser are those after the last of these steps.
    """

    def __init__(
        self, model: ModelPatcher, network: Any, pictures: Pictures | Sequence[Pictures], settings: Settings
    ) -> None:
        self.network, self.settings = network, settings
        of_sizes = [pictures] if isinstance(pictures, Pictures) else pictures
        self._of_sizes = [replace(each, latents=plain(each.latents), vision=plain(each.vision)) for each in of_sizes]
        self._places = [(size, at) for size, each in enumerate(of_sizes) for at in range(len(each.latents))]
        self.pictures = len(self._places)
        self._subjects = [
            Tokens(None if (own := of_sizes[size].masks) is None else own[at]) for size, at in self._places
        ]
        self._device = model.load_device
        self._timesteps = len(model.get_model_object("model_sampling").sigmas)
        self.objective = Objective(model, network, settings)
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(learning, lr=settings.learning_rate)
        self.history: list[tuple[float, float]] = []
        self.is_whole = True

    @property
    def steps(self) -> int:
        """How many a training takes."""
        counts = [len(each.latents) for each in self._of_sizes]
        return sum(steps_of(count, self.settings) for count in counts)

    def epoch(self, generator: torch.Generator) -> list[Tensor]:
        """The targets of the steps of an epoch: every picture once, in an order that is drawn, one size in a step."""
        members: list[list[int]] = [[] for _ in self._of_sizes]
        order = torch.randperm(self.pictures, generator=generator).tolist()
        for number in order:
            members[self._places[number][0]].append(number)
        size = self.settings.batch_size
        steps = [each[start : start + size] for each in members for start in range(0, len(each), size)]
        return [torch.tensor(numbers) for numbers in sorted(steps, key=lambda numbers: order.index(numbers[0]))]

    def draw(self, targets: Tensor, generator: torch.Generator) -> Batch:
        """Draws what else a step needs for its targets (B,), which are of one size."""
        count, latents = len(targets), self._pictures_of(targets).latents
        return Batch(
            targets,
            int(torch.randint(self.pictures, (), generator=generator)),
            torch.randint(self._timesteps, (count,), generator=generator),
            torch.randn(count, *latents.shape[1:], generator=generator),
            torch.rand(count, generator=generator) < self.settings.condition_drop,
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the optimiser."""
        losses = self.losses(batch)
        self._optimizer.zero_grad()
        losses["loss"].backward()
        self.is_whole = False
        self._optimizer.step()
        return losses

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, as the objective gives them."""
        pictures = self._pictures_of(batch.targets)
        size, at = self._places[batch.reference]
        references, one = self._of_sizes[size], slice(at, at + 1)
        prompts = [pictures.empty if drop else pictures.prompt for drop in batch.dropped.tolist()]
        texts = in_rows(prompts, self._device)
        losses: dict[str, Tensor] = self.objective(
            Inputs(
                pictures.latents[[self._places[number][1] for number in batch.targets.tolist()]].to(self._device),
                references.latents[one].to(self._device),
                references.vision[one].to(self._device),
                self._subjects[batch.reference],
                texts.context,
                texts.y,
                batch.timesteps,
                batch.noise.to(self._device),
                batch.dropped if self.settings.dropped == BOTH else None,
            )
        )
        return losses

    def state(self) -> dict[str, Any]:
        """All that a training goes on from; its tensors are the trainer's own."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes on a state, of a trainer that was made the same way."""
        self.network.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [(denoising, consistency) for denoising, consistency in state["history"]]

    def _pictures_of(self, targets: Tensor) -> Pictures:
        return self._of_sizes[self._places[int(targets[0])][0]]


@dataclass(frozen=True)
class Watch:
    """What is done while a training runs.

    Attributes:
        preview: makes a picture for ComfyUI's progress bar, in ComfyUI's form; None shows none.
        every: steps from one preview to the next.
    """

    preview: Callable[[], Any] | None = None
    every: int = 0

    def picture(self, step: int) -> Any:
        """The preview after a step, if one is due."""
        return None if self.preview is None or not self.every or step % self.every else self.preview()


def steps_of(pictures: int, settings: Settings) -> int:
    """How many steps a training takes."""
    return settings.epochs * -(-pictures // settings.batch_size)


def train(trainer: Trainer, watch: Watch) -> list[tuple[float, float]]:
    """Trains for all epochs, each of which shows every picture once, in an order of its own.

    A trainer that has done steps already goes on behind them. What was drawn for those is drawn again, so that the
    rest is the same as without an interruption.

    Returns:
        L_LDM and L_ac of each step.

    Raises:
        RuntimeError: a loss became infinite or not a number.
    """
    settings, history = trainer.settings, trainer.history
    generator = torch.Generator().manual_seed(settings.seed)
    total, before, step = trainer.steps, len(history), 0
    logging.getLogger(__name__).info("Training an adapter: %d steps.", total)
    progress = comfy.utils.ProgressBar(total)
    for _ in range(settings.epochs):
        for targets in trainer.epoch(generator):
            batch, step = trainer.draw(targets, generator), step + 1
            if step <= before:
                continue
            comfy.model_management.throw_exception_if_processing_interrupted()
            history.append(_checked(trainer.step(batch), step))
            trainer.is_whole = True
            progress.update_absolute(step, total, watch.picture(step))
    return history


def _checked(losses: dict[str, Tensor], step: int) -> tuple[float, float]:
    values = losses["denoising"].item(), losses["consistency"].item()
    if not all(map(math.isfinite, values)):
        raise RuntimeError(f"Training diverged in step {step}: the loss is {values[0]}. Lower learning_rate.")
    return values
