"""P3S's training: what it computes, and that it learns the selected one of two subjects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from p3s_support import VISION_WIDTH, fill_zeros
from refattention.core.p3s.adapter import Origin, TrainedAdapter, for_model, trainable, trained_weights
from refattention.core.p3s.settings import Adapter, P3SSettings
from refattention.core.p3s.training import Batch, Pictures, Settings, Trainer, Watch, steps_of, train
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.training import encode
from refattention_demo.loading import load
from sampling import latent, model, prompt, sample
from torch import Tensor

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")
SIZE = (4, 8, 8)
SMALL = Settings(epochs=2, learning_rate=3e-4)


def trainer(family: str = "sd15", filled: bool = False, pictures: int = 2, **changed: Any) -> Trainer:
    """On the small model with random weights; two pictures of noise."""
    patcher, samples = model(family), latent(pictures, *SIZE, seed=3)
    network = trainable(patcher, VISION_WIDTH, seed=0)
    if filled:
        with torch.no_grad():
            fill_zeros(network)
    texts = [encode(patcher, prompt(family, seed), samples[:1]) for seed in (1, 2)]
    masks = torch.ones(pictures, 8, 8)
    masks[:, :, 5:] = 0
    data = Pictures(samples, latent(pictures, 5, VISION_WIDTH, seed=8), masks, *texts)
    return Trainer(patcher, network, data, Settings(**{**vars(SMALL), **changed}))


def draws(one: Trainer, count: int = 8) -> list[Batch]:
    """Batches that no training has seen."""
    generator = torch.Generator().manual_seed(99)
    return [one.draw(torch.tensor([number % one.pictures]), generator) for number in range(count)]


def held_out(one: Trainer) -> tuple[float, float]:
    """L_LDM and L_ac on them."""
    with torch.no_grad():
        losses = [one.losses(batch) for batch in draws(one)]
    return tuple(sum(each[name].item() for each in losses) / 8 for name in ("denoising", "consistency"))


def gradients(one: Trainer) -> list[Tensor]:
    (batch,) = draws(one, 1)
    losses = one.losses(batch)
    (losses["denoising"] + losses["consistency"]).backward()
    return [weight.grad for weight in one.network.parameters() if weight.grad is not None]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_blocks_computed_anew_change_neither_loss_nor_gradient(family: str) -> None:
    kept, anew = (trainer(family, filled=True, where="all", gradient_checkpointing=way) for way in (False, True))
    (batch,) = draws(kept, 1)
    assert kept.losses(batch)["denoising"] == anew.losses(batch)["denoising"]
    pairs = list(zip(gradients(kept), gradients(anew), strict=True))
    assert len(pairs) > 100 and all(torch.equal(*pair) for pair in pairs)
    assert any(gradient.any() for gradient, _ in pairs)


def test_the_prediction_is_what_the_sampler_would_get() -> None:
    """The same adapter, noise level and text through the host's sampler, at the weight 1."""
    one = trainer(filled=True, pictures=1)
    patcher = model("sd15")
    adapter = Adapter(managed(patcher, one.network), latent(1, 5, VISION_WIDTH, seed=8), identity_at_zero=False)
    samples = patcher.model.process_latent_out(latent(1, *SIZE, seed=3))
    mask = torch.ones(1, 8, 8)
    mask[:, :, 5:] = 0
    injection = P3SSettings(Reference(samples, None, 0), adapter, mask, strength=1 / 0.7)
    noise, seen = latent(1, *SIZE, seed=5), []
    sample(
        apply_p3s(patcher, injection), noise, prompt("sd15", 1), prompt("sd15", 2), steps=1, cfg=1.0,
        callback=lambda step, denoised, x, total: seen.append((denoised.clone(), x.clone())),
    )  # fmt: skip
    (denoised, x) = seen[0]
    sampling = patcher.get_model_object("model_sampling")
    sigma = sampling.sigma_max
    want = (x - denoised) / sigma
    # x is noise alone, so noise and picture of the batch are chosen to give the same x.
    target = latent(1, *SIZE, seed=3)
    batch = Batch(torch.tensor([0]), 0, torch.tensor([999]), (x.cpu() - target) / sigma, torch.tensor([False]))
    with torch.no_grad():
        losses = one.losses(batch)
    assert losses["denoising"].item() == pytest.approx((want - batch.noise).square().mean().item(), rel=1e-3)


def managed(patcher: Any, network: Any) -> Any:
    """A trained network's weights, for a model."""
    family = type(patcher.model.model_config).__name__
    origin = Origin(family, "", VISION_WIDTH, "", "disc", "", {})
    return for_model(TrainedAdapter(trained_weights(network, patcher), origin), patcher, family)


