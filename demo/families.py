"""Sizes of the demo models: the topology of the real families at small width."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetSize:
    """What tells one U-Net of the SD line from another; names as in the checkpoints' own configurations."""

    model_channels: int
    channel_mult: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    context_dim: int
    use_linear_in_transformer: bool
    num_heads: int = -1
    num_head_channels: int = -1
    adm_in_channels: int | None = None
    num_res_blocks: int = 2
    in_channels: int = 4
    out_channels: int = 4

    def heads(self, width: int) -> int:
        """Number of attention heads in a layer of that width."""
        return self.num_heads if self.num_heads > 0 else width // self.num_head_channels


@dataclass(frozen=True)
class TextEncoderSize:
    """A CLIP text tower. `open_clip` tells the two key layouts apart that checkpoints use for it."""

    prefix: str
    layers: int
    hidden: int = 64
    heads: int = 4
    open_clip: bool = False
    vocabulary: int = 49408
    positions: int = 77

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward layers."""
        return 4 * self.hidden


@dataclass(frozen=True)
class Family:
    """One demo checkpoint."""

    file_name: str
    latent_scale: float
    unet: UNetSize
    text_encoders: tuple[TextEncoderSize, ...]


# The deep levels hold most of a U-Net's parameters and are kept narrow. A level still differs in width from
# the one above it where the real models do, because that is where a block has a skip_connection.
SD15 = Family(
    file_name="v1-5-pruned-emaonly-fp16.safetensors",
    latent_scale=0.18215,
    unet=UNetSize(
        model_channels=64,
        channel_mult=(1, 2, 1, 1),
        transformer_depth=(1, 1, 1, 0),
        context_dim=64,
        use_linear_in_transformer=False,
        # 8 in the real model. The cost of attention on a CPU grows with the heads, however narrow they are.
        num_heads=2,
    ),
    text_encoders=(TextEncoderSize("cond_stage_model.transformer.", layers=12),),
)

SDXL = Family(
    file_name="sd_xl_base_1.0.safetensors",
    latent_scale=0.13025,
    unet=UNetSize(
        model_channels=64,
        channel_mult=(1, 2, 1),
        transformer_depth=(0, 2, 10),
        context_dim=128,
        use_linear_in_transformer=True,
        num_head_channels=16,
        # the pooled text and six sizes of 256 numbers each
        adm_in_channels=64 + 6 * 256,
    ),
    text_encoders=(
        TextEncoderSize("conditioner.embedders.0.transformer.", layers=12),
        TextEncoderSize("conditioner.embedders.1.model.", layers=32, open_clip=True),
    ),
)

FAMILIES = {"sd15": SD15, "sdxl": SDXL}


def family(name: str) -> Family:
    """Returns the family of that name.

    Raises:
        ValueError: there is no such demo model.
    """
    if name not in FAMILIES:
        raise ValueError(f"There is no demo model '{name}'. Choose one of: {', '.join(FAMILIES)}.")
    return FAMILIES[name]
