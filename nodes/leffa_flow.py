"""Leffa: the flow that a model's attention has learned, made visible."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa.flow_pictures import pictures_of
from ..core.leffa.model import require_leffa
from ..core.leffa.observe import learned_flow
from ..core.leffa.reference import REFERENCES
from ..core.pictures import gate
from .connected import checked
from .shared import seed_input


class LeffaFlow(io.ComfyNode):
    """Shows where each place of a generated picture looks on the reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaFlow",
            display_name="Leffa Flow",
            category="model/conditioning/reference",
            description=(
                "For inspection: passes a finished picture through the model once and shows the reference, warped to "
                "where the attention looks, and the displacement as a colour wheel."
            ),
            search_aliases=["leffa", "flow field", "attention map", "correspondence", "warp"],
            inputs=[
                io.Model.Input("model", tooltip="The model from Leffa Try-On or Leffa Pose Transfer."),
                io.Conditioning.Input("positive", tooltip="The positive conditioning from the same node."),
                io.Latent.Input("samples", tooltip="The finished latent from KSampler."),
                io.Image.Input("reference_image", tooltip="The garment or person that was the reference."),
                io.Int.Input(
                    "timestep",
                    default=250,
                    min=0,
                    max=999,
                    tooltip="Noise that is added for the pass, of 1000. The loss was trained below 500.",
                ),
                io.Float.Input(
                    "temperature",
                    default=2.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Softens the attention as the training loss does; 1 is the attention of the model itself.",
                ),
                seed_input("Seed of the noise that is added for the pass."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="warped", tooltip="The reference, moved to where the picture looks at it."
                ),
                io.Image.Output(
                    display_name="flow",
                    tooltip="Displacement as a colour: the hue is the direction, the saturation the length.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        samples: dict[str, Any],
        reference_image: Tensor,
        timestep: int,
        temperature: float,
        seed: int,
    ) -> io.NodeOutput:
        """Returns the two pictures."""
        reference_image = gate.picture(reference_image, "reference_image")
        require_leffa(model, "Leffa Flow")
        if not any(REFERENCES in options for _, options in positive):
            raise ValueError("positive has no reference of Leffa. Connect the positive output of the Leffa node.")
        latents = samples["samples"]
        if len(reference_image) not in (1, len(latents)):
            raise ValueError(
                f"reference_image holds {len(reference_image)} pictures for {len(latents)} latents. "
                "Give one for all, or one for each."
            )
        flow = learned_flow(model, positive, latents, timestep, seed, temperature)
        return io.NodeOutput(*pictures_of(flow, reference_image))
