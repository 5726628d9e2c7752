"""DEADiff: An Efficient Stylization Diffusion Model with Disentangled Representations (arXiv 2403.06951)."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy_api.latest import io

from ..core.deadiff.loaded import COMBINE, CONTENT_LAYERS, MODES, DEADiff
from ..core.deadiff.preprocess import FITS
from ..core.deadiff.settings import DEADiffSettings, require_sd15
from ..core.deadiff.words import numbers_of
from ..core.deadiff.wrappers import apply_deadiff
from ..core.pictures import gate
from .connected import checked
from .deadiff_files import DEADiffIO
from .files import vocabulary_path
from .shared import range_inputs

STYLE, CONTENT, BOTH = MODES


class DEADiffStyle(io.ComfyNode):
    """The style, or the content, of reference pictures in the cross-attention of an SD1.5 U-Net."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DEADiffStyle",
            display_name="DEADiff Style",
            category="model/patch/reference",
            description=(
                "Paints in the style of a reference picture while the prompt decides what is painted; or takes over "
                "what the reference shows, but not its style; or each from a picture of its own. SD1.5 models only."
            ),
            search_aliases=["deadiff", "style transfer", "style reference", "stylize", "art style", "Q-Former"],
            inputs=[*_main_inputs(), *_optional_inputs(), *_advanced_inputs(), _ratios_input(), _subject_input()],
            outputs=[io.Model.Output(tooltip="The model with the style. The connected model itself is not changed.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        deadiff: DEADiff,
        reference_image: torch.Tensor,
        mode: str,
        strength: float,
        fit: str,
        combine: str,
        strict: bool,
        start_percent: float,
        end_percent: float,
        content_image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        ratios: str = "",
        subject: str = "",
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        require_sd15(model)
        reference_image = gate.picture(reference_image, "reference_image")
        pictures = _pictures(mode, reference_image, content_image)
        mix = _ratios(ratios, len(reference_image), combine)
        said = {CONTENT: _instruction(deadiff, mode, subject)}
        tokens = {
            branch: deadiff.tokens(
                branch, images, fit, combine, mix if images is reference_image else None, said.get(branch)
            )
            for branch, images in pictures.items()
        }
        style = DEADiffSettings(
            image=deadiff.projections.project(tokens, CONTENT_LAYERS, zero_tokens=strict),
            strength=strength,
            zero_tokens=strict,
            mask=gate.region(mask, "mask"),
            start_percent=start_percent,
            end_percent=end_percent,
        )
        return io.NodeOutput(apply_deadiff(model, style))


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="SD1.5 model to patch. The connected model itself is not changed."),
        DEADiffIO.Input("deadiff", tooltip="DEADiff's own weights, from DEADiff Loader."),
        io.Image.Input(
            "reference_image",
            tooltip="Picture whose style (or, with mode 'content', whose content) is taken. Several pictures: a batch.",
        ),
        io.Combo.Input(
            "mode",
            options=MODES,
            default=STYLE,
            tooltip="What is taken from the reference: style goes to the fine attention layers, content to the coarse "
            "ones. 'style & content' takes both, the content from content_image if that is connected.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.01,
            tooltip="Weight of the reference's keys and values; 1 is what the weights were trained with. 0 is exactly "
            "the unpatched model only with strict off: with strict on, empty tokens still dampen the prompt.",
        ),
        io.Combo.Input(
            "fit",
            options=FITS,
            default=FITS[0],
            tooltip="How a picture that is not square gets into the encoder's square: squash distorts it, as the "
            "official code does; pad adds borders of its mean colour; crop takes the middle.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "content_image",
            optional=True,
            tooltip="With mode 'style & content': the picture whose content is taken, while reference_image gives the "
            "style. Unconnected: reference_image gives both.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the generated picture the reference acts, white = full effect; in the rest the prompt "
            "alone does. Unconnected = everywhere.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "combine",
            options=COMBINE,
            default=COMBINE[0],
            advanced=True,
            tooltip="What becomes of several pictures: average mixes what was read from them into one, concatenate "
            "lets the model attend to each.",
        ),
        io.Boolean.Input(
            "strict",
            default=True,
            advanced=True,
            tooltip="On: exactly the official code, in which the negative prompt and the layers of the other kind "
            "attend to empty tokens. Off: tokens only where they act, everything else sees its text alone.",
        ),
        *range_inputs(),
    ]


def _ratios_input() -> io.Input:
    return io.String.Input(
        "ratios",
        default="",
        optional=True,
        advanced=True,
        tooltip="With several pictures and combine 'average': how much of each is in the mixture, for example 0.7, 0.3 "
        "for two. Empty = equal parts.",
    )


def _subject_input() -> io.Input:
    return io.String.Input(
        "subject",
        default="",
        optional=True,
        advanced=True,
        tooltip="With the modes that take a content: English words for it, such as dog, that instruct the network in "
        "place of 'content', as --subject_text of the authors' inference.py does. Needs BERT's vocab.txt in "
        "models/text_encoders.",
    )


def _instruction(deadiff: DEADiff, mode: str, subject: str) -> torch.Tensor | None:
    """What instructs the content branch; None is its own word.

    Raises:
        ValueError: nothing of the content is asked for, the file has no other words, or there is no vocabulary.
    """
    if not subject.strip():
        return None
    if mode == STYLE:
        raise ValueError(f"subject names a content, but mode is '{mode}'. Set mode to '{CONTENT}', or clear subject.")
    if deadiff.words is None:
        raise ValueError(
            "subject needs the embeddings of all words, which this DEADiff file does not have. Choose deadiff_v1.ckpt, "
            "or let DEADiff Extract write it with all_words."
        )
    return deadiff.words.instruction(numbers_of(subject, vocabulary_path()))


def _ratios(text: str, pictures: int, combine: str) -> list[float] | None:
    """The mixing ratio of the reference pictures; None is equal parts.

    Raises:
        ValueError: not one positive number for each picture, or they are not averaged.
    """
    if not text.strip():
        return None
    try:
        ratios = [float(each) for each in text.replace(";", ",").split(",")]
    except ValueError as error:
        raise ValueError(
            f"ratios must be numbers with commas between, for example 0.7, 0.3, but is '{text}'."
        ) from error
    if combine != COMBINE[0]:
        raise ValueError(f"ratios mix an average, but combine is '{combine}'. Set it to {COMBINE[0]}, or clear ratios.")
    if len(ratios) != pictures or not all(0 <= ratio < math.inf for ratio in ratios) or sum(ratios) == 0:
        raise ValueError(
            f"ratios must hold one number of at least 0 for each of the {pictures} pictures of reference_image, and "
            f"not zeros alone, but is '{text}'."
        )
    return ratios


def _pictures(mode: str, reference: torch.Tensor, content: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Which pictures each branch reads."""
    if mode == BOTH:
        return {STYLE: reference, CONTENT: reference if content is None else gate.picture(content, "content_image")}
    if content is not None:
        raise ValueError(
            f"content_image is connected, but mode is '{mode}'. Set mode to '{BOTH}', or connect the picture "
            "to reference_image alone."
        )
    return {mode: reference}