def test_only_the_adapter_is_trained_and_the_same_seed_gives_the_same() -> None:
    before = {name: weight.clone() for name, weight in model("sd15").model.state_dict().items()}
    first, second, other = (trainer(seed=seed) for seed in (0, 0, 1))
    histories = [train(one, Watch()) for one in (first, second, other)]
    assert all(torch.equal(weight, before[name]) for name, weight in model("sd15").model.state_dict().items())
    assert len(histories[0]) == steps_of(2, SMALL) == 4
    assert histories[0] == histories[1] != histories[2]
    ends = [one.network.state_dict() for one in (first, second)]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    start = trainable(model("sd15"), VISION_WIDTH, seed=0).state_dict()
    changed = {name.split(".")[0] for name, weight in ends[0].items() if not torch.equal(weight, start[name])}
    assert changed == {"encoder", "unet", "zero_hidden", "zero_cross"}


def test_mixed_precision_keeps_float32_weights_and_comes_close() -> None:
    exact, mixed = trainer(filled=True), trainer(filled=True, mixed_precision=True)
    (batch,) = draws(exact, 1)
    assert mixed.losses(batch)["denoising"].item() == pytest.approx(exact.losses(batch)["denoising"].item(), rel=0.02)
    mixed.step(batch)
    assert {weight.dtype for weight in mixed.network.parameters()} == {torch.float32}


def test_conditions_are_dropped_as_often_as_wanted() -> None:
    one = trainer(condition_drop=0.25)
    dropped = one.draw(torch.zeros(4000, dtype=torch.int64), torch.Generator().manual_seed(0)).dropped
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    (batch,) = draws(one, 1)
    with torch.no_grad():
        costs = [
            one.losses(Batch(batch.targets, batch.reference, batch.timesteps, batch.noise, torch.tensor([drop])))
            for drop in (False, True)
        ]
    assert costs[0]["denoising"] != costs[1]["denoising"]


def test_a_step_of_two_is_the_mean_of_two_steps_of_one() -> None:
    one = trainer(filled=True, where="all")
    both = one.draw(torch.tensor([1, 0]), torch.Generator().manual_seed(0))
    parts = [
        Batch(both.targets[i : i + 1], both.reference, both.timesteps[i : i + 1], both.noise[i : i + 1],
              both.dropped[i : i + 1])
        for i in (0, 1)
    ]  # fmt: skip
    with torch.no_grad():
        whole, *single = (one.losses(batch) for batch in (both, *parts))
    for name in ("denoising", "consistency"):
        mean = sum(part[name].item() for part in single) / 2
        assert whole[name].item() == pytest.approx(mean, rel=1e-4)


def test_diverging_is_said() -> None:
    one = trainer(learning_rate=1e30)
    with pytest.raises(RuntimeError, match=r"Training diverged in step \d.*Lower learning_rate"):
        train(one, Watch())


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Any]]:
    """What the host's progress bar is told."""
    told: list[tuple[int, int, Any]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda at, total, shown, node_id=None: told.append((at, total, shown))
    )
    return told


def test_previews_come_when_they_are_due(bar: list[tuple[int, int, Any]]) -> None:
    train(trainer(), Watch(preview=lambda: "picture", every=2))
    assert [entry for entry in bar if entry[2]] == [(2, 4, "picture"), (4, 4, "picture")]


def test_cancelling_keeps_what_there_is(bar: list[tuple[int, int, Any]]) -> None:
    one, kept = trainer(epochs=50), []

    def cancel() -> str:
        comfy.model_management.interrupt_current_processing()
        return "picture"

    def keep() -> None:
        kept.append(trained_weights(one.network, model("sd15")))

    with pytest.raises(InterruptProcessingException):
        try:
            train(one, Watch(cancel, 3))
        except InterruptProcessingException:  # as who trains from a node does
            keep()
            raise
    reference = trainer()
    for batch in three_steps(reference):
        reference.step(batch)
    assert len(kept) == 1
    assert all(torch.equal(weight, kept[0][name]) for name, weight in reference.network.state_dict().items())


def three_steps(one: Trainer) -> Iterator[Batch]:
    """The first draws of a training with seed 0."""
    generator, done = torch.Generator().manual_seed(0), 0
    while True:
        for targets in torch.randperm(one.pictures, generator=generator).split(1):
            if done == 3:
                return
            done += 1
            yield one.draw(targets, generator)


