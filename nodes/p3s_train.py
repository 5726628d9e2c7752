"""Training of a subject for P3S-Diffusion (arXiv 2412.19533)."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..core.models.base import fingerprint
from ..core.p3s.adapter import Origin, TrainedAdapter, for_model, trainable, trained_weights
from ..core.p3s.kernel import AVERAGES
from ..core.p3s.preview import sample_preview
from ..core.p3s.settings import Adapter, P3SSettings
from ..core.p3s.training import WHERE, Pictures, Settings, Trainer, Watch, train
from ..core.p3s.wrappers import apply_p3s
from ..core.patches.frozen import encode
from ..core.patches.reference_pass import Reference
from ..core.patches.unet import family, require_image_unet
from ..core.pictures.curve import curves
from ..core.pictures.grid import to_pillow
from .p3s import vision_tokens
from .p3s_files import P3SAdapterIO, save_numbered
from .shared import mask_batch, number_input, require_latent_of, seed_input

NODE = "P3STrain"
MOST_IMAGES = 7
INTERRUPTED = "p3s/interrupted"
PREVIEW_SIDE = 512
LOSSES = "L_LDM, denoising", "L_ac, attention consistency"


@dataclass(frozen=True, eq=False)
class Subject:
    """What the node was given, as the networks take it."""

    samples: torch.Tensor
    vision: torch.Tensor
    masks: torch.Tensor | None
    positive: list[Any]
    negative: list[Any]


class P3STrain(io.ComfyNode):
    """Trains the adapter of one subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
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
        words = identifier.strip(), class_word.strip(), _text(prompt, identifier.strip(), class_word.strip())
        subject = _subject(model, (clip, vae, clip_vision), _few(images), masks, words[-1])
        width = subject.vision.shape[-1]
        origin = Origin(family(model), fingerprint(model), width, *words, dataclasses.asdict(settings))
        adapter, history = _train(model, vae, subject, settings, origin, preview_every)
        series = {name: [losses[number] for losses in history] for number, name in enumerate(LOSSES)}
        return io.NodeOutput(adapter, curves(series))


def _subject(
    model: Any, encoders: tuple[Any, Any, Any], images: torch.Tensor, masks: torch.Tensor | None, text: str
) -> Subject:
    clip, vae, clip_vision = encoders
    return Subject(
        samples=require_latent_of(model, vae.encode(images[..., :3]), "The latent of the pictures"),
        vision=vision_tokens(clip_vision, images),
        masks=_one_for_each(mask_batch(masks), len(images)),
        positive=_conditioning(clip, text),
        negative=_conditioning(clip, ""),
    )


# The host runs nodes in a mode whose tensors take no part in gradients.
@torch.enable_grad()
@torch.inference_mode(False)
def _train(
    model: Any, vae: Any, subject: Subject, settings: Settings, origin: Origin, preview_every: int
) -> tuple[TrainedAdapter, list[tuple[float, float]]]:
    network = trainable(model, origin.vision_width, settings.seed)

    def adapter() -> TrainedAdapter:
        return TrainedAdapter(trained_weights(network, model), origin)

    @torch.inference_mode()
    def preview() -> Any:
        part = Adapter(for_model(adapter(), model, origin.family), subject.vision[:1])
        mask = None if subject.masks is None else subject.masks[:1]
        reference = Reference(subject.samples[:1], None, settings.seed)
        injection = P3SSettings(reference, part, mask, value_strength=settings.value_strength)
        patched = apply_p3s(model, injection)
        latent = sample_preview(patched, subject.positive, subject.negative, subject.samples, settings.seed)
        return "JPEG", to_pillow(vae.decode(latent)[0]), PREVIEW_SIDE

    def keep() -> None:
        name = save_numbered(adapter(), INTERRUPTED)
        logging.getLogger(__name__).warning("Training was cancelled; P3S Load has what there is so far as %s.", name)

    samples = model.model.process_latent_in(subject.samples)
    texts = (encode(model, text, samples[:1]) for text in (subject.positive, subject.negative))
    trainer = Trainer(model, network, Pictures(samples, subject.vision, subject.masks, *texts), settings)
    history = train(trainer, Watch(preview, preview_every, keep))
    return adapter(), history


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
            "as the paper writes it, which makes L_ac vanish beside the other loss.",
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
            tooltip="Computes blocks anew for their gradients: much less memory, about a third more time, same result.",
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
