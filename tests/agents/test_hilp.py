"""HILP: distances on small graphs, the plain loops, and what the model says of rewards."""

import pytest
import torch
from torch import nn

from bfmpipe.agents import hilp
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.trainer import Data
from bfmpipe.config import parse

STATES = 5
SETTINGS = {"z_dim": 4, "hidden_dim": 16, "feature_hidden_dim": 16, "batch": 8}
SMALL = hilp.Config(**SETTINGS)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# distances


def steps(shape):
    """Number of steps between all pairs of states, on a path or a ring."""
    i = torch.arange(STATES)
    d = (i[:, None] - i).abs()
    return torch.minimum(d, STATES - d) if shape == "ring" else d


def neighbours(shape):
    """(s, s') of all transitions."""
    pairs = (steps(shape) == 1).nonzero().T
    return pairs[0], pairs[1]


def distances(shape, discount):
    """What paying 1 a step costs on the shortest way, (states, states)."""
    d = steps(shape).double()
    return d if discount == 1 else (1 - discount**d) / (1 - discount)


def embedding(distance):
    """Points (states, states) of these distances, by classical scaling."""
    n = len(distance)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    values, vectors = torch.linalg.eigh(-centre @ distance.square() @ centre / 2)
    assert values.min() > -1e-12  # they are distances in R^d
    return vectors * values.clamp_min(0).sqrt()


def rows(shape, *, best_only):
    """Transitions and goals (s, s', g): of all pairs, or those on the way to g and those at g."""
    d = steps(shape)
    s, s_next = (x.repeat_interleave(STATES) for x in neighbours(shape))
    g = torch.arange(STATES).repeat(len(s) // STATES)
    on_the_way = (d[s_next, g] < d[s, g]) | (s == g)
    return (s[on_the_way], s_next[on_the_way], g[on_the_way]) if best_only else (s, s_next, g)


def tabular_loss(phi, s, s_next, g, discount, expectile):
    both = phi.expand(2, -1, -1)
    target = both.detach()
    online = torch.stack([both[:, s], both[:, g]], dim=1)
    targets = torch.stack([target[:, s], target[:, g], target[:, s_next]], dim=1)
    return hilp.distance_loss(online, targets, s == g, discount, expectile)


GRAPHS = [("path", 1.0), ("path", 0.9), ("ring", 0.5)]


@pytest.mark.parametrize(("shape", "discount"), GRAPHS)
@pytest.mark.parametrize(("best_only", "expectile"), [(True, 0.5), (True, 0.8), (False, 1 - 1e-12)])
def test_the_gradient_vanishes_at_the_shortest_distances(shape, discount, best_only, expectile):
    phi = embedding(distances(shape, discount))
    transitions = rows(shape, best_only=best_only)

    def gradient(scale):
        table = (scale * phi).requires_grad_()
        loss = tabular_loss(table, *transitions, discount, expectile)
        return torch.autograd.grad(loss, table)[0].abs().max()

    assert gradient(1.0) < 1e-10
    assert gradient(1.01) > 1e-4  # not beside it


def test_expectile_one_half_is_the_policy_of_the_data():
    """On a path walked at random, the truth of the best way has a gradient."""
    phi = embedding(distances("path", 0.9)).requires_grad_()
    loss = tabular_loss(phi, *rows("path", best_only=False), 0.9, 0.5)
    assert torch.autograd.grad(loss, phi)[0].abs().max() > 0.1


@pytest.mark.parametrize(("shape", "discount"), [("path", 0.9), ("ring", 0.5)])
def test_distances_are_learnt(double, shape, discount):
    config = hilp.Config(
        **{**SETTINGS, "z_dim": 8, "feature_hidden_dim": 32},
        goal_discount=discount,
        random_goal_fraction=0.0,
        feature_learning_rate=1e-2,
        feature_target_tau=0.2,
    )
    torch.manual_seed(0)
    agent = hilp.Agent(config, STATES, 2)
    agent.phases = agent.phases[:1]
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    states = torch.eye(STATES)
    s, s_next, g = rows(shape, best_only=True)
    batch = Batch(states[s], torch.zeros(len(s), 2), states[s_next], states[g])
    updates = 600
    for step in range(updates):
        learner.update([batch], learning_rate_scale=min(1.0, 2 * (updates - step) / updates))
    phi = agent.model.phi(states)
    torch.testing.assert_close(torch.cdist(phi, phi), distances(shape, discount), rtol=0, atol=1e-2)


# the loss


def plain_loss(phi, target_phi, reached, discount, expectile):
    heads, _, n, _ = phi.shape
    total = phi.new_zeros(())
    for i in range(n):
        nexts = [-(target_phi[k, 2, i] - target_phi[k, 1, i]).norm() for k in range(heads)]
        nows = [-(target_phi[k, 0, i] - target_phi[k, 1, i]).norm() for k in range(heads)]

        def backup(value, i=i):
            return 0.0 if reached[i] else discount * value - 1

        better = backup(min(nexts)) >= sum(nows) / heads
        for k in range(heads):
            value = -(phi[k, 0, i] - phi[k, 1, i]).norm()
            weight = expectile if better else 1 - expectile
            total = total + weight * (backup(nexts[k]) - value) ** 2 / n
    return total


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("expectile", [0.5, 0.8, 0.1])
def test_the_loss_is_the_plain_loop(heads, expectile):
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(heads, 2, 9, 3, generator=g, dtype=torch.float64, requires_grad=True)
    target_phi = torch.randn(heads, 3, 9, 3, generator=g, dtype=torch.float64)
    reached = torch.arange(9) % 4 == 0
    ours = hilp.distance_loss(phi, target_phi, reached, 0.9, expectile)
    plain = plain_loss(phi, target_phi, reached, 0.9, expectile)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, phi)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def random_batch(n, generator):
    obs, next_obs, future = torch.randn(3, n, 4, generator=generator).unbind()
    return Batch(obs, torch.rand(n, 2, generator=generator) * 2 - 1, next_obs, future)


