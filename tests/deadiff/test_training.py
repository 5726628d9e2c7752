"""DEADiff's objective and its start."""

from __future__ import annotations

import pytest
import torch
from refattention.core.deadiff.training import initial_projections, non_reconstructive_loss
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ALPHAS = torch.linspace(0.999, 0.01, 100)
TARGET, NOISE = random(3, 4, 6, 5), random(3, 4, 6, 5, seed=1)
TIMESTEPS = torch.tensor([0, 40, 99])


def loss(predict, shared: str = "style", tokens: Tensor | None = None) -> Tensor:
    tokens = random(3, 2, 8, seed=2) if tokens is None else tokens
    return non_reconstructive_loss(predict, TARGET, tokens, shared, TIMESTEPS, NOISE, ALPHAS)


def test_the_right_answer_costs_nothing_and_zeros_cost_the_noise() -> None:
    def solve(x: Tensor, t: Tensor, style: Tensor, content: Tensor) -> Tensor:
        alpha = ALPHAS[t].double()[:, None, None, None]
        return ((x.double() - alpha.sqrt() * TARGET) / (1 - alpha).sqrt()).float()

    assert loss(solve) < 1e-7
    want = sum(float(n) ** 2 for n in NOISE.flatten()) / NOISE.numel()
    assert loss(lambda x, t, style, content: torch.zeros_like(x)).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("shared", ["style", "content"])
def test_the_other_branch_gets_zeros_and_gradients_reach_the_tokens(shared: str) -> None:
    tokens = random(3, 2, 8, seed=2).requires_grad_()
    seen = {}

    def predict(x: Tensor, t: Tensor, style: Tensor, content: Tensor) -> Tensor:
        seen.update(style=style, content=content)
        return x * (style + content).mean(dim=(1, 2))[:, None, None, None]

    loss(predict, shared, tokens).backward()
    other = {"style": "content", "content": "style"}[shared]
    assert torch.equal(seen[shared], tokens) and not seen[other].any()
    assert tokens.grad is not None and tokens.grad.abs().min() > 0


def test_wrong_pairs() -> None:
    with pytest.raises(ValueError, match="2 references do not pair with 3 targets"):
        loss(lambda *_: TARGET, tokens=random(2, 2, 8))
    with pytest.raises(ValueError, match="must be 'style' or 'content', but is 'colour'"):
        loss(lambda *_: TARGET, "colour")


def test_image_projections_start_as_the_texts() -> None:
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0."
    unet = {
        f"{block}{name}.weight": random(4, 3, seed=n)
        for n, name in enumerate(("attn1.to_k", "attn2.to_k", "attn2.to_v"))
    }
    start = initial_projections(unet)
    assert set(start) == {f"{block}attn2.i_to_k.weight", f"{block}attn2.i_to_v.weight"}
    assert torch.equal(start[f"{block}attn2.i_to_v.weight"], unet[f"{block}attn2.to_v.weight"])
    start[f"{block}attn2.i_to_k.weight"].zero_()
    assert unet[f"{block}attn2.to_k.weight"].any()
    with pytest.raises(ValueError, match="no cross-attention"):
        initial_projections({})
