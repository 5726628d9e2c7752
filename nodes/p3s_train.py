"""Training of a subject for P3S-Diffusion (arXiv 2412.19533)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.models.vision import whole_picture_tokens
from ..core.p3s.kernel import AVERAGES
from ..core.p3s.objective import DROPS, WHERE, Settings
from ..core.p3s.settings import BOTH
from ..core.p3s.train_in_graph import Examples, train_in_graph
from ..core.patches.unet import require_image_unet
from ..core.pictures import gate
from .connected import checked
from .p3s_files import P3SAdapterIO, save_interrupted, states_folder
from .shared import encoder, number_input, seed_input

NODE = "P3S Train"
MOST_IMAGES = 7  # in a batch


class P3STrain(io.ComfyNode):
    """Trains the adapter of one subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="P3STrain",
            display_name="P3S Train",
            category="model/patch/reference",
            description=(
                "Trains a network on pictures of one subject, best cleaned by Point Mask, so that P3S Inject puts it "
                "into new scenes. The model stays as it is; what is trained comes out as an adapter."
            ),
            search_aliases=["p3s", "train subject", "personalization", "dreambooth", "fine-tune", "subject-driven"],
            is_input_list=True,  # so that a list of pictures is one training, and may have many sizes
            inputs=[*_main_inputs(), *_advanced_inputs(), _masks_input(), *_switch_inputs()],
            outputs=[
                P3SAdapterIO.Output(display_name="adapter", tooltip="The trained subject, for P3S Inject."),
                io.Image.Output(display_name="loss_curve", tooltip="Both losses over the steps of the training."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        clip_vision: Any,
        images: Any,
        identifier: Any,
        class_word: Any,
        epochs: Any,
        learning_rate: Any,
        seed: Any,
        prompt: Any,
        gamma: Any,
        where: Any,
        average: Any,
        condition_drop: Any,
        batch_size: Any,
        value_strength: Any,
        gradient_checkpointing: Any,
        mixed_precision: Any,
        preview_every: Any,
        masks: Any = None,
        dropped: Any = BOTH,
        rngr: Any = True,
        learned_weight: Any = False,
        resumable: Any = False,
    ) -> io.NodeOutput:
        """Returns the adapter and the picture of its losses. ComfyUI gives every input as a list."""
        # In this one place: a call that gives no lists is one with lists of one.
        one = _the_one if isinstance(model, list) else lambda value, _: value
        if not isinstance(model, list):
            images, masks = [images], None if masks is None else [masks]
        model, clip, vae = one(model, "model"), one(clip, "clip"), one(vae, "vae")
        require_image_unet(model, NODE)
        named = one(identifier, "identifier").strip(), one(class_word, "class_word").strip()
        words = *named, _text(one(prompt, "prompt"), *named)
        settings = Settings(
            epochs=one(epochs, "epochs"),
            learning_rate=one(learning_rate, "learning_rate"),
            gamma=one(gamma, "gamma"),
            where=one(where, "where"),
            average=one(average, "average"),
            condition_drop=one(condition_drop, "condition_drop"),
            dropped=one(dropped, "dropped"),
            batch_size=one(batch_size, "batch_size"),
            value_strength=one(value_strength, "value_strength"),
            rngr=one(rngr, "rngr"),
            learned_weight=one(learned_weight, "learned_weight"),
            gradient_checkpointing=one(gradient_checkpointing, "gradient_checkpointing"),
            mixed_precision=one(mixed_precision, "mixed_precision"),
            seed=one(seed, "seed"),
        )
        pictures = _pictures(images)
        inside = _one_for_each(_masks(masks), len(pictures))
        texts = _conditioning(clip, words[-1]), _conditioning(clip, "")
        encode, eye = encoder(model, vae, "The latent of the pictures"), one(clip_vision, "clip_vision")
        examples = [
            Examples(
                encode(batch := torch.cat([pictures[at] for at in alike])),
                whole_picture_tokens(eye, batch),
                None if inside is None else [inside[at] for at in alike],
                *texts,
            )
            for alike in _by_size(pictures)
        ]
        every, states = one(preview_every, "preview_every"), states_folder() if one(resumable, "resumable") else None
        return io.NodeOutput(
            *train_in_graph(model, vae.decode, examples, words, settings, every, save_interrupted, states)
        )


def _the_one(values: Any, name: str) -> Any:
    """The value of an input that takes one.

    Raises:
        ValueError: there are several.
    """
    if not isinstance(values, list):  # a default
        return values
    if len(values) != 1:
        raise ValueError(
            f"{name} is a list of {len(values)}, but {NODE} takes one: only images and masks can be lists."
        )
    return values[0]


def _pictures(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """All pictures, (1, H, W, 3) each, of some batches.

    Raises:
        ValueError: a batch holds more than a few: rather a video than a subject.
    """
    batches = [gate.picture(each, "images") for each in images]
    for batch in batches:
        if len(batch) > MOST_IMAGES:
            raise ValueError(
                f"images is a batch of {len(batch)} pictures, but {NODE} takes 1 to {MOST_IMAGES}. Connect more of "
                "them as a list, as a node gives it that loads a folder."
            )
    return [picture for batch in batches for picture in batch.split(1)]


def _masks(masks: list[torch.Tensor | None] | None) -> list[torch.Tensor] | None:
    """All masks, (H, W) each, of some batches; none where nothing came."""
    return [mask for each in masks or () if each is not None for mask in gate.masks(each, "masks")] or None


def _by_size(pictures: list[torch.Tensor]) -> list[list[int]]:
    """The numbers of the pictures, those of one size together."""
    alike: dict[torch.Size, list[int]] = {}
    for number, picture in enumerate(pictures):
        alike.setdefault(picture.shape, []).append(number)
    return list(alike.values())


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


def _one_for_each(masks: list[torch.Tensor] | None, count: int) -> list[torch.Tensor] | None:
    """One mask for each picture.

    Raises:
        ValueError: there is another number of masks, or one shows nothing.
    """
    if masks is None:
        return None
    if len(masks) not in (1, count):
        raise ValueError(f"masks holds {len(masks)} masks for {count} pictures. Connect one for each, or one for all.")
    if not all(mask.any() for mask in masks):
        raise ValueError("One of the masks is all black, so its picture shows no subject. Make the subject white.")
    return masks * count if len(masks) == 1 else masks


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
            tooltip="Pictures of the subject, with look-alikes painted over by Point Mask: a batch of 1 to 7, or a "
            "list of pictures of any sizes, as a node gives it that loads a folder. The paper has 4 to 7.",
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
            tooltip="Cross-attentions that L_ac compares: the last one; all (the mean over them) or all summed, which "
            "the paper found to be worse; none leaves L_ac out.",
        ),
        io.Combo.Input(
            "average",
            options=AVERAGES,
            advanced=True,
            tooltip="What L_ac is divided by. mean: the mean of the maps, which gives gamma an effect. sum: their sum "
            "as the paper states it, which makes L_ac vanish beside the other loss.",
        ),
        number_input(
            "condition_drop", 0.1, 1.0, "Part of the pictures that are seen without their conditions, for guidance."
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


def _switch_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "dropped",
            options=DROPS,
            default=BOTH,
            optional=True,
            advanced=True,
            tooltip="Which conditions condition_drop leaves out. text and reference: guidance then leads away from a "
            "picture without the subject. text: it leads away from a picture with the subject and without words.",
        ),
        io.Boolean.Input(
            "rngr",
            default=True,
            optional=True,
            advanced=True,
            tooltip="The encoder that adds the vision encoder's view of the subject to the reference's latent. Off: "
            "the paper's ablation without it.",
        ),
        io.Boolean.Input(
            "learned_weight",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Also learns the weight of the injection for each timestep, the paper's alternative to its "
            "schedule. P3S Inject uses it with schedule = learned.",
        ),
        io.Boolean.Input(
            "resumable",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Leaves the state of the training in output/p3s when it ends or is cancelled (7 GB for SD1.5). "
            "Queued again, the same training goes on from there, also to more epochs, with the same result as without "
            "a break.",
        ),
    ]
