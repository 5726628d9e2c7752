"""make gpu-check: what a test on a CPU cannot show, on whatever card is there: is it right, how long, how much memory.

Each step runs in a process of its own, with options of ComfyUI's command line, and its answer is written at once to
`bench/results/<device>.json`, with a log beside it: a run that was stopped goes on where it was. No network is used.

    correct.*   small pictures by every method in several precisions and ways of offloading, against the CPU in float32
    sizes.*     models of full size with random weights: a plain step, the methods' steps beside it, and their memory
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), *(str(ROOT / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]
NOT_DYNAMIC = ("--disable-dynamic-vram",)
PYTORCH = ("--use-pytorch-cross-attention",)
# Compiling takes long: one U-Net with what is routed in it and around it, and one transformer.
COMPILED = ("plain.sd15", "refdrop.sd15", "deadiff.sd15", "adapter.sd15", "refdrop.flux")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One process of the check.

    Attributes:
        options: of ComfyUI's command line.
        run: (work, toy) -> what is to be written down; "ok" says whether all is right.
        seconds: at most.
        needs: a package without which it is left out.
    """

    options: tuple[str, ...]
    run: Callable[[Path, bool], Answer]
    seconds: int
    needs: str = "torch"


def reference(work: Path, toy: bool) -> Answer:
    """The pictures that all others are held against."""
    import torch
    from every_method import EveryMethod
    from safetensors.torch import save_file

    paint = EveryMethod(torch.float32)
    names = _names(paint, toy)
    save_file({name: paint.picture(name).contiguous() for name in names}, work / "reference.safetensors")
    return {"ok": True, "pictures": len(names)}


def _names(paint: Any, toy: bool) -> list[str]:
    return [name for name in paint.names if not toy or name.endswith(".sd15")]


def correct(dtype: str, only: tuple[str, ...] = (), change: str = "") -> Callable[[Path, bool], Answer]:
    """A step that compares pictures in a precision with those of `reference`.

    Args:
        only: these, and the plain ones of their families; all if there are none.
        change: "compile", or "dynamic" for ComfyUI's dynamic VRAM.
    """

    def run(work: Path, toy: bool) -> Answer:
        if change == "dynamic" and not toy:
            _start_dynamic_vram()
        import torch
        from every_method import EveryMethod, allowed, error
        from safetensors.torch import load_file

        known, precision = load_file(work / "reference.safetensors"), getattr(torch, dtype)
        paint = EveryMethod(
            precision, _compiled("eager" if toy else "inductor") if change == "compile" else lambda p: p
        )
        errors: dict[str, float] = {}
        failed: dict[str, str] = {}
        for name in [name for name in _names(paint, toy) if not only or name in only]:
            plain = f"plain.{name.split('.')[1]}"
            for each in dict.fromkeys((plain, name)):
                if each not in errors and each not in failed:
                    try:
                        errors[each] = error(paint.picture(each), known[each])
                    except Exception as problem:  # one picture must not cost the others
                        failed[each] = "".join(traceback.format_exception(problem))[-2000:]
            # The plain model's own error is the host's affair, the method's beyond it ours.
            if name != plain and name in errors and errors[name] > allowed(name, precision, errors.get(plain, 0.0)):
                failed[name] = f"error {errors[name]:.2e}, plain {errors.get(plain, 0.0):.2e}"
        return {"ok": not failed, "errors": {name: float(f"{e:.3g}") for name, e in errors.items()}, "failed": failed}

    return run


def _compiled(backend: str) -> Callable[[Any], Any]:
    def compiled(patcher: Any) -> Any:
        from comfy_api.torch_helpers import set_torch_compile_wrapper
        from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

        patcher = patcher.clone()
        set_torch_compile_wrapper(patcher, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict})
        return patcher

    return compiled


