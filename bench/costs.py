"""Writes the table of docs/costs.md: what the methods add to a model, computed and not measured on a GPU.

The full-size models are made on PyTorch's device `meta`, which has shapes and no numbers. Weights are counted; memory
for a step is what ComfyUI sets aside by its own formula for what the pack reports to it; kept
keys and values are what the pack's own code counts; time is the ratio of operations, as in `make bench`.

.venv/bin/python bench/costs.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "tests" / "support")]

import bootstrap

bootstrap.name_packages()
bootstrap.prepare_host()

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import CoreModelPatcher
from leffa_models import without_weights
from models import CLASSES, COMMON, CONFIGS, FLUX, WAN_LARGE, WAN_SMALL, network
from refattention.core.leffa import layout
from refattention.core.leffa.unet import LeffaUNet, ReferenceUNet
from refattention.core.p3s.network import P3SNetwork
from refattention.core.patches.attention import AttentionCall
from refattention.core.patches.bank import KeyValueBank, Record
from refattention.core.patches.blocks import SKIP_FIRST_OUTPUT, select
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.memory import shape_with
from refattention.core.patches.reference_pass import ReferenceRecorded, until_recorded
from refattention.core.patches.unet import family, self_attention_layers
from refattention.core.refdrop.kernel import Branch, reference_feature_guidance
from steps import operations
from torch import Tensor

PAGE = HERE.parent / "docs" / "costs.md"
BEGIN, END = "<!-- written by bench/costs.py -->\n", "<!-- end -->\n"
GIB = 2**30
STEPS = 20
VISION_WIDTH = 1024


@dataclass(frozen=True)
class Case:
    """A model and a size.

    Attributes:
        name, size: for the table.
        host_class, config: of the model, as ComfyUI has them.
        latent: (C, ...) of one picture or video. The reference is a picture of the same height and width.
        text: (tokens, width) of a prompt.
        halves: passes of a step, 2 with CFG.
        pooled: width of the pooled text, 0 for none.
    """

    name: str
    size: str
    host_class: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    halves: int = 2
    pooled: int = 0


def _unet(name: str, label: str, pixels: int, pooled: int = 0) -> Case:
    config = {**COMMON, **CONFIGS[name]}
    latent = (4, pixels // 8, pixels // 8)
    return Case(label, f"{pixels} x {pixels}", CLASSES[name], config, latent, (77, config["context_dim"]), 2, pooled)


CASES = (
    _unet("sd15", "SD1.5", 512),
    _unet("sd15", "SD1.5", 768),
    _unet("sdxl", "SDXL", 1024, 2816),
    Case("Flux dev", "1024 x 1024", "Flux", FLUX, (16, 128, 128), (256, 4096), 1, 768),
    Case("Wan 2.1 1.3B", "832 x 480, 33 frames", "WAN21_T2V", WAN_SMALL, (16, 9, 60, 104), (512, 4096)),
    Case("Wan 2.1 14B", "832 x 480, 81 frames", "WAN21_T2V", WAN_LARGE, (16, 21, 60, 104), (512, 4096)),
)
ADAPTERS = {("SD1.5", "512 x 512"), ("SDXL", "1024 x 1024")}
Evaluate = Callable[..., Tensor]


def model_of(case: Case) -> CoreModelPatcher:
    """The model at full size, in half precision, without numbers."""
    meta = torch.device("meta")
    model = network(case.host_class, case.config, torch.float16, meta)
    return CoreModelPatcher(model, load_device=meta, offload_device=meta)


def reference_of(case: Case) -> tuple[int, ...]:
    """(C, ...) of the reference's latent: one picture, of videos as well."""
    channels, *frames, height, width = case.latent
    return (channels, *(1 for _ in frames), height, width)


def evaluation(case: Case, model: CoreModelPatcher, latent: tuple[int, ...]) -> tuple[Tensor, Evaluate]:
    """The latents of one step, and a forward pass of them that takes `transformer_options`."""

    def empty(*shape: int) -> Tensor:
        return torch.zeros(shape, device="meta", dtype=torch.float16)

    x, module = empty(case.halves, *latent), model.model.diffusion_model
    inputs: dict[str, Tensor] = {"context": empty(case.halves, *case.text)}
    if case.pooled:
        inputs["y"] = empty(case.halves, case.pooled)
    if case.config.get("guidance_embed"):
        inputs["guidance"] = empty(case.halves)

    def evaluate(options: dict[str, Any]) -> Tensor:
        return module(x, empty(case.halves), transformer_options=options, **inputs)

    return x, evaluate


