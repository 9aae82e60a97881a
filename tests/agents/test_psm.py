"""PSM: its codebook holds policies, its losses are plain loops', the true measures are fixed."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from bfmpipe.agents import psm
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.networks import perturb

OBS, ACTION, D, N = 4, 2, 4, 6
SETTINGS = {
    "z_dim": D,
    "hidden_dim": 16,
    "feature_hidden_dim": 16,
    "batch": N,
    "code_bits": 5,
    "learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(seed=0, **settings):
    torch.manual_seed(seed)
    return psm.Agent(psm.Config(**SETTINGS, **settings), OBS, ACTION)


def sample(generator, n=N):
    obs, next_obs = (torch.randn(n, OBS, generator=generator) for _ in range(2))
    action = torch.rand(n, ACTION, generator=generator) * 2 - 1
    return Batch(obs, action, next_obs, next_obs)


# --- the codebook: pseudo-random policies, but policies ---


def splitmix64(seed, number):
    """Output `number` (from 1) of the published generator, in Python's integers."""
    x = (seed + number * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def finalise(x):
    return splitmix64(x - 0x9E3779B97F4A7C15, 1)


def plain_actions(obs, code, action_dim):
    """codebook_actions of one state, by Python's integers and fractions."""
    bits = [
        0 if x == 0 else int(b) % 2**32 for x, b in zip(obs, obs.view(torch.int32), strict=True)
    ]
    seed = sum(finalise((k + 1) * 2**32 + b) for k, b in enumerate(bits))
    numbers = range(code * action_dim + 1, (code + 1) * action_dim + 1)
    return [float(Fraction(splitmix64(seed, i) >> 40, 2**23) - 1) for i in numbers]


def test_the_generator_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, i) for i in (1, 2, 3)] == published
    x = torch.randint(-(2**63), 2**63 - 1, (100,), generator=torch.Generator().manual_seed(0))
    assert [int(y) % 2**64 for y in psm._finalise(x)] == [finalise(int(y)) for y in x]


def test_codebook_actions_are_those_of_plain_integers():
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(50, 7, generator=generator)
    obs[0], obs[1, ::2], obs[2] = 0.0, -0.0, -obs[2].abs()
    code = torch.randint(2**16, (50,), generator=generator)
    expected = [plain_actions(o, int(c), 3) for o, c in zip(obs, code, strict=True)]
    assert psm.codebook_actions(obs, code, 3).tolist() == expected


def test_a_code_is_a_deterministic_policy():
    """A state has the action that it has at another row, in another batch, on other threads."""
    generator = torch.Generator().manual_seed(1)
    obs, code = torch.randn(300, OBS, generator=generator), torch.arange(300) * 211
    actions = psm.codebook_actions(obs, code, ACTION)
    order = torch.randperm(300, generator=generator)
    assert torch.equal(psm.codebook_actions(obs[order], code[order], ACTION), actions[order])
    for i in (0, 7, 299):
        assert torch.equal(psm.codebook_actions(obs[i, None], code[i, None], ACTION)[0], actions[i])
    assert torch.equal(psm.codebook_actions(obs.double(), code, ACTION), actions)
    same_state = psm.codebook_actions(obs[:1].expand(300, -1), code, ACTION)
    assert len(same_state.unique(dim=0)) == 300
    signed = torch.tensor([[0.0, -0.0, 1.0, 2.0], [-0.0, 0.0, 1.0, 2.0]])
    zeros = psm.codebook_actions(signed, code[[3, 3]], ACTION)
    assert torch.equal(zeros[0], zeros[1])
    # entries count by where they stand
    swapped = psm.codebook_actions(obs[:, [1, 0, 2, 3]], code, ACTION)
    assert not (swapped == actions).any()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        big, many = obs.repeat(200, 1), code.repeat(200)
        assert torch.equal(psm.codebook_actions(big, many, ACTION), actions.repeat(200, 1))
    finally:
        torch.set_num_threads(threads)


