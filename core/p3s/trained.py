"""The injection of what a trained adapter reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor, nn

from ..patches.attention import AttentionCall, Options
from ..patches.binding import Evaluation
from ..patches.unet import self_attention_layers
from .features import FeaturesOf
from .kernel import nonzero_tokens, on_grid
from .settings import Adapter

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

    from .run import P3SRun


class ReadByAdapter:
    """What the adapter's network read, through the projections of the frozen layers.

    Args:
        features: of one forward pass.
        unet: the frozen U-Net.
        identity_at_zero: leaves tokens of zeros out.
    """

    def __init__(self, features: FeaturesOf, unet: UNetModel, identity_at_zero: bool) -> None:
        self._features = features
        self._layers = self_attention_layers(unet)
        self._identity_at_zero = identity_at_zero

    def keys_values(self, call: AttentionCall) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Projects f."""
        layer = call.block, call.depth
        features, attention = self._features[layer], self._layers[layer].attn1
        hidden = features.hidden.unflatten(0, (len(call.chunks), -1))
        return attention.to_k(hidden), attention.to_v(hidden), features.grid

    def used(self, call: AttentionCall) -> Tensor | None:
        """Those that are not zero, if so chosen."""
        return nonzero_tokens(self._features[call.block, call.depth].hidden) if self._identity_at_zero else None


class AdapterEvaluation(Evaluation):
    """One evaluation of the sampler: before each forward pass, the adapter reads the reference for its halves.

    Args:
        adapter: with its network loaded.
        epsilon: weight of the injection.
    """

    def __init__(self, run: P3SRun, model: BaseModel, adapter: Adapter, network: nn.Module, epsilon: float) -> None:
        self._run = run
        self.blocks = run.blocks
        self._latent = model.process_latent_in(run.settings.reference.samples.float())
        self._adapter = adapter
        self._network = network
        self._epsilon = epsilon

    def forward(self, executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The U-Net's forward pass, with what the adapter reads for the same timestep and text."""
        timesteps, context, y, control, options = args
        halves = len(options["cond_or_uncond"])
        # The pictures of a half have timestep and text in common, unless each has a prompt of its own.
        read = slice(None, None, len(x) // halves if self._run.prompts_each == 1 else 1)
        timestep, text, label = timesteps[read], context[read], None if y is None else y[read]
        latent, vision = (t.to(x).expand(len(timestep), *t.shape[1:]) for t in (self._latent, self._adapter.vision))
        features = self._network(latent, vision, timestep, text, label)
        hidden = ReadByAdapter(features, executor.class_obj, self._adapter.identity_at_zero)
        injecting = self._run.injecting(hidden, self._epsilon)
        options = with_cross(options, features, self._epsilon)
        return injecting.forward(executor, x, timesteps, context, y, control, options, **kwargs)


def with_cross(options: Options, features: FeaturesOf, epsilon: float) -> Options:
    """Copies `transformer_options` so that the copy's cross-attention features are added to each cross-attention."""

    def add(n: Tensor, extra_options: Options) -> Tensor:
        height, width = extra_options["activations_shape"][-2:]
        read = features[extra_options["block"], extra_options["block_index"]]
        added = epsilon * on_grid(read.cross, read.grid, (height, width))
        # Of a half's pictures, which lie one after the other, or of each one
        return (n.unflatten(0, (len(added), -1)) + added.unsqueeze(1)).flatten(0, 1)

    patches = options.get("patches", {})
    name = "attn2_output_patch"
    return {**options, "patches": {**patches, name: [*patches.get(name, []), add]}}
