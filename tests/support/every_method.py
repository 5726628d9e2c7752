"""A small picture by every method on every family it knows, in any precision: it should be the same on every device.

As a program it paints some of them in a host that was started with options, into a file:
`python every_method.py FILE.safetensors NAME,NAME --OPTION ...`
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import bootstrap

    FILE, NAMES, *OPTIONS = sys.argv[1:]
    bootstrap.name_packages()
    bootstrap.prepare_host_as_started(OPTIONS)

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import torch
import tryon
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from naive_deadiff import random_image
from p3s_support import fill_zeros
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.leffa.loader import from_state_dict
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.core.p3s.adapter import Origin, TrainedAdapter, for_model, trainable, trained_weights
from refattention.core.p3s.settings import Adapter, P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.core.refine_by_align.kernel import group_of_mask
from refattention.core.refine_by_align.observe import Look, attention_maps
from sampling import latent, sample
from torch import Tensor

BUDGET = 2**28
VISION_WIDTH = 24
LITTLE = {torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 4e-3}


class EveryMethod:
    """Paints in a precision.

    Args:
        dtype: of weights and computing.
        change: what else is done to a model after a method's patches, compiling for one.
    """

    def __init__(self, dtype: torch.dtype, change: Callable[[Any], Any] = lambda patcher: patcher) -> None:
        self._dtype = dtype
        self._change = change

    @property
    def names(self) -> list[str]:
        """Of all pictures, METHOD.FAMILY; "plain" is without a method."""
        known = [family for family in FAMILIES if family != "pid"]  # whose prompts hold the picture that it enlarges
        families = [f"{method}.{family}" for family in known for method in ("plain", "refdrop")]
        return [*families, "cached.sd15", "recorded.sd15", "p3s.sd15", "adapter.sd15", "deadiff.sd15", "align.sd15",
                "leffa.sd15"]  # fmt: skip

    def picture(self, name: str) -> Tensor:
        """One of them: latents, or maps where the method makes those."""
        method, family = name.split(".")
        found: Tensor = getattr(self, f"_{method}")(family)
        return found.float().cpu()

    def _model(self, family: str) -> Any:
        return tiny_model(family, self._dtype)

    def _sampled(self, family: str, patched: Any) -> Tensor:
        texts = tiny_prompt(family, 1), tiny_prompt(family, 2)
        return sample(self._change(patched), tiny_latent(family), *texts, steps=2, cfg=FAMILIES[family].cfg)

    def _reference(self, family: str) -> Reference:
        return Reference(tiny_latent(family, seed=3, frames=1), None, 5)

    def _plain(self, family: str) -> Tensor:
        return self._sampled(family, self._model(family))

    def _refdrop(self, family: str, **settings: Any) -> Tensor:
        patcher = self._model(family)
        return self._sampled(family, self._guided(patcher, family, **settings))

    def _guided(self, patcher: Any, family: str, **settings: Any) -> Any:
        settings.setdefault("reference", self._reference(family))
        blocks = frozenset(attentions_of(patcher, "check").blocks)
        return apply_refdrop(patcher, RefDropSettings(0.5, blocks, **settings))

    def _cached(self, family: str) -> Tensor:
        cache = ReferenceCache(BUDGET)
        guided = self._guided(self._model(family), family, cache=cache)
        self._sampled(family, guided)
        second = self._sampled(family, guided)
        if not cache.hits:
            raise RuntimeError("The second picture did not find what the first one kept.")
        return second

    def _recorded(self, family: str) -> Tensor:
        patcher = self._model(family)
        recorded = RecordedRun(patcher, frozenset(attentions_of(patcher, "check").blocks), 1, BUDGET, False)
        self._sampled(family, apply_recorder(patcher, recorded, self._reference(family)))
        return self._refdrop(family, reference=None, recorded=recorded)

    def _p3s(self, family: str, adapter: Adapter | None = None) -> Tensor:
        return self._sampled(family, apply_p3s(self._model(family), P3SSettings(self._reference(family), adapter)))

    def _adapter(self, family: str) -> Tensor:
        whole = tiny_model(family)
        network = trainable(whole, VISION_WIDTH, seed=0)
        fill_zeros(network)
        origin = Origin(FAMILIES[family].host_class, "", VISION_WIDTH, "", "", "", {})
        trained = TrainedAdapter(trained_weights(network, whole), origin)
        network = for_model(trained, self._model(family), origin.family)
        return self._p3s(family, Adapter(network, latent(1, 5, VISION_WIDTH, seed=8)))

    def _deadiff(self, family: str) -> Tensor:
        patcher = self._model(family)
        return self._sampled(family, apply_deadiff(patcher, DEADiffSettings(random_image(patcher))))

    @torch.inference_mode()
    def _align(self, family: str) -> Tensor:
        patcher, mask = self._model(family), torch.zeros(8, 12)
        mask[2:5, 3:8] = 1
        look = Look(frozenset(self_attention_layers(patcher.model.diffusion_model)), (261,))
        picture, reference = tiny_latent(family), tiny_latent(family, seed=3)
        maps = attention_maps(
            patcher, tiny_prompt(family, 1), picture, reference, look, lambda grid: group_of_mask(mask, grid), "check"
        )
        return torch.cat([one.flatten() for one in maps.values()])

    def _leffa(self, family: str) -> Tensor:
        with computing_in(self._dtype):
            parts = from_state_dict(tryon.weights(family), "check")
        patcher, *rest = tryon.try_on(attach_reference_unet(parts.generative, parts.reference, 0))
        return tryon.sample((self._change(patcher), *rest), steps=2)


def error(got: Tensor, want: Tensor) -> float:
    """Length of the difference, as a part of what it should be."""
    return ((got - want).norm() / want.norm()).item()


def allowed(name: str, dtype: torch.dtype, plain: float) -> float:
    """The error that a picture may have against float32.

    The plain model's own and a little; where there is no plain model, what rounding does to others of its kind.
    """
    little = LITTLE[dtype]
    return 8 * little if name.startswith(("leffa", "plain")) else 1.3 * plain + little


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Loaders make models that compute in a precision, even where the host would cast."""
    before = management.unet_dtype, management.unet_manual_cast
    management.unet_dtype = lambda *args, **kwargs: dtype
    management.unet_manual_cast = lambda *args, **kwargs: None
    try:
        yield
    finally:
        management.unet_dtype, management.unet_manual_cast = before


if __name__ == "__main__":
    from safetensors.torch import save_file

    paint = EveryMethod(torch.float32)
    save_file({name: paint.picture(name).contiguous() for name in NAMES.split(",")}, FILE)