def kolmogorov_smirnov(x):
    """sqrt(n) sup |empirical - uniform on [-1, 1]|; above 1.95 with probability 1e-3."""
    x = (x.double().flatten().sort().values + 1) / 2
    n = len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - x, x - steps[:-1]).max()) * math.sqrt(n)


def correlation(x, y):
    """Pearson's, times sqrt(n): a standard normal where there is none."""
    x, y = (v.double() - v.double().mean() for v in (x, y))
    return float((x * y).mean() / (x.square().mean() * y.square().mean()).sqrt() * len(x) ** 0.5)


def test_actions_are_uniform_and_unrelated():
    """Over states, over codes, between entries of an action, and one ulp away in any entry."""
    n, code = 20_000, torch.tensor(12345)
    generator = torch.Generator().manual_seed(2)
    obs = torch.randn(n, OBS, generator=generator)
    over_states = psm.codebook_actions(obs, code.expand(n), ACTION)
    over_codes = psm.codebook_actions(obs[:1].expand(n, -1), torch.arange(n), ACTION)
    # a path of adjacent floats is no less random than states that lie apart
    path = torch.arange(n, dtype=torch.int32) + torch.tensor(0.7).view(torch.int32)
    obs_on_path = torch.zeros(n, OBS)
    obs_on_path[:, 1] = path.view(torch.float32)
    over_path = psm.codebook_actions(obs_on_path, code.expand(n), ACTION)
    for actions in (over_states, over_codes, over_path):
        assert actions.min() >= -1
        assert actions.max() < 1
        for j in range(ACTION):
            assert kolmogorov_smirnov(actions[:, j]) < 1.95
            assert abs(correlation(actions[1:, j], actions[:-1, j])) < 4
        assert abs(correlation(actions[:, 0], actions[:, 1])) < 4
    # and the statistic can tell
    assert kolmogorov_smirnov(over_states - 0.05) > 1.95
    assert kolmogorov_smirnov(over_states * 0.95) > 1.95
    for k in range(OBS):
        moved = obs.clone()
        moved[:, k] = moved[:, k].nextafter(torch.tensor(math.inf))
        beside = psm.codebook_actions(moved, code.expand(n), ACTION)
        next_code = psm.codebook_actions(obs, code.expand(n) + 1, ACTION)
        for other in (beside, next_code):
            assert not (other == over_states).all(1).any()
            for i, j in itertools.product(range(ACTION), repeat=2):
                assert abs(correlation(other[:, i], over_states[:, j])) < 4


def test_draws_hold_the_codes_and_their_actions_in_the_next_states():
    agent, generator = make(), torch.Generator().manual_seed(3)
    batch = sample(generator)
    draws = agent.draw(batch, generator, ["proto", "successor", "actor"])
    assert draws["code"].shape == (N, 5)
    assert set(draws["code"].unique().tolist()) <= {0.0, 1.0}
    code = (draws["code"] @ 2.0 ** torch.arange(5)).long()
    assert len(code.unique()) > 1
    expected = psm.codebook_actions(batch.next_obs, code, ACTION)
    assert torch.equal(draws["code_action"], expected)


# --- the closed form: successor measures of several policies in one basis ---

STATES, GAMMA, BITS = 5, 0.9, 2
CODES = 2**BITS


def transition(action):
    """P of a ring of five states, in which actions in [-1, 1] drift: (STATES, STATES)."""
    P = torch.zeros(STATES, STATES, dtype=torch.float64)
    for s in range(STATES):
        P[s, (s + 1) % STATES] = 0.4 + 0.35 * action[s]
        P[s, s] = 0.2
        P[s, (s - 1) % STATES] = 0.4 - 0.35 * action[s]
    return P


