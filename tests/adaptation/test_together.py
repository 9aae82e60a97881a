"""Models of several seeds as one batch: each is what it is alone, and does not feel the others."""

import numpy as np
import pytest
import torch

from bfmpipe import plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.protocol import adapt, start_states
from bfmpipe.agents import fb
from bfmpipe.agents.stack import Stack
from bfmpipe.config import parse
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

from .test_methods import SETTINGS, STARTS_CONFIG, make_problem, small_model

SEEDS = (5, 3, 8)


def own_problem(seed):
    """The problem of one model, with weights of its own."""
    problem = make_problem(model=small_model(seed))
    w = torch.randn(problem.w.shape, generator=torch.Generator().manual_seed(seed))
    return Problem(**{**vars(problem), "w": w, "z": project_z(w)})


def joined(problems):
    """The same problems as one."""
    return Problem(
        **{
            **vars(problems[0]),
            "model": Stack([problem.model for problem in problems]),
            "tasks": [task for problem in problems for task in problem.tasks],
            "w": torch.cat([problem.w for problem in problems]),
            "z": torch.cat([problem.z for problem in problems]),
        }
    )


def run(name, problem, seeds):
    module = plugins.load("adaptation", name)
    method = module.Method(parse(module.Config, SETTINGS[name], name), problem, seeds)
    return list(adapt(method, start_states(problem.domain, STARTS_CONFIG), every=40))


@pytest.mark.parametrize("name", plugins.names("adaptation"))
def test_each_seed_is_what_it_is_alone(name):
    problems = [own_problem(seed) for seed in SEEDS]
    together = [point.split(len(SEEDS)) for point in run(name, joined(problems), SEEDS)]
    for i, (problem, seed) in enumerate(zip(problems, SEEDS, strict=True)):
        alone = run(name, problem, [seed])
        for one, other in zip([point[i] for point in together], alone, strict=True):
            assert one.env_steps == other.env_steps
            np.testing.assert_allclose(one.z, other.z, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(one.returns, other.returns, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(one.physics, other.physics, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(one.cosine, other.cosine, rtol=1e-4, atol=1e-5)


def test_a_stack_gives_every_row_what_its_own_model_gives():
    models = [small_model(seed, fourier_obs=(0, 1), forward_octaves=1) for seed in SEEDS]
    models[1].obs_mean.fill_(0.3)
    stack = Stack(models)
    generator = torch.Generator().manual_seed(0)
    obs, action, z, w = (torch.randn(6, n, generator=generator) for n in (4, 2, 6, 6))
    for i, model in enumerate(models):
        rows = slice(2 * i, 2 * i + 2)
        inputs = obs[rows], action[rows], z[rows], w[rows]
        assert torch.equal(stack.normalise(obs)[rows], model.normalise(inputs[0]))
        assert torch.equal(stack.psi_obs(obs)[rows], model.psi_obs(inputs[0]))
        for octaves in (0, 3):
            assert torch.equal(stack.encode(obs, octaves)[rows], model.encode(inputs[0], octaves))
        assert torch.equal(stack.phi(obs)[rows], model.phi(inputs[0]))
        assert torch.equal(stack.psi(obs, action, z)[:, rows], model.psi(*inputs[:3]))
        assert torch.equal(stack.actor(obs, z)[rows], model.actor(inputs[0], inputs[2]))
        assert torch.equal(stack.q(obs, action, z, w)[rows], model.q(*inputs))
        all_pairs = stack.q_pairs(*(x[:, None] for x in (obs, action, z, w)))
        assert torch.equal(all_pairs[rows], model.q_pairs(*(x[:, None] for x in inputs)))


def test_models_that_differ_in_more_than_weights_say_so():
    other = fb.Model(fb.Config(z_dim=6, hidden_dim=16, backward_hidden_dim=16, batch=8), 4, 2)
    with pytest.raises(UserError, match="differ in their seed alone"):
        Stack([small_model(), other])


def test_a_seed_short_says_so():
    with pytest.raises(UserError, match="1 seeds for 2 models"):
        run("lola", joined([own_problem(seed) for seed in SEEDS[:2]]), SEEDS[:1])


def test_seeds_draw_what_they_draw_alone():
    together, alone = Generators([4, 7]), (Generators([4]), Generators([7]))
    for draw in (
        lambda d, n: d.normal(n, 3, dtype=torch.float64),
        lambda d, n: d.uniform(n, 2),
        lambda d, n: d.integers(100, n, 5),
        lambda d, n: torch.from_numpy(d.by_seed(n, lambda m, rng: rng.normal(size=(m, 2)))),
    ):
        assert torch.equal(draw(together, 6), torch.cat([draw(one, 3) for one in alone]))
    draws = together.normal(100_000)
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
