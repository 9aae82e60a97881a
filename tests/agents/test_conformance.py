"""What every agent must keep to, on a tiny random walk."""

import re
from dataclasses import replace

import pytest
import torch

from bfmpipe import plugins
from bfmpipe.agents import load_model, online, save_model
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.online import OnlineBatch
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig
from bfmpipe.config import parse
from bfmpipe.inference.goal import infer_goal
from bfmpipe.inference.reward import Inference
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

OBS, ACTION, D, BATCH = 4, 2, 6, 16
COMMON = {
    "z_dim": D,
    "architecture": "concatenated",
    "hidden_dim": 16,
    "batch": BATCH,
    "stride": 2,
    "actor_every": 2,
    "learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
}
SETTINGS = {
    "fb": {"backward_hidden_dim": 12},
    "hilp": {"feature_hidden_dim": 12},
    "laplacian": {"feature_hidden_dim": 12},
    "psm": {"feature_hidden_dim": 12},
    "random_features": {"feature_hidden_dim": 12},
    "fb_cpr": {
        **dict.fromkeys(("architecture", "hidden_dim", "actor_every", "stride")),  # it has none
        "forward_map": {"model": "concatenated", "hidden_dim": 16},
        "actor": {"model": "concatenated", "hidden_dim": 16},
        "critic": {"model": "concatenated", "hidden_dim": 16},
        "backward_map": {"hidden_dim": 12},
        "discriminator": {"hidden_dim": 12},
        "backward_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "discriminator_learning_rate": 1e-3,
        "motion_length": 2,
        "ortho_coef": 1.0,
    },
}
#: Weights that are to stay as they were drawn.
FROZEN = {"random_features": ("model.feature_map",)}
TRAINING = TrainerConfig(updates=12, checkpoint_every=8, log_every=4, decay_fraction=0.5)


class InterruptionError(Exception):
    """What the tests raise in the middle of a training."""


@pytest.fixture(params=plugins.names("agents"))
def name(request):
    return request.param


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(name, seed=0, **settings):
    module = plugins.load("agents", name)
    torch.manual_seed(seed)
    given = {**COMMON, **SETTINGS[name], **settings}
    given = {key: value for key, value in given.items() if value is not None}
    return module.Agent(parse(module.Config, given, name), OBS, ACTION)


