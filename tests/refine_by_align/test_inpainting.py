"""Without an adapter, an inpainting U-Net is shown the picture with what is under the mask hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from editing import AnyCodec
from families import FAMILIES, TinyFamily, random_model, tiny_prompt
from refattention.nodes.refine_by_align import RefineByAlign
from refattention.nodes.refine_by_align_stages import RefineRegion
from refine_support import Codec, base, example, prompt
from torch import Tensor

ALIGN = {"timesteps", "layers", "threshold", "margin", "minimum_contrast"}
WIDGETS = {
    **{"timesteps": "261", "layers": "", "threshold": 0.0, "margin": 0.1, "minimum_contrast": 0.0},
    **{"context": 0.3, "working_size": 128, "feather": 4, "areas": "one by one"},
    **{"strength": 0.5, "seed": 3, "steps": 2, "cfg": 3.0, "denoise": 1.0},
    **{"sampler_name": "euler", "scheduler": "normal"},
}


def shown(artifact: float) -> tuple[list[Tensor], Tensor]:
    """What the U-Net is given beside the latent in each pass while it paints, and the picture that comes out."""
    one, patcher = example(5), base(inpainting=True)
    picture = torch.where(one.mask[None, ..., None] > 0, artifact, one.picture)
    seen: list[Tensor] = []

    def watch(executor: Any, x: Tensor, t: Tensor, concat: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if concat[:, 0].mean() < 1:  # neither the search for the place nor the reference, which have no mask
            seen.append(concat.clone())
        return executor(x, t, concat, *args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "refattention.watch", watch)
    with torch.inference_mode():
        out = RefineByAlign.execute(
            patcher, Codec(), prompt(1), prompt(2), picture, one.mask[None], one.reference, **WIDGETS
        )
    return seen, out[0]


def test_the_artifact_does_not_reach_the_unet_as_its_masked_picture() -> None:
    (seen, _), (others, _) = shown(0.0), shown(1.0)
    assert len(seen) == len(others) == 2
    for one, other in zip(seen, others, strict=True):
        assert torch.equal(one, other)
        mask, picture = one[:, :1], one[:, 1:]
        grey = Codec().encode(torch.full((1, 128, 128, 3), 0.5)) * 0.18215
        hidden = (mask == 1).expand_as(picture)
        assert hidden.any() and torch.allclose(picture[hidden], grey.mean() * torch.ones(1), atol=1e-5)
        assert not torch.allclose(picture[~hidden], grey.mean() * torch.ones(1), atol=1e-2)


def test_flux_fill_is_shown_the_picture_with_the_artifact_hidden() -> None:
    """As for a U-Net: mask and picture come beside the latent, as 16 and 64 channels."""
    config = {**FAMILIES["flux"].config, "in_channels": 96}
    patcher, one = random_model(TinyFamily("Flux", config, (16, 8, 12), pooled=16, cfg=1.0)), example(5)
    seen: list[Tensor] = []

    def watch(executor: Any, x: Tensor, t: Tensor, concat: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(concat)
        return executor(x, t, concat, *args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "refattention.watch", watch)
    paint = {name: value for name, value in WIDGETS.items() if name not in ALIGN}
    pictures = [torch.where(one.mask[None, ..., None] > 0, artifact, one.picture) for artifact in (0.0, 1.0)]
    for picture in pictures:
        with torch.inference_mode():
            RefineRegion.execute(
                patcher, AnyCodec("flux"), tiny_prompt("flux", 1), tiny_prompt("flux", 2), picture, one.mask[None],
                one.reference, **{**paint, "steps": 1, "cfg": 1.0, "strength": 0.0},
            )  # fmt: skip
    shown, other = seen
    assert shown.shape[1] == 16 + 64 and torch.equal(shown, other) and shown[:, :16].std() > 0.01
    assert shown[:, 16:].min() == 0 and shown[:, 16:].max() == 1


@pytest.mark.parametrize("inpainting", [False, True])
def test_both_kinds_of_unet_paint(inpainting: bool) -> None:
    one = example(5)
    with torch.inference_mode():
        out = RefineByAlign.execute(
            base(inpainting), Codec(), prompt(1), prompt(2), one.picture, one.mask[None], one.reference, **WIDGETS
        )
    assert out[0].shape == one.picture.shape and out[0].isfinite().all() and not torch.equal(out[0], one.picture)
