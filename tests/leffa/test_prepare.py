"""The authors' noise levels and their preparation of pictures."""

from __future__ import annotations

import comfy.samplers
import numpy
import pytest
import torch
from bootstrap import ROOT
from PIL import Image
from refattention.core.leffa.schedule import timesteps_of
from refattention.core.pictures.fit import object_on_white
from refattention.nodes.leffa_prepare import GARMENT, PICTURE, LeffaFit, LeffaSigmas
from safetensors import safe_open
from sampling import model as stock_model
from tryon import model, sample, try_on

GOLDEN = numpy.load(ROOT / "tests" / "golden" / "leffa_masks.npz")


def test_timesteps_are_the_recorded_ones() -> None:
    with safe_open(ROOT / "tests" / "golden" / "leffa_tiny_A.safetensors", "pt") as file:
        recorded = file.get_tensor("golden.loop.timesteps")
    assert torch.equal(timesteps_of(len(recorded)), recorded)
    assert timesteps_of(30).tolist()[:3] + timesteps_of(30).tolist()[-2:] == [958, 925, 892, 34, 1]
    assert timesteps_of(50).tolist() == list(range(981, 0, -20))
    assert timesteps_of(999)[0] == 999


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("steps", [1, 4, 20, 30, 50])
def test_sigmas(kind: str, steps: int) -> None:
    patcher = model(kind)
    (sigmas,) = LeffaSigmas.execute(patcher, steps)
    sampling = patcher.model.model_sampling
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert torch.allclose(sigmas[:-1], sampling.sigmas[timesteps_of(steps)], rtol=1e-5)
    assert torch.equal(sampling.timestep(sigmas[:-1]), timesteps_of(steps))
    if steps in (4, 20, 50):
        stock = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
        assert torch.allclose(stock, sigmas, rtol=1e-6)


def test_other_models_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Leffa Sigmas needs a Leffa model"):
        LeffaSigmas.execute(stock_model("sd15"), 30)


def test_custom_sampler_with_them_is_ksampler() -> None:
    """At 4 steps, where both schedules agree."""
    from comfy.sample import prepare_noise, sample_custom

    outputs = try_on(model())
    patcher, positive, negative, latent = outputs
    (sigmas,) = LeffaSigmas.execute(patcher, 4)
    noise = prepare_noise(latent["samples"], 7)
    with torch.inference_mode():
        custom = sample_custom(
            patcher, noise, 2.5, comfy.samplers.sampler_object("ddpm"), sigmas, positive, negative, latent["samples"],
            disable_pbar=True, seed=7,
        )  # fmt: skip
    stock = sample(outputs)
    assert (custom - stock).abs().max() < 1e-4 * stock.std()


@pytest.mark.parametrize("number", range(4))
def test_fit_equals_the_recorded_pictures(number: int) -> None:
    recorded, want = GOLDEN[f"resize.{number}.in"], GOLDEN[f"resize.{number}.out_192x256"]
    pixels = recorded[..., None] if recorded.ndim == 2 else recorded
    image = torch.from_numpy(pixels.astype(numpy.float32) / 255).unsqueeze(0)
    fitted = LeffaFit.execute(image, PICTURE, 192, 256)[0]
    assert numpy.array_equal((fitted[0] * 255).round().numpy(), want)


def cut_out(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A garment of noise in a box (left, top, right, bottom) of a transparent picture: image and mask of Load Image."""
    left, top, right, bottom = box
    mask = torch.ones(1, height, width)
    mask[:, top:bottom, left:right] = 0
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(1)), mask


def test_garment_is_cut_out_as_a_square_at_full_width() -> None:
    image, mask = cut_out(100, 140, (30, 20, 70, 80))
    fitted = LeffaFit.execute(image, GARMENT, 120, 160, mask)[0][0]
    assert fitted.shape == (160, 120, 3)
    assert (fitted[:20] == 1).all() and (fitted[140:] == 1).all()
    assert (fitted[20:140, :12] == 1).all() and (fitted[20:140, 108:] == 1).all()  # and the filter's reach
    pixels = (image[0] * 255).round().numpy().astype(numpy.uint8)
    square = Image.fromarray(pixels[20:80, 20:80]).resize((120, 120), Image.Resampling.LANCZOS)
    inside = slice(40, 80)
    got = (fitted[20:140][:, inside] * 255).round().numpy()
    assert abs(got - numpy.asarray(square)[:, inside]).max() <= 1


@pytest.mark.parametrize(
    ("box", "corner"),
    [((0, 0, 20, 60), (0, 0)), ((120, 40, 140, 100), (80, 40)), ((60, 0, 140, 30), (60, 0))],
    ids=["left", "right", "wide"],
)
def test_square_is_moved_into_the_picture(box: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    image, mask = cut_out(100, 140, box)
    side = max(box[2] - box[0], box[3] - box[1])
    pixels = (image[0] * 255).round().numpy().astype(numpy.uint8)
    alpha = ((1 - mask[0]) * 255).numpy().astype(numpy.uint8)
    picture = Image.fromarray(numpy.dstack([pixels, alpha]))
    square = picture.crop((*corner, corner[0] + side, corner[1] + side)).resize((60, 60), Image.Resampling.LANCZOS)
    want = Image.new("RGBA", (60, 80), "white")
    want.paste(square, (0, 10), square)
    assert numpy.array_equal(object_on_white(pixels, alpha, (80, 60)), numpy.asarray(want.convert("RGB")))


def test_what_does_not_fit_is_told() -> None:
    image, mask = cut_out(100, 140, (30, 20, 70, 80))
    for inputs, message in (
        ((image, GARMENT, 768, 1024), "no mask says where the garment is"),
        ((image, GARMENT, 1024, 768, mask), "higher than 1024 x 768"),
        ((image, GARMENT, 768, 1024, torch.ones(1, 64, 64)), "mask is 1 x 64 x 64"),
        ((image, GARMENT, 768, 1024, torch.zeros(1, 64, 64)), "image has no transparency: its mask is empty"),
        ((image, GARMENT, 768, 1024, torch.ones(1, 100, 140)), "the whole image is transparent"),
    ):
        with pytest.raises(ValueError, match=message):
            LeffaFit.execute(*inputs)
