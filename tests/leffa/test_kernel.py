"""Leffa's loss against a float64 oracle, its gradients, and whether minimising it finds a known flow."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from refattention.core.kernels.attention import AttentionLayer
from refattention.core.leffa import kernel as flow
from refattention.core.leffa.kernel import attention_flow, colour_wheel, leffa_loss, warp
from torch import Tensor


def layer(batch: int, grid: tuple[int, int], reference_grid: tuple[int, int], heads: int = 2) -> AttentionLayer:
    generator = torch.Generator().manual_seed(0)

    def tokens(grid: tuple[int, int]) -> Tensor:
        return torch.randn(batch, grid[0] * grid[1], heads * 3, generator=generator, dtype=torch.float64)

    return AttentionLayer(tokens(grid), tokens(reference_grid), heads, grid, reference_grid)


def naive_flow(one: AttentionLayer, temperature: float) -> Tensor:
    """Token by token, head by head."""
    height, width = one.reference_grid
    out = torch.zeros(*one.q.shape[:2], 2, dtype=torch.float64)
    for b in range(len(out)):
        weights = (oracle.scores(one.q[b], one.k[b], one.heads) / temperature).exp()
        weights = (weights / weights.sum(-1, keepdim=True)).mean(0)
        for m in range(height * width):
            row, column = divmod(m, width)
            out[b, :, 0] += weights[:, m] * (2 * column / (width - 1) - 1)
            out[b, :, 1] += weights[:, m] * (2 * row / (height - 1) - 1)
    return out


def bilinear(picture: Tensor, x: float, y: float) -> Tensor:
    """A picture (C, H, W) at coordinates whose corners are -1 and 1."""
    height, width = picture.shape[1:]
    u = min(max((x + 1) / 2 * (width - 1), 0), width - 1)
    v = min(max((y + 1) / 2 * (height - 1), 0), height - 1)
    x0, y0 = min(int(u), width - 2), min(int(v), height - 2)
    a, b = u - x0, v - y0
    top = (1 - a) * picture[:, y0, x0] + a * picture[:, y0, x0 + 1]
    bottom = (1 - a) * picture[:, y0 + 1, x0] + a * picture[:, y0 + 1, x0 + 1]
    return (1 - b) * top + b * bottom


def naive_loss(
    layers: list[AttentionLayer], reference: Tensor, target: Tensor, mask: Tensor, timesteps: Tensor
) -> float:
    height, width = target.shape[-2:]
    losses = []
    for b in range(len(target)):
        if timesteps[b] >= 500:
            continue
        loss = 0.0
        for one in layers:
            if one.grid[0] / height < 1 / 32:
                continue
            field = naive_flow(one, 2.0)[b].unflatten(0, one.grid).movedim(-1, 0)
            error = 0.0
            for row in range(height):
                for column in range(width):
                    x, y = bilinear(field, 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1).tolist()
                    difference = bilinear(reference[b], x, y) - target[b, :, row, column]
                    error += (difference**2).sum().item() * mask[b, 0, row, column].item()
            loss += error / (mask[b].sum().item() * target.shape[1])
        losses.append(loss)
    return 1e-3 * sum(losses) / max(len(losses), 1)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    reference = torch.rand(batch, 3, 9, 7, generator=generator, dtype=torch.float64)
    target = torch.rand(batch, 3, 12, 10, generator=generator, dtype=torch.float64)
    mask = (torch.rand(batch, 1, 12, 10, generator=generator) > 0.4).double()
    return reference, target, mask


@pytest.mark.parametrize("most", [1, 600, flow.MOST])
def test_flow_equals_the_oracle(most: int) -> None:
    one = layer(2, (5, 4), (3, 6))
    for temperature in (1.0, 2.0):
        assert (attention_flow(one, temperature, most) - naive_flow(one, temperature)).abs().max() < 1e-12


@pytest.mark.parametrize("timesteps", [[10, 499], [499, 500], [500, 900]])
def test_loss_equals_the_oracle(timesteps: list[int]) -> None:
    layers = [layer(2, (5, 4), (3, 6)), layer(2, (3, 3), (2, 2))]
    when = torch.tensor(timesteps)
    got = leffa_loss(layers, *inputs(), when).item()
    assert math.isclose(got, naive_loss(layers, *inputs(), when), rel_tol=1e-12, abs_tol=1e-15)


def test_coarse_layers_do_not_count() -> None:
    reference, target, mask = torch.rand(1, 3, 9, 9), torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    coarse, fine = (layer(1, (n, n), (3, 3)) for n in (1, 2))
    inputs = reference.double(), target.double(), mask.double(), torch.tensor([0])
    assert leffa_loss([coarse], *inputs) == 0
    assert leffa_loss([coarse, fine], *inputs) == leffa_loss([fine], *inputs) > 0


def test_gradients() -> None:
    one = layer(2, (4, 3), (3, 3))
    reference, target, mask = inputs()

    def loss(q: Tensor, k: Tensor, reference: Tensor) -> Tensor:
        changed = AttentionLayer(q, k, one.heads, one.grid, one.reference_grid)
        return leffa_loss([changed], reference, target, mask, torch.tensor([1, 600]), weight=1.0)

    variables = [t.clone().requires_grad_() for t in (one.q, one.k, reference)]
    assert torch.autograd.gradcheck(loss, variables)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 4)])
def test_the_map_exists_in_parts_only(batch: int, heads: int) -> None:
    """No tensor of a layer whose map would hold 1024 x 1024 numbers for each picture and head has more than allowed."""
    one = AttentionLayer(torch.randn(batch, 1024, 8), torch.randn(batch, 1024, 8), heads, (32, 32), (32, 32))
    q = one.q.requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        changed = AttentionLayer(q, one.k, heads, one.grid, one.reference_grid)
        attention_flow(changed, most=1 << 17).sum().backward()
    assert largest <= 1 << 17


def test_minimising_finds_the_true_flow() -> None:
    """The target is the reference shifted and scaled; only the query projection of one attention is learned."""
    grid, size = (16, 16), (64, 64)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    reference = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    own = flow.coordinates(grid, reference)
    truth = own * 0.8 + torch.tensor([0.12, -0.1])
    target = warp(reference, truth.unflatten(0, grid)[None], size)

    # Keys tell places apart: |q - k|^2 up to what is the same for all keys
    where = own * 6
    keys = torch.cat([where, -0.5 * (where**2).sum(-1, keepdim=True)], dim=-1)[None] * 3**0.5 * 2
    projection = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.Adam([projection], lr=0.03)

    def learned() -> AttentionLayer:
        places = torch.cat([own, torch.ones(len(own), 1)], dim=-1)
        at = where + places @ projection.T
        q = torch.cat([at, torch.ones(len(own), 1)], dim=-1)[None] * 2
        return AttentionLayer(q, keys, 1, grid, grid)

    def error() -> float:
        token = 2 / 15
        return ((attention_flow(learned())[0] - truth).norm(dim=-1) / token).max().item()

    start = error()
    for _ in range(300):
        optimizer.zero_grad()
        loss = leffa_loss([learned()], reference, target, torch.ones(1, 1, *size), torch.zeros(1), weight=1.0)
        loss.backward()
        optimizer.step()
    assert start > 2
    assert error() < 1


def test_colour_wheel() -> None:
    moves = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2], [0.5, 0.0]]])[None]
    colours = colour_wheel(moves)[0, 0]
    want = [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0.5, 0.5]]
    assert (colours - torch.tensor(want)).abs().max() < 1e-5
