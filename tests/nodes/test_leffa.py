"""Leffa's nodes: what the widgets become, and what wrong input is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bodies
import folder_paths
import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from refattention.core.leffa import body_map
from refattention.core.leffa.reference import KEY, REFERENCES
from refattention.nodes.leffa import LeffaLoader, LeffaPoseTransfer
from refattention.nodes.leffa_flow import LeffaFlow
from safetensors.torch import save_file
from sampling import model as stock_model
from torch import Tensor
from tryon import AveragingVAE, half_mask, model, picture, sample, try_on, weights


class NoNumbers(AveragingVAE):
    """As a VAE in half precision is with some pictures."""

    def encode(self, picture: Tensor) -> Tensor:
        return super().encode(picture) / 0


def test_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {**folder_paths.folder_names_and_paths, "diffusion_models": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    save_file(weights(), tmp_path / "leffa.safetensors")
    patcher, vae = LeffaLoader.execute("leffa.safetensors", 7)
    assert vae is None
    assert patcher.get_additional_models_with_key(KEY)[0].model.diffusion_model.in_channels == 4
    assert patcher.get_attachment(KEY)._budget == 7 << 20
    densepose = bodies.picture(body_map.draw(body_map.BodyMap(bodies.parts(0, 48, 64)), body_map.PARULA))
    assert sample(try_on(patcher, densepose=densepose), steps=1).isfinite().all()
    with pytest.raises(FileNotFoundError, match=r"no file 'gone\.pth' in models/diffusion_models or"):
        LeffaLoader.execute("gone.pth", 0)


def test_the_twelve_channels() -> None:
    person, pose = picture(1, 64, 48, seed=1), picture(1, 64, 48, seed=3)
    patcher, positive, negative, latent = try_on(model(), image=person, densepose=pose)
    concat = positive[0][1]["noise_concat"]
    assert concat.shape == (1, 8, 8, 6)
    assert torch.equal(concat[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4)[:, None].expand(8, 6))
    assert torch.equal(concat[0, 5:], pose[0, ::8, ::8].movedim(-1, 0) * 2 - 1)
    hole = person.clone()
    hole[:, 32:] = 0.5
    assert torch.equal(concat[:, 1:5], patcher.model.process_latent_in(AveragingVAE().encode(hole)))
    assert torch.equal(concat, negative[0][1]["noise_concat"])
    (zero,) = negative[0][1][REFERENCES]
    assert zero.is_zero and not zero.latent.any()
    assert not latent["samples"].any()


def test_padding_repeats_the_border() -> None:
    person = picture(1, 61, 43, seed=1)
    padded = torch.cat([person, person[:, :, -1:].expand(-1, -1, 5, -1)], dim=2)
    padded = torch.cat([padded, padded[:, -1:].expand(-1, 3, -1, -1)], dim=1)
    mask, full = half_mask(61, 43), half_mask(61, 43)
    full = torch.ones(1, 64, 48) * torch.nn.functional.pad(full[None], (0, 5, 0, 3), mode="replicate")[0]
    one = try_on(model(), image=person, densepose=person, mask=mask)
    other = try_on(model(), image=padded, densepose=padded, mask=full)
    assert torch.equal(one[1][0][1]["noise_concat"], other[1][0][1]["noise_concat"])


def test_alpha_is_dropped() -> None:
    four = torch.cat([picture(1, 64, 48, seed=1), torch.zeros(1, 64, 48, 1)], dim=-1)
    one = try_on(model(), image=four, densepose=four, garment_image=four)
    other = try_on(model(), image=four[..., :3], densepose=four[..., :3], garment_image=four[..., :3])
    assert torch.equal(one[1][0][1]["noise_concat"], other[1][0][1]["noise_concat"])
    assert torch.equal(one[1][0][1][REFERENCES][0].latent, other[1][0][1][REFERENCES][0].latent)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"densepose": picture(1, 64, 40)}, "40 x 64 pixels, but image is 48 x 64, which is another shape"),
        ({"densepose": picture(1, 32, 24)}, "24 x 32 pixels, but image is 48 x 64. If it was made from image"),
        ({"mask": torch.zeros(1, 64, 64)}, "mask is empty, so nothing would be painted"),
        ({"mask": torch.stack([torch.ones(9, 9), torch.zeros(9, 9)]), "image": picture(2, 64, 48)}, "mask is empty"),
        ({"vae": AveragingVAE(16)}, r"vae makes latents of the shape \(1, 16, 8, 6\) where Leffa needs \(1, 4, 8, 6\)"),
        ({"vae": None}, "vae is None, but VAE is needed"),
        (
            {"image": picture(2, 64, 48), "garment_image": picture(3, 48, 48)},
            "garment_image holds a batch of 3, but image one of 2",
        ),
        ({"image": picture(2, 64, 48), "mask": torch.ones(3, 9, 9)}, "mask holds a batch of 3, but image one of 2"),
        ({"densepose": picture(3, 64, 48), "image": picture(2, 64, 48)}, "densepose holds a batch of 3"),
        (
            {"garment_image": picture(2, 48, 48), "mask": torch.ones(3, 9, 9)},
            "mask holds a batch of 3, but garment_image one of 2",
        ),
        (
            {"densepose": picture(3, 64, 48), "mask": torch.ones(2, 9, 9)},
            "mask holds a batch of 2, but densepose one of 3",
        ),
        ({"vae": NoNumbers()}, "What vae makes of a picture holds NaN or infinity"),
    ],
)
def test_wrong_input_is_told(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        try_on(model(), **inputs)


def test_another_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"needs a Leffa model with 12 input channels .* but got DemoSD15 with 4"):
        try_on(stock_model("sd15"))


def test_a_checkpoint_for_another_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its map is looked at: that one would be of the right kind in the right node."""
    for_pose, for_try_on = model("sdxl"), model()
    monkeypatch.setattr(for_pose.model, "body_map", body_map.UVI)
    monkeypatch.setattr(for_try_on.model, "body_map", body_map.PARTS)
    with pytest.raises(ValueError, match="pose_transfer, which is for Leffa Pose Transfer, but Leffa Try-On needs"):
        try_on(for_pose)
    with pytest.raises(ValueError, match=r"virtual_tryon_dc, which is for Leffa Try-On.* needs pose_transfer. Choose"):
        LeffaPoseTransfer.execute(for_try_on, AveragingVAE(), picture(1, 48, 48), picture(1, 64, 48), "once", 1, True)


