"""The two stages on pictures: find the place in the reference, then repaint the artifact with it in view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..patches.node_text import tell
from ..patches.sampling import Sampling, sampled
from .back_ends import BackEnd, Scene
from .kernel import mean_map
from .match import Box, Finding, Match, find, heat_picture
from .observe import Look
from .window import Artifact, Case, Work, artifacts, latent_mask, paste, scaled

EMPTY_MASK = (
    "mask is empty, so there is nothing to repair. Paint the artifact: right click on the node that loads the picture, "
    "Open in Mask Editor."
)


@dataclass(frozen=True)
class Search:
    """How the place in the reference is found.

    Attributes:
        look: how the map is made.
        finding: how the place is found in it.
    """

    look: Look
    finding: Finding


@dataclass(frozen=True, eq=False)
class Paint:
    """How an artifact is repainted.

    Attributes:
        negative: the prompt of what not to paint.
        strength: of the reference; 0 paints without it.
        sampling: as in KSampler.
    """

    negative: list[Any]
    strength: float
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Repair:
    """What both stages need.

    Attributes:
        back_end: how the model is shown the reference.
        encode: (1, H, W, 3) in [0, 1] -> (1, C, h, w).
        decode: the way back.
        work: how windows are chosen and worked on.
        placed: names what model and prompts carry that would lie at the wrong place in a window; "" for nothing.
    """

    back_end: BackEnd
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    work: Work
    placed: str = ""

    def align_all(self, case: Case, search: Search) -> list[Match]:
        """The alignment stage for all of a mask as one artifact; nothing for an empty mask."""
        references = [case.reference, *case.others]
        areas = artifacts(case.mask, self.work, is_together=True)
        return [self._found(case.image, area, references, case.searched, search) for area in areas]

    def _found(
        self, image: Tensor, artifact: Artifact, references: list[Tensor], searched: Tensor | None, search: Search
    ) -> Match:
        """What is found in the first of the references, with the others in view."""
        shown = [self._scaled(each) for each in references]
        maps = self.back_end.maps(self._scene(image, artifact), shown, searched, search.look)
        size = references[0].shape[1], references[0].shape[2]
        return find(mean_map(list(maps.values()))[0], size, search.finding)

    def refine(
        self,
        image: Tensor,
        artifact: Artifact,
        crops: Sequence[Tensor],
        paint: Paint,
        progress: Callable[[int], object],
    ) -> Tensor:
        """The refinement stage.

        Args:
            image: (1, H, W, 3).
            crops: (1, h, w, 3) each, the places in the references.
            progress: called after each step.

        Returns:
            (1, H, W, 3), equal to image where the artifact's weight is 0.

        Raises:
            ValueError: something is made for the whole picture, of which the window is a part.
        """
        if self.placed and (artifact.window.height, artifact.window.width) != image.shape[1:3]:
            raise ValueError(
                f"What is repainted is cut out of the picture, but {self.placed} is made for all of it and would lie "
                "at the wrong place. Connect model and prompts without it, or raise context to see the whole picture."
            )
        scene, sampling = self._scene(image, artifact), paint.sampling
        shown = [self._scaled(each) for each in crops]
        guided = self.back_end.guided(scene, shown, paint.negative, paint.strength, sampling.seed)
        latent = sampled(*guided, self.encode(scene.picture), scene.mask, sampling, progress)
        return paste(image, self.decode(latent).cpu().float()[..., :3], artifact)

    def repair(
        self, cases: Sequence[Case], is_together: bool, search: Search | None, paint: Paint
    ) -> tuple[Tensor, list[list[Match]]]:
        """Both stages for each artifact of each picture in turn; one without a match is left as it is.

        Args:
            is_together: whether separate areas of a mask are one artifact.
            search: None takes the whole reference as the place.

        Returns:
            (B, H, W, 3), and what was found in the first reference for each artifact of each picture; a match in one of
            the others counts as one.
        """
        areas = [artifacts(case.mask, self.work, is_together) for case in cases]
        progress = comfy.utils.ProgressBar(paint.sampling.steps * sum(map(len, areas)))
        images, every = [], []
        for case, found in zip(cases, areas, strict=True):
            image, matches = case.image, list[Match]()
            for artifact in found:
                crops = [case.reference, *case.others]
                if search:
                    places = self._everywhere(replace(case, image=image), artifact, search)
                    crops = [at.box.cut(one) for at, one in zip(places, crops, strict=True) if at.is_match]
                    matches.append(replace(places[0], is_match=bool(crops)))
                if crops:
                    image = self.refine(image, artifact, crops, paint, progress.update)
                else:
                    progress.update(paint.sampling.steps)
            images.append(image)
            every.append(matches)
        return torch.cat(images), every

    def _everywhere(self, case: Case, artifact: Artifact, search: Search) -> list[Match]:
        """What is found in each of the references."""
        every, found = [case.reference, *case.others], []
        for number, _ in enumerate(every):
            references = [*every[number:], *every[:number]]
            searched = None if number else case.searched
            found.append(self._found(case.image, artifact, references, searched, search))
        return found

    def _scene(self, image: Tensor, artifact: Artifact) -> Scene:
        picture = self._scaled(artifact.window.cut(image))
        region = artifact.window.cut(artifact.region.unsqueeze(0))[0]
        return Scene(picture, region, latent_mask(artifact, picture, self.work.cell))

    def _scaled(self, picture: Tensor) -> Tensor:
        return scaled(picture, self.work.size, self.work.unit)


@dataclass(frozen=True)
class Report:
    """What was found for the artifacts of B pictures, whose references are of one size.

    Attributes:
        heat: (B, H, W, 3), the attention over each reference.
        places: (B, H, W), 0 and 1, where the matches are in it.
        boxes: around the places of each picture's artifacts.
        matched: whether every artifact has its match.
        warning: what was left as it is, and why; empty if all went well.
    """

    heat: Tensor
    places: Tensor
    boxes: list[list[Box]]
    matched: bool
    warning: str


def report(cases: Sequence[Case], found: Sequence[Sequence[Match]]) -> Report:
    """Puts together what was found for each picture's artifacts; the node and the log say it, too."""
    maps = [[torch.zeros(case.reference.shape[1:3]) for case in cases] for _ in range(2)]
    for number, matches in enumerate(found):
        for match in matches:
            for each, one in zip(maps, (match.heat, match.region), strict=True):
                each[number] = torch.maximum(each[number], one)
    heat = torch.cat([heat_picture(each, case.reference) for each, case in zip(maps[0], cases, strict=True)])
    warnings = [_warning(matches) for matches in found]
    warning = " ".join(
        f"Picture {number}: {each}" if len(cases) > 1 else each for number, each in enumerate(warnings, 1) if each
    )
    areas = sum(map(len, found))
    tell(warning, f"Matches in the reference: {areas} of {areas} areas.")
    boxes = [[match.box for match in matches] for matches in found]
    return Report(heat, torch.stack(maps[1]), boxes, not any(warnings), warning)


def _warning(matches: Sequence[Match]) -> str:
    if not matches:
        return EMPTY_MASK
    missing = [number for number, match in enumerate(matches, 1) if not match.is_match]
    if not missing:
        return ""
    best = max(matches[number - 1].contrast for number in missing)
    return (
        f"The reference shows no match for {len(missing)} of {len(matches)} areas (number "
        f"{', '.join(map(str, missing))}); the best gets {best:.2f} times the attention of the rest. "
        "Choose another reference or reference_mask, or lower minimum_contrast."
    )
