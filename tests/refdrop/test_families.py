"""RefDrop on every family of the table: the blended attention, off, guidance, video."""

from __future__ import annotations

from typing import Any

import comfy.sample
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from families import FAMILIES, VIDEO, tiny_latent, tiny_model, tiny_prompt
from more_families import MORE
from naive_families import NaiveFamilyRefDrop
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

REFERENCE_SIZE = (6, 8)


def reference(family: str, seed: int = 3) -> Tensor:
    size = (64, 96) if family == "hidream_o1" else REFERENCE_SIZE  # whose tokens are of 32 x 32 pixels
    return tiny_latent(family, seed=seed, size=size, frames=1)


def reference_noise(samples: Tensor, seed: int = 5) -> Tensor:
    return torch.randn(samples.shape, generator=torch.Generator("cpu").manual_seed(seed))


def guided(family: str, strength: float = 0.5, source: str = "latent", **settings: Any) -> Any:
    patcher = tiny_model(family)
    settings.setdefault("blocks", frozenset(attentions_of(patcher, "test").blocks))
    own = tiny_prompt(family, 1) if family == "pid" else None  # the sampler's prompt has the picture that it enlarges
    outside = Reference(reference(family), own, 5) if source == "latent" else None
    return apply_refdrop(patcher, RefDropSettings(strength, reference=outside, **settings))


def naive(family: str, strength: float = 0.5, source: str = "latent", **settings: Any) -> Any:
    samples = reference(family)
    outside = [(samples, reference_noise(samples))] if source == "latent" else []
    return NaiveFamilyRefDrop(family, strength, outside, **settings).attach(tiny_model(family))


def run(family: str, patcher: Any, batch: int = 1, cfg: float | None = None, **settings: Any) -> Tensor:
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    cfg = FAMILIES[family].cfg if cfg is None else cfg
    return sample(patcher, tiny_latent(family, batch), *prompts, **{"steps": 2, "cfg": cfg, **settings})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["latent", "batch"])
def test_equals_the_oracle(family: str, source: str) -> None:
    """Reference of another size, or the first of a batch or video; with CFG or with distilled guidance."""
    batch = 1 if family in VIDEO else 2
    got, want = (run(family, make(family, source=source), batch) for make in (guided, naive))
    plain = run(family, tiny_model(family), batch)
    effect = distance(want, plain)
    assert effect > 5e-4
    assert distance(got, want) < min(1e-4, 0.02 * effect)
    if source == "batch" and FAMILIES[family].frames == 1:
        assert torch.equal(got[0], plain[0])


