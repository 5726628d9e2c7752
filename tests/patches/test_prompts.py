"""One prompt for each picture of a batch: every picture is what it is alone with its own prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from families import tiny_latent, tiny_model, tiny_prompt
from p3s_support import adapter, inject
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, latent, model, prompt, sample
from torch import Tensor


def joined(prompts: list[Any]) -> list[Any]:
    """Prompts as the rows of one."""
    texts, options = torch.cat([text for ((text, _),) in prompts]), prompts[0][0][1]
    pooled = [each["pooled_output"] for ((_, each),) in prompts if "pooled_output" in each]
    return [[texts, {**options, **({"pooled_output": torch.cat(pooled)} if pooled else {})}]]


def own_prompts(family: str, count: int) -> list[Any]:
    return [tiny_prompt(family, 10 + number) for number in range(count)]


def refdrop(patcher: Any, family: str, references: int = 1, positive: Any = None, **settings: Any) -> Any:
    samples = tiny_latent(family, references, seed=3, size=(6, 10), frames=1)
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    return apply_refdrop(patcher, RefDropSettings(0.4, blocks, Reference(samples, positive, 5), **settings))


SHARE = {"share_conditional": True}
METHODS: dict[str, Callable[[Any, str], Any]] = {
    "one reference": refdrop,
    "two references": lambda patcher, family: refdrop(patcher, family, 2),
    "concat": lambda patcher, family: refdrop(patcher, family, 2, concat=True),
    "reference mask": lambda patcher, family: refdrop(patcher, family, 2, reference_mask=torch.eye(12)[None]),
    "own prompt": lambda patcher, family: refdrop(patcher, family, positive=tiny_prompt(family, 7)),
    "shared": lambda patcher, family: refdrop(patcher, family, **SHARE),
    "cache": lambda patcher, family: refdrop(patcher, family, cache=ReferenceCache(2**24)),
    "P3S": lambda patcher, family: apply_p3s(
        patcher, P3SSettings(Reference(latent(1, 4, 6, 10), None, 5), subject_mask=torch.eye(12)[None])
    ),
}
FAMILIES_OF = {"P3S": ["sd15"], "own prompt": ["flux"], "shared": ["sd15"], "concat": ["sd15", "flux"]}
CASES = [(family, name) for name in METHODS for family in FAMILIES_OF.get(name, ["sd15", "flux", "wan21"])]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_each_picture_is_what_it_is_alone(family: str, method: str) -> None:
    noise, prompts, negative = tiny_latent(family, 3), own_prompts(family, 3), tiny_prompt(family, 2)
    patched = METHODS[method](tiny_model(family), family)
    run = {"steps": 2, "cfg": 3.0}
    together = sample(patched, noise, joined(prompts), negative, **run)
    for row, one in enumerate(prompts):
        alone = sample(patched, noise[row : row + 1], one, negative, **run)
        assert distance(together[row : row + 1], alone) < 1e-4
    mixed_up = sample(patched, noise[:1], prompts[1], negative, **run)
    assert distance(together[:1], mixed_up) > 1e-3
    assert torch.equal(sample(patched, noise, joined(prompts), negative, **run), together)


def test_fewer_prompts_than_pictures_are_used_again() -> None:
    noise, prompts, negative = tiny_latent("sd15", 3), own_prompts("sd15", 2), tiny_prompt("sd15", 2)
    patched = refdrop(tiny_model("sd15"), "sd15")
    together = sample(patched, noise, joined(prompts), negative, steps=2)
    for row in range(3):
        alone = sample(patched, noise[row : row + 1], prompts[row % 2], negative, steps=2)
        assert distance(together[row : row + 1], alone) < 1e-4


@pytest.mark.parametrize("pictures", [1, 2])
def test_each_reference_is_read_with_its_own_prompt(pictures: int) -> None:
    """reference_positive has a row for each reference, however many prompts the pictures have."""
    rows = own_prompts("flux", 2)
    patched = refdrop(tiny_model("flux"), "flux", 2, positive=joined(rows))
    read: list[Tensor] = []

    def watch(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[-2:] == (6, 10):
            read.append(text)
        return executor(x, t, concat, text, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "refattention.watch", watch)
    prompts = joined([tiny_prompt("flux", 20 + number) for number in range(pictures)])
    sample(patched, tiny_latent("flux", 2), prompts, prompts, steps=1, cfg=1.0)
    (texts,) = read
    assert torch.equal(texts, torch.cat([text for ((text, _),) in rows]).repeat_interleave(pictures, 0))


@pytest.mark.parametrize("size", [1, 3])
def test_with_an_adapter_each_picture_has_its_own_prompt(size: int) -> None:
    patched, noise, negative = inject(model("sd15"), adapter=adapter()), latent(size, 4, 8, 8), prompt("sd15", 2)
    prompts = [prompt("sd15", 10 + number) for number in range(size)]
    together = sample(patched, noise, joined(prompts), negative, steps=1)
    for row, one in enumerate(prompts):
        assert distance(together[row : row + 1], sample(patched, noise[row : row + 1], one, negative, steps=1)) < 1e-4