class TabularProto(nn.Module):
    """psi_PSM as a table over codes, states and the two extreme actions, linear between these."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, obs, code, action):
        is_code = torch.stack([1 - code, code], -1)  # (n, bits, 2)
        code = (is_code[:, 1, :, None] * is_code[:, 0, None, :]).flatten(1)
        extremes = torch.cat([1 - action, 1 + action], -1) / 2
        return torch.einsum("nc,ns,na,csad->nd", code, obs, extremes, self.table)[None]


class TabularFeatures(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, obs):
        return obs @ self.table


def ring(scale=1.0):
    """An agent at the truth, psi_PSM then scaled, and all transitions with their probabilities.

    Data: s uniform, a -1 or 1. M = P_a (I - gamma P_c)^-1 of every code's policy, from its actions.
    """
    states = torch.eye(STATES, dtype=torch.float64)
    ends = [transition(a.expand(STATES)) for a in torch.tensor([-1, 1], dtype=torch.float64)]
    next_rho = (ends[0] + ends[1]).mean(0) / 2
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(STATES, STATES, generator=generator, dtype=torch.float64)
    actions, tables = [], []
    for c in range(CODES):
        action = psm.codebook_actions(states, torch.full((STATES,), c), 1).double()
        resolvent = torch.linalg.inv(states - GAMMA * transition(action[:, 0]))
        measures = torch.stack([P @ resolvent / next_rho for P in ends], 1)
        tables.append(measures @ torch.linalg.inv(features).T)
        actions.append(action)
    config = psm.Config(
        z_dim=STATES, hidden_dim=4, feature_hidden_dim=4, code_bits=BITS, discount=GAMMA,
        ortho_coef=0.0,
    )  # fmt: skip
    agent = psm.Agent(config, STATES, 1)
    agent.proto_map = TabularProto(scale * torch.stack(tables))
    agent.model.feature_map = TabularFeatures(features)
    agent.target_proto_map = agent.target_copy(agent.proto_map)
    agent.target_feature_map = agent.target_copy(agent.model.feature_map)
    rows = [
        (s, end, t, c, ends[end][s, t] / (2 * STATES * CODES))
        for s, end, t, c in itertools.product(range(STATES), (0, 1), range(STATES), range(CODES))
        if ends[end][s, t] > 0
    ]
    s, end, t, c = (torch.tensor([row[k] for row in rows]) for k in range(4))
    probability = torch.stack([row[4] for row in rows])
    batch = Batch(states[s], 2.0 * end[:, None].double() - 1, states[t], states[t])
    draws = {
        "code": psm.code_input(c, BITS).double(),
        "code_action": torch.stack(actions)[c, t],
    }
    return agent, batch, draws, probability


def expected_gradients(agent, batch, draws, probability):
    """Of the agent's loss (i) over batches of two independent transitions: all pairs, weighted.

    A batch of two is enough, because the loss is a mean over pairs; their order does not matter.
    """
    n = len(probability)
    pair = torch.combinations(torch.arange(n), with_replacement=True)
    weight = probability[pair].prod(1) * (1 + (pair[:, 0] != pair[:, 1]))

    def loss(two):
        taken = Batch(*(x[two] for x in batch))
        return agent("proto", taken, {k: x[two] for k, x in draws.items()}, {}).value

    losses = torch.func.vmap(loss)(pair)
    return torch.autograd.grad(
        (weight * losses).sum(), [agent.proto_map.table, agent.model.feature_map.table]
    )


def test_gradient_vanishes_at_the_true_measures_of_all_codes():
    agent, *rest = ring()
    assert sum(rest[-1]) == pytest.approx(1)
    tables = agent.proto_map.table
    assert (tables[0] - tables[1]).abs().max() > 0.1  # the policies differ
    for gradient in expected_gradients(agent, *rest):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_gradient_does_not_vanish_beside_the_truth():
    scaled = expected_gradients(*ring(scale=1.01))
    assert min(gradient.abs().max() for gradient in scaled) > 1e-4
    # nor for the actions of another code
    agent, batch, draws, probability = ring()
    draws["code_action"] = -draws["code_action"]
    wrong = expected_gradients(agent, batch, draws, probability)
    assert min(gradient.abs().max() for gradient in wrong) > 1e-4


# --- the phases against plain loops ---


def plain_measure_loss(psi, phi, target, discount):
    """(heads, n, d), (n, d) and the matrix of targets (n, n)."""
    heads, n, _ = psi.shape
    total = psi.new_zeros(())
    for p, i, j in itertools.product(range(heads), range(n), range(n)):
        m = psi[p, i] @ phi[j]
        if i == j:
            total = total - m / n
        else:
            total = total + (m - discount * target[i, j]) ** 2 / (2 * n * (n - 1))
    return total


def plain_orthonormality_loss(phi):
    n = len(phi)
    total = phi.new_zeros(())
    for i, j in itertools.product(range(n), range(n)):
        product = phi[i] @ phi[j]
        total = total + (-product / n if i == j else product**2 / (2 * n * (n - 1)))
    return total


def plain_losses(agent, batch, draws):
    """The three losses, written out from the module's docstring for stride 2."""
    c, model = agent.config, agent.model
    discount = c.discount**2
    obs, next_obs = model.normalise(batch.obs), model.normalise(batch.next_obs)
    phi = model.feature_map(next_obs)
    one_head = agent.target_proto_map(next_obs, draws["code"], draws["code_action"]).mean(0)
    target = (one_head @ agent.target_feature_map(next_obs).T).detach()
    psi = agent.proto_map(obs, draws["code"], batch.action)
    proto = plain_measure_loss(psi, phi, target, discount)
    proto = proto + c.ortho_coef * plain_orthonormality_loss(phi)

    phi = phi.detach()
    z = draws["z"].clone()
    for i in range(len(z)):
        if draws["is_goal"][i]:
            z[i] = phi[draws["goal"][i]]
    next_action = (model.policy(next_obs, z) + draws["next_noise"]).clamp(-1, 1)
    target = (agent.target_forward_map(next_obs, z, next_action).mean(0) @ phi.T).detach()
    psi = model.forward_map(obs, z, batch.action)
    successor = plain_measure_loss(psi, phi, target, discount)

    action = perturb(model.policy(obs, z), draws["actor_noise"])
    first, second = (model.forward_map(obs, z, action) * z).sum(-1)
    actor = -torch.minimum(first, second).mean()
    return {"proto": proto, "successor": successor, "actor": actor}


