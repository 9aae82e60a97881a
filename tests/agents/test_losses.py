"""The shared losses against plain loops, and in lower precision than they are given.

`measure_loss` and `orthonormality_loss` meet their loops in test_fb.py.
"""

import pytest
import torch

from bfmpipe.agents.losses import (
    covariance,
    full_precision,
    implied_q_loss,
    measure_loss,
    orthonormality_loss,
    pessimistic_measure_loss,
)

GAMMA = 0.9


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.requires_grad_() for x in drawn]


def reduce(values, pessimism):
    """mean - pessimism |x_1 - x_2| of one or two numbers."""
    if len(values) == 1:
        return values[0]
    return sum(values) / 2 - pessimism * (values[0] - values[1]).abs()


def assert_same(ours, plain, inputs):
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (ours, plain))
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def plain_pessimistic_loss(F, B, target_F, target_B, pessimism):
    heads, n, _ = F.shape
    total = F.new_zeros(())
    for p in range(heads):
        for i in range(n):
            for j in range(n):
                m = F[p, i] @ B[j]
                if i == j:
                    total = total - m / n
                else:
                    target = reduce([f[i] @ target_B[j] for f in target_F], pessimism)
                    total = total + (m - GAMMA * target) ** 2 / (2 * n * (n - 1))
    return total


@pytest.mark.parametrize("pessimism", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(("heads", "n", "d"), [(1, 2, 1), (2, 7, 3), (2, 5, 8)])
def test_the_pessimistic_loss_is_the_double_loop(heads, n, d, pessimism):
    F, B, target_F, target_B = draw((heads, n, d), (n, d), (heads, n, d), (n, d))
    target_F, target_B = target_F.detach(), target_B.detach()
    ours = pessimistic_measure_loss(F, B, target_F, target_B, GAMMA, pessimism)
    assert_same(ours, plain_pessimistic_loss(F, B, target_F, target_B, pessimism), [F, B])


def test_without_pessimism_it_is_the_factorised_loss():
    F, B, target_F, target_B = draw((2, 9, 4), (9, 4), (2, 9, 4), (9, 4))
    target_F, target_B = target_F.detach(), target_B.detach()
    slow = pessimistic_measure_loss(F, B, target_F, target_B, GAMMA, 0.0)
    assert_same(measure_loss(F, B, target_F.mean(0), target_B, GAMMA), slow, [F, B])


def plain_q_loss(F, B, target_F, z, pessimism):
    heads, n, d = F.shape
    B = B.detach()
    C = torch.zeros(d, d, dtype=F.dtype)
    for b in B:
        C = C + torch.outer(b, b) / n
    total = F.new_zeros(())
    for p in range(heads):
        for i in range(n):
            reward = B[i] @ torch.linalg.inv(C) @ z[i]
            target = reward + GAMMA * reduce([f[i] @ z[i] for f in target_F], pessimism)
            total = total + 0.5 * (F[p, i] @ z[i] - target) ** 2 / n
    return total


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_implied_q_loss_is_the_loop(heads, pessimism):
    n, d = 9, 3
    F, B, target_F, z = draw((heads, n, d), (n, d), (heads, n, d), (n, d))
    target_F, z = target_F.detach(), z.detach()
    ours = implied_q_loss(F, B, target_F, z, GAMMA, pessimism)
    plain = plain_q_loss(F, B, target_F, z, pessimism)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=0)  # the ridge
    moved = torch.autograd.grad(ours, [F, B], allow_unused=True)
    assert moved[1] is None  # no gradient passes to B
    (expected,) = torch.autograd.grad(plain_q_loss(F, B, target_F, z, pessimism), [F])
    torch.testing.assert_close(moved[0], expected, rtol=1e-3, atol=1e-4)


def test_the_implied_q_loss_vanishes_at_the_rewards_value():
    """One state with itself as its next: Q = r / (1 - gamma) for r = B^T C^-1 z."""
    B, z = draw((6, 3), (6, 3), seed=1)
    B, z = B.detach(), z.detach()
    reward = (B * (torch.linalg.inv(covariance(B)) @ z.T).T).sum(-1)
    F = (reward / (1 - GAMMA) / z.square().sum(-1))[:, None] * z
    loss = implied_q_loss(F[None], B, F[None], z, GAMMA, 0.0)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-9, rtol=0)  # the ridge


def test_covariance_is_the_mean_of_outer_products():
    (x,) = draw((7, 3))
    plain = sum(torch.outer(row, row) for row in x) / 7
    torch.testing.assert_close(covariance(x), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_full_under_autocast(dtype):
    """An inner product of 1 and many small numbers, which bfloat16 would swallow."""
    x = torch.full((2, 1000), 2.0**-5, dtype=dtype)  # exact in bfloat16
    x[:, 0] = 1
    exact = 1 + 999 * 2.0**-10
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.mT).dtype == torch.bfloat16
        product = full_precision(lambda a, *, b: a @ b.mT)(x, b=x)
        C = covariance(x.mT)
    for result in (product, C * 1000):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, torch.full((2, 2), exact), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_the_losses_are_full_under_autocast(wide):
    """The same number with and without autocast, of inputs that bfloat16 holds."""
    n, d = 65, 33
    F, B, target_F, target_B = (
        x.detach().to(torch.bfloat16).to(wide) for x in draw((2, n, d), (n, d), (2, n, d), (n, d))
    )
    losses = {
        "measure": lambda f, b, tf, tb: measure_loss(f, b, tf[0], tb, GAMMA),
        "pessimistic": lambda f, b, tf, tb: pessimistic_measure_loss(f, b, tf, tb, GAMMA, 0.5),
        "orthonormality": lambda f, b, tf, tb: orthonormality_loss(b),
        "implied q": lambda f, b, tf, tb: implied_q_loss(f, b, tf, tb, GAMMA, 0.5),
    }
    inputs = F, B, target_F, target_B
    for name, loss in losses.items():
        plain = loss(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            cast = loss(*inputs)
            narrow = loss(*(x.to(torch.bfloat16) for x in inputs))
        assert cast.dtype == plain.dtype == wide, name
        torch.testing.assert_close(cast, plain, rtol=1e-5, atol=1e-5, msg=name)
        assert narrow.dtype == torch.float32, name
        torch.testing.assert_close(narrow, plain.float(), rtol=1e-4, atol=1e-3, msg=name)
