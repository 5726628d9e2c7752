"""Every method with every node of ComfyUI that takes and gives a MODEL, in both orders.

Equal to the method written a second time below everything a node can patch, or refused in a sentence; never without an
effect in silence. `docs/COMPATIBILITY.md` tells what came out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import module_methods
import pytest
import torch
import tryon
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
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

TABLE = ROOT / "docs" / "COMPATIBILITY.md"
BUDGET, STEPS = 2**26, {"EasyCache": 5, "LazyCache": 5, "APG": 2, "TemporalScoreRescaling": 2}
# Nodes that are made for a family, and fail or do something else on SD1.5.
OTHERS = {
    "WanContextWindowsManual": ["wan21"],
    "LTXVContextWindows": ["ltxv"],
    "SkipLayerGuidanceSD3": ["sd3"],
    "FluxKVCache": ["flux"],
}
SINGLE = {"RenormCFG", "TemporalScoreRescaling"}  # fail with more than one picture
NEED_TINY = {"HypernetworkLoader", "LoraLoader", "LoraLoaderModelOnly", "LoraLoaderBypass", "LoraLoaderBypassModelOnly"}
UNETS_ONLY = {"FreeU", "FreeU_V2", "HyperTile", "HypernetworkLoader", "SelfAttentionGuidance", "TomePatchModel"}
# Evaluate the model again without some blocks, and so the reference too, which a recording has seen with all of them.
WITHOUT_BLOCKS = {"SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"}


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
    return frozenset(attentions_of(patcher, "test").blocks)


def reference(family: str) -> Reference:
    return Reference(tiny_latent(family, 1, seed=3, frames=1), None, 5)


def refdrop(patcher: Any, family: str, **settings: Any) -> Any:
    return apply_refdrop(patcher, RefDropSettings(0.6, blocks_of(patcher), **settings))


def p3s(patcher: Any, family: str) -> Any:
    settings = P3SSettings(reference(family), schedule=Schedule("fixed"), strength=0.7, value_strength=0.2)
    return apply_p3s(patcher, settings)


def latents(name: str, family: str) -> Tensor:
    return tiny_latent(family, 3 if FAMILIES[family].frames == 1 and name not in SINGLE else 1)


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


def run(name: str, family: str, patcher: Any, noise: Tensor | None = None) -> Tensor:
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    torch.manual_seed(0)  # HyperTile draws its tiles
    cfg, steps = max(FAMILIES[family].cfg, 2.0), STEPS.get(name, 1)
    return sample(patcher, latents(name, family) if noise is None else noise, *prompts, steps=steps, cfg=cfg)


def refusal(error: Exception) -> str:
    """A refusal; anything but a sentence that the pack wrote is an error of the test."""
    if not re.match(r"(RefDrop|P3S|DEADiff|Leffa)\w*[: ]", str(error)):
        raise error
    return "refused"


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    write_files(tmp_path_factory.mktemp("models"), ["sd15", "flux", "wan21", "ltxv", "sd3"])


def both_orders(make: Callable[[Any], Any], put: Callable[[Any], Any], start: Any, picture: Any) -> list[Tensor] | str:
    """A picture of each order of two nodes, or the refusal, which both orders share."""
    pictures, refused = [], []
    for order in (lambda model: put(make(model)), lambda model: make(put(model))):
        try:
            pictures.append(picture(order(start)))
        except (RuntimeError, ValueError) as error:
            refused.append(refusal(error))
    assert not (pictures and refused), f"one order is refused: {refused}"
    return refused[0] if refused else pictures


@functools.cache
def alone(name: str, family: str) -> Tensor:
    """What the node alone gives."""
    return run(name, family, applied(name, family, tiny_model(family)))


def told(name: str, column: str) -> str:
    """What the table says: works, refused, or nothing."""
    row = "ModelMerge*" if name.startswith("ModelMerge") else name
    return table()[row][column]


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """The table of ComfyUI's nodes in docs/COMPATIBILITY.md."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    first = next(number for number, row in enumerate(cells) if row[0] == "Node of ComfyUI")
    header = cells[first]
    return {
        row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in cells[first + 1 :] if len(row) == len(header)
    }


def settle(name: str, column: str, got: Any) -> None:
    """Holds what came out against the table; writes it down instead where that is asked for."""
    outcome = got if isinstance(got, str) else "works"
    if NOTES:
        with Path(NOTES).open("a", encoding="utf-8") as file:
            file.write(f"{name}|{column}|{outcome}\n")
    else:
        assert told(name, column) == outcome


NOTES = os.environ.get("REFATTENTION_OUTCOMES")
# Of the nodes that merge, whose models differ in nothing but weights (below).
MERGES = {"ModelMergeSimple", "ModelMergeSD1"}
ALL = [name for name in model_nodes() if name not in NOT_TRIED]
TRIED = [name for name in ALL if not name.startswith("ModelMerge") or name in MERGES]