TRAINED = {
    "proto": ("proto_map.", "model.feature_map."),
    "successor": ("model.forward_map.",),
    "actor": ("model.policy.",),
}


def test_phases_are_the_plain_loops(float64):
    agent, generator = make(stride=2, ortho_coef=0.7), torch.Generator().manual_seed(5)
    agent.model.obs_mean.copy_(torch.linspace(-1, 1, OBS))
    agent.model.obs_std.copy_(torch.linspace(0.5, 2, OBS))
    for target in (agent.target_proto_map, agent.target_feature_map, agent.target_forward_map):
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    batch = sample(generator)
    draws = agent.draw(batch, generator, list(TRAINED))
    assert 0 < draws["is_goal"].sum() < N
    plain = plain_losses(agent, batch, draws)
    named = dict(agent.named_parameters())
    shared = {}
    for phase in agent.phases:
        loss = agent(phase.name, batch, draws, shared)
        torch.testing.assert_close(loss.value, plain[phase.name], rtol=1e-10, atol=1e-12)
        trained = [n for n in named if n.startswith(TRAINED[phase.name])]
        assert tuple(f"{module}." for module in phase.trains) == TRAINED[phase.name]
        ours, theirs = (
            torch.autograd.grad(value, [named[n] for n in trained])
            for value in (loss.value, plain[phase.name])
        )
        for name, x, y in zip(trained, ours, theirs, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-12, msg=name)
        shared |= loss.shared