class OnlineData(Data):
    """For agents trained online: latents at random, and pieces of the same walks as motions."""

    def sample(self, n, generator, future_discount=None):
        batch = super().sample(n, generator, future_discount)
        z = project_z(torch.randn(n, D, generator=generator, dtype=batch.obs.dtype))
        start = self.index[torch.randint(len(self.index), (n // 2,), generator=generator)]
        frames = (start[:, None] + torch.arange(2)).flatten()
        return OnlineBatch(*batch, z, self.obs[frames], self.obs[frames + 1])


def is_online(name):
    return issubclass(plugins.load("agents", name).Agent, online.Agent)


def walk(name, episodes=6, steps=40):
    """Episodes of a random walk that its actions push."""
    generator = torch.Generator().manual_seed(0)
    action = torch.rand(episodes, steps, ACTION, generator=generator) * 2 - 1
    noise = torch.randn(episodes, steps, OBS, generator=generator)
    obs = (0.1 * noise + 0.2 * action.repeat(1, 1, OBS // ACTION)).cumsum(1)
    first = torch.arange(steps - COMMON["stride"])
    start = steps * torch.arange(episodes)[:, None]
    return (OnlineData if is_online(name) else Data)(
        obs.flatten(0, 1).to(torch.get_default_dtype()),
        action.flatten(0, 1).to(torch.get_default_dtype()),
        (start + first).flatten(),
        1 if is_online(name) else COMMON["stride"],
        (start + steps - 1).expand(-1, len(first)).flatten(),
    )


def learner(name, seeds=(0,), precision="float32", **settings):
    agents = [make(name, seed, **settings) for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Learner(agents, generators, LearnerConfig(precision=precision))


def update(learner, data):
    agent = learner.agents[0]
    n, future = agent.config.batch, agent.future_discount
    return learner.update([data.sample(n, g, future) for g in learner.generators])


def trainer(name, data=None, seed=0):
    data = walk(name) if data is None else data
    return Trainer(learner(name, (seed,)), data, TRAINING, identity={"seed": seed})


def everything(trained):
    return {name: tensor.clone() for name, tensor in trained.learner.state().items()}


def different(one, two):
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def test_every_agent_is_covered(name):
    assert name in SETTINGS


def test_seeded_twice_gives_the_same_bits_and_finite_metrics(name, tmp_path):
    one, two, other = trainer(name), trainer(name), trainer(name, seed=1)
    for i, each in enumerate((one, two, other)):
        each.run(tmp_path / str(i))
    assert different(everything(one), everything(two)) == []
    assert one.losses == two.losses
    assert one.losses != other.losses
    rows = one.losses[0]
    assert [row["update"] for row in rows] == [4, 8, 12]
    assert one.agent.watched_loss in rows[0]
    assert "q" in rows[0]
    for row in rows:
        assert row.keys() == rows[0].keys()
        assert torch.tensor(list(row.values())).isfinite().all()


def test_a_resumed_training_ends_in_the_same_bytes(name, tmp_path):
    straight, interrupted, resumed = (trainer(name) for _ in range(3))
    straight.run(tmp_path / "straight")
    seen = 0

    def interrupt(made):
        nonlocal seen
        seen += made
        if seen == 12:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        interrupted.run(tmp_path / "checkpoint", interrupt)
    steps = []
    resumed.run(tmp_path / "checkpoint", steps.append)
    assert steps == [8, 4]  # it went on at the checkpoint
    assert resumed.losses == straight.losses
    assert different(everything(resumed), everything(straight)) == []
    for part, trained in (("one", resumed), ("two", straight)):
        save_model(tmp_path / part, trained.agent.model, {"agent": name})
    files = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("one", "two")]
    assert files[0] == files[1]


def test_later_states_of_the_episode_reach_an_agent_that_asks_for_them(name, tmp_path):
    data, steps = walk(name), 40
    row = {tuple(obs): i for i, obs in enumerate(data.obs.tolist())}
    trained, seen = trainer(name, data), []
    update = trained.learner.update

    def watched(batches, **settings):
        seen.extend(batches)
        return update(batches, **settings)

    trained.learner.update = watched
    trained.run(tmp_path / "checkpoint")
    then, later = (
        torch.tensor([row[tuple(obs)] for batch in seen for obs in getattr(batch, field).tolist()])
        for field in ("next_obs", "future")
    )
    if trained.agent.future_discount is None:
        assert torch.equal(later, then)
        return
    assert torch.equal(later // steps, then // steps)
    assert (later >= then).all()
    assert (later > then).float().mean() > 0.5


def test_a_loaded_model_gives_the_same_bits(name, tmp_path):
    trained = trainer(name)
    trained.run(tmp_path / "checkpoint")
    model = trained.agent.model
    model.obs_mean.fill_(0.5)
    save_model(tmp_path, model, {"agent": name, "domain": "walk"})
    loaded, card = load_model(tmp_path)
    assert card["domain"] == "walk"
    assert loaded.config == model.config
    assert not any(p.requires_grad for p in loaded.parameters())
    obs, action, z = (torch.randn(5, n) for n in (OBS, ACTION, D))
    assert torch.equal(loaded.actor(obs, z), model.actor(obs, z))
    assert torch.equal(loaded.psi(obs, action, z), model.psi(obs, action, z))
    assert torch.equal(loaded.phi(obs), model.phi(obs))


def test_several_seeds_at_once_are_each_alone(name, double):
    seeds, data = (3, 4, 5), walk(name)
    together = learner(name, seeds)
    alone = [learner(name, (seed,)) for seed in seeds]
    for _ in range(4):
        metrics = update(together, data)
        each = [update(one, data) for one in alone]
        for key, value in metrics.items():
            torch.testing.assert_close(value, torch.stack([one[key] for one in each]), msg=key)
    together.sync()
    for agent, one in zip(together.agents, alone, strict=True):
        expected = one.agents[0].state_dict()
        for key, value in agent.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8, msg=key)


def test_a_batch_of_two_is_enough(name):
    small = learner(name, batch=2)
    for _ in range(3):
        metrics = update(small, walk(name))
    assert all(value.isfinite().all() for value in metrics.values())
    assert all(tensor.isfinite().all() for tensor in small.tensors.values())


def test_bfloat16_gives_the_losses_of_float32_but_for_its_rounding(name):
    data = walk(name)
    rough, fine = (learner(name, precision=p) for p in ("bfloat16", "float32"))
    first, expected = update(rough, data), update(fine, data)
    assert first.keys() == expected.keys()
    assert any(not torch.equal(first[key], expected[key]) for key in first)
    for key, value in first.items():
        torch.testing.assert_close(value.float(), expected[key], rtol=0.05, atol=0.02, msg=key)
    for _ in range(3):
        metrics = update(rough, data)
    assert all(value.isfinite() for value in metrics.values())
    assert {t.dtype for t in rough.tensors.values() if t.is_floating_point()} == {torch.float32}


def test_a_loss_changes_nothing_and_repeats(name):
    """So that it can be compiled, and run for several seeds at once."""
    agent = make(name)
    batch = walk(name).sample(BATCH, torch.Generator().manual_seed(1), agent.future_discount)
    names = [phase.name for phase in agent.phases]
    draws = agent.draw(batch, torch.Generator().manual_seed(2), names)
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    inputs = {key: value.clone() for key, value in draws.items()}
    random_state = torch.get_rng_state()
    shared = {}
    for phase in names:
        first, second = (agent(phase, batch, draws, shared) for _ in range(2))
        assert first.value.shape == ()
        assert first.value.requires_grad
        for one, two in zip(first[1:], second[1:], strict=True):
            assert different(one, two) == []
            assert not any(value.requires_grad for value in one.values())
        assert all(value.shape == () for value in first.metrics.values())
        assert first.buffers.keys() <= dict(agent.named_buffers()).keys()
        assert torch.equal(first.value, second.value)
        shared |= first.shared
    assert different(before, agent.state_dict()) == []
    assert different(inputs, draws) == []
    assert torch.equal(random_state, torch.get_rng_state())


def test_goals_of_training_have_the_latents_that_are_inferred_for_them(name, double):
    """So that what is asked for, searched and scored is what the policy was trained on."""
    agent = make(name).double()
    batch = walk(name).sample(BATCH, torch.Generator().manual_seed(1), agent.future_discount)
    names = [phase.name for phase in agent.phases]
    draws = agent.draw(batch, torch.Generator().manual_seed(2), names)
    goals, latents = [], agent.latents

    def watched(given, *rest):
        goals.append(project_z(given))
        return latents(given, *rest)

    agent.latents = watched
    shared = {}
    for phase in names:
        loss = agent(phase, batch, draws, shared)
        shared |= loss.shared
        mean = loss.buffers.get("model.feature_mean")
        if mean is not None:  # training's features are already less the one of this batch
            agent.get_buffer("model.feature_mean").copy_(mean)
    found = infer_goal(agent.model, batch.next_obs, Inference(), batch.next_obs)
    torch.testing.assert_close(found.z, goals[0].double(), rtol=1e-3, atol=1e-3)


def test_phases_and_targets_cover_every_weight_that_is_to_move(name):
    agent = make(name)
    weights = dict(agent.named_parameters())

    def within(*modules):
        for module in modules:
            agent.get_submodule(module)  # it exists
        return {n for n in weights if n.startswith(tuple(f"{module}." for module in modules))}

    trained = within(*(module for phase in agent.phases for module in phase.trains))
    followers = within(*agent.targets)
    frozen = within(*FROZEN.get(name, ()))
    assert trained | followers | frozen == weights.keys()
    assert len(trained) + len(followers) + len(frozen) == len(weights)
    for target, (followed, tau) in agent.targets.items():
        assert within(followed) <= trained
        assert 0 < tau <= 1
        for one, two in zip(
            agent.get_submodule(target).parameters(),
            agent.get_submodule(followed).parameters(),
            strict=True,
        ):
            assert torch.equal(one, two)  # it starts as what it follows
    names = [phase.name for phase in agent.phases]
    assert len(set(names)) == len(names)

    before = {n: weight.clone() for n, weight in weights.items()}
    training, data = (
        Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig()),
        walk(name),
    )
    for _ in range(3):
        update(training, data)
    moved = {n for n, weight in weights.items() if not torch.equal(weight, before[n])}
    assert moved <= trained | followers
    # a bias before a LayerNorm or a distance may have no gradient
    assert {n for n in trained | followers if n.endswith("weight")} <= moved


def test_a_phase_is_trained_when_it_is_due(name):
    training, data = learner(name), walk(name)
    rates = {phase.name: phase.every for phase in training.phases}
    for step in range(3):
        update(training, data)
        for phase, optimiser in training.optimisers.items():
            made = {int(state["step"]) for state in optimiser.state.values()}
            assert made == {step // rates[phase] + 1}


@pytest.mark.parametrize("architecture", ["concatenated", "two_embeddings"])
def test_shapes_and_values_of_a_model(name, architecture):
    settings = {"architecture": architecture}
    if is_online(name):
        family = "simple" if architecture == "two_embeddings" else architecture
        settings = {"forward_map": {"model": family, "hidden_dim": 16}}
    model = make(name, **settings).model.requires_grad_(False)
    obs, action, z, w = (torch.randn(5, n) for n in (OBS, ACTION, D, D))
    psi = model.psi(obs, action, z)
    assert psi.shape == (2, 5, D)
    assert model.phi(obs).shape == (5, D)
    assert model.actor(obs, z).shape == (5, ACTION)
    assert model.actor(100 * obs, z).abs().max() <= 1
    assert (model.z_dim, model.obs_dim, model.action_dim) == (D, OBS, ACTION)
    torch.testing.assert_close(model.q(obs, action, z, w), (psi.mean(0) * w).sum(-1))
    torch.testing.assert_close(model.q(obs, action, z, w[0]), psi.mean(0) @ w[0])
    pairs = model.q_pairs(obs, action, z[:3], w[:3])
    for k in range(3):
        rows = model.psi(obs, action, z[k].expand(5, -1)).mean(0)
        torch.testing.assert_close(pairs[:, k], rows @ w[k], rtol=1e-4, atol=1e-4)
    sampled = model.sample_z(7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, project_z(sampled))


def test_models_read_normalised_observations(name):
    model = make(name).model
    obs, action, z = (torch.randn(5, n) for n in (OBS, ACTION, D))
    before = model.phi(obs), model.psi(obs, action, z), model.actor(obs, z)
    model.obs_mean.fill_(2.0)
    model.obs_std.fill_(4.0)
    raw = 4 * obs + 2
    after = model.phi(raw), model.psi(raw, action, z), model.actor(raw, z)
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_number_that_is_none_stops_training_and_is_named(name, tmp_path):
    data = walk(name)
    data.obs[::7] = float("nan")
    with pytest.raises(UserError) as caught:
        trainer(name, data).run(tmp_path / "checkpoint")
    said = str(caught.value)
    assert re.match(r"training broke down: '\w+' is nan at update 1; ", said)
    assert re.search(r"; not finite: tensor '[\w.]+' and \d+ more; ", said)
    assert "\n" not in said


#: What the papers and their code publish on DMC, by agent and domain.
_DMC = {
    "architecture": "two_embeddings",
    "hidden_dim": 1024,
    "batch": 1024,
    "learning_rate": 1e-4,
    "actor_learning_rate": 1e-4,
    "target_tau": 0.01,
    "goal_fraction": 0.5,
    "noise_std": 0.2,
    "noise_clip": 0.3,
    "stride": 1,
    "heads": 2,
    "discount": 0.98,
    "z_dim": 50,
}
_FB = {**_DMC, "backward_hidden_dim": 256, "ortho_coef": 1.0, "q_coef": 0.0}
_HILP = {
    **_DMC,
    "feature_hidden_dim": 512,
    "feature_heads": 2,
    "feature_learning_rate": 5e-4,
    "feature_target_tau": 0.005,
    "expectile": 0.5,
    "goal_discount": 0.98,
    "future_discount": 0.99,
    "random_goal_fraction": 0.375,
    "reward_features": "state",
    "temporal_difference": "vector",
}
_PSM = {
    **_DMC,
    "z_dim": 128,
    "code_bits": 16,
    "feature_hidden_dim": 256,
    "actor_pessimism": 0.5,
    "ortho_coef": 1.0,
}
_GIVEN = {**_DMC, "feature_hidden_dim": 512}
_MAZE = {"discount": 0.99}
PUBLISHED = {
    "fb": {
        "walker": _FB,
        "cheetah": _FB,
        "quadruped": _FB,
        "point_mass_maze": {**_FB, **_MAZE, "z_dim": 100},
    },
    "hilp": {
        "walker": {**_HILP, "goal_discount": 0.96},
        "cheetah": _HILP,
        "quadruped": {**_HILP, "temporal_difference": "scalar"},
        "point_mass_maze": {**_HILP, **_MAZE, "temporal_difference": "scalar"},
    },
    "psm": {
        "walker": _PSM,
        "cheetah": _PSM,
        "quadruped": _PSM,
        "point_mass_maze": {**_PSM, **_MAZE},
    },
    # reference points that nobody published on DMC: what they share with the others
    "laplacian": {
        "walker": _GIVEN,
        "cheetah": _GIVEN,
        "quadruped": _GIVEN,
        "point_mass_maze": {**_GIVEN, **_MAZE},
    },
    "random_features": {
        "walker": _GIVEN,
        "cheetah": _GIVEN,
        "quadruped": _GIVEN,
        "point_mass_maze": {**_GIVEN, **_MAZE},
    },
    "fb_cpr": {
        "humanoid": {
            "z_dim": 256,
            "discount": 0.98,
            "batch": 1024,
            "motion_length": 8,
            "learning_rate": 1e-4,
            "backward_learning_rate": 1e-5,
            "actor_learning_rate": 1e-4,
            "critic_learning_rate": 1e-4,
            "discriminator_learning_rate": 1e-5,
            "critic_target_tau": 0.005,
            "ortho_coef": 100.0,
            "q_coef": 0.1,
            "gradient_penalty": 10.0,
            "regulariser_coef": 0.01,
            "goal_fraction": 0.2,
            "motion_fraction": 0.6,
            "relabel_fraction": 0.8,
        }
    },
}


@pytest.mark.parametrize(
    ("name", "domain"), [(name, domain) for name in PUBLISHED for domain in PUBLISHED[name]]
)
def test_the_presets_of_domains_have_the_published_values(name, domain):
    config = parse(plugins.load("agents", name).Config, {"preset": domain}, name)
    expected = PUBLISHED[name][domain]
    assert {key: getattr(config, key) for key in expected} == expected


def test_every_preset_parses_and_the_small_ones_act(name):
    module = plugins.load("agents", name)
    presets = module.Config.presets
    small = {"small"} if is_online(name) else {"small", "small-point_mass_maze"}
    assert PUBLISHED[name].keys() | small <= presets.keys()
    for preset in presets:
        config = parse(module.Config, {"preset": preset}, name)
        plain = config.model_dump(mode="json")
        assert parse(module.Config, plain, name) == config  # as a model's card has it
        if not preset.startswith("small"):
            continue
        model = module.Model(config, OBS, ACTION)
        assert sum(p.numel() for p in model.parameters()) < 1e6
        obs, z = torch.randn(3, OBS), model.sample_z(3, torch.Generator().manual_seed(0))
        assert model.actor(obs, z).shape == (3, ACTION)
    one = parse(module.Config, {"preset": "small", "batch": 8}, name)
    assert one.batch == 8  # what stands beside a preset wins

    first = next(iter(presets))
    with pytest.raises(UserError, match=f"there is no preset 'none'; valid: {first}"):
        parse(module.Config, {"preset": "none"}, name)


def test_what_stands_beside_a_preset_wins_in_its_sections_too():
    given = {"preset": "small", "online": {"latent_steps": 7}, "critic": {"num_parallel": 1}}
    config = parse(plugins.load("agents", "fb_cpr").Config, given, "fb_cpr")
    small = parse(plugins.load("agents", "fb_cpr").Config, {"preset": "small"}, "fb_cpr")
    assert config.online == small.online.model_copy(update={"latent_steps": 7})
    assert config.critic == small.critic.model_copy(update={"num_parallel": 1})
    assert config.actor == small.actor


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"fb_cpr"}))
def test_an_entry_that_an_observation_has_not_is_refused(name):
    entry = "backward_obs" if name == "fb" else "feature_obs"
    for setting in ("fourier_obs", entry):
        with pytest.raises(UserError) as caught:
            make(name, **{setting: [0, 7]})
        assert str(caught.value) == (
            f"{setting} is [0, 7]; an observation has 4 entries, numbered 0 to 3"
        )


def test_too_little_data_for_a_batch_is_refused(name):
    data = walk(name)
    what = "transitions" if is_online(name) else "stretches of 2 steps"
    with pytest.raises(UserError, match=f"has 15 {what}, fewer than one batch of 16"):
        trainer(name, replace(data, index=data.index[:15]))