@pytest.mark.parametrize(("gamma", "falls"), [(0.1, True), (0.0, False)])
def test_l_ac_falls_just_when_it_counts(gamma: float, falls: bool) -> None:
    one = trainer(epochs=16, gamma=gamma, gradient_checkpointing=False)
    (_, before), _ = held_out(one), train(one, Watch())
    _, after = held_out(one)
    assert (after < 0.9 * before) == falls
    assert falls or after > 2 * before


# The subjects: two discs of one scene, on the background that also paints over the one that is not selected.
# So many steps at so low a rate that the last bits of a processor do not decide how it ends.
SIDE, STEPS, SEEDS, RATE = 64, 120, 8, 5e-4
BACKGROUND = torch.tensor([0.5, 0.55, 0.5])
PALETTES = {"orange": torch.tensor([0.85, 0.25, 0.1]), "blue": torch.tensor([0.1, 0.3, 0.85])}


def scene(selected: str) -> tuple[Tensor, Tensor]:
    """The cleaned picture (1, H, W, 3) of a disc and its mask (1, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centre = SIDE * (0.28 if selected == "orange" else 0.72)
    disc = (rows - SIDE / 2) ** 2 + (columns - centre) ** 2 < (0.2 * SIDE) ** 2
    return torch.where(disc[..., None], PALETTES[selected], BACKGROUND)[None], disc[None].float()


class Learnt:
    """One subject, learnt on the demo's SD1.5."""

    def __init__(self, selected: str, demo: tuple[Any, Any, Any]) -> None:
        self.patcher, clip, self.vae = demo
        self.texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a photo of sks disc", "")]
        picture, self.mask = scene(selected)
        self.samples = self.vae.encode(picture)
        latents = self.patcher.model.process_latent_in(self.samples)
        texts = [encode(self.patcher, text, latents) for text in self.texts]
        self.vision = latent(1, 5, VISION_WIDTH, seed=8)
        settings = Settings(epochs=STEPS, learning_rate=RATE, gradient_checkpointing=False)
        network = trainable(self.patcher, VISION_WIDTH, seed=0)
        self.trainer = Trainer(self.patcher, network, Pictures(latents, self.vision, self.mask, *texts), settings)
        self.frozen = self._frozen()
        train(self.trainer, Watch())
        self.trained, _ = held_out(self.trainer)
        self.pictures = self._sampled()

    def _frozen(self) -> float:
        """L_LDM of the base model on the draws that `held_out` takes, through the host."""
        base, costs = self.patcher.model, []
        latents = base.process_latent_in(self.samples)
        for batch in draws(self.trainer):
            sigma = base.model_sampling.sigma(batch.timesteps)
            x = base.model_sampling.noise_scaling(sigma[:, None, None, None], batch.noise, latents)
            text = self.texts[int(batch.dropped)][0][0]
            with torch.no_grad():
                denoised = base.apply_model(x, sigma, c_crossattn=text)
            costs.append(((x - denoised) / sigma - batch.noise).square().mean().item())
        return sum(costs) / len(costs)

    def _sampled(self) -> Tensor:
        """(seeds, H, W, 3) pictures of the prompt with the subject injected."""
        adapter = Adapter(managed(self.patcher, self.trainer.network), self.vision)
        patched = apply_p3s(self.patcher, P3SSettings(Reference(self.samples, None, 0), adapter, self.mask))
        noise = latent(SEEDS, *self.samples.shape[1:], seed=11)
        return self.vae.decode(sample(patched, noise, *self.texts, steps=8, cfg=1.0))


@pytest.fixture(scope="module")
def learnt() -> dict[str, Learnt]:
    with torch.inference_mode(False), torch.enable_grad():
        demo = load("sd15")
        return {selected: Learnt(selected, demo) for selected in PALETTES}


@pytest.mark.parametrize("selected", PALETTES)
def test_training_lowers_the_denoising_loss_below_the_frozen_models(learnt: dict[str, Learnt], selected: str) -> None:
    assert learnt[selected].trained < 0.9 * learnt[selected].frozen


@pytest.mark.parametrize("selected", PALETTES)
def test_the_selected_subjects_colours_come_out(learnt: dict[str, Learnt], selected: str) -> None:
    """With every seed, what is painted where the subject was is clearly nearer to its palette than to the other's."""
    (other,) = PALETTES.keys() - {selected}
    painted = learnt[selected].pictures[:, learnt[selected].mask[0].bool()]
    mine, others = ((painted - PALETTES[name]).norm(dim=-1).mean(1) for name in (selected, other))
    assert (mine < 0.8 * others).all(), (mine, others)