def test_what_is_frozen_gets_no_gradient():
    agent, generator = make(), torch.Generator().manual_seed(6)
    batch = sample(generator)
    draws = agent.draw(batch, generator, list(TRAINED))
    named = {n: p for n, p in agent.named_parameters() if not n.startswith("target_")}
    reached, shared = {}, {}
    for phase in agent.phases:
        loss = agent(phase.name, batch, draws, shared)
        grads = torch.autograd.grad(loss.value, list(named.values()), allow_unused=True)
        reached[phase.name] = {
            n.removeprefix("model.").split(".")[0]
            for n, g in zip(named, grads, strict=True)
            if g is not None and g.any()
        }
        shared |= loss.shared
    assert reached == {
        "proto": {"proto_map", "feature_map"},
        "successor": {"forward_map"},
        "actor": {"policy", "forward_map"},  # the learner asks for the policy's alone
    }


def test_an_update_moves_what_its_phases_train():
    agent, generator = make(actor_every=2), torch.Generator().manual_seed(7)
    learner = Learner([agent], [generator], LearnerConfig())
    moved = []
    for _ in range(2):
        before = {n: p.clone() for n, p in agent.named_parameters()}
        learner.update([sample(generator)])
        changed = {n for n, p in agent.named_parameters() if not torch.equal(p, before[n])}
        moved.append({n.removeprefix("model.").split(".")[0] for n in changed})
    losses = {"proto_map", "feature_map", "forward_map"}
    followers = {f"target_{name}" for name in losses}
    assert moved == [losses | followers | {"policy"}, losses | followers]


# --- as every agent ---

GOLDEN = {
    "proto_loss": [0.20592400178697623, 0.06259473117940881, -0.16490485275597128],
    "ortho_loss": [-1.4530835935040352, -2.2841870147012164, -2.125987633133433],
    "successor_loss": [0.10341254049613892, -0.35760252187246894, 0.13145876318950087],
    "q": [-0.19716237956347404, -0.2380214741435719, -0.24250343073893854],
}


def test_golden_first_losses(float64):
    """The first three updates; a change of these numbers changes the results."""
    generator = torch.Generator().manual_seed(1)
    learner = Learner([make()], [torch.Generator().manual_seed(0)], LearnerConfig())
    rows = [learner.update([sample(generator)]) for _ in range(3)]
    for name, expected in GOLDEN.items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=1e-9)


def test_seeds_together_are_the_seeds_alone():
    def train(seeds):
        agents = [make(seed) for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        learner = Learner(agents, generators, LearnerConfig())
        for _ in range(3):
            metrics = learner.update([sample(g) for g in generators])
        learner.sync()
        return agents, metrics

    together, metrics = train([0, 1])
    for i, seed in enumerate((0, 1)):
        (alone,), expected = train([seed])
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name][i], value, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(together[i].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_models_features_lie_on_the_sphere_and_its_shapes_fit():
    config = psm.Config(preset="small-point_mass_maze", z_dim=6, hidden_dim=16)
    model = psm.Model(config, OBS, ACTION)
    obs, action = torch.randn(5, OBS), torch.rand(5, ACTION)
    z = model.sample_z(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.phi(obs).norm(dim=-1), torch.full((5,), 6**0.5))
    assert model.psi(obs, action, z).shape == (2, 5, 6)
    assert model.actor(obs, z).shape == (5, ACTION)
    # phi reads the two entries of the preset and no other
    beside = obs + torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.equal(model.phi(beside), model.phi(obs))


@pytest.mark.parametrize("preset", psm.Config.presets)
def test_presets_are_valid(preset):
    config = psm.Config(preset=preset)
    assert config.discount == (0.99 if "maze" in preset else 0.98)
    assert config.actor_pessimism == 0.5
