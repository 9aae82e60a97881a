"""LoLA's batched update against the loop that benchmarks.lola times it against."""

from dataclasses import replace

import pytest
import torch

from benchmarks.lola import PlainLoop
from bfmpipe.adaptation import lola

from .test_together import joined, own_problem

SETTINGS = {"states": 3, "latents": 4, "horizon": 6, "visited_fraction": 0.5}


@pytest.mark.parametrize("seeds", [[5], [5, 3]])
@pytest.mark.parametrize("normalise", [True, False])
def test_both_make_the_same_update_from_the_same_random_numbers(seeds, normalise):
    config = lola.Config(**SETTINGS, normalise_advantages=normalise)
    problems = [own_problem(seed) for seed in seeds]
    problem = replace(joined(problems) if len(seeds) > 1 else problems[0], budget=10_000)
    batched, loop = (form(config, problem, seeds) for form in (lola.Method, PlainLoop))
    for _ in range(3):
        gradients = [method.gradient(config.states) for method in (batched, loop)]
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3 * float(gradients[0].norm()))
        for method in (batched, loop):
            assert method.advance()
        torch.testing.assert_close(batched.mu, loop.mu, rtol=1e-2, atol=1e-3)
        loop.mu.data.copy_(batched.mu)
    assert batched.env_steps == loop.env_steps
