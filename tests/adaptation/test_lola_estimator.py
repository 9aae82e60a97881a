"""LoLA's gradient estimate against the truth, on returns that are functions of the latent."""

import pytest
import torch

from bfmpipe.adaptation.lola import score_gradient
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


def wavy(z):
    return (2 * z).sin().sum(-1) + quadratic(z)


def finite_differences(f, step=1e-3, samples=100_000):
    """Central differences at MU of E f(mu + sigma eps), with the same mirrored noise everywhere."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(samples, D, generator=generator, dtype=torch.float64)
    noise = SIGMA * torch.cat([noise, -noise])
    shifts = step * torch.eye(D, dtype=torch.float64)
    return torch.stack(
        [(f(MU + e + noise).mean() - f(MU - e + noise).mean()) / (2 * step) for e in shifts]
    )


def estimates(groups, baseline, shared_start, offset_std=3.0, seed=0, f=quadratic):
    """One estimate of the gradient a group of K latents, (groups, D).

    A start state is worth `offset`, the same for all latents of a group if shared_start.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(groups, K, D, generator=generator, dtype=torch.float64)
    z = MU + SIGMA * noise
    shape = (groups, 1) if shared_start else (groups, K)
    offset = offset_std * torch.randn(shape, generator=generator, dtype=torch.float64)
    returns = f(z) + offset
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
    return score_gradient(returns[:, None], z[:, None], MU.expand(groups, D), SIGMA)


def test_unbiased_within_monte_carlo_error():
    samples = estimates(40_000, baseline=True, shared_start=True)
    error = samples.mean(0) - TRUTH
    standard_error = samples.std(0) / len(samples) ** 0.5
    assert (error.abs() < 4 * standard_error).all()
    assert (standard_error < 0.05 * TRUTH.norm()).all()  # tight enough to notice a bias


@pytest.mark.parametrize("f", [quadratic, wavy])
@pytest.mark.parametrize(("baseline", "shared_start"), [(True, True), (True, False), (False, True)])
def test_all_forms_agree_with_finite_differences_of_the_smoothed_return(f, baseline, shared_start):
    """Baselines and start states change the variance alone."""
    slope = finite_differences(f)
    samples = estimates(40_000, baseline, shared_start, f=f)
    error = samples.mean(0) - slope
    standard_error = samples.std(0) / len(samples) ** 0.5
    assert (error.abs() < 4 * standard_error).all()
    assert (standard_error < 0.1 * slope.norm()).all()


def test_finite_differences_know_the_quadratics_gradient():
    torch.testing.assert_close(finite_differences(quadratic), TRUTH, rtol=1e-8, atol=1e-8)


def test_leave_one_out_on_a_shared_start_has_the_least_variance():
    """In units of ours: about 7 with own start states, 13 without a baseline."""
    ours = estimates(20_000, baseline=True, shared_start=True).var(0).sum()
    no_baseline = estimates(20_000, baseline=False, shared_start=True).var(0).sum()
    own_starts = estimates(20_000, baseline=True, shared_start=False).var(0).sum()
    assert 11 < no_baseline / ours < 15
    assert 6 < own_starts / ours < 8


def test_what_start_states_are_worth_drops_out_where_they_are_shared():
    """The advantages, and with them every estimate, are the same whatever the offset."""
    without, with_offsets = (
        estimates(100, baseline=True, shared_start=True, offset_std=std) for std in (0.0, 100.0)
    )
    torch.testing.assert_close(without, with_offsets, rtol=1e-6, atol=1e-6)
