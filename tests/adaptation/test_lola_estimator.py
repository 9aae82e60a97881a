"""LoLA's gradient estimate against the truth, on a return that is quadratic in the latent."""

import torch

from bfmpipe.kernels import leave_one_out

D, SIGMA, K = 4, 0.3, 8
torch.manual_seed(0)
A = torch.randn(D, D, dtype=torch.float64)
A = -(A @ A.T) / D
b = torch.randn(D, dtype=torch.float64)
MU = torch.randn(D, dtype=torch.float64)


def quadratic(z):
    return ((z @ A) * z).sum(-1) / 2 + z @ b


# E f(mu + sigma eps) = f(mu) + sigma^2 tr(A) / 2, so the smoothed gradient is A mu + b.
TRUTH = A @ MU + b


def estimates(groups, baseline, shared_start, offset_std=3.0, seed=0):
    """One estimate of the gradient a group of K latents, (groups, D).

    A start state is worth `offset`, the same for all latents of a group if shared_start.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(groups, K, D, generator=generator, dtype=torch.float64)
    z = MU + SIGMA * noise
    shape = (groups, 1) if shared_start else (groups, K)
    offset = offset_std * torch.randn(shape, generator=generator, dtype=torch.float64)
    returns = quadratic(z) + offset
    if baseline:
        result = leave_one_out(
            returns[None, :, None],  # one step, a task a group, one start state
            torch.zeros(groups, 1, K, dtype=torch.float64),
            z[:, None],
            MU.expand(groups, D),
            sigma=SIGMA,
            discount=1.0,
        )
        return result.score_gradient
    return (returns[..., None] * (z - MU) / SIGMA**2).mean(1)


def test_unbiased_within_monte_carlo_error():
    samples = estimates(40_000, baseline=True, shared_start=True)
    error = samples.mean(0) - TRUTH
    standard_error = samples.std(0) / len(samples) ** 0.5
    assert (error.abs() < 4 * standard_error).all()
    assert (standard_error < 0.05 * TRUTH.norm()).all()  # tight enough to notice a bias


def test_leave_one_out_on_a_shared_start_has_the_least_variance():
    ours = estimates(20_000, baseline=True, shared_start=True).var(0).sum()
    no_baseline = estimates(20_000, baseline=False, shared_start=True).var(0).sum()
    own_starts = estimates(20_000, baseline=True, shared_start=False).var(0).sum()
    assert ours < 0.2 * no_baseline
    assert ours < 0.2 * own_starts
