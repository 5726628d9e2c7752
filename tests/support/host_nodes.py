"""Every node of ComfyUI itself that takes a MODEL and gives one, with inputs to try it with."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from families import tiny_model, tiny_prompt
from safetensors.torch import save_file

LORA, HYPERNETWORK = "tiny.safetensors", "tiny.pt"
# What a default leaves without effect, or too large for a tiny model.
INPUTS: dict[str, dict[str, Any]] = {
    "CFGNorm": {"strength": 0.5},
    "CFGOverride": {"cfg": 2.0},
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 1},
    "EasyCache": {"reuse_threshold": 2.0, "start_percent": 0.0, "end_percent": 1.0},
    "FreSca": {"freq_cutoff": 2},
    "HyperTile": {"tile_size": 32},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 0},
    "LatentApplyOperationCFG": {"operation": lambda latent, **_: 0.9 * latent},
    "LazyCache": {"reuse_threshold": 2.0, "start_percent": 0.0, "end_percent": 1.0},
    "ModelComputeDtype": {"dtype": "fp32"},
    "ModelSamplingContinuousEDM": {"sigma_max": 20.0},
    "ModelSamplingContinuousV": {"sigma_max": 20.0},
    "PatchModelAddDownscale": {"block_number": 2, "end_percent": 1.0},
    "PerpNeg": {"neg_scale": 1.5},
    "ScaleROPE": {"scale_x": 1.2, "shift_y": 1.0},
    "SelectModelDevice": {"device": "default"},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "single_layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1", "single_layers": "0"},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "TomePatchModel": {"ratio": 0.5},
    "UNetCrossAttentionMultiply": {"q": 1.1, "k": 0.9, "v": 1.2, "out": 0.9},
    "UNetSelfAttentionMultiply": {"q": 1.1, "k": 0.9, "v": 1.2, "out": 0.9},
    "WanContextWindowsManual": {"context_length": 5, "context_overlap": 0},
}
# What is not tried, and why.
PATCH_FILE = "takes a model patch file, whose weights act inside the model's blocks"
OTHER_FAMILY = "for a family that none of the pack's nodes takes"
NOT_TRIED = {
    "ARVideoI2V": OTHER_FAMILY,
    "AnimaLLLiteApply": OTHER_FAMILY,
    "ChromaRadianceOptions": OTHER_FAMILY,
    "HiDreamO1PatchSeamSmoothing": OTHER_FAMILY,
    "LTXVReferenceAudio": OTHER_FAMILY,
    "MiniMaxH3SigmaShift": OTHER_FAMILY,
    "ModelNoiseScale": OTHER_FAMILY,
    "ModelSamplingStableCascade": OTHER_FAMILY,
    "TripoSplatSamplingPreview": OTHER_FAMILY,
    "QwenImageDiffsynthControlnet": "tried by a test of its own, on Qwen-Image",
    "SUPIRApply": PATCH_FILE,
    "USOStyleReference": PATCH_FILE,
    "WanInfiniteTalkToVideo": PATCH_FILE,
    "WanUni3CControlnetApply": PATCH_FILE,
    "ZImageFunControlnet": PATCH_FILE,
    "TorchCompileModel": "tried by a test of its own, in which every method follows every other one",
}


@functools.cache
def model_nodes() -> dict[str, type]:
    """By their ids, in order."""
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    own = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if not cls.__module__.startswith("refatt")}
    return {
        name: cls
        for name, cls in sorted(own.items())
        if "MODEL" in cls.RETURN_TYPES and any(kind == "MODEL" for kind, _ in _specs(cls).values())
    }


def _specs(cls: type) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of each input."""
    groups = cls.INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in inputs.items()}


def applied(name: str, family: str, patcher: Any) -> Any:
    """What a node makes of a model of a family."""
    cls, values = model_nodes()[name], dict[str, Any]()
    for key, (kind, options) in _specs(cls).items():
        choices = kind if isinstance(kind, list) else options.get("options")
        if kind == "MODEL":
            values[key] = patcher if not values else _changed(family)
        elif key == "lora":
            values[key] = _lora(family)
        elif kind == "CONDITIONING":
            values[key] = tiny_prompt(family, 9)
        elif kind == "CLIP" or kind == "MASK" or kind == "LATENT":
            values[key] = None
        elif "default" in options:
            # Halves, so that merging two models does something.
            values[key] = 0.5 if name.startswith("ModelMerge") and kind == "FLOAT" else options["default"]
        elif key in ("lora_name", "hypernetwork_name"):
            values[key] = f"{family}-{LORA}" if key == "lora_name" else HYPERNETWORK
        elif choices:
            values[key] = choices[0]
    values |= INPUTS.get(name, {})
    if issubclass(cls, io.ComfyNode):
        return cls.execute(**values)[0]
    return getattr(cls(), cls.FUNCTION)(**values)[0]


def _changed(family: str) -> Any:
    """A second model: the first with a weight patch."""
    patcher = tiny_model(family)
    patcher.add_patches({key: (delta,) for key, delta in _deltas(patcher).items()})
    return patcher


def _deltas(patcher: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    keys = [key for key in patcher.model_state_dict() if key.endswith("weight") and ("to_k" in key or "qkv" in key)]
    shapes = [patcher.get_model_object(key).shape for key in keys[:4]]
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in zip(keys, shapes, strict=False)}


def _lora(family: str) -> dict[str, torch.Tensor]:
    found = {}
    for key, delta in _deltas(tiny_model(family)).items():
        name = key.removesuffix(".weight")
        found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = torch.eye(delta.shape[1]), delta
    return found


def write_files(folder: Path, families: list[str]) -> None:
    """Puts a LoRA of each family and a hypernetwork where ComfyUI looks for them."""
    for family in families:
        save_file(_lora(family), folder / f"{family}-{LORA}")
    generator = torch.Generator().manual_seed(4)
    layer = {"linear.0.weight": 0.1 * torch.randn(32, 32, generator=generator), "linear.0.bias": torch.zeros(32)}
    torch.save({32: [layer, layer], "activation_func": "linear"}, folder / HYPERNETWORK)
    for kind in ("loras", "hypernetworks"):
        folder_paths.add_model_folder_path(kind, str(folder))
