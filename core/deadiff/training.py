"""Training of DEADiff (arXiv 2403.06951): pairs that share style or subject teach what the tokens of each branch are.

    L = | eps - eps_theta(sqrt(a_t) z + sqrt(1 - a_t) eps, t, text of the target, tokens of the reference) |^2

As the two pictures of a pair differ in all else, the tokens can lower the loss only by what they share. Of three sets
of data, the first shares the style, the second the subject; in the third both branches read the target itself, without
a text. Both Q-Formers with their queries and projections learn, and the keys and values of the image in the
cross-attentions; the U-Net, the visual encoder and the norm of its features stay as they are, as in the authors'
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..patches.attention import AttentionCall, Chunk, route_cross_attention
from ..patches.blocks import Layer
from ..patches.training import Noised, denoise, differentiable, frozen_copy, pass_of
from ..patches.unet import self_attention_layers
from .checkpoint import fill, reading, sizes_of
from .kernel import join
from .loaded import CONTENT, STYLE, kinds_of
from .names import official
from .network import Branch, ImageAttentions, Readers, Sizes

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SAME_STYLE, SAME_SUBJECT, RECONSTRUCTION = "style", "subject", "reconstruction"
# Which branches read the reference in each set of data; the other's tokens are zeros.
BRANCHES = {
    SAME_STYLE: frozenset({STYLE}),
    SAME_SUBJECT: frozenset({CONTENT}),
    RECONSTRUCTION: frozenset({STYLE, CONTENT}),
}
TEXT_TOKENS = 77  # of a prompt; the official code knows no longer ones
INITIAL_SPREAD = 0.02  # of weights that start from nothing, as BERT's


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        drops: parts of the pairs of each set, in the order of `BRANCHES`, whose tokens are zeros.
        gradient_checkpointing: recomputes blocks for their gradients, instead of keeping what is in them.
    """

    drops: tuple[float, ...] = (0.15, 0.15, 0.0)
    gradient_checkpointing: bool = True


@dataclass(frozen=True, eq=False)
class Batch:
    """What is learnt from. B pairs.

    Attributes:
        target: (B, c, h, w), latents as the U-Net takes them.
        context: (B, 77, width), the target's text, of no words in the third set.
        features: (B, P, V), what the visual encoder makes of the references.
        reads: for each branch, (B,) whether it reads the reference.
        timesteps: (B,) whole numbers.
        noise: (B, c, h, w).
    """

    target: Tensor
    context: Tensor
    features: Tensor
    reads: Mapping[str, Tensor]
    timesteps: Tensor
    noise: Tensor


