"""Pictures and masks as other nodes make them, at every IMAGE and MASK input of every node: right, or one sentence."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import refine_support
import torch
import tryon
from messages import is_clear
from p3s_support import Clip, Codec, Eye, inject
from refattention.core.deadiff.loaded import load
from refattention.core.leffa.reference import REFERENCES
from refattention.nodes import RefAttentionExtension, leffa_densepose
from refattention.nodes.deadiff import DEADiffStyle
from refattention.nodes.leffa import LeffaPoseTransfer, LeffaTryOn
from refattention.nodes.leffa_body_map import LeffaBodyMap
from refattention.nodes.leffa_densepose import LeffaDensePose
from refattention.nodes.leffa_flow import LeffaFlow
from refattention.nodes.leffa_mask import LeffaMask, LeffaRepaint
from refattention.nodes.leffa_prepare import LeffaFit
from refattention.nodes.p3s_train import P3STrain
from refattention.nodes.point_mask import PointMask
from refattention.nodes.refdrop import RefDropApply
from refattention.nodes.refine_by_align import RefineByAlign
from refattention.nodes.refine_by_align_probe import AttentionProbe
from refattention.nodes.refine_by_align_stages import RefineAlign, RefineRegion
from refattention_demo.deadiff_layout import DEMO_SIZE, random_weights
from sampling import latent, model, prompt, sample
from torch import Tensor

NODES = asyncio.run(RefAttentionExtension().get_node_list())
PICTURE_TYPES = {"IMAGE", "MASK"}
INPUTS = [
    (node.GET_SCHEMA().node_id, each.id, each.io_type)
    for node in NODES
    for each in node.GET_SCHEMA().inputs
    if each.io_type in PICTURE_TYPES
]
NOISE = latent(1, 4, 16, 12)
LATENT = {"samples": latent(1, 4, 9, 11, seed=3)}
HEIGHT, WIDTH = 64, 48


def widgets(node: Any) -> dict[str, Any]:
    """The defaults of a node's widgets; the first option where there is none."""
    found = {}
    for each in node.GET_SCHEMA().inputs:
        if getattr(each, "default", None) is not None:
            found[each.id] = each.default
        elif getattr(each, "options", None):
            found[each.id] = each.options[0]
    return found


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def spots() -> Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 16:40, 12:30] = 1
    return mask


def sampled(patcher: Any) -> Tensor:
    return sample(patcher, NOISE, prompt("sd15", 1), prompt("sd15", 2), steps=1)


def run_refdrop(**inputs: Any) -> Tensor:
    return sampled(
        RefDropApply.execute(model("sd15"), **{**widgets(RefDropApply), "reference_latent": LATENT, **inputs})[0]
    )


def run_p3s(**inputs: Any) -> Tensor:
    return sampled(inject(model("sd15"), **inputs))


def run_p3s_train(**inputs: Any) -> Tensor:
    given = {**widgets(P3STrain), "epochs": 1, "learning_rate": 1e-2, "mixed_precision": False, **inputs}
    adapter = P3STrain.execute(model("sd15"), Clip(), Codec(), Eye(), **given)[0]
    return torch.cat([weight.flatten() for weight in adapter.weights.values()])


DEADIFF: list[Any] = []


def run_deadiff(**inputs: Any) -> Tensor:
    if not DEADIFF:
        DEADIFF.append(load(random_weights(DEMO_SIZE)))
    given = {**widgets(DEADiffStyle), "mode": "style & content", **inputs}
    return sampled(DEADiffStyle.execute(model("sd15"), DEADIFF[0], **given)[0])


def leffa_tensors(outputs: Any) -> Tensor:
    (_, options), *_ = outputs[1]
    return torch.cat([options["noise_concat"].flatten(), *(each.latent.flatten() for each in options[REFERENCES])])


def run_try_on(**inputs: Any) -> Tensor:
    given = {**widgets(LeffaTryOn), **inputs}
    return leffa_tensors(LeffaTryOn.execute(tryon.model(), tryon.AveragingVAE(), **given))


def run_pose(**inputs: Any) -> Tensor:
    given = {**widgets(LeffaPoseTransfer), **inputs}
    return leffa_tensors(LeffaPoseTransfer.execute(tryon.model("sdxl"), tryon.AveragingVAE(), **given))


def run_flow(**inputs: Any) -> Tensor:
    patcher, positive, _, _ = tryon.try_on(tryon.model())
    samples = {"samples": latent(1, 4, 8, 6)}
    return LeffaFlow.execute(patcher, positive, samples, timestep=250, temperature=2.0, seed=0, **inputs)[0]


def run_leffa_mask(**inputs: Any) -> Tensor:
    return LeffaMask.execute(**{**widgets(LeffaMask), **inputs})[0]


def run_body_map(**inputs: Any) -> Tensor:
    return LeffaBodyMap.execute(**{**widgets(LeffaBodyMap), "format": "Parula", "kind": "part numbers", **inputs})[0]


