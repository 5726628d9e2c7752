"""What the nodes paint of the pictures that a training has overfitted on, against those pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import torch
from deadiff_support import KIND_MODES
from deadiff_support import WIDGETS as DEADIFF
from p3s_support import WIDGETS as P3S
from refattention.core.deadiff.loaded import load as load_deadiff
from refattention.core.leffa.loader import load as load_leffa
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.core.models import checkpoint
from refattention.core.p3s.files import load_adapter as load_p3s
from refattention.core.refine_by_align.files import load_adapter as load_refine
from refattention.nodes.deadiff import DEADiffStyle
from refattention.nodes.leffa import EVERY_STEP, LeffaTryOn
from refattention.nodes.p3s import P3SInject
from refattention.nodes.refine_by_align_stages import RefineRegion
from torch import Tensor
from training.models import conditioning

SAMPLER = "euler"


@torch.no_grad()
def score(method: str, task: Any, file: Path, number: int, steps: int) -> float:
    """PSNR in dB of the latents of one picture that the method's node paints with a trained file, without guidance.

    Its peak is the range of the picture's own latents.
    """
    got, want, where = _PAINTED[method](task, file, number, steps)
    error = (got - want)[..., where].square().mean()
    return 10 * float(torch.log10((want.max() - want.min()).square() / error))


EVERYWHERE = slice(None)
Latents = tuple[Tensor, Tensor, Any]  # painted, those of the picture itself, and where the two are compared


def _leffa(task: Any, file: Path, number: int, steps: int) -> Latents:
    parts, sample = load_leffa(file), task.sample((number, 0, 0))
    model = attach_reference_unet(parts.generative, parts.reference, 0)
    person, *others = (each[None] for each in (sample.person, sample.reference, sample.densepose, sample.mask))
    model, positive, _, latent = LeffaTryOn.execute(model, parts.vae, person, *others, EVERY_STEP, 5, False)
    return _sampled(model, positive, latent["samples"], steps), parts.vae.encode(person), EVERYWHERE


def _deadiff(task: Any, file: Path, number: int, steps: int) -> Latents:
    sample, record, adapter = task.sample((number, 0, 0)), task._records[number], load_deadiff(checkpoint.load(file))
    settings = {**DEADIFF, "mode": KIND_MODES[record.kind]}
    model = DEADiffStyle.execute(task._model, adapter, sample.reference[None], **settings)[0]
    want = task._encode._vae.encode(sample.target[None])
    return _sampled(model, conditioning(task._clip, record.text), torch.zeros_like(want), steps), want, EVERYWHERE


def _refine(task: Any, file: Path, number: int, steps: int) -> Latents:
    """In the area alone that is painted; against the picture after its VAE, which the nodes' result went through."""
    from training.tasks import refine

    example, text = task.sample((number, 1, 0)).example, [[torch.zeros(1, 77, 64), {}]]
    vae, vision = task._vae, refine.load_vision(None)
    work = {"context": 9.0, "working_size": 0, "feather": 0, "areas": "together"}  # all of the picture, at its size
    sampling = {"strength": 1.0, "seed": 7, "steps": steps, "cfg": 1.0, "denoise": 1.0, "scheduler": "normal"}
    with torch.inference_mode():
        got = RefineRegion.execute(
            task._model, vae, text, text, example.picture, example.mask[None], example.reference,
            **work, **sampling, sampler_name=SAMPLER, adapter=load_refine(file), clip_vision=vision,
        )[0]  # fmt: skip
        decoded = vae.decode(vae.encode(example.picture))
        want = torch.where(example.mask[None, ..., None] > 0, decoded, example.picture)
        painted = torch.nn.functional.max_pool2d(example.mask[None], 8)[0] > 0
        return vae.encode(got), vae.encode(want), painted


def _p3s(task: Any, file: Path, number: int, steps: int) -> Latents:
    picture, vae = task._picture(number)[None], task._encode._vae
    given = {"adapter": load_p3s(file), "clip_vision": task._vision, **P3S, "schedule": "fixed"}
    model = P3SInject.execute(task._model, reference_image=picture, vae=vae, **given)[0]
    want = vae.encode(picture)
    return _sampled(model, conditioning(task._clip, task._text), torch.zeros_like(want), steps), want, EVERYWHERE


_PAINTED = {"leffa": _leffa, "deadiff": _deadiff, "refine": _refine, "p3s": _p3s}


def _sampled(model: Any, positive: list[Any], latent: Tensor, steps: int) -> Tensor:
    """What KSampler makes of empty latents."""
    noise = comfy.sample.prepare_noise(latent, 7)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 1.0, SAMPLER, "normal", positive, positive, latent, seed=7, disable_pbar=True
        )
