"""Methods beside what skips or rearranges the model's calls: equal to a plain way to the same, or refused by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.samplers
import pytest
import torch
import tryon
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_patch import QwenImageBlockWiseControlNet, QwenImageDiffsynthControlnet
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from foreign import OneBlock, OwnLayers, TiledSampling, with_own_evaluation
from naive_deadiff import random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.passes import replaced
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

BUDGET = 2**26
OTHER_SIZE = (6, 10)


def blocks_of(patcher: Any) -> frozenset[tuple[str, int]]:
    return frozenset(attentions_of(patcher, "test").blocks)


def reference(family: str, size: tuple[int, int] | None = None, count: int = 1) -> Reference:
    return Reference(tiny_latent(family, batch=count, seed=3, size=size, frames=1), None, 5)


def refdrop(patcher: Any, family: str, size: tuple[int, int] | None = None, **settings: Any) -> Any:
    settings.setdefault("reference", reference(family, size))
    return apply_refdrop(patcher, RefDropSettings(0.5, blocks_of(patcher), **settings))


def p3s(patcher: Any, size: tuple[int, int] | None = None) -> Any:
    return apply_p3s(patcher, P3SSettings(reference("sd15", size), value_strength=0.2))


def styled(patcher: Any, **settings: Any) -> Any:
    return apply_deadiff(patcher, DEADiffSettings(random_image(patcher), **settings))


def run(family: str, patcher: Any, batch: int = 1, positive: Any = None, **settings: Any) -> Tensor:
    noise = settings.pop("noise", None)
    noise = tiny_latent(family, batch) if noise is None else noise
    prompts = tiny_prompt(family, 1) if positive is None else positive, tiny_prompt(family, 2)
    return sample(patcher, noise, *prompts, **{"steps": 8, "cfg": FAMILIES[family].cfg, **settings})


def easy_cache(patcher: Any, threshold: float = 1.0) -> Any:
    return EasyCacheNode.execute(patcher, threshold, 0.0, 1.0, False)[0]


def lazy_cache(patcher: Any, threshold: float = 1.0) -> Any:
    return LazyCacheNode.execute(patcher, threshold, 0.0, 1.0, False)[0]


CACHES = {"EasyCache": easy_cache, "LazyCache": lazy_cache}


@functools.cache
def recorded(family: str, size: tuple[int, int] | None) -> RecordedRun:
    """The same reference, seen in a run of its own, so that later runs make no pass of it."""
    patcher, given = tiny_model(family), reference(family, size)
    kept = RecordedRun(patcher, blocks_of(patcher), 1, BUDGET, False)
    run(family, apply_recorder(patcher, kept, given), noise=given.samples)
    return kept


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("size", [None, OTHER_SIZE], ids=["same size", "other size"])
@pytest.mark.parametrize("family", ["sd15", "flux", "wan21"])
def test_refdrop_reads_its_reference_unseen_by_a_cache_of_steps(
    family: str, size: tuple[int, int] | None, cache: Callable[..., Any]
) -> None:
    """Equal to the bit to what a recording of the same reference gives, which no node can disturb; twice."""
    patcher = tiny_model(family)
    replayed = apply_refdrop(patcher, RefDropSettings(0.5, blocks_of(patcher), recorded=recorded(family, size)))
    want = run(family, cache(replayed))
    assert distance(want, run(family, replayed)) > 1e-4  # it does skip steps
    assert distance(want, run(family, cache(patcher))) > 1e-4
    for both in (cache(refdrop(patcher, family, size)), refdrop(cache(patcher), family, size)):
        assert torch.equal(run(family, both), want)
        assert torch.equal(run(family, both), want)


def denoised_at(patcher: Any, states: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What the model makes of each state of another run, (x, sigma), all in one run."""
    found = []

    def visit(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        found.extend(model(each, sigma, **extra_args) for each, sigma in states)
        return x

    sigmas = torch.tensor([each.item() for _, each in states] + [0.0])
    prompts, noise = (tiny_prompt("sd15", 1), tiny_prompt("sd15", 2)), tiny_latent("sd15")
    with torch.inference_mode():
        comfy.samplers.sample(
            patcher, noise, *prompts, FAMILIES["sd15"].cfg, patcher.load_device, comfy.samplers.KSAMPLER(visit), sigmas,
            patcher.model_options, latent_image=torch.zeros_like(noise), disable_pbar=True, seed=7,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("size", [None, OTHER_SIZE], ids=["same size", "other size"])
def test_p3s_acts_in_every_step_that_a_cache_computes(size: tuple[int, int] | None, cache: Callable[..., Any]) -> None:
    patcher = tiny_model("sd15")
    pictures = []
    for both in (cache(p3s(patcher, size)), p3s(cache(patcher), size)):
        states: list[tuple[Tensor, Tensor]] = []
        seen: list[Tensor] = []
        calls: list[int] = []

        def watch(args: dict[str, Any], states: Any = states, seen: Any = seen) -> Tensor:
            states.append((args["input"].clone(), args["sigma"].clone()))
            seen.append(args["denoised"].clone())
            return args["denoised"]

        hook = patcher.model.diffusion_model.out.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        watched = both.clone()
        watched.set_model_sampler_post_cfg_function(watch)
        pictures.append(run("sd15", watched))
        hook.remove()
        equal = [
            torch.equal(one, other) for one, other in zip(seen, denoised_at(p3s(patcher, size), states), strict=True)
        ]
        # Passes of the reference end before the U-Net's output. LazyCache leaves out the whole step, watcher and all.
        assert sum(equal) == len(calls) < 8
        assert torch.equal(run("sd15", both), pictures[0])
    assert torch.equal(*pictures)


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("family", ["sd15", "flux", "wan21"])
def test_an_incomplete_recording_is_refused(family: str, cache: Callable[..., Any]) -> None:
    patcher = tiny_model(family)
    for order in (1, -1):
        kept = RecordedRun(patcher, blocks_of(patcher), 1, BUDGET, False)
        nodes = [cache, lambda model, kept=kept: apply_recorder(model, kept)]
        for node in nodes[::order]:
            patcher = node(patcher)
        with pytest.raises(RuntimeError, match=r"RefDrop Record saw only \d of 8 steps whole: another node"):
            run(family, patcher)
        patcher = tiny_model(family)


def test_a_cache_that_skips_nothing_changes_nothing() -> None:
    patcher = tiny_model("sd15")
    for method in (lambda model: refdrop(model, "sd15"), p3s, styled):
        assert torch.equal(run("sd15", easy_cache(method(patcher), 0.0)), run("sd15", method(patcher)))


METHODS: dict[str, Callable[[Any], Any]] = {
    "RefDrop": lambda patcher: refdrop(patcher, "sd15", OTHER_SIZE),
    "P3S": lambda patcher: p3s(patcher, OTHER_SIZE),
    "DEADiff": styled,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_tiles_are_pictures_of_their_own_and_several_at_once_are_refused(method: Callable[[Any], Any]) -> None:
    patcher, noise = tiny_model("sd15"), tiny_latent("sd15", 2, size=(8, 8))
    assert distance(*(run("sd15", TiledSampling(4, count).attach(patcher), noise=noise) for count in (1, 4))) < 1e-4
    # One step of one tile is what the method makes of a picture of that size.
    one_step = {"noise": noise, "steps": 1}
    tiled = run("sd15", TiledSampling(4, 1).attach(method(patcher)), **one_step)
    alone = run("sd15", method(patcher), noise=noise[..., 4:, :4], steps=1)
    assert distance(tiled[..., 4:, :4], alone) < 1e-5
    assert torch.equal(tiled, run("sd15", method(TiledSampling(4, 1).attach(patcher)), **one_step))
    with pytest.raises(RuntimeError, match=r"passes 16 pictures at once where ComfyUI asks for 4, .* tile_batch_size"):
        run("sd15", TiledSampling(4, 4).attach(method(patcher)), **one_step)


def test_replaced_cross_attentions_excuse_no_self_attention() -> None:
    """A node that leaves blocks out is found beside an IP-Adapter, too."""
    patcher = tiny_model("sd15")
    patcher.set_model_attn2_replace(lambda q, k, v, extra_options: q, "input", 1)
    patcher.set_model_attn1_replace(lambda q, k, v, extra_options: q, "middle", 0)
    patcher.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    assert replaced(patcher.model_options) == {("middle", 0), ("double", 1)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_node_that_evaluates_by_itself_is_refused(method: Callable[[Any], Any]) -> None:
    """No method hears of such an evaluation, so none can act in it."""
    patcher = tiny_model("sd15")
    assert distance(run("sd15", with_own_evaluation(patcher), steps=2), run("sd15", patcher, steps=2)) < 1e-4
    for both in (with_own_evaluation(method(patcher)), method(with_own_evaluation(patcher))):
        done: list[int] = []
        with pytest.raises(RuntimeError, match=r"has no effect: another node .* passes the pictures through this"):
            run("sd15", both, steps=2, callback=lambda step, *_, done=done: done.append(step))
        assert not done, "it was not told at the first step"


def test_a_reference_in_a_tiled_batch_is_refused() -> None:
    tiled = TiledSampling(4, 1).attach(refdrop(tiny_model("sd15"), "sd15", reference=None))
    with pytest.raises(RuntimeError, match=r"\(TiledSampling\) cuts the pictures into tiles.*Connect reference_latent"):
        run("sd15", tiled, 2, noise=tiny_latent("sd15", 2, size=(8, 8)), steps=1)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("method", [*METHODS, "RefDrop in the batch", "record"])
def test_layers_that_another_node_runs_by_itself(method: str, interval: int) -> None:
    patcher, noise = tiny_model("sd15"), tiny_latent("sd15", 2)
    if interval == 1:
        assert (
            distance(run("sd15", OwnLayers(1).attach(patcher), noise=noise), run("sd15", patcher, noise=noise)) < 1e-4
        )
    kept = RecordedRun(patcher, blocks_of(patcher), 1, BUDGET, False)
    more = {
        "RefDrop in the batch": lambda model: refdrop(model, "sd15", reference=None),
        "record": lambda model: apply_recorder(model, kept),
    }
    with pytest.raises(RuntimeError, match=r"had no effect: another node \(OwnLayers\) runs the layers"):
        run("sd15", OwnLayers(interval).attach({**METHODS, **more}[method](patcher)), noise=noise)


def test_blocks_that_are_not_named_are_not_left_out_in_silence() -> None:
    """All but the first are taken for none of the model's."""
    patcher = tiny_model("flux")
    assert distance(run("flux", OneBlock().attach(patcher), steps=1), run("flux", patcher, steps=1)) < 1e-4
    with pytest.raises(RuntimeError, match=r"RefDrop acts only in 1 of 4 blocks, because another node .*\(OneBlock\)"):
        run("flux", OneBlock().attach(refdrop(patcher, "flux")), steps=1)


def context_windows(patcher: Any, length: int, dim: int = 0) -> Any:
    overlap = 1
    return ContextWindowsManualNode.execute(
        patcher, length, overlap, "standard_static", 1, False, "flat", dim, False, "", False, "", True
    )[0]


def five(family: str) -> Tensor:
    """Pictures, or the frames of a video."""
    if FAMILIES[family].frames == 1:
        return tiny_latent(family, 5)
    return torch.cat([tiny_latent(family, seed=number) for number in (0, 1)], 2)[:, :, :5]


@pytest.mark.parametrize(("family", "dim"), [("sd15", 0), ("wan21", 2)])
def test_every_context_window_follows_an_outside_reference(family: str, dim: int) -> None:
    """As a recording of it does, of which no window makes a pass."""
    noise = five(family)
    patcher = tiny_model(family)
    mask = torch.zeros(1, 16, 24)
    mask[..., 12:] = 1
    one = {"mask": mask}
    replayed = apply_refdrop(patcher, RefDropSettings(0.5, blocks_of(patcher), recorded=recorded(family, None), **one))
    want = run(family, context_windows(replayed, 3, dim), noise=noise)
    assert torch.equal(run(family, context_windows(refdrop(patcher, family, **one), 3, dim), noise=noise), want)
    assert distance(want, run(family, context_windows(patcher, 3, dim), noise=noise)) > 1e-3
    # A window that holds all of them is none.
    alone = run(family, refdrop(patcher, family, **one), noise=noise)
    assert torch.equal(run(family, context_windows(refdrop(patcher, family, **one), 5, dim), noise=noise), alone)


@pytest.mark.parametrize(
    ("family", "dim", "settings", "message"),
    [
        ("sd15", 0, {"reference": None}, "the first of them is another one each time. Connect reference_latent"),
        ("sd15", 0, {"reference": None, "batch_references": 4, "strength": 0.2}, "Connect reference_latent"),
        ("wan21", 2, {"reference": None}, "Connect reference_latent"),
        ("sd15", 0, {"mask": torch.ones(5, 8, 8)}, "there is a mask for each picture"),
    ],
    ids=["batch", "more than a window", "first frame", "masks"],
)
def test_context_windows_that_hide_what_a_method_needs(
    family: str, dim: int, settings: dict[str, Any], message: str
) -> None:
    noise = five(family)
    patcher = tiny_model(family)
    settings = {"reference": reference(family), "strength": 0.5, **settings}
    for length in (3, 4):  # the last of 4 is preceded by one more: as long as the whole
        patched = apply_refdrop(patcher, RefDropSettings(blocks=blocks_of(patcher), **settings))
        with pytest.raises(RuntimeError, match=rf"RefDrop: another node \(Context Windows\).*{message}"):
            run(family, context_windows(patched, length, dim), noise=noise)


def in_time(start: float, length: float) -> list[Any]:
    """A prompt for all of a video, and again for a stretch of its frames, as ComfyUI's node limits it."""
    ((text, options),) = tiny_prompt("wan21", 1)
    area = ("percentage", length, 1.0, 1.0, start, 0.0, 0.0)
    return [[text, options], [text, {**options, "area": area, "strength": 1.0}]]


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_prompts_for_some_frames(start: float) -> None:
    """The first frame is not the first of such a stretch, and a stretch is not what is to be recorded."""
    patcher, prompt = tiny_model("wan21"), in_time(start, 0.7)
    mask = torch.eye(9)[None]
    replayed = apply_refdrop(
        patcher, RefDropSettings(0.5, blocks_of(patcher), recorded=recorded("wan21", None), mask=mask)
    )
    want = run("wan21", replayed, positive=prompt, steps=1)
    got = run("wan21", refdrop(patcher, "wan21", mask=mask), positive=prompt, steps=1)
    assert distance(got, want) < 1e-4 < distance(got, run("wan21", patcher, positive=prompt, steps=1))
    with pytest.raises(RuntimeError, match=r"RefDrop: a prompt limited to an area cuts .*Connect reference_latent"):
        run("wan21", refdrop(patcher, "wan21", reference=None), positive=prompt, steps=1)
    kept = RecordedRun(patcher, blocks_of(patcher), 1, BUDGET, False)
    with pytest.raises(RuntimeError, match=r"RefDrop Record: a prompt limited to an area has the model work on a part"):
        run("wan21", apply_recorder(patcher, kept), positive=prompt, steps=1)


class Codec:
    """Stands in for the VAE of Qwen-Image."""

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures[:, ::8, ::8, :1].movedim(-1, 1).unsqueeze(2).repeat(1, 16, 1, 1, 1)

    def spacial_compression_encode(self) -> int:
        return 8


def controlled(patcher: Any) -> Any:
    """A ControlNet that is patched into the model's blocks."""
    network = QwenImageBlockWiseControlNet(2, dim=64, dtype=torch.float32, operations=comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.state_dict().values():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    patch = comfy.model_patcher.CoreModelPatcher(network, patcher.load_device, patcher.offload_device)
    picture = torch.rand(1, 64, 96, 3, generator=generator)
    return QwenImageDiffsynthControlnet().diffsynth_controlnet(patcher, patch, Codec(), picture)[0]


@pytest.mark.parametrize("size", [None, OTHER_SIZE], ids=["same size", "other size"])
def test_a_controlnet_in_the_models_blocks_is_of_the_picture(size: tuple[int, int] | None) -> None:
    """As one in a prompt is: the reference is read without it."""
    patcher = tiny_model("qwen")
    replayed = apply_refdrop(patcher, RefDropSettings(0.5, blocks_of(patcher), recorded=recorded("qwen", size)))
    want = run("qwen", controlled(replayed), steps=1)
    assert distance(want, run("qwen", replayed, steps=1)) > 1e-3
    assert distance(want, run("qwen", controlled(patcher), steps=1)) > 1e-3
    for both in (controlled(refdrop(patcher, "qwen", size)), refdrop(controlled(patcher), "qwen", size)):
        assert distance(run("qwen", both, steps=1), want) < 1e-5


def test_context_windows_and_the_other_methods() -> None:
    patcher, noise = tiny_model("sd15"), tiny_latent("sd15", 5)
    kept = RecordedRun(patcher, blocks_of(patcher), 1, BUDGET, False)
    with pytest.raises(RuntimeError, match=r"RefDrop Record: another node \(Context Windows\).*cannot be recorded"):
        run("sd15", context_windows(apply_recorder(patcher, kept), 3), noise=noise)
    with pytest.raises(RuntimeError, match=r"DEADiff Style: another node \(Context Windows\).*a mask for each picture"):
        run("sd15", context_windows(styled(patcher, mask=torch.ones(5, 8, 8)), 3), noise=noise)
    for method in (p3s, styled):
        # Every picture is computed alone, so windows only round differently.
        want = run("sd15", method(patcher), noise=noise, steps=2)
        assert distance(run("sd15", context_windows(method(patcher), 3), noise=noise, steps=2), want) < 1e-4


def test_a_style_that_is_limited_to_a_place_stays_out_of_the_reference() -> None:
    """Without a mask it belongs to the model, and the reference has it too."""
    patcher, mask = tiny_model("sd15"), torch.eye(9)[None]
    replayed = RefDropSettings(0.5, blocks_of(patcher), recorded=recorded("sd15", OTHER_SIZE))
    want = run("sd15", styled(apply_refdrop(patcher, replayed), mask=mask))
    for both in (
        styled(refdrop(patcher, "sd15", OTHER_SIZE), mask=mask),
        refdrop(styled(patcher, mask=mask), "sd15", OTHER_SIZE),
    ):
        assert torch.equal(run("sd15", both), want)


def test_context_windows_and_leffa() -> None:
    """One garment serves every window; of several, a window could not tell its own."""
    persons, garments = tryon.picture(4, 64, 48, seed=1), tryon.picture(4, 48, 48, seed=2)

    def pictures(garment: Tensor, length: int) -> Tensor:
        patcher, *rest = tryon.try_on(tryon.model(), image=persons, garment_image=garment)
        return tryon.sample((context_windows(patcher, length), *rest), steps=1)

    assert distance(pictures(garments[:1], 2), pictures(garments[:1], 4)) < 1e-4
    with pytest.raises(RuntimeError, match=r"Leffa: another node \(Context Windows\).*a reference of its own"):
        pictures(garments, 2)


def test_a_mask_of_another_shape_than_what_is_sampled_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A detailer samples a part of the picture as one of its own, and a mask over the whole would lie there unseen."""
    patcher = tiny_model("sd15")
    part = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for seen, noise in ((0, None), (1, part)):
        for mask in (torch.ones(1, 63, 100), torch.ones(1, 16, 24)):
            for method in (
                refdrop(patcher, "sd15", mask=mask),
                styled(patcher, mask=mask),
                apply_p3s(patcher, P3SSettings(reference("sd15"), mask=mask)),
            ):
                caplog.clear()
                run("sd15", method, steps=1, noise=noise)
                assert caplog.text.count("what is sampled has 8 x 8 latents, so the mask is stretched") == seen


def test_a_mask_names_what_shows_the_model_a_part_of_the_picture() -> None:
    patcher = tiny_model("sd15")
    mask = torch.ones(1, 8, 8)
    text, options = tiny_prompt("sd15", 8)[0]
    in_area = [*tiny_prompt("sd15", 1), [text, {**options, "area": (4, 6, 4, 0), "strength": 1.0}]]
    corner = torch.zeros(1, 8, 12)
    corner[..., 4:, :6] = 1
    to_bounds = [*tiny_prompt("sd15", 1), [text, {**options, "mask": corner, "set_area_to_bounds": True}]]
    upscaling = SamplerLCMUpscale.execute(1.5, 2, "bislerp")[0]
    sigmas = torch.tensor([10.0, 5.0, 1.0, 0.0])
    for method in (refdrop(patcher, "sd15", mask=mask), styled(patcher, mask=mask)):
        for prompt, what in ((in_area, "limited to an area .*4 x 6"), (to_bounds, "'mask bounds' .*4 x 8")):
            with pytest.raises(RuntimeError, match=rf"{what} latents instead of 8 x 12, and a mask"):
                run("sd15", method, positive=prompt, steps=1)
        with pytest.raises(RuntimeError, match=r"another node of this model \(TiledSampling\) has .* on 4 x 4 latents"):
            run("sd15", TiledSampling(4, 1).attach(method), steps=1)
        with pytest.raises(RuntimeError, match=r"the sampler \(SamplerLCMUpscale.*has the model work on 10 x 15"):
            prompts, noise = (tiny_prompt("sd15", 1), tiny_prompt("sd15", 2)), tiny_latent("sd15")
            with torch.inference_mode():
                comfy.samplers.sample(
                    method, noise, *prompts, 1.0, patcher.load_device, upscaling, sigmas, method.model_options,
                    latent_image=torch.zeros_like(noise), disable_pbar=True, seed=7,
                )  # fmt: skip