def run_densepose(**inputs: Any) -> Tensor:
    return LeffaDensePose.execute(
        **{**widgets(LeffaDensePose), "run_code_of_file": True, **inputs}, densepose_name="x"
    )[0]


def run_fit(**inputs: Any) -> Tensor:
    return LeffaFit.execute(**{"part": "cut out garment", "width": 32, "height": 48, **inputs})[0]


def run_repaint(**inputs: Any) -> Tensor:
    return LeffaRepaint.execute(**{**widgets(LeffaRepaint), **inputs})[0]


def run_point_mask(**inputs: Any) -> Tensor:
    points = {"positive_coords": '[{"x": 12, "y": 30}]', "negative_coords": '[{"x": 40, "y": 8}]'}
    outputs = PointMask.execute(**{**widgets(PointMask), **points, **inputs})
    return torch.cat([each.flatten() for each in outputs.args[:4]])


def refine(node: Any) -> Callable[..., Tensor]:
    def run(**inputs: Any) -> Tensor:
        small = {"working_size": 64, "context": 0.3, "minimum_contrast": 0.0, "steps": 1, "timesteps": "261"}
        known = {each.id for each in node.GET_SCHEMA().inputs}
        given = {**widgets(node), **{name: value for name, value in small.items() if name in known}, **inputs}
        if "negative" in known:
            given["negative"] = refine_support.prompt(2)
        outputs = node.execute(refine_support.base(), refine_support.Codec(), refine_support.prompt(1), **given)
        return torch.cat([each.flatten() for each in outputs.args if isinstance(each, Tensor)])

    return run


LABELS = (spots() * 4 / 255).unsqueeze(-1).expand(-1, -1, -1, 3)
# Inputs that hold numbers of labels, which must not be shifted, and one of which the size alone counts.
LABEL_INPUTS, SIZE_INPUT = {("LeffaMask", "parsing"), ("LeffaBodyMap", "densepose")}, ("LeffaBodyMap", "image")

