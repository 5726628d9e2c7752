"""Training of the two modes: the objective against one written out, and what it teaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refattention.core.patches.unet import family, self_attention_layers
from refattention.core.refine_by_align.adapter import TrainedAdapter, for_model, new_network, trained_weights
from refattention.core.refine_by_align.back_ends import CrossAttention, Scene
from refattention.core.refine_by_align.kernel import group_of_mask, mean_map
from refattention.core.refine_by_align.match import bounding_box
from refattention.core.refine_by_align.observe import Look
from refattention.core.refine_by_align.training import (
    ALIGNMENT,
    REFINEMENT,
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
from refine_support import CELL, SIDE, VISION_WIDTH, Codec, PredictsPicture, base, example, origin, prompt
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")
STEPS = 40


def read(picture: Tensor) -> Tensor:
    """Stands in for a vision encoder: 12 x 12 patches, features of the colour of each."""
    cells = F.interpolate(picture.movedim(-1, 1), (SIDE, SIDE), mode="bilinear", antialias=True)[0].movedim(0, -1)
    generator = torch.Generator().manual_seed(5)
    directions, phases = (torch.rand(n, VISION_WIDTH, generator=generator) * 6 - 3 for n in (3, 1))
    return torch.sin((cells * 4 - 2) @ directions + phases)


class Training:
    """The objective with what makes its batches, and a plain loop around both."""

    def __init__(self, patcher: Any) -> None:
        self.network = new_network(patcher, VISION_WIDTH, seed=0)
        self.completion = Completion(patcher, self.network)
        self._preparing = Preparing(patcher, read, Codec().encode, prompt(1))

    def loss(self, examples: list[Example], draws: list[Draw]) -> Tensor:
        return self.completion(self._preparing.batch(examples, draws))["loss"]

    def train(self, examples: list[Example], steps: int, seed: int = 0, batch_size: int = 8) -> list[float]:
        learning = [weight for weight in self.completion.parameters() if weight.requires_grad]
        optimizer, generator = torch.optim.AdamW(learning, lr=1e-2), torch.Generator().manual_seed(seed)
        history = []
        for _ in range(steps):
            chosen = torch.randint(len(examples), (batch_size,), generator=generator).tolist()
            draws = [draw(Settings(), len(self.completion._sampling[0].sigmas), generator) for _ in chosen]
            loss = self.loss([examples[number] for number in chosen], draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history


def drawn(mode: str, **changed: Any) -> Draw:
    values = {"margin": 0.1, "brightness": 1.0, "contrast": 1.0, "timestep": 400, "seed": 7, "is_dropped": False}
    return Draw(mode, **{**values, **changed})


@pytest.mark.parametrize("is_dropped", [False, True])
@pytest.mark.parametrize("inpainting", [False, True])
def test_the_loss_is_the_masked_error_of_the_predicted_noise(inpainting: bool, is_dropped: bool) -> None:
    patcher, one, step = base(inpainting), example(1), drawn(ALIGNMENT, is_dropped=is_dropped)
    trainer = Training(patcher)
    network = trainer.network
    latent = Codec().encode(one.picture) * 0.18215
    mask = one.mask[::CELL, ::CELL][None, None]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(7))
    sigma = patcher.model.model_sampling.sigmas[400]
    entering = (latent + sigma * noise) / (sigma**2 + 1).sqrt()
    if inpainting:
        hidden = Codec().encode(torch.where(one.mask[None, ..., None] > 0, 0.5, one.picture)) * 0.18215
        entering = torch.cat([entering, mask, hidden], 1)
    tokens = network(read(one.reference).flatten(0, 1)[None]) * (not is_dropped)
    with torch.no_grad():
        predicted = patcher.model.diffusion_model(entering, torch.tensor([400.0]), tokens)
    want = sum((predicted - noise)[0, :, y, x].double().square().mean() for y, x in mask[0, 0].nonzero()) / mask.sum()
    assert trainer.loss([one], [step]).item() == pytest.approx(want.item(), rel=1e-4)


def test_a_batch_costs_the_mean_of_its_examples() -> None:
    trainer = Training(base())
    one, two = example(1), example(2)
    first, second = drawn(ALIGNMENT), drawn(REFINEMENT, timestep=100, is_dropped=True)
    both = (trainer.loss([one], [first]) + trainer.loss([two], [second])) / 2
    assert trainer.loss([one, two], [first, second]).item() == pytest.approx(both.item(), rel=1e-5)


def test_alignment_shows_the_object_and_refinement_the_part() -> None:
    one = example(3)
    assert torch.allclose(shown(one, drawn(ALIGNMENT)), one.reference, atol=1e-6)
    part = bounding_box(one.region.numpy() > 0).cut(one.reference)
    assert torch.allclose(shown(one, drawn(REFINEMENT, margin=0.0)), part, atol=1e-6)
    wider = shown(one, drawn(REFINEMENT, margin=0.25))
    assert part.shape[1] < wider.shape[1] < one.reference.shape[1]
    lighter = shown(one, drawn(ALIGNMENT, brightness=1.1))
    assert lighter.mean() > one.reference.mean()
    flatter = shown(one, drawn(ALIGNMENT, contrast=0.9))
    assert flatter.std() < one.reference.std() and flatter.mean() == pytest.approx(one.reference.mean().item())


def test_draws_follow_the_settings_and_the_seed() -> None:
    def many(settings: Settings, seed: int = 0) -> list[Draw]:
        generator = torch.Generator().manual_seed(seed)
        return [draw(settings, 1000, generator) for _ in range(2000)]

    draws = many(Settings(alignment_share=0.3, condition_drop=0.2, largest_margin=0.4))
    assert draws == many(Settings(alignment_share=0.3, condition_drop=0.2, largest_margin=0.4))
    assert draws != many(Settings(alignment_share=0.3, condition_drop=0.2, largest_margin=0.4), seed=1)
    assert sum(each.mode == ALIGNMENT for each in draws) / 2000 == pytest.approx(0.3, abs=0.04)
    assert sum(each.is_dropped for each in draws) / 2000 == pytest.approx(0.2, abs=0.04)
    assert 0.39 < max(each.margin for each in draws) <= 0.4
    assert min(each.timestep for each in draws) < 20 and 980 < max(each.timestep for each in draws) < 1000
    assert 0.9 <= min(each.brightness for each in draws) < max(each.contrast for each in draws) <= 1.1
    assert len({each.seed for each in draws}) == 2000


def test_an_empty_part_is_refused() -> None:
    one = example(1)
    trainer = Training(base())
    with pytest.raises(ValueError, match="mask or region of a picture to be trained with is empty"):
        trainer.loss([Example(one.picture, one.mask * 0, one.reference, one.region)], [drawn(ALIGNMENT)])


def test_a_seed_gives_the_same_weights_and_leaves_the_model_alone() -> None:
    patcher = base(inpainting=True)
    before = {name: weight.clone() for name, weight in patcher.model.state_dict().items()}
    weights, losses = [], []
    for seed in (1, 1, 2):
        trainer = Training(patcher)
        losses.append(trainer.train([example(n) for n in range(4)], 3, seed, 2))
        weights.append(trained_weights(trainer.network, trainer.completion.unet.state_dict(), patcher))
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert all(torch.equal(weight, before[name]) for name, weight in patcher.model.state_dict().items())
    unet = trainer.completion.unet.state_dict()
    changed = {name for name, weight in unet.items() if not torch.equal(weight, before[f"diffusion_model.{name}"])}
    assert changed == {name for name in unet if ".attn2." in name}


def test_gradients_reach_the_cross_attentions_and_the_network_alone() -> None:
    trainer = Training(base())
    trainer.loss([example(1), example(2)], [drawn(ALIGNMENT), drawn(REFINEMENT)]).backward()
    reached = {name for name, weight in trainer.completion.named_parameters() if weight.grad is not None}
    names = {name for name, _ in trainer.completion.named_parameters()}
    assert reached == {name for name in names if ".attn2." in name or name.startswith("network.")}
    assert all(trainer.completion.get_parameter(name).grad.any() for name in reached)


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_part_lies_in_the_object(seed: int) -> None:
    inside = torch.zeros(40, 56)
    inside[8:30, 10:22] = inside[20:30, 10:50] = 1
    part = drawn_part(inside, torch.Generator().manual_seed(seed))
    assert part.sum() >= 1 and not (part * (1 - inside)).any()
    assert part.sum() < inside.sum()
    assert torch.equal(part, drawn_part(inside, torch.Generator().manual_seed(seed)))


def test_a_part_is_carried_to_where_the_reference_shows_it() -> None:
    part = torch.zeros(10, 12)
    part[2:5, 3:7] = 1
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    twice = torch.stack([2 * x + 1, 2 * y + 3], dim=-1)  # twice as large, 1 to the right and 3 down
    region = carried(part, twice, (30, 30))
    want = torch.zeros(30, 30)
    want[7:12, 7:14] = 1
    assert torch.equal(region, want)
    hidden = twice.clone()
    hidden[:, 5:] = torch.nan
    want[:, 10:] = 0
    assert torch.equal(carried(part, hidden, (30, 30)), want)
    assert not carried(part, twice + 100, (30, 30)).any()


def plainer(patcher: Any) -> Any:
    """The base as a model that predicts the picture, with nothing in its way from a cross-attention to its output."""
    patcher.add_object_patch("model_sampling", PredictsPicture())
    for name, weight in patcher.model.diffusion_model.state_dict().items():
        if name.endswith(("out_layers.3.weight", "attn1.to_out.0.weight", "ff.net.2.weight")):
            patcher.add_patches({f"diffusion_model.{name}": ("set", (torch.zeros_like(weight),))})
    return patcher


def attention_at_the_place(patcher: Any, trainer: Training) -> float:
    """How many times even attention the true place gets from the masked queries; mean of unseen examples."""
    weights = trained_weights(trainer.network, trainer.completion.unet.state_dict(), patcher)
    model, tokens = for_model(TrainedAdapter(weights, origin(patcher)), patcher, family(patcher))
    look = Look(frozenset(self_attention_layers(model.model.diffusion_model)), (0,))

    def context(picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return tokens.model(read(picture).flatten(0, 1).unsqueeze(0)), (SIDE, SIDE)

    back_end = CrossAttention(model, context, Codec().encode, prompt(1), "Node")
    shares = []
    for one in map(example, range(1000, 1012)):
        latents = one.mask[::CELL, ::CELL][None, None]
        maps = back_end.maps(Scene(one.picture, one.mask, latents), [one.reference], None, look)
        seen = mean_map(list(maps.values()))[0].flatten()
        shares.append((seen * group_of_mask(one.region, (SIDE, SIDE))[0]).sum().item())
    return sum(shares) / len(shares)


def test_training_lowers_the_loss_and_finds_the_place() -> None:
    """A toy: what a few dozen steps teach a tiny model about bright blocks shows that objective and maps fit together.

    It says nothing of how well a real model finds the same part of another picture.
    """
    patcher = plainer(base())
    trainer = Training(patcher)
    before = attention_at_the_place(patcher, trainer)
    unseen = [example(number) for number in range(2000, 2008) for _ in (ALIGNMENT, REFINEMENT)]
    draws = [drawn(mode, timestep=3) for _ in range(8) for mode in (ALIGNMENT, REFINEMENT)]

    def loss() -> float:
        with torch.no_grad():
            return trainer.loss(unseen, draws).item()

    start = loss()
    trainer.train([example(number) for number in range(200)], STEPS)
    after = attention_at_the_place(patcher, trainer)
    print(f"loss {start:.3f} -> {loss():.3f}, attention at the place {before:.2f} -> {after:.2f} times even")
    assert loss() < 0.85 * start
    assert before < 1.2 and after > 2