def test_the_agents_loss_is_that_of_its_networks(double):
    """Which network reads which states, which goals, and the discount of a transition."""
    config = SMALL.model_copy(update={"stride": 3, "expectile": 0.7})
    torch.manual_seed(0)
    agent = hilp.Agent(config, 4, 2)
    for target in (agent.target_feature_map, agent.target_twin):
        for p in target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(8, generator)
    batch.future[:3] = batch.obs[:3]
    draws = agent.draw(batch, generator, ["features"])
    goals = batch.future.clone()
    for i in range(8):
        if draws["is_other"][i]:
            goals[i] = batch.obs[draws["other_state"][i]]
    online = [agent.model.feature_map, agent.twin[0]]
    targets = [agent.target_feature_map, agent.target_twin[0]]
    phi = torch.stack([torch.stack([f(batch.obs), f(goals)]) for f in online])
    kinds = (batch.obs, goals, batch.next_obs)
    target_phi = torch.stack([torch.stack([f(x) for x in kinds]) for f in targets])
    reached = [bool((batch.obs[i] == goals[i]).all()) for i in range(8)]
    assert 0 < sum(reached) < 8
    assert 0 < draws["is_other"].sum() < 8
    loss = agent("features", batch, draws, {})
    plain = plain_loss(phi, target_phi, reached, 0.98**3, 0.7)
    torch.testing.assert_close(loss.value, plain, rtol=1e-12, atol=0)
    distance = (phi[:, 0] - phi[:, 1]).norm(dim=-1).mean()
    torch.testing.assert_close(loss.metrics["distance"], distance)


# goals


def test_goals_are_a_geometric_number_of_control_steps_ahead():
    agent = hilp.Agent(SMALL.model_copy(update={"stride": 5, "future_discount": 0.9}), 1, 2)
    assert agent.future_discount == pytest.approx(0.9**5)
    n = 50_000
    obs = torch.arange(n, dtype=torch.float32)[:, None]
    index = torch.arange(n - 5)
    data = Data(obs, torch.zeros(n, 2), index, 5, torch.full((n - 5,), n - 1))
    batch = data.sample(20_000, torch.Generator().manual_seed(0), agent.future_discount)
    ahead = ((batch.future - batch.obs) / 5).squeeze(1)
    for k in (1, 2, 3):
        share = float((ahead == k).double().mean())
        assert share == pytest.approx((1 - 0.9**5) * 0.9 ** (5 * (k - 1)), abs=0.02)


