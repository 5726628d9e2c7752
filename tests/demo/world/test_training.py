"""What the training is made of: fast layers are the host's functions, the expanded checkpoint is the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refattention_demo.world import expand
from safetensors.torch import save_file
from world import export, fast, state, text, train_base, unet
from world.autoencoder import Autoencoder
from world.config import Schedule
from world.vision import VisionEncoder
from world.workers import Clock, Worker


def test_fast_group_norm_is_group_norm_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 64, 5, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    plain = torch.nn.GroupNorm(32, 64, eps=1e-6).double()
    torch.nn.init.normal_(plain.weight)
    torch.nn.init.normal_(plain.bias)
    quick = fast.GroupNorm(32, 64, eps=1e-6).double()
    quick.load_state_dict(plain.state_dict())
    results = []
    for norm in (plain, quick):
        start = x.clone().requires_grad_()
        out = norm(start)
        out.square().mul(torch.linspace(0, 1, 64)[:, None, None]).sum().backward()
        results.append((out, start.grad, norm.weight.grad, norm.bias.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fast_attention_is_attention() -> None:
    from comfy.ldm.modules.attention import optimized_attention

    torch.manual_seed(0)
    q, k, v = torch.randn(2, 16, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    torch.testing.assert_close(fast.attention(optimized_attention, q, k, v, 2), optimized_attention(q, k, v, 2))


@torch.no_grad()
def test_the_fast_unet_has_the_demos_layout_and_the_hosts_answer() -> None:
    from refattention_demo.families import SD15
    from refattention_demo.layout import unet_shapes

    torch.manual_seed(0)
    model = unet.build().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == unet_shapes(SD15.unet)
    torch.nn.init.normal_(model.out[2].weight, std=0.05)
    x, steps, context = torch.randn(2, 4, 16, 16), torch.tensor([10.0, 700.0]), torch.randn(2, 77, 64)
    expected = model(x, steps, context=context)
    found = model(x, steps, context=context, transformer_options=dict(fast.OPTIONS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    vae, model, tower = Autoencoder(), unet.build(), text.TextEncoder()
    vae.mean.normal_()
    vae.deviation.uniform_(0.5, 2)
    tensors = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    tensors |= {f"unet.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"text.{name}": tensor for name, tensor in tower.state_dict().items()}
    return tensors | {"vae.scale": torch.tensor(1.25), "text.rows": torch.tensor(text.rows())}


@pytest.fixture(scope="module")
def loaded() -> tuple[dict[str, torch.Tensor], Any]:
    import comfy.sd
    from refattention_demo.configs import register

    register()
    compact = trained()
    return compact, comfy.sd.load_state_dict_guess_config(expand.checkpoint(compact))


@torch.no_grad()
def test_the_stock_loader_reads_the_expanded_text_encoder(loaded: tuple[dict[str, torch.Tensor], Any]) -> None:
    compact, (_, clip, _, _) = loaded
    tower = text.TextEncoder()
    tower.load_state_dict(
        {name[5:]: tensor for name, tensor in compact.items() if name.startswith("text.") and "rows" not in name}
    )
    said = (
        "an orange cat with glasses waving wearing a blue striped shirt with a yellow star in the city at night, neon"
    )
    found = clip.encode_from_tokens(clip.tokenize(said)).float()
    expected = tower(torch.tensor([text.tokens(said)]))
    # the host keeps the weights in half precision
    assert (found - expected).abs().max() < 0.005 * expected.abs().max()


@torch.no_grad()
def test_the_stock_loader_reads_the_expanded_autoencoder(loaded: tuple[dict[str, torch.Tensor], Any]) -> None:
    compact, (_, _, vae, _) = loaded
    narrow = Autoencoder()
    narrow.load_state_dict(
        {name[4:]: tensor for name, tensor in compact.items() if name.startswith("vae.") and "scale" not in name}
    )
    pictures = torch.rand(1, 32, 40, 3)
    latents = narrow.encode(pictures.permute(0, 3, 1, 2))
    found = vae.encode(pictures).float()
    torch.testing.assert_close(found * 0.18215, latents * 1.25, rtol=0.02, atol=0.02)
    expected = narrow.decode(latents).permute(0, 2, 3, 1).clamp(0, 1)
    assert (vae.decode(found).float() - expected).abs().max() < 0.02


@torch.no_grad()
def test_the_stock_loader_reads_the_expanded_vision_encoder(tmp_path: Path) -> None:
    import comfy.clip_vision
    from refattention.core.models.vision import PatchEncoder
    from refattention_demo.short_vision import shorten
    from world.vision_extension import load_clip_vision

    torch.manual_seed(0)
    narrow = VisionEncoder()
    compact = {export.in_host(name): tensor for name, tensor in narrow.state_dict().items()}
    stock = comfy.clip_vision.load_clipvision_from_sd(expand.vision(compact))
    patches, picture = PatchEncoder(stock, -2), torch.rand(224, 224, 3)
    found, whole = patches.features(picture, patches.layout(224, 224)), stock.encode_image(picture[None])
    shorten(stock.model.vision_model.encoder.layers)
    assert len(stock.model.vision_model.encoder.layers) == len(narrow.layers) + 1
    patches, short = PatchEncoder(stock, -2), stock.encode_image(picture[None])
    assert torch.equal(patches.features(picture, patches.layout(224, 224)), found)
    assert all(torch.equal(short[name], whole[name]) for name in ("last_hidden_state", "penultimate_hidden_states"))
    expected = narrow(picture.permute(2, 0, 1)[None])[0].unflatten(0, (16, 16))
    assert found[..., narrow.layers[0].mlp["fc1"].in_features :].abs().max() == 0
    assert (found[..., : expected.shape[-1]] - expected).abs().max() < 0.02 * expected.abs().max()
    # So does the trainer, at the encoder's own width.
    save_file(compact, tmp_path / "vision.safetensors")
    trained_with = PatchEncoder(load_clip_vision(tmp_path / "vision.safetensors"), -1)
    again = trained_with.features(picture, trained_with.layout(224, 224))
    assert again.shape == found.shape and (again - found).abs().max() < 0.02 * expected.abs().max()


def test_weights_of_the_loss_have_mean_one_and_favour_noise() -> None:
    weights = train_base.weight_of(torch.arange(unet.STEPS))
    assert abs(weights.mean().item() - 1) < 1e-5
    assert weights[900] > weights[500] > weights[100]


def test_a_clock_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Schedule(seconds=100, rate=1.0, batch=1, warm_up=1, hold=0.5)
    worker = Worker("alone")
    rates = [Clock(worker, plan, used).rate() for used in (0, 49, 75, 100)]
    assert rates[0] == rates[1] == 1.0 and rates[1] > rates[2] > rates[3] == pytest.approx(plan.final)
    assert Clock(worker, plan, 100).is_over and not Clock(worker, plan, 99).is_over


def test_a_checkpoint_is_there_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "model.pt"
    assert state.load(path) is None
    state.save(path, {"x": torch.ones(2)})

    def fails(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(KeyboardInterrupt):
            state.save(path, {"x": torch.zeros(2)})
    assert state.load(path)["x"].tolist() == [1, 1]
