"""The page of families: which model which training-free method works on, as the code says when it is asked.

.venv/bin/python dev/family_table.py  # writes docs/families.md
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
U_NET = "modules.diffusionmodules.openaimodel.UNetModel"
U_NETS = {"sd15": "SD1.5, SD2, SDXL, and U-Nets built like them", "svd": "SVD, SV3D"}
# Models of pictures whose class is that of a model of videos, by their tiny model.
PICTURES = {"hunyuan_image": "HunyuanImage 2.1", "kandinsky5_image": "Kandinsky 5 Image"}
YES, NUMBERS = "✓", "¹²³⁴⁵⁶⁷⁸⁹"

INTRODUCTION = """# Families

Which models the training-free methods work on. A *family* is all models of one architecture, fine-tunes included.
The second column has the names that messages use, which are ComfyUI's.
A *no* is refused by name in one sentence; the number says [why](#why-not). Each family was tried on a small random
model of ComfyUI's own class, against attention written out; trained models of most were not. Strengths, layers and
timesteps that the help pages advise are the papers', found on U-Nets. A model of videos takes the probe's pictures
as frames.

*Made by `dev/family_table.py` from the code.*
"""
WHY_NOT = """
## Why not

What the messages say of node and model:

"""
REFUSED = """
## Refused

| ComfyUI's names | Why |
|---|---|
"""


def page() -> str:
    """The page as the code has it now."""
    from architectures import architecture_of, pictures
    from families import FAMILIES
    from refattention.core.patches.families.table import LAYOUTS, REASONS, key_of

    names: dict[str, list[str]] = {}
    alone = {FAMILIES[tiny_name].host_class for tiny_name in PICTURES}
    for config in pictures():
        if config.__name__ in alone or not config.__module__.startswith("comfy."):
            continue
        names.setdefault(key_of(architecture_of(config)), []).append(config.__name__)
    tiny = _tiny_names()
    is_video = {name: name.startswith(("SVD", "SV3D")) for name in names[U_NET]}
    rows = []
    for tiny_name, title in U_NETS.items():
        there = [name for name, video in is_video.items() if video == (tiny_name == "svd")]
        rows.append((title, there, refusals(tiny_name)))
    rows += [(layout.name, names[key], refusals(tiny[key])) for key, layout in LAYOUTS.items()]
    rows += [(title, [FAMILIES[each].host_class], refusals(each)) for each, title in PICTURES.items()]
    why_not = list(dict.fromkeys(why for *_, refused in rows for why in refused if why))
    marks = {"": YES, **{why: f"no{number}" for why, number in zip(why_not, NUMBERS, strict=False)}}
    lines = [
        f"| {title} | {', '.join(those)} | {' | '.join(map(marks.__getitem__, why))} |" for title, those, why in rows
    ]
    whys: dict[str, list[str]] = {}
    for key, why in REASONS.items():
        whys.setdefault(why, []).extend(names.get(key, []))
    refused = [f"| {', '.join(those)} | {why} |" for why, those in whys.items() if those]
    heads = ["Models", "ComfyUI's names", *_methods()]
    head = f"| {' | '.join(heads)} |\n|---|---|{':-:|' * len(_methods())}\n"
    notes = "\n".join(f"{number}. {why}." for number, why in enumerate(why_not, 1))
    return "\n".join([INTRODUCTION, head + "\n".join(lines), WHY_NOT + notes, REFUSED + "\n".join(refused), ""])


def refusals(tiny: str) -> list[str]:
    """Why each of the methods refuses a family; empty where it works."""
    from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt

    found = []
    for works in _methods().values():
        try:
            works(tiny_model(tiny), tiny_latent(tiny)[:1], tiny_prompt(tiny, 1))
            found.append("")
        except (RuntimeError, ValueError) as error:
            found.append(re.sub(f"Node|P3S Inject|{FAMILIES[tiny].host_class}", "…", str(error).split(". ")[0]))
    return found


def _tiny_names() -> dict[str, str]:
    """The first tiny family of each class of diffusion model."""
    from families import FAMILIES, tiny_model
    from refattention.core.patches.families.table import key_of

    found: dict[str, str] = {}
    for name in FAMILIES:
        found.setdefault(key_of(type(tiny_model(name).model.diffusion_model)), name)
    return found


def _methods() -> dict[str, Callable[[Any, Any, Any], object]]:
    """By the method, what refuses a model that it does not work on."""
    import torch
    from refattention.core.patches.families.table import attentions_of
    from refattention.core.refine_by_align.back_ends import IN_CONTEXT, SELF, back_end
    from refattention.core.refine_by_align.in_context import in_context_maps
    from refattention.core.refine_by_align.observe import observe, parse_look
    from refattention.nodes.p3s import P3SInject

    widgets = {"strength": 1.0, "schedule": "paper", "value_strength": 1.0, "alpha": 1.0, "beta": 0.0, "exponent": 1.0}
    whole = {"start_percent": 0.0, "end_percent": 1.0, "reference_seed": 0}

    @torch.inference_mode()
    def look(model: Any, latent: Any, prompt: Any, takes_videos: bool = False) -> None:
        if not takes_videos:
            back_end(model, lambda picture: picture, prompt, "Node", None, None, SELF)
        seen: list[Any] = []
        how = parse_look(model, "261", "", 0, "Node", takes_videos=takes_videos)
        observe(model, prompt, latent, latent, how, lambda *found: seen.append(found), "Node")
        if len(seen) < len(how.layers):
            raise RuntimeError("Some layers were not seen.")

    @torch.inference_mode()
    def in_context(model: Any, latent: Any, prompt: Any) -> None:
        back_end(model, lambda picture: picture, prompt, "Node", None, None, IN_CONTEXT)
        how = parse_look(model, "261", "", 0, "Node")
        in_context_maps(model, prompt, latent, [latent], how, lambda grid: torch.ones(1, math.prod(grid)), "Node")

    def p3s(model: Any, latent: Any, prompt: Any) -> object:
        return P3SInject.execute(model, **widgets, **whole, reference_latent={"samples": latent})

    return {
        "RefDrop": lambda model, latent, prompt: attentions_of(model, "Node"),
        "Refine by Align": look,
        "the same, in-context": in_context,
        "Attention Probe": partial(look, takes_videos=True),
        "P3S Inject without an adapter": p3s,
    }


def main() -> None:
    """Writes the page."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import bootstrap

    bootstrap.name_packages()
    bootstrap.prepare_host()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