@pytest.mark.parametrize("fraction", [0.0, 0.375, 1.0])
def test_goals_of_other_states(fraction):
    agent = hilp.Agent(SMALL.model_copy(update={"random_goal_fraction": fraction}), 4, 2)
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    draws = agent.draw(random_batch(n, generator), generator, ["features"])
    assert float(draws["is_other"].double().mean()) == pytest.approx(fraction, abs=0.02)
    assert torch.equal(draws["other_state"].sort().values, torch.arange(n))


# rewards


class Table(nn.Module):
    """Successor features (2, n, d) of one-hot states."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, obs, z, action):
        return (obs @ self.rows).expand(2, -1, -1)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("temporal_difference", ["vector", "scalar"])
@pytest.mark.parametrize("kind", ["state", "difference"])
def test_values_are_those_of_the_rewards_of_reached_states(
    double, kind, temporal_difference, stride
):
    """On a ring that is walked one way, the loss is zero at the truth, and q is the value."""
    config = SMALL.model_copy(
        update={
            "reward_features": kind,
            "temporal_difference": temporal_difference,
            "stride": stride,
            "discount": 0.9,
        }
    )
    torch.manual_seed(0)
    agent = hilp.Agent(config, STATES, 2)
    model = agent.model
    states = torch.eye(STATES)
    P = states.roll(1, dims=1)  # state i leads to state i + 1
    raw = model.features(states)
    model.feature_mean.copy_(raw.mean(0))
    phi = model.phi(states)
    gamma = 0.9**stride
    resolvent = torch.linalg.inv(torch.eye(STATES) - gamma * P)
    psi = resolvent @ P @ phi
    learnt = psi if kind == "state" else resolvent @ (P @ raw - raw)
    agent.target_forward_map = Table(learnt)
    batch = Batch(states, torch.zeros(STATES, 2), P @ states, P @ states)
    draws = agent.draw(batch, torch.Generator().manual_seed(0), ["successor"])

    def loss(rows):
        model.forward_map = Table(rows)
        return agent("successor", batch, draws, {}).value

    assert loss(1.01 * learnt) > 1e-6
    assert loss(learnt) < 1e-24
    a_step = (1 - gamma) / (1 - 0.9)  # from transitions to control steps
    heads = model.psi(states, batch.action, draws["z"])
    torch.testing.assert_close(heads, a_step * psi.expand(2, -1, -1))
    if kind == "difference":  # so is the value of any reward in the span of phi
        w = torch.randn(4)
        value = a_step * resolvent @ P @ (phi @ w)
        torch.testing.assert_close(model.q(states, batch.action, draws["z"], w), value)
        pairs = model.q_pairs(states, batch.action, draws["z"], w.expand(STATES, -1))
        torch.testing.assert_close(pairs, value[:, None].expand(-1, STATES))


@pytest.mark.parametrize("kind", ["state", "difference"])
def test_kernels_and_psi_agree(kind):
    torch.manual_seed(0)
    model = hilp.Model(SMALL.model_copy(update={"reward_features": kind, "stride": 2}), 4, 2)
    model.feature_mean.copy_(torch.randn(4))
    obs, action, w = torch.randn(6, 4), torch.rand(6, 2), torch.randn(6, 4)
    z = model.sample_z(6, torch.Generator().manual_seed(0))
    q = (model.psi(obs, action, z).mean(0) * w).sum(-1)
    torch.testing.assert_close(model.q(obs, action, z, w), q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.q_pairs(obs, action, z, w).diagonal(), q, rtol=1e-4, atol=1e-4)


def learner_of(seeds, **settings):
    agents = []
    for seed in seeds:
        torch.manual_seed(seed)
        agents.append(hilp.Agent(SMALL.model_copy(update=settings), 4, 2))
    return Learner(agents, [torch.Generator().manual_seed(s) for s in seeds], LearnerConfig())


def train(learner, generators, updates=3):
    return [learner.update([random_batch(8, g) for g in generators]) for _ in range(updates)]


def test_features_are_centred_and_differences_need_no_centre():
    g = torch.Generator().manual_seed(3)
    sample = torch.randn(2000, 4, generator=g)
    learner = learner_of([0], feature_learning_rate=1e-4)
    model = learner.agents[0].model
    model.feature_map.layers[-1].bias.add_(1.0)
    train(learner, [torch.Generator().manual_seed(1)], 150)
    spread = model.phi(sample).std(0)
    assert (model.features(sample).mean(0).abs() > 0.2 * spread).any()
    assert (model.phi(sample).mean(0).abs() < 0.1 * spread).all()
    agent = hilp.Agent(SMALL.model_copy(update={"reward_features": "difference"}), 4, 2)
    batch = random_batch(8, g)
    phi = agent.model.phi(batch.next_obs)
    before = agent.reward_features(batch, phi)
    torch.testing.assert_close(before, phi - agent.model.phi(batch.obs))
    agent.model.feature_mean.add_(1.0)
    assert torch.equal(agent.reward_features(batch, agent.model.phi(batch.next_obs)), before)


# several seeds, golden numbers, and short data

VARIANTS = [
    {},
    {"reward_features": "difference", "temporal_difference": "scalar", "stride": 2},
    {"feature_heads": 1, "expectile": 0.9},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_two_seeds_at_once_are_two_alone(double, settings):
    both = learner_of([0, 7], **settings)
    ours = train(both, [torch.Generator().manual_seed(s) for s in (1, 2)])
    both.sync()
    for i, (seed, data) in enumerate([(0, 1), (7, 2)]):
        alone = learner_of([seed], **settings)
        theirs = train(alone, [torch.Generator().manual_seed(data)])
        for row, expected in zip(ours, theirs, strict=True):
            assert row.keys() == expected.keys()
            for name in row:
                torch.testing.assert_close(row[name][i], expected[name], rtol=1e-9, atol=1e-12)
        state = alone.agents[0].state_dict()
        for name, tensor in both.agents[i].state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-7, atol=1e-9)
        assert state["model.feature_mean"].any()


def test_training_goes_on_to_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    whole = learner_of([0])
    train(whole, [generator])
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    at = generator.get_state()
    expected = train(whole, [generator])
    other = learner_of([5])
    other.load_state(state, 3)
    generator.set_state(at)
    assert train(other, [generator]) == expected
    for name, tensor in other.state().items():
        assert torch.equal(tensor, whole.state()[name]), name


GOLDEN = {
    "feature_loss": [0.6999405272244059, 0.6407798684985662, 0.4306352578099614],
    "distance": [0.7105244681225366, 0.9883598408827556, 0.9476028215541762],
    "successor_loss": [0.2581187768140213, 0.3171230307591165, 0.3971425556018141],
    "q": [-0.04374885686877583, -0.4662946536724714, -0.2894486675664437],
}


def test_golden_first_losses(double):
    """The first three updates in float64; a change of these numbers changes the results."""
    learner = learner_of([0], expectile=0.7)
    found = train(learner, [torch.Generator().manual_seed(1)])
    for name, expected in GOLDEN.items():
        assert [float(row[name]) for row in found] == pytest.approx(expected, rel=1e-9), name


def test_a_batch_of_two_and_states_that_are_all_the_same():
    learner = learner_of([0])
    batch = random_batch(2, torch.Generator().manual_seed(1))
    same = Batch(*(x[:1].expand_as(x) for x in batch))
    same = same._replace(next_obs=same.obs, future=same.obs)
    for one in (batch, same, same):
        metrics = learner.update([one])
        assert all(bool(value.isfinite()) for value in metrics.values())
    assert float(metrics["feature_loss"]) == 0.0  # all are where they are to go
    assert all(bool(p.isfinite().all()) for p in learner.agents[0].parameters())


def test_an_episode_of_one_transition_has_its_end_as_goal():
    agent = hilp.Agent(SMALL.model_copy(update={"stride": 3}), 1, 2)
    obs = torch.arange(4.0)[:, None]
    data = Data(obs, torch.zeros(4, 2), torch.zeros(1).long(), 3, torch.full((1,), 3))
    batch = data.sample(64, torch.Generator().manual_seed(0), agent.future_discount)
    assert torch.equal(batch.future, batch.next_obs)


@pytest.mark.parametrize("preset", hilp.Config.presets)
def test_presets_make_agents(preset):
    config = parse(hilp.Config, {"preset": preset}, "hilp")
    agent = hilp.Agent(config, 4, 2)
    batch = random_batch(2, torch.Generator().manual_seed(0))
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    assert all(bool(value.isfinite()) for value in learner.update([batch]).values())
