"""Every method on a second device: nothing is mixed, and what a step waits for and moves is as written down here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import on_device
import pytest
import torch
from families import FAMILIES, tiny_model
from on_device import MASK, Sampling
from refattention.core.patches import selection, transfer
from refattention.core.patches.bank import KeyValueBank, Record
from refattention.core.patches.transfer import Arriving, kept_tensor
from refattention.core.refdrop.cache import ReferenceCache
from refattention.nodes.leffa import EVERY_N
from second_device import DEVICE, Counts, on_second, second_device, steps_of
from torch import Tensor

# What a step adds to one of the plain model's: waits for the device, bytes to it, bytes from it.
# A noise level read back is 4 bytes. What a reference gives for a step is brought in the step, by way of the cache
# (123 kB, half of that in float16, for this model); else nothing goes to the device after the first step.
STEPS: dict[str, tuple[Sampling, tuple[int, int, int]]] = {
    "refdrop latent": (on_device.refdrop("sd15"), (1, 0, 4)),
    "refdrop latent, masks": (on_device.refdrop("sd15", reference_mask=MASK, mask=MASK), (1, 0, 4)),
    "refdrop batch, masks": (on_device.refdrop("sd15", "batch", reference_mask=MASK, mask=MASK), (1, 960, 4)),
    "refdrop, filling the cache": (on_device.refdrop("sd15", cache=False), (1, 0, 122884)),
    "refdrop, cached": (on_device.refdrop("sd15", cache=False, again=True), (1, 122880, 4)),
    "refdrop, cached in float16": (on_device.refdrop("sd15", cache=True, again=True), (1, 61440, 4)),
    "refdrop, every 3rd step": (on_device.refdrop("sd15", reference_every=3), (1, 0, 4)),
    "refdrop, recording": (on_device.recording(), (1, 0, 245764)),
    "refdrop, recorded, mask": (on_device.recorded(reference_mask=MASK), (1, 245760, 4)),
    "p3s": (on_device.p3s(subject_mask=MASK), (1, 0, 4)),
    "p3s, adapter": (on_device.p3s_adapter(subject_mask=MASK), (2, 0, 422)),
    "p3s, untrained adapter": (on_device.p3s_adapter(zeros=True), (2, 0, 422)),
    "deadiff": (on_device.deadiff(mask=MASK), (0, 0, 0)),
    "deadiff, a part of the steps": (on_device.deadiff(end_percent=0.9), (1, 0, 4)),
    "leffa": (on_device.leffa(again=True), (1, 73728, 4)),
    "leffa, every 3rd step": (on_device.leffa(reference=EVERY_N, reference_interval=3, again=True), (1, 0, 4)),
    "align, painting": (on_device.painting("self", 0.5), (1, 0, 4)),
    "align, painting with an adapter": (on_device.painting("adapter", 0.5), (0, 1920, 0)),
    "flux, painting in context": (on_device.painting("in context", 0.5), (1, 3072, 0)),
}
# Of the plain models, whose text, inpainting channels and reference latents ComfyUI brings in each step
PLAIN = {
    **{"refdrop": (1, 960), "p3s": (1, 39424), "deadiff": (1, 39424), "leffa": (2, 3080)},
    **{"align": (1, 960), "flux": (3, 548)},
}


def here(patcher: Any) -> Any:
    return patcher


def counted(run: Sampling) -> tuple[Tensor, list[Counts]]:
    with second_device() as counts:
        out, steps = steps_of(counts, lambda callback: run(on_second, callback))
        return out.cpu(), steps


def total(counts: Counts) -> tuple[int, int, int]:
    return tuple(sum(each.values()) for each in counts.parts)


@pytest.mark.parametrize("method", STEPS)
def test_what_a_step_waits_for_and_moves(method: str) -> None:
    """The steps behind the first one, which brings what all of them need; the picture is that of the CPU."""
    run, expected = STEPS[method]
    got, steps = counted(run)
    waits, up = PLAIN[method.split()[0].strip(",")]
    last = steps[-1]  # of three that share a look, the last
    assert (total(last)[0] - waits, total(last)[1] - up, total(last)[2]) == expected, last
    assert torch.equal(got, run(here, None))


def test_the_tables_promise() -> None:
    assert all(waits <= 2 for _, (waits, _, _) in STEPS.values())


# What the pack's own lines add when one timestep is looked at, and for each further one. The first brings which queries
# and keys look at each other on each of a U-Net's grids; the maps come down together at the end.
LOOKS = {
    "align, self": (on_device.aligned, (7, 1056, 768), (0, 0, 768)),
    "align, in context": (on_device.aligned, (4, 224, 192), (0, 0, 192)),
    "align, adapter": (on_device.aligned, (4, 720, 240), (0, 0, 240)),
    "probe, self": (on_device.probed, (6, 216000, 2065408), (0, 0, 1024)),
    "probe, in context": (on_device.probed, (4, 43200, 2064640), (0, 0, 256)),
}


def own(counts: Counts) -> Counts:
    """What was counted at lines of the pack."""
    return Counts(*(Counter({line: n for line, n in of.items() if line.startswith("core")}) for of in counts.parts))


@pytest.mark.parametrize("method", LOOKS)
def test_what_a_look_waits_for_and_moves(method: str) -> None:
    look, first, further = LOOKS[method]
    found = []
    for timesteps in ((261,), (261, 181)):
        with second_device() as counts:
            got = look(method.split(", ")[1], on_second, timesteps)
        found.append(own(counts))
    assert (total(found[0]), total(found[1].since(found[0]))) == (first, further), found
    assert all(map(torch.equal, got, look(method.split(", ")[1], here, (261, 181))))


# Their references need a prompt of their own.
NEEDING = {"pid", "hidream_o1"}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NEEDING])
def test_no_family_mixes_devices(family: str) -> None:
    """With a cache that is filled and used, so that all ways to the device are gone; and with a batch."""
    for run in (
        on_device.refdrop(family, steps=1, reference_mask=MASK, mask=MASK, cache=False, again=True),
        on_device.refdrop(family, "batch", steps=1, mask=MASK, concat=True),
    ):
        assert torch.equal(counted(run)[0], run(here, None))


def attending(act: Callable[[Tensor], Any]) -> Sampling:
    """The plain model with something done to the keys of each attention once it is computed."""

    def override(func: Any, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = func(q, k, *args, **kwargs)
        act(k)
        return out

    def run(place: Any, callback: Any) -> Tensor:
        patcher = tiny_model("sd15")
        patcher.model_options["transformer_options"]["optimized_attention_override"] = override
        return on_device.plain_run("sd15", place(patcher), callback)

    return run


ATTENTIONS = 14  # of the tiny SD1.5


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda k: None, (0, 0, 0)),
        (lambda k: k.sum().item(), (1, 0, 4)),
        (lambda k: bool((k > 0).any()), (1, 0, 1)),
        (lambda k: torch.equal(k, k.clone()), (1, 0, 0)),
        (lambda k: k[k > 0], (1, 0, 0)),
        (lambda k: (k > 0).nonzero(), (1, 0, 0)),
        (lambda k: k[:, torch.arange(2)], (1, 16, 0)),
        (lambda k: torch.zeros(3).to(k), (1, 12, 0)),
        (lambda k: torch.zeros(3).to(k, non_blocking=True), (1, 12, 0)),  # not pinned
        (lambda k: torch.tensor([1.0], device=k.device), (1, 4, 0)),
        (lambda k: k[:1, :1, :2].cpu(), (1, 0, 8)),
        (lambda k: k[:1, :1, :2].to("cpu", torch.float16), (1, 0, 4)),
        (lambda k: k.new_zeros(3) + 1.0, (0, 0, 0)),
    ],
)
def test_the_device_counts(act: Callable[[Tensor], Any], expected: tuple[int, int, int]) -> None:
    """What the table would show if an attention did such a thing."""
    waits, up = PLAIN["refdrop"]
    there = total(counted(attending(act))[1][-1])
    assert (there[0] - waits, there[1] - up, there[2]) == tuple(ATTENTIONS * each for each in expected)


def test_the_device_refuses_what_lies_elsewhere() -> None:
    with pytest.raises(RuntimeError, match="on the same device"):
        counted(attending(lambda k: k + torch.zeros(k.shape)))


def test_a_mask_is_looked_at_once_for_each_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, int]] = []
    real = selection.covered_tokens
    monkeypatch.setattr(selection, "covered_tokens", lambda mask, grid: grids.append(grid) or real(mask, grid))
    on_device.refdrop("sd15", reference_mask=MASK)(here, None)
    assert len(grids) == len(set(grids)) == 2


def test_what_is_recorded_outlives_the_next_replay() -> None:
    """CUDA graphs write into the same memory each time; here, zeros once an attention is computed."""

    def run(place: Any, is_replayed: bool) -> Tensor:
        def override(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = func(q, k, v, *args, **kwargs)
            if is_replayed:
                k.zero_(), v.zero_()
            return out

        def placed(patcher: Any) -> Any:
            patcher.model_options["transformer_options"]["optimized_attention_override"] = override
            return place(patcher)

        return on_device.refdrop("sd15")(placed, None)

    with second_device():
        got = run(on_second, is_replayed=True).cpu()
    assert torch.equal(got, run(here, is_replayed=False))


LAYERS = [(("input", number), 0) for number in range(4)]
CHUNKS = ((0, "positive"), (1, "negative"))


def kept_bank() -> KeyValueBank:
    """Keys and values of four layers in main memory."""
    bank = KeyValueBank("test")
    for number, layer in enumerate(LAYERS):
        pair = tuple(kept_tensor(torch.full((2, 3, 8), float(number), device=DEVICE)) for _ in range(2))
        bank.store(layer, Record(CHUNKS, (1, 3), [pair]))
    return bank


class Stream:
    """A side stream that notes what is brought on it."""

    def __init__(self) -> None:
        self.brought = 0

    def wait_stream(self, other: Any) -> None:
        pass

    def as_context(self, stream: Stream) -> Stream:
        return self

    def __enter__(self) -> None:
        self.brought += 1

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("chunks", [CHUNKS, CHUNKS[::-1], CHUNKS[:1]], ids=["whole", "turned", "half"])
def test_the_cache_is_one_layer_ahead(monkeypatch: pytest.MonkeyPatch, chunks: Any) -> None:
    stream = Stream()
    monkeypatch.setattr(management, "get_offload_stream", lambda device: stream)
    monkeypatch.setattr(management, "sync_stream", lambda device, which: None)
    with second_device() as counts:
        bank, like = kept_bank(), torch.zeros(1, device=DEVICE, dtype=torch.float64)
        before = counts.copy()
        for number, layer in enumerate(LAYERS):
            ((keys, values),) = bank.keys_values(layer, chunks, like)
            tensors = 2 if chunks == CHUNKS else 2 * len(chunks)
            assert stream.brought == tensors * min(number + 2, len(LAYERS))
            assert (keys == number).all() and torch.equal(keys, values)
            assert keys.device == DEVICE and keys.dtype == torch.float64 and keys.shape == (len(chunks), 3, 8)
        size = sum(counts.since(before).up.values())
    assert size == len(LAYERS) * 2 * len(chunks) * 3 * 8 * 4


def test_memory_is_pinned_within_the_budget_and_for_as_long_as_it_is_needed() -> None:
    pinned: list[int] = []
    with second_device() as counts, torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        pin, unpin = management.pin_memory, management.unpin_memory

        def noted(tensor: Tensor) -> bool:
            pinned.append(tensor.data_ptr())
            management.TOTAL_PINNED_MEMORY += tensor.nbytes
            return pin(tensor)

        patch.setattr(management, "TOTAL_PINNED_MEMORY", 0)
        patch.setattr(management, "MAX_PINNED_MEMORY", 100)
        patch.setattr(management, "pin_memory", noted)
        patch.setattr(management, "unpin_memory", lambda t: (pinned.remove(t.data_ptr()), unpin(t)))
        there = torch.arange(16.0, device=DEVICE)
        first, second = kept_tensor(there), kept_tensor(there)
        assert pinned == [first.data_ptr()]  # the other one would displace weights
        assert torch.equal(first, second)
        part = first[2:4]
        del first
        assert not pinned
        assert part.tolist() == [2, 3]
        assert sum(counts.waits.values()) == 1  # for the second


@pytest.mark.parametrize(("bringing", "is_kept"), [(0.5, True), (2.0, False)])
def test_what_takes_longer_to_bring_than_to_see_is_not_kept(bringing: float, is_kept: bool) -> None:
    """Times are given here: of a pass, and of a layer that is brought."""
    shown: list[str] = []
    cache = ReferenceCache(64 * on_device.MIB, show=shown.append)
    times = iter([7.0, bringing])
    with second_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "timed", lambda function: (function(), next(times)))
        got = on_device.refdrop("sd15", cache=cache)(on_second, None).cpu()
    assert torch.equal(got, on_device.refdrop("sd15")(here, None))
    assert (cache.size > 0) == is_kept == ("passed each time" not in shown[-1])
    assert "A pass takes 7000 ms" in shown[-1]


def test_a_device_without_asynchronous_copies_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI has it for MPS, where they give wrong numbers."""
    asked: list[bool] = []
    real = management.cast_to
    monkeypatch.setattr(management, "device_supports_non_blocking", lambda device: False)
    monkeypatch.setattr(
        management, "cast_to", lambda *a, **k: asked.append(k.get("non_blocking", False)) or real(*a, **k)
    )
    with second_device():
        kept = kept_tensor(torch.ones(3, device=DEVICE))
        assert Arriving([kept], DEVICE).tensors()[0].device == DEVICE
        on_device.leffa(again=True)(on_second, None)
    assert asked and not any(asked)
