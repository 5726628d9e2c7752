"""Leffa's U-Nets: ComfyUI's, less what Leffa does not have."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..patches.reference_pass import ReferenceRecorded
from .layout import GENERATIVE, REFERENCE
from .reference import REFERENCES


class PassThrough(nn.Module):
    """Stands in for a layer that is left out, or never reached."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns its input."""
        return x


class LeffaUNet(UNetModel):
    """A U-Net without text.

    Its cross-attention hands back its input, which is `norm2(x)`, and the block adds that to the residual stream:
    x += attention(norm1(x)); x += norm2(x); x += ff(norm3(x)).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in transformer_layers(self):
            layer.attn2 = PassThrough()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """ComfyUI's forward pass, after a check that Leffa's conditioning has arrived.

        Raises:
            RuntimeError: it has not arrived.
        """
        if x.shape[1] != self.in_channels:
            raise RuntimeError(
                f"A Leffa model needs {self.in_channels} input channels, but only {x.shape[1]} arrived. Connect both "
                "positive and negative of Leffa Try-On or Leffa Pose Transfer to the sampler."
            )
        if REFERENCES in kwargs:
            raise RuntimeError(
                "The reference of Leffa was not looked at. Connect the model output of the node that made the "
                "conditioning (Leffa Try-On, Leffa Pose Transfer) to the sampler, not the loader's."
            )
        return super().forward(x, *args, **kwargs)


class ReferenceUNet(LeffaUNet):
    """The reference U-Net, which ends at its last feature; what would come after it is not there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number_of_features = len(transformer_layers(self))
        self._cut_behind_last_feature()

    def features(self, x: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Normed hidden states that enter the self-attentions, in the order they run.

        Args:
            x: (B, C, H, W).
            timesteps: (B,).

        Returns:
            (B, tokens, width) for each transformer layer.
        """
        recorded: list[Tensor] = []

        def record(n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, ...]:
            recorded.append(n)
            if len(recorded) == self.number_of_features:
                raise ReferenceRecorded
            return n, context, value

        try:
            self(x, timesteps, transformer_options={"patches": {"attn1_patch": [record]}})
        except ReferenceRecorded:
            pass
        return recorded

    def _cut_behind_last_feature(self) -> None:
        last = transformer_layers(self)[-1]
        for name in ("attn1", "norm2", "norm3", "ff"):
            setattr(last, name, PassThrough())
        number, block = [
            (n, block) for n, block in enumerate(self.output_blocks) if any(last is m for m in block.modules())
        ][-1]
        transformer = next(m for m in block if isinstance(m, SpatialTransformer))
        transformer.proj_out = PassThrough()
        del block[list(block).index(transformer) + 1 :]
        del self.output_blocks[number + 1 :]
        self.out = PassThrough()


CLASSES: dict[str, type[LeffaUNet]] = {GENERATIVE: LeffaUNet, REFERENCE: ReferenceUNet}


def transformer_layers(unet: UNetModel) -> list[BasicTransformerBlock]:
    """All transformer layers in the order they run, which is the order in which the modules were made."""
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
