"""The learner: seeds side by side or alone, what a phase moves, precision, targets, going on."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bfmpipe.agents import fb
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.networks import ParallelLayerNorm

OBS, ACTION, N = 5, 2, 16
CONFIG = fb.Config(
    z_dim=4,
    hidden_dim=8,
    backward_hidden_dim=8,
    batch=N,
    actor_every=2,
    learning_rate=1e-3,
    actor_learning_rate=1e-3,
)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(seeds=(0,), config=CONFIG, **how):
    agents = []
    for seed in seeds:
        torch.manual_seed(seed)
        agents.append(fb.Agent(config, OBS, ACTION))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Learner(agents, generators, LearnerConfig(**how))


def batches(seed, updates, n=N):
    generator = torch.Generator().manual_seed(100 + seed)
    found = []
    for _ in range(updates):
        obs, next_obs = (torch.randn(n, OBS, generator=generator) for _ in range(2))
        action = 2 * torch.rand(n, ACTION, generator=generator) - 1
        found.append(Batch(obs, action, next_obs, next_obs))
    return found


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_seeds_side_by_side_are_the_seeds_alone(double, pessimism):
    config = CONFIG.model_copy(update={"target_pessimism": pessimism, "q_coef": 0.1})
    together = learner((3, 8), config)
    alone = [learner((3,), config), learner((8,), config)]
    for pair in zip(batches(3, 4), batches(8, 4), strict=True):
        metrics = together.update(pair)
        for i, (one, batch) in enumerate(zip(alone, pair, strict=True)):
            for name, value in one.update([batch]).items():
                torch.testing.assert_close(metrics[name][i], value, rtol=1e-9, atol=1e-11)
    together.sync()
    for ours, one in zip(together.agents, alone, strict=True):
        for (name, value), (_, expected) in zip(
            ours.state_dict().items(), one.agents[0].state_dict().items(), strict=True
        ):
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10, msg=name)
    first, second = (agent.model.forward_map.out.weight for agent in together.agents)
    assert not torch.allclose(first, second)


def test_the_actors_phase_takes_no_gradient_of_the_forward_map():
    """Its products are counted: forward through F, and backward from F to the action alone."""
    one = learner()
    with FlopCounterMode(display=False) as with_actor:
        one.update(batches(0, 1))
    with FlopCounterMode(display=False) as without:
        one.update(batches(0, 1))
    h, d = CONFIG.hidden_dim, CONFIG.z_dim
    left, right, half, trunk = (OBS + d) * h, (OBS + ACTION) * h, h * h // 2, h * h
    F = left + right + 2 * half + trunk + h * d
    F_to_action = right + half + trunk + h * d
    actor = left + OBS * h + 2 * half + trunk + h * ACTION
    actor_to_inputs = 2 * half + trunk + h * ACTION
    expected = 2 * N * (2 * F + 2 * F_to_action + 2 * actor + actor_to_inputs)
    assert with_actor.get_total_flops() - without.get_total_flops() == expected


def test_a_phase_moves_what_it_trains():
    trains = {phase.name: phase.trains for phase in learner().phases}
    assert trains == {"fb": ("model.forward_map", "model.backward_map"), "actor": ("model.policy",)}
    one = learner()
    for batch, moving in zip(batches(0, 2), (True, False), strict=True):
        before = copies(one.tensors)
        metrics = one.update([batch])
        assert ("q" in metrics) == moving
        for name, value in one.tensors.items():
            still = name in ("model.obs_mean", "model.obs_std")
            still |= name.startswith("model.policy") and not moving
            assert torch.equal(value, before[name]) == still, name
    assert not any(tensor.requires_grad for tensor in one.tensors.values())
    assert all(tensor.grad is None for tensor in one.tensors.values())


def test_targets_follow(double):
    one = learner(config=CONFIG.model_copy(update={"target_tau": 0.3}))
    agent = one.agents[0]
    before = copies(agent.state_dict())
    one.update(batches(0, 1))
    after = agent.state_dict()
    assert set(agent.targets) == {"target_forward_map", "target_backward_map"}
    for target, (online, _) in agent.targets.items():
        for name, _ in agent.get_submodule(target).named_parameters():
            expected = 0.7 * before[f"{target}.{name}"] + 0.3 * after[f"{online}.{name}"]
            torch.testing.assert_close(after[f"{target}.{name}"], expected, rtol=1e-12, atol=1e-15)


def test_the_scale_of_the_learning_rates(double):
    """The first step of Adam is proportional to the learning rate, and no longer than it."""
    steps = {}
    for scale in (0.0, 0.25, 1.0):
        one = learner()
        before = copies(one.agents[0].model.state_dict())
        one.update(batches(0, 1), learning_rate_scale=scale)
        after = one.agents[0].model.state_dict()
        steps[scale] = {name: after[name] - before[name] for name in before}
        for module in ("forward_map", "policy.map"):
            longest = steps[scale][f"{module}.out.weight"].abs().max()
            assert longest == pytest.approx(1e-3 * scale, rel=1e-3)
    assert all((step == 0).all() for step in steps[0.0].values())
    for name, step in steps[1.0].items():
        if not name.startswith("policy"):  # whose gradient is taken behind the step of F
            torch.testing.assert_close(steps[0.25][name], 0.25 * step, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_going_on_from_a_state(seeds):
    """Weights, optimisers, generators and the turn of the actor: the rest has the same bits."""
    data = list(zip(*(batches(seed, 7) for seed in seeds), strict=True))
    one = learner(seeds)
    for batch in data[:3]:
        one.update(batch)
    state, step = copies(one.state()), one.step
    other = learner([seed + 10 for seed in seeds])
    other.update(data[0])
    other.load_state(state, step)
    for batch in data[3:]:
        expected, found = one.update(batch), other.update(batch)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    for name, value in one.state().items():
        assert torch.equal(other.state()[name], value), name


@pytest.mark.parametrize("architecture", ["two_embeddings", "concatenated"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_bfloat16_is_close_to_float32(architecture, seeds):
    update = {"architecture": architecture, "hidden_dim": 64, "backward_hidden_dim": 64}
    config = CONFIG.model_copy(update=update)
    exact, rounded = learner(seeds, config), learner(seeds, config, precision="bfloat16")
    for batch in zip(*(batches(seed, 3, 64) for seed in seeds), strict=True):
        expected, found = exact.update(batch), rounded.update(batch)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], value, rtol=0.02, atol=0.02)
        assert not torch.equal(found["fb_loss"], expected["fb_loss"])
    assert {t.dtype for t in rounded.tensors.values()} == {torch.float32}


def test_bfloat16_leaves_the_sphere_in_float32():
    model = learner().agents[0].model
    with torch.autocast("cpu", torch.bfloat16):
        phi = model.phi(torch.randn(6, OBS))
        psi = model.psi(torch.randn(6, OBS), torch.rand(6, ACTION), phi)
    assert phi.dtype == psi.dtype == torch.float32
    torch.testing.assert_close(phi.norm(dim=-1), torch.full((6,), 2.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", [1, 2])
def test_layer_norm_of_bfloat16_is_computed_in_float32(heads):
    norm = ParallelLayerNorm(heads, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(heads, 6, 8).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    found, expected = norm(x), norm(wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    weights = torch.randn(heads, 6, 8)
    inputs = [norm.weight, norm.bias]
    ours = torch.autograd.grad((weights * found).sum(), [*inputs, x])
    plain = torch.autograd.grad((weights * expected).sum(), [*inputs, wide])
    for gradient, other in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(gradient, other)
    torch.testing.assert_close(ours[2].float(), plain[2], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_compiled_losses_are_the_losses():
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    config = CONFIG.model_copy(update={"architecture": "concatenated"})
    plain, compiled = learner(config=config), learner(config=config, compile=True)
    for batch in batches(0, 3):
        expected, found = plain.update([batch]), compiled.update([batch])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