def _start_dynamic_vram() -> None:
    """What ComfyUI's main.py does where it can."""
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = comfy.model_management.get_all_torch_devices()
    if not comfy_aimdo.control.init_devices(device.index for device in devices):
        raise RuntimeError("ComfyUI's dynamic VRAM does not start on this card.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def sizes(family: str) -> Callable[[Path, bool], Answer]:
    """A step that measures a family at full size."""

    def run(work: Path, toy: bool) -> Answer:
        import gpu_sizes

        return {"ok": True, "rows": gpu_sizes.rows(family, toy)}

    return run


STEPS: dict[str, Step] = {
    "reference": Step(("--cpu", *PYTORCH), reference, 90),
    "correct.float32": Step((*NOT_DYNAMIC, *PYTORCH), correct("float32"), 40),
    "correct.float16": Step((*NOT_DYNAMIC, *PYTORCH), correct("float16"), 40),
    "correct.bfloat16": Step((*NOT_DYNAMIC, *PYTORCH), correct("bfloat16"), 40),
    "sizes.sd15": Step((*NOT_DYNAMIC, *PYTORCH), sizes("sd15"), 60),
    "sizes.sdxl": Step((*NOT_DYNAMIC, *PYTORCH), sizes("sdxl"), 60),
    "sizes.flux": Step((*NOT_DYNAMIC, *PYTORCH), sizes("flux"), 60),
    "sizes.wan": Step((*NOT_DYNAMIC, *PYTORCH), sizes("wan"), 90),
    "sizes.leffa": Step((*NOT_DYNAMIC, *PYTORCH), sizes("leffa"), 60),
    "correct.dynamic_vram": Step(("--enable-dynamic-vram", *PYTORCH), correct("float16", change="dynamic"), 40),
    "correct.lowvram": Step(("--lowvram", *NOT_DYNAMIC, *PYTORCH), correct("float16"), 40),
    "correct.novram": Step(("--novram", *NOT_DYNAMIC, *PYTORCH), correct("float16"), 40),
    "correct.compile": Step((*NOT_DYNAMIC, *PYTORCH), correct("float16", COMPILED, "compile"), 90),
    "correct.sage": Step((*NOT_DYNAMIC, "--use-sage-attention"), correct("float16"), 40, "sageattention"),
    "correct.flash": Step((*NOT_DYNAMIC, "--use-flash-attention"), correct("float16"), 40, "flash_attn"),
}


class Results:
    """What is known so far, in a file that is complete after each step."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self._path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        # Of another state of the pack, or another torch, nothing counts.
        same = kept.get("about") == about
        self._all: Answer = {"about": about, "steps": kept["steps"] if same else {}}

    @property
    def steps(self) -> dict[str, Answer]:
        """By name."""
        steps: dict[str, Answer] = self._all["steps"]
        return steps

    def is_done(self, name: str) -> bool:
        """Whether a step came to its end, be it right or wrong."""
        return self.steps.get(name, {}).get("ended", False)

    def put(self, name: str, answer: Answer) -> None:
        """Writes a step's answer."""
        self.steps[name] = answer
        half = self._path.with_suffix(".part")
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(self._all, indent=1) + "\n", encoding="utf-8")
        half.replace(self._path)


def in_a_process(name: str, work: Path, seconds: float) -> Answer:
    """Runs a step, at most so long."""
    command = [sys.executable, __file__, "--step", name, "--work", str(work)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        return {"ok": False, "ended": True, "why": f"it took more than {seconds:.0f} s", "log": _tail(late.stderr)}
    answer = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
    return json.loads(answer[0]) if answer else {"ok": False, "ended": True, "log": _tail(done.stderr)}


def _tail(text: str | bytes | None) -> str:
    return (text.decode(errors="replace") if isinstance(text, bytes) else text or "")[-4000:]


def in_this_process(name: str, work: Path, toy: bool) -> Answer:
    """Runs a step; a problem is its answer."""
    try:
        return {**STEPS[name].run(work, toy), "ended": True}
    except Exception:
        return {"ok": False, "ended": True, "log": traceback.format_exc()[-4000:]}


def check(results: Results, run: Callable[[str, float], Answer], minutes: float, say: Callable[[str], None]) -> bool:
    """Runs what is not done yet, as long as there is time; whether all is right.

    Args:
        run: (name, seconds) -> the answer of a step.
        say: takes lines for the log.
    """
    end = time.monotonic() + 60 * minutes
    for name, step in STEPS.items():
        left = end - time.monotonic()
        if results.is_done(name):
            say(f"{name}: done before")
        elif importlib.util.find_spec(step.needs) is None:
            results.put(name, {"ok": True, "left_out": f"{step.needs} is not installed"})
        elif left < 5:
            results.put(name, {"ok": False, "left_out": "no time was left; run it again to go on"})
        else:
            started = time.monotonic()
            answer = run(name, min(step.seconds, left))
            results.put(name, {**answer, "seconds": round(time.monotonic() - started, 1)})
        say(f"{name}: {json.dumps(results.steps[name])}")
    return all(answer["ok"] for answer in results.steps.values())


def about(device: str) -> dict[str, str]:
    """The card, and what else decides the results."""
    import torch

    code = sorted(path for folder in ("core", "bench", "tests/support") for path in (ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:16]
    return {"device": device, "torch": torch.__version__, "code": digest}


def main() -> int:
    """Runs the check, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no step begins later")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has found")
    parser.add_argument("--toy", action="store_true", help="on the CPU, in one process, with the smallest of models")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "gpu_check")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)

    import bootstrap

    bootstrap.name_packages()
    if chosen.step:
        bootstrap.prepare_host_as_started(list(STEPS[chosen.step].options))
        print(json.dumps(in_this_process(chosen.step, chosen.work, toy=False)))
        return 0
    device = "toy" if chosen.toy else _card()
    path = chosen.results / f"{re.sub(r'[^A-Za-z0-9]+', '_', device)}.json"
    if chosen.again:
        path.unlink(missing_ok=True)
    if chosen.toy:
        bootstrap.prepare_host(cpu=True, exact=True)
    results = Results(path, about(device))

    def run(name: str, seconds: float) -> Answer:
        return in_this_process(name, chosen.work, toy=True) if chosen.toy else in_a_process(name, chosen.work, seconds)

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            log.write(line + "\n")
            log.flush()
            print(line if len(line) < 400 else f"{line[:400]} …", flush=True)

        right = check(results, run, chosen.minutes, say)
    print(f"{'All right' if right else 'Not all right'}: {path}")
    return 0 if right else 1


def _card() -> str:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("There is no graphics card that torch can use. --toy runs the check's own parts on the CPU.")
    return torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())
