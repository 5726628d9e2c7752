"""Takes back what was mended for graphics cards, one thing at a time, and sees whether a test fails.

    .venv/bin/python tests/mends.py [NUMBER ...]

NUMBER chooses some of `MENDS`, such as 1a or 6. No file is changed. Exit status: 1 where no test has failed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/support", "tools", "dev", "demo/runs", "tests")]

import bootstrap
import pytest

SECOND = "tests/patches/on_second_device.py::test_"
STEP = f"{SECOND}what_a_step_waits_for_and_moves"
RESERVED = "tests/patches/test_reserved_memory.py::test_"
EXACTLY = f"{RESERVED}exactly_the_keys_and_values_are_reserved"
SPLIT = "tests/patches/test_multi_gpu.py::test_"
BASE = "tests/models/test_base.py::test_"
RECORD = "tests/refdrop/test_record.py::test_"
SUPPORTED = "is_async = management.device_supports_non_blocking(device)\n"


class Mend(NamedTuple):
    """What was mended, and how to take it back.

    Attributes:
        fault: its number, and what it was.
        module: of `core`.
        now: text that the module has once.
        before: what to put in its place.
        tests: each of them has to fail without it.
    """

    fault: str
    module: str
    now: str
    before: str
    tests: Sequence[str]


MENDS = (
    Mend(
        "1a the program waits for what is kept", "patches.transfer",
        "is_async = _pin(kept) and management", "is_async = False and management",
        [f"{STEP}[refdrop, filling the cache]", f"{STEP}[refdrop, recording]"],
    ),
    Mend(
        "1b what is kept is brought when it is needed", "patches.bank",
        "if arriving.is_moving and (following", "if False and (following",
        [f"{SECOND}the_cache_is_one_layer_ahead"],
    ),
    Mend(
        "1c half precision is converted before the bus", "patches.bank",
        "arriving = Arriving(self._parts(layer, chunks), like.device)",
        "arriving = Arriving([part.to(like.dtype) for part in self._parts(layer, chunks)], like.device)",
        [f"{STEP}[refdrop, cached in float16]"],
    ),
    Mend(
        "1d the program waits for what is brought", "patches.transfer", SUPPORTED, "is_async = False\n",
        [f"{STEP}[refdrop, cached]"],
    ),
    Mend(
        "1e more is pinned than ComfyUI allows", "patches.transfer",
        "if management.TOTAL_PINNED_MEMORY + tensor.nbytes > management.MAX_PINNED_MEMORY:", "if False:",
        [f"{SECOND}memory_is_pinned_within_the_budget_and_for_as_long_as_it_is_needed"],
    ),
    Mend(
        "1f what is slower to bring than to see is kept", "refdrop.cache",
        "self.pays = bringing <= seconds", "self.pays = True",
        [f"{SECOND}what_takes_longer_to_bring_than_to_see_is_not_kept"],
    ),
    Mend(
        "1g the budget does not follow the memory", "refdrop.cache",
        "if self._is_automatic:", "if False:",
        ["tests/refdrop/test_cache.py::test_by_itself_it_takes_a_third_of_the_memory_that_is_free"],
    ),
    Mend(
        "2 a mask is looked at in every attention", "patches.selection",
        "if (grid, device) not in self._tokens:", "if True:",
        [f"{SECOND}a_mask_is_looked_at_once_for_each_grid", f"{STEP}[refdrop latent, masks]"],
    ),
    Mend(
        "3a a network cannot be copied to another device", "models.base",
        "    patcher.cached_patcher_init = (_managed, (make, weights, load, offload))\n", "",
        [f"{SPLIT}split_and_whole_give_the_same[p3s_adapter]"],
    ),
    Mend(
        "3b a half is given the network of the main device", "patches.passes",
        'copies.get(options.get("multigpu_thread_device"), self.model.current_patcher)', "self.model.current_patcher",
        [f"{SPLIT}the_network_of_an_adapter_runs_where_its_half_runs"],
    ),
    Mend(
        "3c a look leaves a gap among the loaded models", "patches.copies",
        "    clone.add_callback_with_key(CallbacksMP.ON_MATCH_MULTIGPU_CLONES, KEY, _descend)\n", "",
        [f"{SPLIT}refine_by_align_split_and_whole_give_the_same[self]", f"{SPLIT}what_a_node_samples_leaves_no_gap"],
    ),
    Mend(
        "4a more is reserved than is held", "patches.binding", "Reserved(run.held *", "Reserved(2 * run.held *",
        [f"{EXACTLY}[wan21]", f"{RESERVED}leffa_keeps_keys_and_values_of_the_garment_and_of_zeros"],
    ),
    Mend(
        "4b one frame counts as a video", "patches.memory",
        "passes = [-(-latent[:, 0].numel() // each) for latent in latents]",
        "passes = [noise_shape[0] + len(latent) for latent in latents]",
        [f"{EXACTLY}[wan21]", f"{EXACTLY}[sd15]"],
    ),
    Mend(
        "4c one entry of a prompt counts for all", "patches.reference_pass",
        "sum(map(len, read))", "len(read)", [f"{RESERVED}it_is_what_is_read[two prompts]"],
    ),
    Mend(
        "4d training makes room for the adapter alone", "p3s.objective",
        "free_memory(trained + frozen + room", "free_memory(trained + room",
        [f"{RESERVED}training_makes_room_for_the_frozen_weights_too"],
    ),
    Mend(
        "4e an encoder says nothing of a large picture", "models.vision",
        "memory_required=at_once * self._memory", "memory_required=0",
        [f"{RESERVED}a_large_picture_for_an_encoder_is_announced_and_goes_through_alone"],
    ),
    Mend(
        "4f the flow of all queries at once", "leffa.kernel",
        "step = max(1, most // (k.shape[0] * k.shape[1] * k.shape[2]))", "step = q.shape[2]",
        ["tests/leffa/test_kernel.py::test_the_map_exists_in_parts_only"],
    ),
    Mend(
        "4g ComfyUI does not see a recording's size", "refdrop.past_run",
        "self.extend(bank.tensors)", "pass",
        [f"{RESERVED}comfyui_counts_and_drops_a_recording_where_main_memory_is_short"],
    ),
    Mend(
        "4h Leffa keeps what main memory has no room for", "leffa.tokens", " and has_room(size):", ":",
        [f"{RESERVED}leffa_keeps_zeros_only_while_main_memory_has_room"],
    ),
    Mend(
        "5a zeros are looked for in every attention", "p3s.trained", "if not self._used:", "if True:",
        [f"{STEP}[p3s, adapter]"],
    ),
    Mend(
        "5b the place on the schedule is sought on the device", "p3s.run",
        "time = self.settings.schedule, time_of(self._sampling, asked.level)",
        "time = self.settings.schedule, time_of(self._sampling, asked.sigma)",
        [f"{STEP}[p3s]"],
    ),
    Mend(
        "5c a noise level is read wherever it is needed", "patches.passes",
        "    @cached_property\n    def level", "    @property\n    def level",
        [f"{STEP}[p3s]"],
    ),
    Mend(
        "5d Leffa asks the device for a timestep", "leffa.run",
        'on_cpu(guider.model_patcher.get_model_object("model_sampling"))',
        'guider.model_patcher.get_model_object("model_sampling")',
        [f"{STEP}[leffa]"],
    ),
    Mend(
        "5e Leffa compares halves", "leffa.run",
        "route_self_attention(options, handle), are_equal)", "route_self_attention(options, handle), False)",
        [f"{STEP}[leffa]"],
    ),
    Mend(
        "5f DEADiff compares texts", "deadiff.run",
        "given = context if texts is None else texts", "given = context", [f"{STEP}[deadiff]"],
    ),
    Mend(
        "6a a model loaded anew is another one", "refdrop.past_run",
        "return model.clone_base_uuid, weight_patches(model)", "return id(model.model), weight_patches(model)",
        [f"{RECORD}the_same_model_loaded_anew_is_the_same"],
    ),
    Mend(
        "6b prompts with hooks make another model", "refdrop.past_run",
        "return model.clone_base_uuid, weight_patches(model)", "return model.clone_base_uuid, model.patches_uuid",
        [f"{RECORD}prompts_with_hooks_follow_a_recording"],
    ),
    Mend(
        "6c another precision makes another model", "models.base", "relative * size", "0 * size",
        [f"{BASE}no_precision_makes_another_model", f"{BASE}no_quantisation_makes_another_model"],
    ),
    Mend(
        "6d nine of ten numbers are enough", "models.base",
        "<= allowed).all())", "<= allowed).float().mean() > 0.9)",
        [f"{BASE}one_changed_weight_makes_another_model", f"{RECORD}another_model_is_refused"],
    ),
    Mend(
        "7a every device is given asynchronous copies", "patches.transfer", SUPPORTED, "is_async = True\n",
        [f"{SECOND}a_device_without_asynchronous_copies_gets_none"],
    ),
    Mend(
        "7b an antialiased resize in half precision", "p3s.kernel",
        "wide = pictures.float() if f.dtype.itemsize < 4 else pictures", "wide = pictures",
        ["tests/p3s/test_kernel.py::test_tokens_go_to_another_grid_as_a_picture_would"],
    ),
    Mend(
        "7c the next replay writes over what is recorded", "patches.reference_pass",
        'return tensor.clone() if tensor.device.type != "cpu" and "torch._dynamo" in sys.modules else tensor',
        "return tensor", [f"{SECOND}what_is_recorded_outlives_the_next_replay"],
    ),
)  # fmt: skip


class Unmended(SourceFileLoader):
    """Has a module imported as it was before a mend."""

    def __init__(self, mend: Mend) -> None:
        path = ROOT / "core" / f"{mend.module.replace('.', '/')}.py"
        super().__init__(f"refattention.core.{mend.module}", str(path))
        text = path.read_text(encoding="utf-8")
        if text.count(mend.now) != 1:
            raise ValueError(f"{path} has the text of '{mend.fault}' {text.count(mend.now)} times.")
        self._text = text.replace(mend.now, mend.before)

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """For the one module."""
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, name: str) -> CodeType:
        """Of the text as it was."""
        return compile(self._text, self.path, "exec")


class Failed(list[str]):
    """The tests that failed, not those that could not begin."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.failed:
            self.append(report.nodeid)


def missed(mend: Mend, log: Path) -> int:
    """How many of a mend's tests pass without it. They run in a process of their own, which a module changes once."""
    unmended = Unmended(mend)
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.meta_path.insert(0, unmended)
    failed = Failed()
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", *mend.tests], [failed])
    sys.stdout.flush()
    os._exit(sum(not any(each.startswith(test) for each in failed) for test in mend.tests))


def main(chosen: Sequence[str]) -> int:
    """Tries the chosen mends, or all."""
    os.chdir(ROOT)
    bootstrap.name_packages()
    bootstrap.prepare_host(exact=True)
    import_module("comfy.sd")  # once for all
    log = ROOT / "out" / "mends.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    found = 0
    for mend in MENDS:
        if not chosen or mend.fault.startswith(tuple(chosen)):
            start, passed = time.monotonic(), missed(mend, log)
            found += bool(passed)
            verdict = f"{passed} of {len(mend.tests)} tests DID NOT FAIL" if passed else "caught"
            print(f"{mend.fault}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
