"""The two stages on pictures: find the place in the reference, then paint the artifact anew with it in view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...alignment import Box, Finding, Match, find, heat_picture
from ...blocks import SKIP_FIRST_OUTPUT, select
from ...kernels.align import group_of_mask, mean_map
from ...repair import Artifact, Work, artifacts, latent_mask, paste, scaled
from ..evaluation import other_seed
from ..refdrop import Guide, Reference, add_guide
from ..sampling import Sampling, sampled
from ..unet import family, require_image_unet, self_attention_blocks
from .observe import Look, attention_maps

__all__ = ["Box", "Finding", "Repair", "Work", "artifacts", "summary"]

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True, eq=False)
class Repair:
    """What both stages need.

    Attributes:
        model: SD1.5, SD2 or SDXL.
        encode: (1, H, W, 3) in [0, 1] -> (1, C, H / 8, W / 8).
        decode: the way back.
        positive: the prompt.
        work: how windows are chosen and worked on.
        node: for messages.
    """

    model: ModelPatcher
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    positive: list[Any]
    work: Work
    node: str

    def align(
        self,
        image: Tensor,
        artifact: Artifact,
        reference: Tensor,
        reference_mask: Tensor | None,
        look: Look,
        finding: Finding,
    ) -> Match:
        """The alignment stage.

        Args:
            image: (1, H, W, 3).
            reference: (1, H', W', 3).
            reference_mask: (h, w) of any size, where in the reference is searched; None is everywhere.
        """
        window = artifact.window
        mask = window.cut(artifact.region.unsqueeze(0))[0]
        samples, other = (self.encode(scaled(each, self.work.size)) for each in (window.cut(image), reference))

        def queries(grid: tuple[int, int]) -> Tensor:
            return group_of_mask(mask, grid)

        maps = attention_maps(self.model, self.positive, samples, other, look, queries, self.node, reference_mask)
        return find(mean_map(list(maps.values()))[0], (reference.shape[1], reference.shape[2]), finding)

    def refine(
        self, image: Tensor, artifact: Artifact, crop: Tensor, negative: list[Any], strength: float, sampling: Sampling
    ) -> Tensor:
        """The refinement stage: RefDrop's guidance by the crop, inside the mask.

        Args:
            image: (1, H, W, 3).
            crop: (1, h, w, 3), the place in the reference.
            strength: of the guidance; 0 paints without a reference.

        Returns:
            (1, H, W, 3), equal to image where the artifact's weight is 0.
        """
        window = scaled(artifact.window.cut(image), self.work.size)
        mask = latent_mask(artifact, window)
        reference = Reference(self.encode(scaled(crop, self.work.size)), None, other_seed(sampling.seed))
        blocks = list(self_attention_blocks(require_image_unet(self.model, self.node)))
        chosen = select(SKIP_FIRST_OUTPUT, "", blocks, family(self.model))
        guided = add_guide(self.model, Guide(strength, chosen, reference, mask=mask[0]))
        latent = sampled(guided, self.positive, negative, self.encode(window), mask, sampling)
        return paste(image, self.decode(latent).cpu().float()[..., :3], artifact)

    def repair(
        self,
        image: Tensor,
        areas: Sequence[Artifact],
        reference: Tensor,
        reference_mask: Tensor | None,
        look: Look,
        finding: Finding,
        negative: list[Any],
        strength: float,
        sampling: Sampling,
    ) -> tuple[Tensor, list[Match]]:
        """Both stages for each artifact in turn; one without a match is left as it is.

        Returns:
            (1, H, W, 3), and what was found for each artifact.
        """
        matches = []
        for artifact in areas:
            match = self.align(image, artifact, reference, reference_mask, look, finding)
            if match.is_match:
                image = self.refine(image, artifact, match.box.cut(reference), negative, strength, sampling)
            matches.append(match)
        return image, matches


def summary(matches: Sequence[Match], reference: Tensor) -> tuple[Tensor, Tensor, bool, str]:
    """What the matches of all artifacts come to.

    Args:
        reference: (1, H, W, 3).

    Returns:
        the heat over the reference (1, H, W, 3), the places (1, H, W), whether all match, and a warning or "".
    """
    none = torch.zeros(reference.shape[1:3])
    heat = torch.stack([none, *(match.heat for match in matches)]).amax(0)
    places = torch.stack([none, *(match.region for match in matches)]).amax(0)
    missing = [number for number, match in enumerate(matches, 1) if not match.is_match]
    warning = ""
    if not matches:
        warning = "mask is empty, so there is nothing to repair."
    elif missing:
        best = max(matches[number - 1].contrast for number in missing)
        warning = (
            f"The reference shows no match for {len(missing)} of {len(matches)} areas (number "
            f"{', '.join(map(str, missing))}); the best gets {best:.2f} times the attention of the rest."
        )
    return heat_picture(heat, reference), places.unsqueeze(0), bool(matches) and not missing, warning
