"""Editing models: the map against the full softmax, painting against a loop written out, and what is refused."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import oracle
import pytest
import torch
from editing import EDITING, METHODS, AnyCodec, editing_model, prompt, seen_by_host
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from refattention.core.patches.families.table import attentions_of
from refattention.core.refine_by_align import in_context
from refattention.core.refine_by_align.back_ends import AUTO, IN_CONTEXT, SELF, InContext, SelfAttention, back_end
from refattention.core.refine_by_align.in_context import in_context_maps, method_for, weakened, with_references
from refattention.core.refine_by_align.kernel import attention_to_reference, group_of_mask
from refattention.core.refine_by_align.observe import Look, layers_of
from refattention.core.refine_by_align.window import Work, artifacts, paste
from refattention.nodes.refine_by_align import RefineByAlign
from refattention.nodes.refine_by_align_probe import AttentionProbe
from refattention.nodes.refine_by_align_stages import RefineAlign, RefineRegion
from sampling import distance, sample
from torch import Tensor

NODE = "Node"
MASK = torch.zeros(64, 48)
MASK[16:50, 8:30] = 1
SIZES = {1: ((5, 6), (3, 7), (4, 4)), 2: ((7, 12), (9, 5), (6, 8))}  # of latents, by those in a token's side


def of_mask(grid: tuple[int, int]) -> Tensor:
    return group_of_mask(MASK, grid)


def look(name: str, *timesteps: int) -> Look:
    return Look(frozenset(layers_of(attentions_of(editing_model(name), NODE))), timesteps or (261,), seed=3)


def latents(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Picture and two references, all of odd sizes of their own."""
    picture, *references = (tiny_latent(name, seed=seed, size=size) for seed, size in enumerate(SIZES[patch(name)]))
    return picture, *references


def patch(name: str) -> int:
    return 1 if name in ("flux2", "mage") else 2