@pytest.mark.parametrize("source", ["latent", "batch"])
def test_a_video_with_sound(source: str) -> None:
    """LTX-2 paints both as one; the video follows, the sound only hears of it."""

    def latent(seed: int) -> NestedTensor:
        sound = torch.randn(1, 8, 4, 16, generator=torch.Generator().manual_seed(seed))
        return NestedTensor([tiny_latent("ltx2", seed=seed), sound])

    def sampled(patcher: Any) -> list[Tensor]:
        prompts = tiny_prompt("ltx2", 1), tiny_prompt("ltx2", 2)
        zeros = NestedTensor([torch.zeros_like(part) for part in latent(0).unbind()])
        out = comfy.sample.sample(
            patcher, latent(0), 2, 4.0, "euler", "normal", *prompts, zeros, denoise=1.0, disable_pbar=True, seed=0
        )
        return out.unbind()

    got, want, plain = map(sampled, (guided("ltx2", source=source), naive("ltx2", source=source), tiny_model("ltx2")))
    for part in range(2):
        effect = distance(want[part], plain[part])
        assert effect > 1e-5
        assert distance(got[part], want[part]) < 0.02 * effect
    assert all(torch.equal(*parts) for parts in zip(sampled(guided("ltx2", strength=0.0)), plain, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_way_of_guidance(family: str) -> None:
    """Without CFG what is usually run with it, and with CFG what is distilled."""
    cfg = 3.0 if FAMILIES[family].cfg == 1 else 1.0
    batch, source = (2, "batch") if family == "pid" else (1, "latent")  # a reference has no negative of its own
    got, want = (run(family, make(family, source=source), batch, cfg=cfg, steps=1) for make in (guided, naive))
    assert distance(got, want) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_bit_identical(family: str) -> None:
    plain = run(family, tiny_model(family), steps=1)
    off = [{"strength": 0.0}, {"blocks": frozenset()}, {"start_percent": 0.99, "end_percent": 0.99}]
    for settings in off[:1] if family in MORE else off:  # the others are off before the family counts
        assert torch.equal(run(family, guided(family, **settings), steps=1), plain)
    black_in_part = torch.zeros(1, 8, 12)
    black_in_part[..., 0, 0] = 1e-30  # not off, yet without effect
    assert torch.equal(run(family, guided(family, mask=black_in_part), steps=1), plain)


@pytest.mark.parametrize("family", VIDEO)
def test_several_videos_or_leading_frames(family: str) -> None:
    """Two videos in a batch each follow their own first frames; SVD has one video, whose frames are the batch."""
    settings = {"source": "batch"}
    ours, theirs = guided(family, 0.3, batch_references=2, **settings), naive(family, 0.3, leading=2, **settings)
    got, want = (run(family, patcher, batch=2) for patcher in (ours, theirs))
    assert distance(got, want) < 1e-4
    with pytest.raises(ValueError, match=r"batch_references = 3 a (video of 3 frames|batch of 3) leaves nothing"):
        run(family, guided(family, 0.2, batch_references=3, **settings))


@pytest.mark.parametrize("family", ["sd35", "flux", "qwen", "zimage", "svd", "wan22", "hunyuan"])
def test_masks(family: str) -> None:
    mask, seen = torch.zeros(24, 30), torch.zeros(10, 10)
    mask[:, :17] = 1
    seen[2:, 4:] = 1
    size = tiny_latent(family).shape[-2:]
    samples = tiny_latent(family, seed=3, size=size, frames=1)
    patcher = tiny_model(family)
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    guide = RefDropSettings(0.5, blocks, Reference(samples, None, 5), mask=mask[None], reference_mask=seen[None])
    theirs = NaiveFamilyRefDrop(
        family, 0.5, [(samples, reference_noise(samples))], mask=mask, reference_mask=seen
    ).attach(tiny_model(family))
    assert distance(run(family, apply_refdrop(patcher, guide)), run(family, theirs)) < 1e-4


@pytest.mark.parametrize("family", ["sd35", "flux", "ltxv", "wan21"])
def test_one_block_alone(family: str) -> None:
    """Later blocks are left as they are: only the chosen one's attention differs from the plain model's."""
    everywhere = run(family, guided(family), steps=1)
    first = run(family, guided(family, blocks=frozenset({("double", 0)})), steps=1)
    plain = run(family, tiny_model(family), steps=1)
    assert distance(first, plain) > 1e-4
    assert distance(first, everywhere) > 1e-4


def test_concat_attends_to_both_in_one_softmax() -> None:
    for family in ("flux", "wan21", "sd3"):
        got = run(family, guided(family, concat=True), steps=1)
        assert got.isfinite().all() and distance(got, run(family, tiny_model(family), steps=1)) > 1e-4


def routed(family: str, handler: Any) -> tuple[Any, dict[str, Any], int]:
    """The attention function of a forward pass, its options inside a block, and the number of image tokens."""
    attentions = attentions_of(tiny_model(family), "test")
    x = tiny_latent(family)
    labels = {"block_type": "double", "block_index": 0, "cond_or_uncond": [0], "uuids": [None]}
    options = attentions.route(x, {}, {"block_type": "single", "block_index": 0}, handler)
    assert "block_index" not in options  # a label of an earlier pass
    patch = 1 if family in ("flux2", "ltxv") else 2
    return options["optimized_attention_override"], {**options, **labels}, x[0, 0].numel() // patch**2


@pytest.mark.parametrize("family", ["flux", "sd3", "zimage", "hunyuan"])
def test_text_tokens_are_untouched_to_the_bit(family: str) -> None:
    heads, size = 2, 6
    new = torch.randn(1)

    def handler(call: Any) -> Tensor:
        assert call.q.shape[1] == call.frames * call.grid[0] * call.grid[1]
        return call.plain() * 0 + new

    override, options, image = routed(family, handler)
    padding = -image % 32 if family == "zimage" else 0
    tokens = 7 + image + padding
    shape = (1, tokens, heads, size) if family == "sd3" else (1, heads, tokens, size)
    q, k, v = torch.randn(3, *shape)
    kwargs = {"transformer_options": options, **({} if family == "sd3" else {"skip_reshape": True})}
    if family == "sd3":
        q, k = q.flatten(2), k.flatten(2)
    want = torch.randn(1, tokens, heads * size)
    got = override(lambda *args, **kwargs: want.clone(), q, k, v, heads, **kwargs)
    assert torch.equal(got[:, :7], want[:, :7])
    assert torch.equal(got[:, 7 + image :], want[:, 7 + image :])
    assert (got[:, 7 : 7 + image] == new).all()


def test_tokens_of_a_reference_image_in_the_prompt_are_left_alone() -> None:
    """Kontext and Qwen-Image-Edit put the tokens of pictures in the prompt behind the image tokens."""
    override, options, image = routed("flux", lambda call: call.plain() * 0)
    options["reference_image_num_tokens"] = [6]
    tokens = torch.randn(1, 2, 5 + image + 6, 4)
    want = torch.randn(1, 5 + image + 6, 8)
    got = override(
        lambda *args, **kwargs: want.clone(), *[tokens] * 3, heads=2, skip_reshape=True, transformer_options=options
    )
    assert torch.equal(got[:, :5], want[:, :5]) and torch.equal(got[:, -6:], want[:, -6:])
    assert not got[:, 5:-6].any()


def test_added_or_missing_tokens_are_refused() -> None:
    override, options, _ = routed("wan21", lambda call: call.plain())
    tokens = torch.randn(1, 3, 8)
    with pytest.raises(RuntimeError, match="the picture has 3 x 4 x 6 tokens, but an attention was given 3 queries"):
        override(None, tokens, tokens, tokens, heads=2, transformer_options=options)


@pytest.mark.parametrize(("family", "block"), [("sd15", ("middle", 0)), ("wan21", ("double", 0))])
def test_compiled_models_give_the_same(family: str, block: tuple[str, int]) -> None:
    """Compiled as the host's node does it, without a check that transformer_options are still the same."""
    one_block = {"blocks": frozenset({block})}
    for strength in (0.5, -0.3):
        compiled = guided(family, strength, **one_block)
        options = {"guard_filter_fn": skip_torch_compile_dict}
        set_torch_compile_wrapper(compiled, backend="eager", options=options)
        want = run(family, guided(family, strength, **one_block), steps=1, cfg=1.0)
        assert distance(run(family, compiled, steps=1, cfg=1.0), want) < 1e-5


def test_compiled_blocks_serve_passes_of_both_kinds() -> None:
    """The reference's pass runs through all blocks but the last; then the picture's goes through what it compiled."""
    compiled = guided("flux")
    set_torch_compile_wrapper(compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    want = run("flux", guided("flux"), steps=2, cfg=1.0)
    assert distance(run("flux", compiled, steps=2, cfg=1.0), want) < 1e-5


def test_frames_that_the_prompt_brings_are_refused() -> None:
    text, options = tiny_prompt("wan21", 1)[0]
    prompts = [[text, {**options, "time_dim_concat": tiny_latent("wan21", frames=1)}]], tiny_prompt("wan21", 2)
    with pytest.raises(RuntimeError, match=r"brings pictures or frames of its own \(time_dim_concat\)"):
        sample(guided("wan21", source="batch"), tiny_latent("wan21"), *prompts, steps=1)


def test_a_family_that_is_not_in_the_table_is_refused_by_name() -> None:
    patcher = tiny_model("flux")
    patcher.model = type("Model", (), {"diffusion_model": torch.nn.Linear(1, 1)})()
    patcher.model.model_config = type("Newest", (), {})()
    with pytest.raises(RuntimeError, match=r"node cannot patch the attention of a Newest model: it is of a kind"):
        attentions_of(patcher, "node")
    patcher.model.diffusion_model = type("PixArtMS", (torch.nn.Module,), {"__module__": "comfy.ldm.pixart.pixartms"})()
    with pytest.raises(RuntimeError, match="a Newest model: its attention is computed where ComfyUI's hooks"):
        attentions_of(patcher, "node")
