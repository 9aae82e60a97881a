"""Random features: they never move, they differ by seed, and they are saved."""

import pytest
import torch

from bfmpipe.agents import load_model, random_features, save_model
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig

SETTINGS = {"z_dim": 4, "hidden_dim": 16, "feature_hidden_dim": 16, "batch": 8}


def make(seed=0):
    torch.manual_seed(seed)
    return random_features.Agent(random_features.Config(**SETTINGS), 3, 2)


def trained(seed=0, updates=5, rows=None):
    agent = make(seed)
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    generator = torch.Generator().manual_seed(1)
    seen = []
    rows = [] if rows is None else rows
    for _ in range(updates):
        obs, next_obs = (torch.randn(8, 3, generator=generator) for _ in range(2))
        action = torch.rand(8, 2, generator=generator) * 2 - 1
        rows.append(learner.update([Batch(obs, action, next_obs, next_obs)]))
        seen.append(next_obs)
    return agent, torch.cat(seen)


def test_features_never_move():
    before, (agent, seen) = make(), trained()
    weights = before.model.feature_map.state_dict()
    for name, weight in agent.model.feature_map.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert torch.equal(agent.model.features(seen), before.model.features(seen))
    for part in ("forward_map", "policy"):  # though the rest learns
        one, two = (getattr(a.model, part).state_dict() for a in (before, agent))
        assert not all(torch.equal(one[name], two[name]) for name in one)


def test_phi_is_centred_over_all_that_was_seen():
    agent, seen = trained(updates=200)
    torch.testing.assert_close(agent.model.phi(seen).mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert agent.feature_batches == 200


def test_features_differ_by_seed():
    obs = torch.randn(20, 3)
    one, two, again = (make(seed).model.features(obs) for seed in (0, 1, 0))
    assert torch.equal(one, again)
    # not by a rotation either: the angles between them are others
    assert (one @ one.T - two @ two.T).abs().max() > 0.1


def test_saved_features_are_the_same(tmp_path):
    agent, seen = trained()
    save_model(tmp_path, agent.model, {"agent": "random_features"})
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.phi(seen), agent.model.phi(seen))
    assert torch.equal(loaded.feature_mean, agent.model.feature_mean)


GOLDEN = {
    "successor_loss": [5.01109757355313, 4.410537161098521, 7.60228531651833],
    "q": [-0.3902712984450162, -0.22626909790426442, -0.27541125833648894],
}


def test_golden_first_losses():
    """The first three updates in float64; a change of these numbers changes the results."""
    torch.set_default_dtype(torch.float64)
    try:
        rows = []
        trained(updates=3, rows=rows)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, expected in GOLDEN.items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=1e-9), name