def test_the_table_names_every_node() -> None:
    if not NOTES:
        rows = {name for name in model_nodes() if not name.startswith("ModelMerge")} | {"ModelMerge*"}
        assert set(table()) == rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in TRIED if name not in OTHERS])
def test_on_sd15(name: str, method: str) -> None:
    if name in SINGLE and method == "RefDrop, batch":
        return  # the node itself fails with more than one picture
    made = METHODS[method]
    got = both_orders(
        lambda m: made.apply(m, "sd15"),
        lambda m: applied(name, "sd15", m),
        tiny_model("sd15"),
        lambda m: run(name, "sd15", m),
    )
    if not isinstance(got, str):
        with made.oracle(tiny_model("sd15")).attached(applied(name, "sd15", tiny_model("sd15"))) as patcher:
            want = run(name, "sd15", patcher)
        effect = distance(want, alone(name, "sd15"))
        assert effect > 1e-4
        assert max(distance(each, want) for each in got) < max(1e-5, 0.01 * effect)
    settle(name, method, got)


@pytest.mark.parametrize("name", [name for name in ALL if name not in TRIED])
def test_what_merges_changes_nothing_but_weights(name: str) -> None:
    """So what holds for one of these nodes holds for all."""
    plain = tiny_model("sd15")
    merged = applied(name, "sd15", plain)
    assert merged.model is plain.model and merged.model_options == plain.model_options
    assert not merged.wrappers and not merged.object_patches and not merged.injections


def recorder(model: Any, given: Reference | None = None) -> tuple[Any, RecordedRun]:
    kept = RecordedRun(model, blocks_of(model), 1, BUDGET, False)
    return apply_recorder(model, kept, given), kept


def recording(name: str, family: str) -> list[Tensor] | str:
    """Both orders of a node and RefDropRecord; the picture must not change."""
    got = both_orders(
        lambda m: recorder(m)[0],
        lambda m: applied(name, family, m),
        tiny_model(family),
        lambda m: run(name, family, m),
    )
    if not isinstance(got, str):
        assert all(torch.equal(each, alone(name, family)) for each in got)
    return got


@pytest.mark.parametrize("name", [name for name in TRIED if name not in OTHERS])
def test_a_recording_leaves_the_picture_as_it_is(name: str) -> None:
    settle(name, "Record", recording(name, "sd15"))


@pytest.mark.parametrize("name", [name for name in TRIED if name not in UNETS_ONLY])
def test_refdrop_on_transformers(name: str) -> None:
    """What a pass of the reference gives is what a recording of it gives, of which no node sees anything."""
    (family,) = OTHERS.get(name, ["flux"])
    plain = tiny_model(family)
    got = both_orders(
        lambda m: refdrop(m, family, reference=reference(family)),
        lambda m: applied(name, family, m),
        plain,
        lambda m: run(name, family, m),
    )
    settle(name, "RefDrop, transformers", got)
    if isinstance(got, str):
        return
    assert distance(*got) < 1e-4
    assert distance(got[0], alone(name, family)) > 1e-4
    if name in WITHOUT_BLOCKS:
        return
    patched = applied(name, family, plain)
    # What skips steps or cuts can only be held against a recording that it did not take part in.
    watched, kept = recorder(plain if name in STEPS or "Windows" in name else patched, reference(family))
    run(name, family, watched, reference(family).samples)
    try:
        want = run(name, family, refdrop(patched, family, recorded=kept))
    except ValueError as error:
        assert "no recording of the further prompt" in str(error)
    else:
        assert max(distance(each, want) for each in got) < 1e-4


@pytest.mark.parametrize("name", [name for name in TRIED if name not in OTHERS and name not in NEED_TINY])
def test_on_leffa(name: str) -> None:
    """Both orders give the same, and the garment shows. Without rescaled guidance, whose place among others counts."""

    def picture(outputs: Any) -> Tensor:
        torch.manual_seed(0)
        return tryon.sample(outputs, steps=STEPS.get(name, 1))

    def dressed(patcher: Any, seed: int = 2) -> Any:
        garment = tryon.picture(1, 48, 48, seed=seed)
        return tryon.try_on(patcher, garment_image=garment, rescale_guidance=False)

    def put(model: Any) -> Any:
        """The node on a model, or on the model among LeffaTryOn's outputs."""
        return (put(model[0]), *model[1:]) if isinstance(model, tuple) else applied(name, "sd15", model)

    got = both_orders(dressed, put, tryon.model(), picture)
    if not isinstance(got, str):
        assert got[0].isfinite().all() and distance(*got) < 1e-4
        assert distance(got[0], picture(dressed(put(tryon.model()), seed=9))) > 1e-5
    settle(name, "Leffa", got)