class Stylising(nn.Module):
    """What learns, in float32, around a frozen U-Net.

    Args:
        model: SD1.5; it is not touched.
        readers: both branches; their weights are changed in place.
        attentions: the added projections of the model's cross-attentions, in the order they run.
        dtype: of the frozen weights.
    """

    def __init__(self, model: ModelPatcher, readers: Readers, attentions: ImageAttentions, dtype: torch.dtype) -> None:
        super().__init__()
        self.settings = Settings()
        self.readers = readers.float().train().requires_grad_(True)
        for branch in (readers.style, readers.content):
            branch.vision_norm.requires_grad_(False)
        self.attentions = attentions.float().train().requires_grad_(True)
        # In lists: what is frozen belongs neither to the weights that are saved nor to those that processes exchange.
        self._frozen = [frozen_copy(model, dtype)]
        self._sampling = [model.get_model_object("model_sampling")]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch, "loss"."""
        noised = Noised(self._sampling[0], batch.target, batch.noise, batch.timesteps, torch.float32)
        out = self._predict(noised.entering, noised.timesteps, batch)
        return {"loss": F.mse_loss(noised.predicted(out), batch.noise)}

    def denoised(self, batch: Batch, x: Tensor, sigma: Tensor) -> Tensor:
        """The batch's targets without noise, predicted from x (B, c, h, w) at a noise level (B,); for samplers."""
        return denoise(self._sampling[0], lambda entering, told: self._predict(entering, told, batch), x, sigma)

    def tokens(self, batch: Batch) -> dict[str, Tensor]:
        """(B, Q, H) of each branch, zeros where it does not read."""
        found = {}
        for name in (STYLE, CONTENT):
            branch: Branch = getattr(self.readers, name)
            rows = torch.nonzero(batch.reads[name]).flatten().to(batch.target.device)
            _, queries, hidden = branch.query_tokens.shape
            tokens = batch.features.new_zeros(len(batch.target), queries, hidden)
            if len(rows):
                read = branch(batch.features[rows])
                tokens = tokens.to(read.dtype).index_copy(0, rows, read)
            found[name] = tokens
        return found

    def _predict(self, x: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        handler = _JointAttention(self._frozen[0], self.attentions, self.tokens(batch))
        options = {
            "cond_or_uncond": [0],
            "uuids": [0],
            "optimized_attention_override": differentiable,
        }
        options = route_cross_attention(options, handler)
        through = pass_of(self.settings.gradient_checkpointing)
        return through(self._frozen[0], x, timesteps, batch.context, None, None, options)


class _JointAttention:
    """Attention to the text and to the tokens of a layer's kind, in one softmax."""

    def __init__(self, unet: UNetModel, attentions: ImageAttentions, tokens: Mapping[str, Tensor]) -> None:
        layers = list(self_attention_layers(unet))
        self._kinds = kinds_of(layers)
        self._projections = dict(zip(layers, attentions.attention, strict=True))
        self._tokens = tokens

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The text as it is."""
        return context, value

    def attend(self, call: AttentionCall) -> Tensor:
        """Att(Q, [K_text; K_image], [V_text; V_image])."""
        keys, values = self._projections[call.layer](self._tokens[self._kinds[call.layer]])
        return call.attend(call.q, join(call.k, keys, 1.0), join(call.v, values, 1.0))


def new_readers(sizes: Sizes, seed: int) -> Readers:
    """Both branches before any training.

    Note:
        The authors start from BLIP-Diffusion's, which have learnt from millions of pictures: `readers_from` such a
        file is the better start where there is one.
    """
    readers = Readers(sizes, device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in readers.state_dict().items():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * INITIAL_SPREAD)
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
    return readers


def readers_from(weights: Mapping[str, Tensor], seed: int) -> Readers:
    """Both branches as copies of one Q-Former that has learnt from many pictures, as the authors start.

    Args:
        weights: under the names that LAVIS gives them: of BLIP-Diffusion (`blip.`, `proj_layer.`), which the authors
            took, or of a Q-Former by itself; without a projection both start with a new one.
        seed: of the new projection.

    Raises:
        ValueError: it is no Q-Former with cross-attention in every layer, or not a whole one.
    """
    prefix = next((each for each in ("", "blip.") if f"{each}query_tokens" in weights), None)
    if prefix is None:
        raise ValueError(
            "The file to start the Q-Formers from holds none: it has no query_tokens. Choose BLIP-Diffusion's, in the "
            "layout of LAVIS."
        )
    hidden = weights[f"{prefix}query_tokens"].shape[-1]
    parts = {f"blip.{name.removeprefix(prefix)}": each for name, each in weights.items() if name.startswith(prefix)}
    parts |= {
        **_new_projection(hidden, seed),
        **{n: each for n, each in weights.items() if n.startswith("proj_layer.")},
    }
    both = {f"{branch}_{name}": each for branch in (STYLE, CONTENT) for name, each in parts.items()}
    with reading("Q-Formers"):
        sizes = sizes_of(both, None)
    readers = Readers(sizes, device="meta", dtype=torch.float32)
    fill(readers, both)
    # Copies: what both branches start from would else be one tensor, and learn together.
    readers.load_state_dict({name: each.float().clone() for name, each in readers.state_dict().items()}, assign=True)
    return readers


def _new_projection(hidden: int, seed: int) -> dict[str, Tensor]:
    """Weights of a projection before any training, by their names in a file."""
    generator = torch.Generator().manual_seed(seed)

    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        spread = torch.randn(rows, columns, generator=generator) * INITIAL_SPREAD
        return {f"proj_layer.{name}.weight": spread, f"proj_layer.{name}.bias": torch.zeros(rows)}

    norm = {"proj_layer.LayerNorm.weight": torch.ones(hidden), "proj_layer.LayerNorm.bias": torch.zeros(hidden)}
    return {**norm, **linear("dense1", 4 * hidden, hidden), **linear("dense2", hidden, 4 * hidden)}


def new_attentions(model: ModelPatcher, hidden: int) -> ImageAttentions:
    """The added projections before any training: copies of the text's, so that image tokens start as text tokens would.

    Args:
        hidden: width of the tokens; has to be that of the text.

    Raises:
        ValueError: the two widths differ.
    """
    layers = self_attention_layers(model.model.diffusion_model).values()
    width = next(iter(layers)).attn2.to_k.weight.shape[1]
    if width != hidden:
        raise ValueError(f"The Q-Formers make tokens of width {hidden}, but the U-Net's text has {width}.")
    attentions = ImageAttentions([(hidden, len(layer.attn2.to_k.weight)) for layer in layers], dtype=torch.float32)
    with torch.no_grad():
        for added, layer in zip(attentions.attention, layers, strict=True):
            for weight, source in zip(added.parameters(), (layer.attn2.to_k, layer.attn2.to_v), strict=True):
                weight.copy_(source.weight)
    return attentions


def trained_weights(module: Stylising, prefixes: list[str]) -> dict[str, Tensor]:
    """What was trained under the names of the released checkpoint, with the embeddings of the two words alone.

    Args:
        prefixes: of the cross-attentions' names in it, in the order they run.
    """
    return {
        official(name, prefixes): weight.detach().cpu()
        for network in (module.readers, module.attentions)
        for name, weight in network.state_dict().items()
    }


def attention_prefixes(model: ModelPatcher) -> list[str]:
    """The names of a model's cross-attentions in its checkpoint, in the order they run."""
    unet = model.model.diffusion_model
    names = {id(module): name for name, module in unet.named_modules()}
    return [f"model.diffusion_model.{names[id(layer.attn2)]}." for layer in self_attention_layers(unet).values()]
