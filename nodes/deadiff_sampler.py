"""The sampling loops of DEADiff's official application."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.deadiff.sampler import (
    OfficialDDIM,
    OfficialEulerAncestral,
    euler_sigmas,
    official_sigmas,
    with_fractional_timesteps,
)
from .connected import checked


class DEADiffSampler(io.ComfyNode):
    """Sampler and noise levels that reproduce the official DDIM loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DEADiffSampler",
            display_name="DEADiff Sampler",
            category="model/patch/reference",
            description=(
                "Sampler and sigmas for SamplerCustom that reproduce the DDIM loop of DEADiff's official application: "
                "same first noise, same steps, same end. KSampler's ddim is close, but not the same."
            ),
            search_aliases=["deadiff", "official ddim", "ddim sampler", "reproduce deadiff"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled; its noise levels make the schedule."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps asked for; the official application uses 50. Numbers that do not divide 1000 "
                    "give a few more, as in the official code.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced."),
                io.Sigmas.Output(tooltip="The noise levels to go with it. They always start from pure noise."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        """Returns the sampler and its noise levels."""
        return io.NodeOutput(OfficialDDIM(), official_sigmas(model, steps))


class DEADiffEulerSampler(io.ComfyNode):
    """Model, sampler and noise levels that reproduce the official Euler-a loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DEADiffEulerSampler",
            display_name="DEADiff Euler Sampler",
            category="model/patch/reference",
            description=(
                "Model, sampler and sigmas for SamplerCustom that reproduce the Euler-a loop of DEADiff's official "
                "application, in which the U-Net is told fractional timesteps. KSampler's euler_ancestral rounds them."
            ),
            search_aliases=["deadiff", "official euler a", "euler ancestral", "fractional timesteps"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from DEADiff Style. It is not changed itself."),
                io.Int.Input(
                    "steps", default=50, min=2, max=1000, tooltip="Steps; the official application uses 50 (10 to 50)."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with fractional timesteps, to sample."),
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom or SamplerCustomAdvanced."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels to go with it, from pure noise on."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        """Returns the model, the sampler and its noise levels."""
        patched = with_fractional_timesteps(model)
        return io.NodeOutput(patched, OfficialEulerAncestral(), euler_sigmas(model, steps))