def test_pose_transfer_leaves_no_pixel_of_the_person_in_the_input() -> None:
    inputs = (picture(1, 48, 48), picture(1, 64, 48, seed=1), "once", 1, True)
    _, positive, _, latent = LeffaPoseTransfer.execute(model("sdxl"), AveragingVAE(), *inputs)
    concat = positive[0][1]["noise_concat"]
    assert concat[:, 0].all() and not concat[:, 1:5].any()
    assert latent["samples"].shape == (1, 4, 8, 6)
    with pytest.raises(ValueError, match="reference_image holds a batch of 3, but densepose one of 2"):
        LeffaPoseTransfer.execute(model("sdxl"), AveragingVAE(), picture(3, 8, 8), picture(2, 8, 8), "once", 1, True)


def flow(**inputs: Any) -> tuple[Tensor, Tensor]:
    outputs = try_on(model(), image=picture(2, 64, 48))
    values = {
        "model": outputs[0],
        "positive": outputs[1],
        "samples": {"samples": torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))},
        "reference_image": picture(1, 48, 48, seed=2),
        "timestep": 250,
        "temperature": 2.0,
        "seed": 0,
        **inputs,
    }
    with torch.inference_mode():
        return tuple(LeffaFlow.execute(**values))


def test_flow_pictures() -> None:
    warped, wheel = flow()
    assert warped.shape == wheel.shape == (2, 64, 48, 3)
    assert all(0 <= each.min() and each.max() <= 1 for each in (warped, wheel))
    assert torch.equal(flow()[0], warped)
    for change in ({"timestep": 600}, {"temperature": 0.2}, {"seed": 1}):
        assert not torch.equal(flow(**change)[0], warped), change


def test_flow_is_that_of_one_pass_whatever_guides_the_sampler() -> None:
    """Guidance may evaluate the model again, or both halves even where they are equal."""
    model_of_node = try_on(model(), image=picture(2, 64, 48))[0]
    again, both = PerturbedAttentionGuidance.execute(model_of_node, 2.0)[0], model_of_node.clone()
    both.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    for guided in (again, both):
        assert torch.equal(flow(model=guided)[0], flow()[0])


def test_flow_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="positive has no reference of Leffa"):
        flow(positive=[[torch.zeros(1, 77, 768), {}]])
    with pytest.raises(ValueError, match="reference_image holds 3 pictures for 2 latents"):
        flow(reference_image=picture(3, 8, 8))
    with pytest.raises(RuntimeError, match="needs a Leffa model"):
        flow(model=stock_model("sd15"))
