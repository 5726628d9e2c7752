"""What a method sees of a model, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..attention import Handler, Options
from ..blocks import Block


class Attentions(Protocol):
    """The self-attentions of one model.

    Attributes:
        blocks: those with self-attention in the order they run, each with its number of self-attentions.
        is_video: whether the model's latents are the frames of a video.
        of_picture: entries of a prompt that in this family must be as large as the picture, so they are of no
            reference.
    """

    blocks: dict[Block, int]
    is_video: bool
    of_picture: frozenset[str]

    def frames(self, latents: Sequence[int]) -> int:
        """How many frames of tokens one sample of latents has, by their shape; 1 where frames are no tokens."""

    def route(self, x: Tensor, inputs: Mapping[str, Any], options: Options, handler: Handler) -> Options:
        """Copies `transformer_options` so that `handler` computes the self-attentions of one forward pass.

        Args:
            x: (G * B, C, H, W) or (G * B, C, F, H, W), the latents of the pass.
            inputs: what else the pass is given by name.
        """

    def recorded(self, blocks: frozenset[Block], latent: Sequence[int]) -> int:
        """How many numbers the keys and values of some blocks are for one sample.

        Args:
            latent: its shape, (C, H, W) or (C, F, H, W).
        """
