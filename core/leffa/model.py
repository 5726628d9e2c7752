"""Leffa's models as ComfyUI samples and manages them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.supported_models
import torch
from comfy.conds import CONDConstant
from comfy.model_base import BaseModel, ModelType
from comfy.model_sampling import EPS, ModelSamplingDiscrete
from torch import Tensor

from ..patches.unet import family
from .layout import CHANNELS, REFERENCE
from .reference import KEY, REFERENCES, Reference
from .unet import LeffaUNet, ReferenceUNet

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class LeffaSampling(ModelSamplingDiscrete, EPS):
    """ComfyUI's, with the start of Leffa's sampler: unit noise at the first timestep, whichever that is."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """ComfyUI does so only when the first timestep is the model's last, which Leffa's schedule never visits."""
        return super().noise_scaling(sigma, noise, latent_image, max_denoise or not latent_image.any())


class CONDReferences(CONDConstant):
    """One `Reference` for each row of a batch; they travel with the conditioning they belong to."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> CONDReferences:
        """Repeats the references until there is one for each sample."""
        return CONDReferences([self.cond[i % len(self.cond)] for i in range(batch_size)])

    def can_concat(self, other: CONDConstant) -> bool:
        """Halves with different references run in one batch."""
        return isinstance(other, CONDReferences)

    def concat(self, others: list[CONDReferences]) -> list[Reference]:
        """Row by row, as ComfyUI stacks the samples."""
        return [*self.cond, *(reference for other in others for reference in other.cond)]


class LeffaModel(BaseModel):
    """The generative U-Net.

    Attributes:
        body_map: the kind of DensePose picture it was trained with, see `body_map.py`; None if that is not known.
    """

    body_map: str | None = None

    def __init__(self, model_config: comfy.supported_models.SD15, device: torch.device | None = None) -> None:
        super().__init__(model_config, ModelType.EPS, device=device, unet_model=LeffaUNet)
        self.model_sampling = LeffaSampling(model_config)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Adds the references."""
        conds: dict[str, Any] = super().extra_conds(**kwargs)
        if REFERENCES in kwargs:
            conds[REFERENCES] = CONDReferences(list(kwargs[REFERENCES]))
        return conds

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Refuses to be saved in ComfyUI's form, which has no place for the reference U-Net.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "A Leffa model cannot be saved as a checkpoint: the file would lack its reference U-Net, and nothing could "
            "load it. Keep the file that Leffa Loader reads."
        )


class LeffaReferenceModel(BaseModel):
    """The reference U-Net."""

    def __init__(self, model_config: comfy.supported_models.SD15, device: torch.device | None = None) -> None:
        super().__init__(model_config, ModelType.EPS, device=device, unet_model=ReferenceUNet)

    def features(self, latents: Tensor, timestep: Tensor) -> list[Tensor]:
        """The features of clean latents at one timestep.

        Args:
            latents: (B, C, H, W), scaled.
            timestep: (1,).

        Returns:
            (B, tokens, width) for each transformer layer, in the order they run.
        """
        x = latents.to(self.get_dtype_inference())
        return self.diffusion_model.features(x, timestep.float().expand(len(x)))


class _EitherUNet:
    """Of both families: the number of input channels tells the two U-Nets apart."""

    unet_config: dict[str, Any]

    def get_model(self, state_dict: Any, prefix: str = "", device: torch.device | None = None) -> BaseModel:
        """As in ComfyUI's families."""
        is_reference = self.unet_config["in_channels"] == CHANNELS[REFERENCE]
        return (LeffaReferenceModel if is_reference else LeffaModel)(self, device)


class LeffaSD15(_EitherUNet, comfy.supported_models.SD15):
    """Try-on, on the layout of SD1.5."""


class LeffaSDXL(_EitherUNet, comfy.supported_models.SDXL):
    """Pose transfer, on the layout of SDXL, with noise that reaches zero signal."""

    sampling_settings = {"zsnr": True}


def require_leffa(model: ModelPatcher, node: str) -> LeffaModel:
    """Returns the generative model of what is connected.

    Raises:
        RuntimeError: another model; names its family and input channels.
    """
    if isinstance(model.model, LeffaModel) and model.get_additional_models_with_key(KEY):
        return model.model
    channels = getattr(getattr(model.model, "model_config", None), "unet_config", {}).get("in_channels")
    raise RuntimeError(
        f"{node} needs a Leffa model with 12 input channels and its reference U-Net, but got "
        f"{family(model)}{f' with {channels}' if channels else ''}. Connect Leffa Loader."
    )
