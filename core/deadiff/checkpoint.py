"""Checks that a file's weights are DEADiff's, and puts them where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ..models import checkpoint
from .names import WORDS, attention_layers, official
from .network import Sizes
from .words import embeddings_of

Weights = Mapping[str, Tensor]

# What other files hold, by a part of a name that only they have; messages name the first that fits.
OTHER_KINDS = {
    "image_proj.": "an IP-Adapter",
    "ip_adapter.": "an IP-Adapter",
    "lora_down": "a LoRA",
    "lora_A": "a LoRA",
    "lora_unet": "a LoRA",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "zero_convs.": "a ControlNet",
    "conditioner.embedders.1.": "an SDXL checkpoint",
    "cond_stage_model.model.": "an SD2 checkpoint",
    "model.diffusion_model.double_blocks.": "a Flux checkpoint",
    "double_blocks.": "a Flux diffusion model",
    "model.diffusion_model.input_blocks.": "a Stable Diffusion checkpoint without DEADiff's layers",
    "vision_model.": "a CLIP vision model",
    "visual.transformer.": "a CLIP vision model",
    "text_model.": "a text encoder",
    "decoder.conv_in.": "a VAE",
}


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Turns the errors that weights of impossible shapes cause into one sentence.

    Args:
        part: of the file, for the sentence.

    Raises:
        ValueError: a tensor is missing, or its shape contradicts the others.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"The DEADiff file is incomplete: its {part} lacks {error}. Get it again.") from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(
            f"The DEADiff file does not fit together: the shapes in its {part} contradict each other. Get it again."
        ) from error


def require_deadiff(weights: Weights) -> None:
    """Checks by content that a file is a DEADiff file.

    Raises:
        ValueError: it is another kind of file; says what it looks like.
    """
    if "style_blip.query_tokens" in weights or any(".attn2.i_to_k." in key for key in weights):
        return
    kinds = (kind for mark, kind in OTHER_KINDS.items() if any(mark in key for key in weights))
    looks = next(kinds, f"something else (its first tensor is '{next(iter(weights), 'none at all')}')")
    raise ValueError(
        f"The file is not a DEADiff checkpoint: it looks like {looks}. "
        "Choose deadiff_v1.ckpt, or the file that DEADiff Extract made from it."
    )


def sizes_of(weights: Weights, heads: int | None) -> Sizes:
    """Sizes of the Q-Formers.

    Args:
        heads: number of attention heads; None: one for each 64 channels, as in BERT.

    Raises:
        KeyError, ValueError: a tensor whose shape gives a size is missing or of another kind.
    """
    layer = "style_blip.Qformer.bert.encoder.layer."
    _, queries, hidden = weights["style_blip.query_tokens"].shape
    return Sizes(
        vision=len(weights["style_blip.ln_vision.weight"]),
        hidden=hidden,
        queries=queries,
        layers=len({key.removeprefix(layer).split(".")[0] for key in weights if key.startswith(layer)}),
        heads=heads or max(hidden // 64, 1),
        feed_forward=len(weights[f"{layer}0.intermediate_query.dense.weight"]),
        projection=len(weights["style_proj_layer.dense1.weight"]),
    )


def instruction(weights: Weights, branch: str) -> Tensor:
    """The embeddings of the word that instructs a branch: (3, H) float32.

    Raises:
        ValueError: the file has neither them nor all words' embeddings.
    """
    ready = weights.get(f"{branch}_blip.instruction")
    if ready is not None:
        return ready.float()
    with reading(f"embeddings of the word '{branch}'"):
        return embeddings_of(weights, branch).instruction(WORDS[branch])


def fill(network: nn.Module, weights: Weights) -> None:
    """Puts a file's tensors, with the types they have there, into a network that lies on the meta device.

    Raises:
        ValueError: tensors are missing or have another shape; names some of them.
        RuntimeError: tensors hold no floating-point numbers.
    """
    prefixes = [prefix for _, prefix in attention_layers(weights)]
    filled: dict[str, Tensor] = {}
    missing = []
    for name, wanted in network.state_dict().items():
        tensor: Tensor | None
        if name.endswith(".instruction"):
            key, tensor = name, instruction(weights, name.split(".")[0])
        else:
            key = official(name, prefixes)
            tensor = weights.get(key)
        if tensor is None:
            missing.append(key)
        elif tensor.shape != wanted.shape:
            raise ValueError(
                f"The DEADiff file does not fit together: {key} has the shape {tuple(tensor.shape)}, but the "
                f"other tensors need {tuple(wanted.shape)}."
            )
        else:
            filled[name] = tensor
    if missing:
        named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise ValueError(f"The DEADiff file is incomplete: it lacks {len(missing)} tensors ({named}). Get it again.")
    checkpoint.require_floats(filled, "The DEADiff file")
    network.load_state_dict(filled, assign=True)
    network.requires_grad_(False).eval()