# How each node is run, and a good picture or mask for each of its inputs.
RUNS: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]]] = {
    "RefDropApply": (run_refdrop, {"mask": spots(), "reference_mask": spots()}),
    "P3SInject": (run_p3s, {"reference_image": picture(1), "subject_mask": spots(), "mask": spots()}),
    "P3STrain": (run_p3s_train, {"images": picture(1), "masks": spots()}),
    "DEADiffStyle": (run_deadiff, {"reference_image": picture(1), "content_image": picture(2), "mask": spots()}),
    "LeffaTryOn": (
        run_try_on,
        {"image": picture(1), "garment_image": picture(2, 40, 40), "densepose": picture(3), "mask": spots()},
    ),
    "LeffaPoseTransfer": (run_pose, {"reference_image": picture(1), "densepose": picture(2)}),
    "LeffaFlow": (run_flow, {"reference_image": picture(1)}),
    "LeffaMask": (run_leffa_mask, {"parsing": LABELS}),
    "LeffaBodyMap": (run_body_map, {"densepose": LABELS, "image": picture(1)}),
    "LeffaDensePose": (run_densepose, {"image": picture(1)}),
    "LeffaFit": (run_fit, {"image": picture(1), "mask": spots()}),
    "LeffaRepaint": (run_repaint, {"image": picture(1), "generated": picture(2), "mask": spots()}),
    "PointMask": (run_point_mask, {"image": picture(1)}),
    "AttentionProbe": (refine(AttentionProbe), {"image": picture(1), "reference_image": picture(2), "mask": spots()}),
    "RefineAlign": (
        refine(RefineAlign),
        {"image": picture(1), "mask": spots(), "reference_image": picture(2), "reference_mask": spots()},
    ),
    "RefineByAlign": (
        refine(RefineByAlign),
        {
            **{"image": picture(1), "mask": spots(), "reference_image": picture(2), "reference_mask": spots()},
            "more_references": picture(3, 40, 64),
        },
    ),
    "RefineRegion": (
        refine(RefineRegion),
        {"image": picture(1), "mask": spots(), "reference_image": picture(2), "more_references": picture(3, 40, 64)},
    ),
}
# For each: what another node may hand over, and the same in the plain form, 32-bit floats in [0, 1].
Variant = Callable[[Tensor], tuple[Tensor, Tensor]]
PICTURES: dict[str, Variant] = {
    "half with alpha": lambda x: (torch.cat([x, x[..., :1] / 2], -1).half(), x.half().float()),
    "bfloat16, one channel": lambda x: (x[..., :1].bfloat16(), x[..., :1].bfloat16().float().repeat(1, 1, 1, 3)),
    "bytes": lambda x: ((x * 255).round().byte(), (x * 255).round() / 255),
    "double beyond 0 to 1": lambda x: (x.double() * 1.2 - 0.1, (x.double() * 1.2 - 0.1).float().clamp(0, 1)),
    "no batch": lambda x: (x[0], x),
    "taken apart": lambda x: (x.repeat(1, 1, 1, 2)[..., ::2][..., [0, 2, 1]], x),
}
MASKS: dict[str, Variant] = {
    "half without a batch": lambda x: (x[0].half() * 0.7, x.half().mul(0.7).float()),
    "bytes with a channel": lambda x: ((x * 255).byte().unsqueeze(1), x),
    "truth values": lambda x: (x > 0, x),
    "numbers": lambda x: (x.long().unsqueeze(-1), x),
    "double beyond 0 to 1": lambda x: (x.double() * 4 - 1.5, x),
    "bfloat16": lambda x: (x.bfloat16(), x),
}
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "NaN": lambda x: torch.where(torch.rand(x.shape) < 0.01, torch.nan, x),
    "infinity": lambda x: torch.where(torch.rand(x.shape) < 0.01, -torch.inf, x),
    "five dimensions": lambda x: x.reshape(1, 1, 1, -1, x.shape[-1]),
    "empty": lambda x: x[:0],
    "complex": lambda x: x.to(torch.complex64),
    "no tensor": lambda x: [x],
    "large numbers": lambda x: (x * 1000).int() + 1,
}
WRONG_PICTURES = {
    "two channels": lambda x: x[..., :2],
    "planes first": lambda x: x.movedim(-1, 1),
    "from 0 to 255": lambda x: x * 255 + 60,
}


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to a folder of the test; a program that finds bodies is not at hand, and shows what it was given."""
    for name, stub in {"script_path": str, "load": str, "detect": lambda _, image: image}.items():
        monkeypatch.setattr(leffa_densepose, name, stub)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def run(node: str, **inputs: Any) -> Tensor:
    execute, good = RUNS[node]
    with torch.inference_mode():
        return execute(**{**good, **inputs})


def test_every_node_is_here() -> None:
    assert {node for node, _, _ in INPUTS} == set(RUNS)
    for node, (_, good) in RUNS.items():
        assert {name for each, name, _ in INPUTS if each == node} == set(good)


@pytest.mark.parametrize(("node", "name", "kind"), INPUTS, ids=lambda value: value)
def test_whatever_form_it_comes_in(node: str, name: str, kind: str) -> None:
    """To the bit what the plain form gives; that what comes counts, a mirrored one shows."""
    good = RUNS[node][1][name]
    usual = run(node)
    assert (node, name) == SIZE_INPUT or not torch.equal(run(node, **{name: good.flip(1)}), usual)
    for variant, forms in (PICTURES if kind == "IMAGE" else MASKS).items():
        given, plain = forms(good)
        if (node, name) in LABEL_INPUTS and variant == "double beyond 0 to 1":
            continue
        got = run(node, **{name: given})
        want = usual if torch.equal(plain, good) else run(node, **{name: plain})
        assert torch.equal(got, want), variant


@pytest.mark.parametrize(("node", "name", "kind"), INPUTS, ids=lambda value: value)
def test_what_is_none_is_refused_in_a_sentence(node: str, name: str, kind: str) -> None:
    good = RUNS[node][1][name]
    cases = {**WRONG, **(WRONG_PICTURES if kind == "IMAGE" else {})}
    for case, make in cases.items():
        if (node, name) in LABEL_INPUTS and case in ("large numbers", "from 0 to 255"):
            continue  # whose numbers are small
        with pytest.raises(ValueError, match=rf"\b{name}\b") as caught:
            run(node, **{name: make(good)})
        assert is_clear(str(caught.value)), (case, caught.value)


@pytest.mark.parametrize(("node", "name", "kind"), INPUTS, ids=lambda value: value)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (130, 33)])
def test_other_sizes_work_or_are_refused(node: str, name: str, kind: str, size: tuple[int, int]) -> None:
    other = torch.full((1, *size, 3), 0.4) if kind == "IMAGE" else torch.ones(1, *size)
    answer(node, **{name: other})


@pytest.mark.parametrize(("node", "name", "kind"), INPUTS, ids=lambda value: value)
def test_batches_that_fit_or_both_counts(node: str, name: str, kind: str) -> None:
    """One for each of two, or a refusal that names both counts."""
    good = RUNS[node][1]
    twice = {each: value.repeat(2, *[1] * (value.ndim - 1)) for each, value in good.items()}
    answer(node, **twice)
    three = good[name].repeat(3, *[1] * (good[name].ndim - 1))
    message = answer(node, **{**twice, name: three})
    assert not message or len(re.findall(r"\b(?:\d+|one)\b", message)) >= 2, message


def answer(node: str, **inputs: Any) -> str:
    """The message of a refusal; nothing if there was none."""
    try:
        assert run(node, **inputs).isfinite().all()
    except (ValueError, RuntimeError) as error:
        assert is_clear(str(error)), error
        return str(error)
    return ""