def refdrop_cost(case: Case) -> list[str]:
    """A row: weights, memory of a step or of the reference's pass, what is kept of it, and the operations of a step."""
    model = model_of(case)
    (x, step), (reference, read) = (evaluation(case, model, each) for each in (case.latent, reference_of(case)))
    attentions = attentions_of(model, "costs")
    blocks = select(SKIP_FIRST_OUTPUT, "", list(attentions.blocks), family(model))
    last = [(block, depth - 1) for block, depth in attentions.blocks.items() if block in blocks][-1]
    bank, seen = KeyValueBank("costs"), {}

    def record(call: AttentionCall) -> Tensor:
        if call.block in blocks:
            seen[call.layer] = call.k, call.v
            bank.store(call.layer, Record(call.chunks, call.grid, [(call.k, call.v)]))
        if call.layer == last:
            raise ReferenceRecorded
        return call.plain()

    def guide(call: AttentionCall) -> Tensor:
        if call.block not in blocks:
            return call.plain()
        joint = None if call.joint is None else call.joint()
        branch = Branch(0.3, *seen[call.layer])
        return reference_feature_guidance(call.attend, call.q, call.k, call.v, len(call.chunks), [branch], joint)

    def routed(latents: Tensor, handler: Callable[[AttentionCall], Tensor]) -> dict[str, Any]:
        halves = list(range(case.halves))
        return attentions.route(latents, {}, {"cond_or_uncond": halves, "uuids": halves}, handler)

    def reading() -> Tensor:
        return until_recorded(lambda _: read(routed(reference, record)), reference, channels=len(reference))

    passed, plain = operations(reading), operations(lambda: step({}))
    guided = operations(lambda: step(routed(x, guide)))
    return [
        *(case.name, case.size, _gib(_bytes(model.model.diffusion_model))),
        _gib(memory(case, model, reference_of(case))),
        *(_gib(bank.size), _gib(STEPS * bank.size)),
        *(f"{(passed + guided) / plain:.2f}", f"{guided / plain:.2f}"),
    ]


def memory(case: Case, model: CoreModelPatcher, *references: tuple[int, ...]) -> float:
    """Bytes that ComfyUI sets aside for a step beside the weights, where PyTorch's flash attention runs."""
    batch, *rest = shape_with((1, *case.latent), [torch.zeros(1, *each, device="meta") for each in references])
    with mock.patch.object(comfy.model_management, "pytorch_attention_flash_attention", return_value=True):
        return model.model.memory_required([2 * batch, *rest])


def adapter_cost(case: Case) -> list[str]:
    """A row: the P3S network, and what its training holds."""
    model, meta = model_of(case), torch.device("meta")
    network = P3SNetwork(model.model.model_config.unet_config, VISION_WIDTH, comfy.ops.manual_cast, device=meta)
    kept = sum(weight.numel() for weight in network.parameters())
    layers = len(self_attention_layers(model.model.diffusion_model))
    # float32: the weights, their gradients, and two moments of the optimiser
    return [case.name, str(layers), _gib(2 * kept), _gib(16 * kept + _bytes(model.model.diffusion_model))]


def leffa_cost(width: int, height: int) -> list[str]:
    """A row: both U-Nets of try-on in half precision, and a step with the garment and the empty reference."""
    case = replace(CASES[0], latent=(4, height // 8, width // 8))
    kinds = ((LeffaUNet, layout.GENERATIVE), (ReferenceUNet, layout.REFERENCE))
    weights = sum(_bytes(without_weights(kind, prefix)) for kind, prefix in kinds)
    step = memory(case, model_of(case), case.latent, case.latent)
    return ["try-on", f"{width} x {height}", _gib(weights), _gib(step)]


def _bytes(module: torch.nn.Module) -> int:
    return sum(2 * weight.numel() for weight in module.parameters())


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def tables() -> str:
    """All tables."""
    head = ["Model", "Picture", "weights", "a step", "keys and values of the reference, one step"]
    head += [f"all {STEPS} steps", "time, reference passed", "time, from the cache"]
    refdrop = _table(head, [refdrop_cost(case) for case in CASES])
    adapters = [adapter_cost(case) for case in CASES if (case.name, case.size) in ADAPTERS]
    p3s = _table(["Model", "self-attentions", "the adapter", "training it, without activations"], adapters)
    leffa = _table(["Leffa", "Picture", "both U-Nets", "a step"], [leffa_cost(768, 1024)])
    return f"{refdrop}\n## P3S: the adapter\n\n{p3s}\n## Leffa\n\n{leffa}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str, text: str) -> str:
    """The page with the tables in it."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    with torch.inference_mode():
        found = tables()
    print(found)
    if PAGE.exists():
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