def tokens(name: str, latent: Tensor) -> tuple[int, int]:
    rows, columns = (-(-size // patch(name)) for size in latent.shape[-2:])
    return rows, columns


@pytest.mark.parametrize("most", [None, 1, 4000])
@pytest.mark.parametrize("name", EDITING)
def test_map_is_the_full_softmax_restricted_to_a_reference(
    name: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if most is not None:
        chunked = functools.partial(attention_to_reference, most=most)
        monkeypatch.setattr(in_context, "attention_to_reference", chunked)
    picture, *references = latents(name)
    own = tiny_latent(name, seed=9, size=(4, 4))
    methods: Sequence[str | None] = (None, *METHODS[name]) if most is None else (None,)
    for method in methods:
        conditioning = prompt(name, 1, method, (own,))
        at = look(name, 120, 700) if method is None else look(name)
        with torch.inference_mode():
            found = in_context_maps(editing_model(name), conditioning, picture, references, at, of_mask, NODE)
        rows, columns = tokens(name, picture)
        for timestep in at.timesteps:
            every = seen_by_host(
                editing_model(name),
                with_references(conditioning, references, method_for(editing_model(name))),
                picture,
                timestep,
                at.seed,
            )[-len(at.layers) :]  # Krea 2 attends among layers of the text before
            for (attention, _), layer in zip(every, layers_of(attentions_of(editing_model(name), NODE)), strict=True):
                counts = [tokens(name, each)[0] * tokens(name, each)[1] for each in (*references, own)]
                first = len(attention) - sum(counts)
                queries = attention[first - rows * columns : first]
                seen = of_mask((rows, columns)).double() @ queries
                for maps, reference, count in zip(found, references, counts, strict=False):
                    want = seen[:, first : first + count].unflatten(-1, tokens(name, reference))
                    got = maps[timestep, layer].double() / len(attention)
                    assert got.shape == want.shape and (got - want).abs().max() < 1e-5 * want.max()
                    first += count


@pytest.mark.parametrize("name", EDITING)
def test_masked_tokens_of_a_reference_get_nothing(name: str) -> None:
    picture, reference, _ = latents(name)
    seen = torch.zeros(30, 30)
    seen[:, 15:] = 1
    with torch.inference_mode():
        options = (editing_model(name), prompt(name, 1), picture, [reference], look(name), of_mask, NODE)
        (part,), (whole,) = in_context_maps(*options, [seen]), in_context_maps(*options)
    for place, one in part.items():
        half = one.shape[-1] // 2
        assert not one[..., :half].any() and torch.equal(one[..., half + 1 :], whole[place][..., half + 1 :])


def test_the_model_stays_as_it_is() -> None:
    patcher = editing_model("flux")
    picture, reference, _ = latents("flux")
    prompts = prompt("flux", 1), prompt("flux", 2)
    before, options = sample(patcher, picture, *prompts, steps=1, cfg=1.0), str(patcher.model_options)
    with torch.inference_mode():
        in_context_maps(patcher, prompts[0], picture, [reference], look("flux"), of_mask, NODE)
        weakened(patcher, 0.5, 1)
    assert (
        str(patcher.model_options) == options and not patcher.wrappers and "reference_latents" not in prompts[0][0][1]
    )
    assert torch.equal(sample(patcher, picture, *prompts, steps=1, cfg=1.0), before)


# ---- painting ----

PAINT = {"seed": 3, "steps": 2, "denoise": 1.0, "sampler_name": "euler", "scheduler": "simple"}
WORK = {"context": 4.0, "working_size": 96, "feather": 0, "areas": "one by one"}


def photo(height: int, width: int, seed: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def spot(height: int, width: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 3 : 2 * height // 3, width // 4 : width // 2] = 1
    return mask


def run(node: Any, name: str, **inputs: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {
        "model": editing_model(name),
        "vae": AnyCodec(name),
        "positive": prompt(name, 1),
        "image": photo(96, 96, 1),
        "mask": spot(96, 96),
        "reference_image": photo(64, 96, 2),
        "back_end": IN_CONTEXT,
    }
    if node in (RefineAlign, RefineByAlign):
        values |= {"timesteps": "261", "layers": "", "threshold": 0.0, "margin": 0.1, "minimum_contrast": 0.0}
    if node in (RefineRegion, RefineByAlign):
        values |= {"negative": prompt(name, 2), "strength": 1.0, "cfg": FAMILIES[name].cfg, **PAINT, **WORK}
    if node is RefineAlign:
        values |= {"context": 0.5, "working_size": 96, "seed": 3}
    if node is AttentionProbe:
        values |= {"positive_coords": "[]", "timesteps": "261", "layers": "", "working_size": 96, "seed": 3}
        del values["mask"]
    with torch.inference_mode():
        return tuple(node.execute(**{**values, **inputs}).args)


def by_hand(name: str, patcher: Any, crops: list[Tensor], cfg: float) -> Tensor:
    """Euler's steps over the masked latent, each half alone, with the crops as what the host hands to the model."""
    codec, picture, mask = AnyCodec(name), photo(96, 96, 1), spot(96, 96)
    base, device = patcher.model, torch.device("cpu")
    latent = base.process_latent_in(codec.encode(picture))
    noise = comfy.sample.prepare_noise(latent, PAINT["seed"])
    sampling = base.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", PAINT["steps"]).to(device)
    painted = torch.nn.functional.adaptive_max_pool2d(mask[None], latent.shape[-2:])
    painted = painted.unsqueeze(2) if latent.ndim == 5 else painted
    references = [base.process_latent_in(codec.encode(crop)) for crop in crops]

    def evaluate(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
        options = prompt(name, seed)[0][1]
        text, extra = prompt(name, seed)[0][0], {}
        if name == "flux2":
            text = torch.nn.functional.pad(text, (0, 0, 512 - text.shape[1], 0))
        if name in ("flux", "flux2"):
            extra = {"guidance": torch.tensor([3.5])}
        elif "attention_mask" in options:
            extra = {"attention_mask": options["attention_mask"]}
        if "pooled_output" in options:
            extra["y"] = options["pooled_output"]
        state = {"cond_or_uncond": [0], "uuids": [None], "sigmas": sigma}
        given: dict[str, Any] = {"ref_latents": references} if references else {}
        if name == "krea2":  # which leaves them out if it is not told how
            given["ref_latents_method"] = "index"
        return base.apply_model(x, sigma, c_crossattn=text, transformer_options=state, **given, **extra)

    x = sampling.noise_scaling(sigmas[0], noise, latent, True)
    for sigma, following in itertools.pairwise(sigmas):
        x = x * painted + sampling.noise_scaling(sigma, noise, latent) * (1 - painted)
        positive = evaluate(x, sigma[None], 1)
        denoised = positive
        if cfg != 1:
            negative = evaluate(x, sigma[None], 2)
            denoised = negative + (positive - negative) * cfg
        denoised = denoised * painted + latent * (1 - painted)
        x = x + (x - denoised) / sigma * (following - sigma)
    x = sampling.inverse_noise_scaling(sigmas[-1], x)
    out = codec.decode(base.process_latent_out(x)).reshape(-1, 96, 96, 3)
    (area,) = artifacts(mask[0], Work(4.0, 96, 0), is_together=True)
    return paste(picture, out, area)


@pytest.mark.parametrize("name", EDITING)
def test_painting_equals_a_loop_by_hand(name: str) -> None:
    for cfg in (1.0, 3.0):
        for count in (1, 2):
            given = {"more_references": photo(96, 80, 4)} if count == 2 else {}
            crops = [photo(64, 96, 2), *([photo(96, 80, 4)] if count == 2 else [])]
            with torch.inference_mode():
                want = by_hand(name, editing_model(name), crops, cfg)
                without = by_hand(name, editing_model(name), [], cfg)
            (got,) = run(RefineRegion, name, cfg=cfg, **given)
            assert distance(got, want) < 1e-5 < 1e-3 < distance(want, without)
    (nothing,) = run(RefineRegion, name, strength=0.0, cfg=3.0)
    assert distance(nothing, without) < 1e-5


@pytest.mark.parametrize("name", EDITING)
def test_outside_stays_to_the_bit_and_every_picture_is_painted(name: str) -> None:
    images, mask = photo(101, 67, 1, batch=2), spot(101, 67)
    image, heat, boxes, places, matched, warning = run(
        RefineByAlign, name, image=images, mask=mask, reference_image=photo(75, 130, 2), context=0.3, feather=4
    )
    near = torch.nn.functional.max_pool2d(mask[:, None], 9, 1, 4)[0, 0] > 0
    changed = (image != images).any(-1)
    assert not changed[:, ~near].any() and changed[:, mask[0] > 0].float().mean() > 0.9
    assert matched and not warning and len(boxes) == 2
    assert heat.shape == (2, 75, 130, 3) and places.shape == (2, 75, 130) and places.flatten(1).any(1).all()


def test_strength_blends_attention_with_and_without_the_references() -> None:
    """In one attention, against the two written out; at 0 and 1 the model is not touched."""
    patcher = weakened(editing_model("flux"), 0.3, 1)
    blend = patcher.model_options["transformer_options"]["optimized_attention_override"]
    counts = [12, 9]
    length, heads, size = 40 + sum(counts), 2, 6
    q, k, v = torch.randn(3, 1, heads, length, size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, length)
    mask[..., 3] = -1e30

    def plain(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    labels = {"reference_image_num_tokens": counts, "block_index": 0}
    state = {"transformer_options": labels, "skip_reshape": True}
    got = blend(plain, q, k, v, heads, mask, **state)[0]
    flat = [t[0].transpose(0, 1).flatten(1) for t in (q, k, v)]
    seen = [n for n in range(length) if n != 3]
    left = [n for n in seen if not 40 <= n < 40 + counts[0]]
    whole = oracle.attention(flat[0], flat[1][seen], flat[2][seen], heads)
    without = oracle.attention(flat[0], flat[1][left], flat[2][left], heads)
    want = torch.cat([0.3 * whole[:40] + 0.7 * without[:40], whole[40:]])
    assert (got - want).abs().max() < 1e-5


def test_strengths_between_are_between() -> None:
    whole, half, none = (run(RefineRegion, "flux", strength=strength)[0] for strength in (1.0, 0.5, 0.0))
    assert 1e-4 < distance(half, whole) and 1e-4 < distance(half, none)


# ---- which back end ----


@pytest.mark.parametrize("name", EDITING)
def test_auto_takes_what_is_an_editing_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be told is said in the log."""
    caplog.set_level("INFO")

    def chosen(positive: list[Any], choice: str = AUTO) -> type:
        return type(back_end(editing_model(name), AnyCodec(name).encode, positive, NODE, None, None, choice))

    assert chosen(prompt(name, 1)) is (InContext if name == "flux2" else SelfAttention)
    assert ("set back_end to in-context" in caplog.text) is (name != "flux2")
    assert chosen(prompt(name, 1, "index")) is InContext
    assert chosen(prompt(name, 1, None, (tiny_latent(name),))) is InContext
    assert chosen(prompt(name, 1, "index"), SELF) is SelfAttention
    assert chosen(prompt(name, 1), IN_CONTEXT) is InContext


@pytest.mark.parametrize("name", ["sd15", "sd3", "chroma", "zimage"])
def test_a_model_that_is_none_is_refused_by_name(name: str) -> None:
    kind = {"sd15": "SD15", "sd3": "SD3", "chroma": "Chroma", "zimage": "ZImage"}[name]
    with pytest.raises(RuntimeError, match=rf"Node: in-context needs an editing model.*this is a {kind} model"):
        back_end(tiny_model(name), AnyCodec(name).encode, tiny_prompt(name, 1), NODE, None, None, IN_CONTEXT)


def test_references_that_do_not_arrive_are_told() -> None:
    picture, reference, _ = latents("flux")
    patcher = editing_model("flux")

    def lose(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        return executor(*args, **{key: value for key, value in kwargs.items() if key != "ref_latents"})

    patcher.add_wrapper_with_key("apply_model", "refattention.lose", lose)
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"Node: .*the model's sequence has none of reference latents"),
    ):
        in_context_maps(patcher, prompt("flux", 1), picture, [reference], look("flux"), of_mask, NODE)


def test_an_adapter_and_a_choice_of_back_end_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="back_end is in-context, but an adapter is connected"):
        back_end(
            editing_model("flux"), AnyCodec("flux").encode, prompt("flux", 1), NODE, object(), object(), IN_CONTEXT
        )


@pytest.mark.parametrize("name", EDITING)
def test_the_probe_shows_the_same_attention(name: str) -> None:
    heat_map, heat, sheet = run(AttentionProbe, name)
    assert heat_map.shape == (1, 64, 96, 3) and heat.isfinite().all() and heat.max() > 0.9
    assert sheet.shape[0] == 1
    other = run(AttentionProbe, name, back_end=SELF)[1]
    assert not torch.allclose(heat, other, atol=1e-3)
