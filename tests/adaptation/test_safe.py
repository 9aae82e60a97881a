"""The acceptance test and the methods that end their rounds with it: `rela-safe` and `hybrid`."""

import itertools

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.protocol import Evaluation, adapt, start_states
from bfmpipe.adaptation.safe import sign_test
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

from . import toy

D = 3
BEST = np.array([0.0, 0.6, 0.8])
REWARDS = {
    "linear": lambda action: action @ BEST,
    "against": lambda action: -action @ BEST,
}
SETTINGS = {
    "batch": 32,
    "warmup_episodes": 4,
    "latent_warmup_updates": 50,
    "updates_per_step": 0.25,
    "latent_learning_rate": 0.02,
    "critic_learning_rate": 1e-2,
}


def make_problem(budget=2000, weights=None):
    w = torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.3, 0.0]]) if weights is None else weights
    return toy.problem(REWARDS, w, budget=budget)


def make(name, problem, seed=0, **settings):
    return toy.make(name, problem, seed, **{**SETTINGS, **settings})


def finish(method):
    while method.advance():
        pass
    return method


def test_sign_test_by_hand():
    gain = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [3.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    # 8 signs each: sums of 6; of -6; of 1 (+++ 5, ++- 3, +-+ 3, +-- 1); of 0
    np.testing.assert_allclose(sign_test(gain), [1 / 8, 1, 4 / 8, 1])


def test_sign_test_is_exact():
    """Over all signs of any sizes, p <= level happens in at most that share of the cases."""
    sizes = np.random.default_rng(0).exponential(size=6)
    gains = np.array(list(itertools.product((-1.0, 1.0), repeat=6))) * sizes
    p = sign_test(gains)
    for level in (1 / 64, 0.1, 0.25, 0.5):
        assert np.mean(p <= level) <= level
    assert np.mean(p <= 0.25) > 0.2  # and not by much less


def play_out(method):
    """Begin what comes next, and play it to its end."""
    assert method.advance()
    while method.playing.left:
        method.advance()


def play_test(method, *, last=False):
    """Play the test of a proposal that has been made."""
    method.phase, method.last = "proposal", last
    play_out(method)


def after_a_test(method, candidate, *, last=False):
    """The method after its warm-up and one test of a candidate."""
    play_out(method)
    method.mover.put(project_z(candidate), torch.tensor([True, True]))
    play_test(method, last=last)
    return method


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_better_latent_wins_and_the_worse_one_goes_back(offset):
    """Also where start states are worth far more than latents: both meet the same ones."""
    problem = make_problem()
    problem.domain.offset = offset
    better = torch.ones(2, D)
    method = after_a_test(make("rela-safe", problem), better)
    assert method.env_steps == 2 * 4 * 10  # the incumbent's episodes are the warm-up's
    assert method.accepted[0].tolist() == [True, False]
    assert method.rejected[0].tolist() == [False, True]
    torch.testing.assert_close(method.z, torch.stack([project_z(better)[0], problem.z[1]]))
    torch.testing.assert_close(method.mover.z.detach(), method.z)


def test_the_next_candidate_is_measured_against_the_new_incumbent():
    problem = make_problem()
    before = problem.z.clone()
    better = torch.ones(2, D)
    method = after_a_test(make("rela-safe", problem, noise_std=0.0), better)
    method.mover.put(before, torch.tensor([True, True]))  # the worse one; the same as its own
    play_test(method)
    assert method.accepted[1].tolist() == [False, False]
    assert method.rejected[1].tolist() == [True, False]
    torch.testing.assert_close(method.z, torch.stack([project_z(better)[0], problem.z[1]]))


def test_a_test_plays_the_warm_ups_episodes():
    method = make("rela-safe", make_problem())
    played, play = [], method.play

    def watched(z, starts, steps, noise_std):
        played.append((starts.copy(), noise_std.clone(), steps))
        play(z, starts, steps, noise_std)

    method.play = watched
    after_a_test(method, torch.ones(2, D))
    (starts, noise, steps), (again, same_noise, same_steps) = played
    np.testing.assert_array_equal(starts, again)
    assert torch.equal(noise, same_noise)
    assert noise.flatten().tolist() == pytest.approx([0.0, 0.2, 0.0, 0.2])
    assert steps == same_steps == 10


@pytest.mark.parametrize("last", [False, True])
def test_the_last_test_takes_the_higher_return(last):
    """Half of the episodes are won, by more than the others are lost: no proof, but a reason."""
    method = make("rela-safe", make_problem(), noise_std=0.0)
    tested = method._tested

    def won_and_lost(returns):
        gain = torch.tensor([1.2, 1.2, -1.0, -1.0])
        tested(method.returns + torch.stack([gain, -gain]))

    method._tested = won_and_lost
    after_a_test(method, torch.ones(2, D), last=last)
    assert method.accepted[0].tolist() == [last, False]
    assert method.rejected[0].tolist() == [False, last]


def test_the_budgets_last_test_is_the_last_one(monkeypatch):
    method = make("rela-safe", make_problem(budget=10 * 21))
    seen, right = [], method._tested
    monkeypatch.setattr(
        method, "_tested", lambda returns: seen.append(method.last) or right(returns)
    )
    finish(method)
    assert seen == [False, False, False, True]


@pytest.mark.parametrize("last", [False, True])
def test_equal_returns_decide_nothing(last):
    problem = make_problem()
    method = make("rela-safe", problem, noise_std=0.0)
    after_a_test(method, problem.z.clone(), last=last)
    assert not method.accepted[0].any()
    assert not method.rejected[0].any()


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
@pytest.mark.parametrize("name", ["rela-safe", "hybrid"])
def test_returns_rise_and_without_noise_never_fall(name, noise_std):
    """On the toy a latent's return is that of all start states: only noise can mislead a test.

    But without noise on actions, a task's episodes may teach the critic too little to rise.
    """
    settings = {"lookahead": {"states": 2, "latents": 4, "horizon": 5}} if name == "hybrid" else {}
    problem = make_problem()
    method = make(name, problem, noise_std=noise_std, **settings)
    points = list(adapt(method, start_states(problem.domain, Evaluation(episodes=2)), every=40))
    curve = np.array([point.returns.mean(1) for point in points])
    rises = curve[-1] > curve[0] + 3  # of at most 10 + 10
    if noise_std:
        assert rises.all()
    else:
        assert (np.diff(curve, axis=0) >= -1e-5).all()
        assert rises.any()
    assert points[-1].env_steps == problem.budget


def test_the_warmup_calibrates_by_the_zero_shot_returns():
    """Q = a . w / (1 - gamma) for the true a . best: the scale that makes the two agree."""
    problem = make_problem(weights=torch.tensor([[0.0, 0.06, 0.08], [0.0, 0.06, 0.08]]))
    method = make("rela-safe", problem, noise_std=0.0)
    play_out(method)
    assert method.env_steps == 4 * 10
    scale, shift = method.critic.calibration
    # one value in all states: scale and shift cannot be told apart, so the scale stays
    assert scale.tolist() == [1, 1]
    torch.testing.assert_close(0.1 / 0.1 + shift, torch.tensor([10.0, -10.0]), rtol=1e-3, atol=1e-3)
    assert torch.equal(method.mover.z.detach(), problem.z)
    assert method.learner.updates == 50
    assert method.replay.size == 40


@pytest.mark.parametrize("train_episodes", [0, 3])
def test_the_budget_ends_with_a_test(train_episodes):
    for episodes in (13, 21, 40, 41):
        problem = make_problem(budget=10 * episodes)
        method = finish(make("rela-safe", problem, train_episodes=train_episodes))
        assert method.env_steps == 10 * episodes
        assert len(method.accepted) == max(1, (episodes - 4) // (4 + train_episodes))


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(UserError, match=r"rela-safe: a budget of 70 .* one acceptance test"):
        make("rela-safe", make_problem(budget=70))
    with pytest.raises(UserError, match=r"a confidence of 0.9; .* at most 0.875"):
        make("rela-safe", make_problem(), warmup_episodes=3, confidence=0.9)
