"""The switches of P3S's training, each against a formula that is written out; pictures of several sizes; resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from families import tiny_model, tiny_prompt
from p3s_support import VISION_WIDTH, fill_zeros
from refattention.core.p3s.adapter import trainable
from refattention.core.p3s.objective import Inputs, Settings
from refattention.core.p3s.resume import Resumable
from refattention.core.p3s.training import Batch, Pictures, Trainer, Watch, train
from refattention.core.patches.selection import Tokens
from refattention.core.patches.training import encode
from sampling import latent
from torch import Tensor

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")
SIZES = (8, 8), (6, 10)
QUICK = Settings(epochs=2, learning_rate=3e-4, gradient_checkpointing=False)


def pictures(count: int, size: tuple[int, int], seed: int = 3) -> Pictures:
    patcher, samples = tiny_model("sd15"), latent(count, 4, *size, seed=seed)
    texts = [encode(patcher, tiny_prompt("sd15", number), samples[:1]) for number in (1, 2)]
    return Pictures(samples, latent(count, 5, VISION_WIDTH, seed=seed + 1), None, *texts)


def trainer(*sizes: Pictures, filled: bool = True, **changed: Any) -> Trainer:
    settings = dataclasses.replace(QUICK, **changed)
    network = trainable(tiny_model("sd15"), VISION_WIDTH, 0, settings.rngr, settings.learned_weight)
    if filled:
        with torch.no_grad():
            fill_zeros(network)
    return Trainer(tiny_model("sd15"), network, sizes or (pictures(2, SIZES[0]),), settings)


def losses(one: Trainer, targets: list[int], reference: int = 0, **changed: Any) -> dict[str, float]:
    """Those of a batch that is the same for every trainer."""
    drawn = one.draw(torch.tensor(targets), torch.Generator().manual_seed(5))
    batch = dataclasses.replace(drawn, reference=reference, dropped=torch.zeros(len(targets), dtype=torch.bool))
    return {name: value.item() for name, value in one.losses(dataclasses.replace(batch, **changed)).items()}


class Watched:
    """What enters the cross-attentions of a network, by the module."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        self.entered: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}
        for network in networks:
            for name, module in network.named_modules():
                if name.endswith("attn2"):
                    module.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        self.entered[module] = inputs[0].detach(), named["context"].detach()

    def map(self, module: Any, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
        """(heads, N, L) of the one sample, float64, on another grid where that differs."""
        n, context = self.entered[module]
        q, k = (n[0] @ module.to_q.weight.T).double(), (context[0] @ module.to_k.weight.T).double()
        maps = oracle.scores(q, k, module.heads).softmax(-1)
        if grid == target:
            return maps
        as_pictures = maps.unflatten(1, grid).movedim(-1, 1)
        resized = torch.nn.functional.interpolate(as_pictures, size=target, mode="bilinear", antialias=True)
        return resized.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", SIZES, ids=["same size", "another size"])
def test_l_ac_in_the_last_layer_in_all_summed_and_nowhere(size: tuple[int, int]) -> None:
    """The reference lies stretched over the target where their sizes differ."""
    groups = pictures(1, SIZES[0]), pictures(1, size, seed=7)
    one = trainer(*groups)
    watched = Watched(one.network.unet, one.objective.frozen)
    layers, own = (dict(blocks(each)) for each in (one.objective.frozen, one.network.unet))
    losses(one, [0], reference=1)
    each = []
    for frozen, copy in one.network.feeds.items():
        target, grid = (grid_of(watched.entered[layer.attn2][0], shape) for layer, shape in (
            (layers[frozen], SIZES[0]), (own[copy], size)
        ))  # fmt: skip
        original = watched.map(layers[frozen].attn2, target, target)
        copied = watched.map(own[copy].attn2, grid, target)
        mean = (original.mean() + copied.mean()) / 2
        each.append((((copied - original) ** 2).mean() / mean).item())
    want = {"last": each[-1], "all": sum(each) / len(each), "all summed": sum(each), "none": 0.0}
    for where, value in want.items():
        got = losses(trainer(*groups, where=where, gamma=0.3), [0], reference=1)
        assert got["consistency"] == pytest.approx(value, rel=1e-4)
        assert got["loss"] == pytest.approx(got["denoising"] + 0.3 * value, rel=1e-4)


def blocks(unet: Any) -> Iterator[tuple[Any, Any]]:
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    for side, parts in sides.items():
        for number, part in enumerate(parts):
            layers = [
                module for name, module in part.named_modules() if name.split(".")[-2:-1] == ["transformer_blocks"]
            ]
            for depth, layer in enumerate(layers):
                yield ((side, number), depth), layer


def grid_of(entered: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """Of the tokens that entered a layer: the latent's, or half of it."""
    rows, columns = shape
    return (rows, columns) if entered.shape[1] == rows * columns else (rows // 2, columns // 2)


def test_with_text_and_reference_dropped_the_adapter_reads_zeros() -> None:
    one = trainer(filled=True)
    (given,) = one._of_sizes
    drop = torch.tensor([True])
    got = losses(one, [1], dropped=drop)
    drawn = one.draw(torch.tensor([1]), torch.Generator().manual_seed(5))
    zeros = torch.zeros_like(given.latents[:1]), torch.zeros_like(given.vision[:1])
    by_hand = Inputs(
        given.latents[1:], *zeros, Tokens(None), given.empty.context, None, drawn.timesteps, drawn.noise, None
    )
    assert got["denoising"] == pytest.approx(one.objective(by_hand)["denoising"].item(), rel=1e-6)
    only_text = losses(trainer(dropped="text"), [1], dropped=drop)
    with_reference = dataclasses.replace(by_hand, reference=given.latents[:1], vision=given.vision[:1])
    assert only_text["denoising"] == pytest.approx(one.objective(with_reference)["denoising"].item(), rel=1e-6)
    assert only_text["denoising"] != pytest.approx(got["denoising"], rel=1e-4)


def test_of_a_batch_only_those_that_are_dropped_lose_their_reference() -> None:
    one = trainer()
    both = one.draw(torch.tensor([1, 0]), torch.Generator().manual_seed(0))
    both = dataclasses.replace(both, dropped=torch.tensor([True, False]))
    alone = [
        Batch(*(getattr(both, name)[at : at + 1] if name != "reference" else both.reference for name in vars(both)))
        for at in (0, 1)
    ]
    with torch.no_grad():
        whole, *parts = (one.losses(batch)["denoising"].item() for batch in (both, *alone))
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-4)


def test_without_the_rngr_encoder_the_adapter_reads_the_latent_itself() -> None:
    one = trainer(filled=False, rngr=False)
    before = {name: each.clone() for name, each in one.network.encoder.state_dict().items()}
    train(one, Watch())
    assert all(torch.equal(each, before[name]) for name, each in one.network.encoder.state_dict().items())
    (given,) = one._of_sizes
    assert torch.equal(one.network.encoder(given.latents, given.vision), given.latents)
    assert any(each.any() for each in one.network.zero_hidden.parameters())
    other = trainer(filled=False)
    assert not torch.equal(other.network.encoder(given.latents, given.vision), given.latents)


def test_a_weight_that_is_learned_starts_at_1_and_multiplies_what_is_injected() -> None:
    plain, one = trainer(), trainer(learned_weight=True)
    assert losses(one, [1])["loss"] == losses(plain, [1])["loss"]
    with torch.no_grad():
        one.network.weight.out.weight.fill_(0.4)
        one.network.weight.out.bias.fill_(-0.3)
    drawn = one.draw(torch.tensor([1]), torch.Generator().manual_seed(5))
    hidden = one.network.weight.hidden
    at = hidden.weight.double().flatten() * (drawn.timesteps.item() / 999) + hidden.bias.double()
    factor = 1 + (0.4 * at * at.sigmoid()).sum().item() - 0.3
    with torch.no_grad():
        for part in (plain.network.zero_hidden, plain.network.zero_cross):
            for weight in part.parameters():
                weight.mul_(factor)
    assert losses(one, [1])["denoising"] == pytest.approx(losses(plain, [1])["denoising"], rel=1e-4)
    fresh = trainer(learned_weight=True)
    start = {name: each.clone() for name, each in fresh.network.weight.state_dict().items()}
    train(fresh, Watch())
    assert any(not torch.equal(each, start[name]) for name, each in fresh.network.weight.state_dict().items())


def test_pictures_of_several_sizes_train() -> None:
    one = trainer(pictures(3, SIZES[0]), pictures(2, SIZES[1], seed=9), batch_size=2, epochs=3)
    generator, references = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        steps = one.epoch(generator)
        assert sorted(torch.cat(steps).tolist()) == [0, 1, 2, 3, 4] and len(steps) == 3
        for targets in steps:
            is_first = targets < 3
            assert is_first.all() or not is_first.any()
            batch = one.draw(targets, generator)
            assert batch.noise.shape[-2:] == SIZES[not is_first[0]]
            references.add((bool(is_first[0]), batch.reference < 3))
    assert len(references) == 4  # of the own size and of the other
    history = train(one, Watch())
    assert len(history) == one.steps == 9 and torch.tensor(history).isfinite().all()


def weights(one: Trainer) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in one.network.state_dict().items()}


class Stopped(Exception):
    """Ends a training."""


def stop_after(steps: int) -> Watch:
    def stop() -> None:
        raise Stopped

    return Watch(stop, steps)


@pytest.mark.parametrize("after", [1, 4, 5])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(after: int, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, at its end, and in the next."""
    data = pictures(3, SIZES[0]), pictures(1, SIZES[1], seed=9)
    settings = {"epochs": 2, "learned_weight": True}
    whole = trainer(*data, **settings)
    want = train(whole, Watch())
    first = trainer(*data, **settings)
    with pytest.raises(Stopped):
        train(first, stop_after(after))
    Resumable(tmp_path, first, data).save()
    second = trainer(*data, **settings)
    Resumable(tmp_path, second, data).load()
    assert len(second.history) == after
    assert train(second, Watch()) == want and len(want) == 8
    assert all(torch.equal(each, weights(whole)[name]) for name, each in weights(second).items())


def test_a_longer_training_goes_on_and_another_one_starts_anew(tmp_path: Path) -> None:
    data = (pictures(2, SIZES[0]),)
    short, whole = trainer(*data, epochs=1), trainer(*data, epochs=3)
    train(short, Watch())
    assert "goes on after step 2" in Resumable(tmp_path, short, data).save()
    longer = trainer(*data, epochs=3)
    Resumable(tmp_path, longer, data).load()
    assert len(longer.history) == 2
    assert train(longer, Watch()) == train(whole, Watch())
    assert all(torch.equal(each, weights(whole)[name]) for name, each in weights(longer).items())
    Resumable(tmp_path, longer, data).save()
    other = pictures(2, SIZES[0], seed=4)
    for settings, given in (({"seed": 1}, data), ({"gamma": 0.2}, data), ({}, (other,))):
        fresh = trainer(*given, epochs=3, **settings)
        Resumable(tmp_path, fresh, given).load()
        assert not fresh.history
    # Fewer epochs than there are in the state: trained anew, and the state stays.
    fresh = trainer(*data, epochs=1)
    again = Resumable(tmp_path, fresh, data)
    again.load()
    assert not fresh.history and train(fresh, Watch()) and again.save() == ""
    (state,) = tmp_path.iterdir()
    assert len(torch.load(state, weights_only=True)["history"]) == 6


def test_a_state_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    data = (pictures(2, SIZES[0]),)
    one = trainer(*data, epochs=1)
    place = Resumable(tmp_path / "states", one, data)
    (tmp_path / "states").write_text("a file")
    train(one, Watch())
    assert "could not be written" in place.save()
    (tmp_path / "states").unlink()
    place.save()
    place.path.write_bytes(place.path.read_bytes()[:100])
    with pytest.raises(RuntimeError, match=r"training_.*pt holds the state .* Delete it to train anew"):
        Resumable(tmp_path / "states", trainer(*data, epochs=1), data).load()
