"""Training of a subject for P3S-Diffusion (arXiv 2412.19533)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.models.vision import whole_picture_tokens
from ..core.p3s.kernel import AVERAGES
from ..core.p3s.train_in_graph import Examples, train_in_graph
from ..core.p3s.training import WHERE, Settings
from ..core.patches.unet import require_image_unet
from ..core.pictures import gate
from .p3s_files import P3SAdapterIO, save_interrupted
from .shared import encoder, number_input, seed_input

NODE = "P3STrain"
MOST_IMAGES = 7


class P3STrain(io.ComfyNode):
    """Trains the adapter of one subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id=NODE,
            display_name="P3S Train",
            category="model/patch/reference",
            description=(
                "Trains a network on 1 to 7 pictures of one subject, best cleaned by Point Mask, so that P3S Inject "
                "puts it into new scenes. The model stays as it is; what is trained comes out as an adapter."
            ),
            search_aliases=["p3s", "train subject", "personalization", "dreambooth", "fine-tune", "subject-driven"],
            inputs=[*_main_inputs(), *_advanced_inputs(), _masks_input()],
            outputs=[
                P3SAdapterIO.Output(display_name="adapter", tooltip="The trained subject, for P3S Inject."),
                io.Image.Output(display_name="loss_curve", tooltip="Both losses over the steps of the training."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        clip_vision: Any,
        images: torch.Tensor,
        identifier: str,
        class_word: str,
        epochs: int,
        learning_rate: float,
        seed: int,
        prompt: str,
        gamma: float,
        where: str,
        average: str,
        condition_drop: float,
        batch_size: int,
        value_strength: float,
        gradient_checkpointing: bool,
        mixed_precision: bool,
        preview_every: int,
        masks: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Returns the adapter and the picture of its losses."""
        require_image_unet(model, NODE)
        words = identifier.strip(), class_word.strip(), _text(prompt, identifier.strip(), class_word.strip())
        settings = Settings(
            epochs=epochs,
            learning_rate=learning_rate,
            gamma=gamma,
            where=where,
            average=average,
            condition_drop=condition_drop,
            batch_size=batch_size,
            value_strength=value_strength,
            gradient_checkpointing=gradient_checkpointing,
            mixed_precision=mixed_precision,
            seed=seed,
        )
        pictures = _few(gate.picture(images, "images"))
        examples = Examples(
            samples=encoder(model, vae, "The latent of the pictures")(pictures),
            vision=whole_picture_tokens(clip_vision, pictures),
            masks=_one_for_each(gate.optional_masks(masks, "masks"), len(pictures)),
            positive=_conditioning(clip, words[-1]),
            negative=_conditioning(clip, ""),
        )
        return io.NodeOutput(
            *train_in_graph(model, vae.decode, examples, words, settings, preview_every, save_interrupted)
        )


def _few(images: torch.Tensor) -> torch.Tensor:
    if len(images) > MOST_IMAGES:
        raise ValueError(f"images is a batch of {len(images)} pictures, but {NODE} takes 1 to {MOST_IMAGES}.")
    return images


def _text(prompt: str, identifier: str, class_word: str) -> str:
    """The prompt with the subject's name in it.

    Raises:
        ValueError: one of the three leaves the subject without a name.
    """
    for name, value in {"identifier": identifier, "class_word": class_word}.items():
        if not value:
            raise ValueError(f"{name} is empty. Prompts need it to name the subject, as in 'a photo of sks dog'.")
        if f"{{{name}}}" not in prompt:
            raise ValueError(f"prompt is '{prompt}', but must contain {{{name}}}, in whose place the word is put.")
    return prompt.replace("{identifier}", identifier).replace("{class_word}", class_word)


def _one_for_each(masks: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """One mask for each picture.

    Raises:
        ValueError: there is another number of masks, or one shows nothing.
    """
    if masks is None:
        return None
    if len(masks) not in (1, count):
        raise ValueError(f"masks holds {len(masks)} masks for {count} pictures. Connect one for each, or one for all.")
    if not masks.flatten(1).any(1).all():
        raise ValueError("One of the masks is all black, so its picture shows no subject. Make the subject white.")
    return masks.expand(count, -1, -1)


def _conditioning(clip: Any, text: str) -> list[Any]:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL model to train for. It is not changed."),
        io.Clip.Input("clip", tooltip="Text encoder of the model, for the prompt."),
        io.Vae.Input("vae", tooltip="VAE of the model, which encodes the pictures."),
        io.ClipVision.Input("clip_vision", tooltip="CLIP ViT-L/14 in the paper; P3S Inject will need the same."),
        io.Image.Input(
            "images",
            tooltip="1 to 7 pictures of the subject, of one size; with look-alikes painted over by Point Mask.",
        ),
        io.String.Input(
            "identifier",
            default="sks",
            tooltip="A rare word that will stand for this very subject in prompts. [V] in the paper.",
        ),
        io.String.Input("class_word", default="dog", tooltip="What the subject is: dog, cup, backpack."),
        io.Int.Input(
            "epochs", default=60, min=1, max=10000, tooltip="How often each picture is seen. 60 in the paper."
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-5,
            min=1e-7,
            max=1e-1,
            step=1e-7,
            round=1e-8,
            tooltip="Of AdamW. 1e-5 in the paper.",
        ),
        seed_input("Of all that is drawn. On the CPU the same seed gives the same adapter.", advanced=False),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "prompt",
            default="a photo of {identifier} {class_word}",
            advanced=True,
            tooltip="Text of all pictures. {identifier} and {class_word} stand for the two words.",
        ),
        number_input(
            "gamma", 0.1, 10.0, "Weight of L_ac, which keeps the attention of the trained copy near the model's."
        ),
        io.Combo.Input(
            "where",
            options=WHERE,
            advanced=True,
            tooltip="Cross-attentions that L_ac compares: the last one, or all, which the paper found to be worse.",
        ),
        io.Combo.Input(
            "average",
            options=AVERAGES,
            advanced=True,
            tooltip="What L_ac is divided by. mean: the mean of the maps, which gives gamma an effect. sum: their sum "
            "as the paper states it, which makes L_ac vanish beside the other loss.",
        ),
        number_input(
            "condition_drop", 0.1, 1.0, "Part of the pictures that are seen with an empty prompt, for guidance."
        ),
        io.Int.Input("batch_size", default=1, min=1, max=64, advanced=True, tooltip="Pictures in a step, at most."),
        number_input("value_strength", 0.2, 1.0, "Lambda of the paper. P3S Inject should have the same."),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            advanced=True,
            tooltip="Recomputes blocks for their gradients: much less memory, about a third more time, same result.",
        ),
        io.Boolean.Input(
            "mixed_precision",
            default=True,
            advanced=True,
            tooltip="Keeps the frozen weights in bfloat16 and, except on a CPU, computes in it; the adapter and the "
            "optimiser stay in float32. Off: float32 throughout.",
        ),
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=100000,
            advanced=True,
            tooltip="Steps from one preview picture to the next, shown on the node while it trains. 0 = none.",
        ),
    ]


def _masks_input() -> io.Input:
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip="The subject in each picture, white; one for each or one for all. Unconnected = the whole picture.",
    )
