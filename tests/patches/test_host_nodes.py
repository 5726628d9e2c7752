"""Every method with every node of ComfyUI that takes and gives a MODEL, in both orders.

Equal to the method written a second time below everything a node can patch, or refused in a sentence; never without an
effect in silence. `docs/COMPATIBILITY.md` tells what came out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import module_methods
import pytest
import torch
from bootstrap import ROOT
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from host_nodes import NOT_TRIED, applied, model_nodes, write_files
from naive_deadiff import random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.p3s.settings import P3SSettings, Schedule
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

TABLE = ROOT / "docs" / "COMPATIBILITY.md"
BUDGET, STEPS = 2**26, {"EasyCache": 5, "LazyCache": 5}
# Families in which a node does what it is for, beside SD1.5.
TRANSFORMERS = {"WanContextWindowsManual": ["wan21"], "LTXVContextWindows": ["ltxv"], "SkipLayerGuidanceSD3": ["sd3"]}
IMAGE_FAMILIES = ["sd15", "flux"]
Works = Callable[[Any], Any]


@dataclass(frozen=True)
class Method:
    """A method, and the same by other means.

    Attributes:
        apply: patches a model of a family.
        oracle: of SD1.5: (model) -> `Modules`; None compares otherwise.
    """

    apply: Callable[[Any, str], Any]
    oracle: Callable[[Any], module_methods.Modules] | None = None


def blocks_of(patcher: Any) -> frozenset[tuple[str, int]]:
    return frozenset(attentions_of(patcher, "test").layers)


def reference(family: str) -> Reference:
    return Reference(tiny_latent(family, 1, seed=3, frames=1), None, 5)


def refdrop(patcher: Any, family: str, **settings: Any) -> Any:
    return apply_refdrop(patcher, RefDropSettings(0.6, blocks_of(patcher), **settings))


def p3s(patcher: Any, family: str) -> Any:
    settings = P3SSettings(reference(family), schedule=Schedule("fixed"), strength=0.7, value_strength=0.2)
    return apply_p3s(patcher, settings)


def latents(family: str) -> Tensor:
    return tiny_latent(family, 3 if FAMILIES[family].frames == 1 else 1)


def modules(act: Any, reads: bool = True, cross: bool = False) -> Callable[[Any], module_methods.Modules]:
    samples = reference("sd15").samples if reads else None
    return lambda patcher: module_methods.Modules(patcher, act, samples, cross)


IMAGE = random_image(tiny_model("sd15"))
METHODS = {
    "RefDrop": Method(
        lambda patcher, family: refdrop(patcher, family, reference=reference(family)),
        modules(module_methods.refdrop(0.6)),
    ),
    "RefDrop, batch": Method(refdrop, modules(module_methods.refdrop_in_the_batch(0.6), reads=False)),
    "P3S": Method(p3s, modules(module_methods.p3s(0.7, 0.2))),
    "DEADiff": Method(
        lambda patcher, family: apply_deadiff(patcher, DEADiffSettings(IMAGE)),
        modules(module_methods.deadiff(IMAGE), reads=False, cross=True),
    ),
}


def run(name: str, family: str, patcher: Any) -> Tensor:
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    torch.manual_seed(0)  # HyperTile draws its tiles
    cfg = max(FAMILIES[family].cfg, 2.0)
    return sample(patcher, latents(family), *prompts, steps=STEPS.get(name, 2), cfg=cfg)


def refusal(error: Exception) -> str:
    """The sentence of a refusal; anything but one that the pack wrote is an error of the test."""
    message = str(error)
    if not re.match(r"(RefDrop|P3S|DEADiff)\w*[: ]", message):
        raise error
    return message


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    write_files(tmp_path_factory.mktemp("models"), [*IMAGE_FAMILIES, "wan21", "ltxv", "sd3"])


OUTCOMES: dict[str, dict[str, str]] = {}
NAMES = [name for name in model_nodes() if name not in NOT_TRIED]
MERGES = [name for name in NAMES if name.startswith("ModelMerge")]


def both_orders(name: str, family: str, apply: Works) -> list[Tensor] | str:
    """A picture of each order of the two nodes, or the refusal, which both orders share."""
    pictures, refused = [], []
    for order in (lambda m: apply(applied(name, family, m)), lambda m: applied(name, family, apply(m))):
        try:
            pictures.append(run(name, family, order(tiny_model(family))))
        except (RuntimeError, ValueError) as error:
            refused.append(refusal(error))
    assert not (pictures and refused) and len(set(refused)) <= 1, f"{name}: {refused}"
    return refused[0] if refused else pictures


def alone(name: str, family: str) -> Tensor | None:
    """What the node alone gives; None where it does not fit the family."""
    try:
        return run(name, family, applied(name, family, tiny_model(family)))
    except Exception:
        return None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_on_sd15(name: str, method: str) -> None:
    if name in TRANSFORMERS:
        return
    made = METHODS[method]
    without = alone(name, "sd15")
    assert without is not None
    got = both_orders(name, "sd15", lambda patcher: made.apply(patcher, "sd15"))
    OUTCOMES.setdefault(name, {})[method] = got if isinstance(got, str) else "yes"
    if isinstance(got, str):
        return
    with made.oracle(tiny_model("sd15")).attached(applied(name, "sd15", tiny_model("sd15"))) as patcher:
        want = run(name, "sd15", patcher)
    effect = distance(want, without)
    assert effect > 1e-4
    assert max(distance(each, want) for each in got) < max(1e-5, 0.01 * effect)
