"""Updates recorded as CUDA graphs are the updates."""

import pytest
import torch

from bfmpipe import plugins
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.trainer import Trainer, TrainerConfig
from bfmpipe.types import UserError
from tests.test_online import DOMAIN, make

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

OBS, ACTION, N = 5, 2, 32
SMALL = {"z_dim": 4, "hidden_dim": 16, "batch": N, "learning_rate": 1e-3}
AGENTS = {
    "fb": {"actor_every": 2},
    "fb, L_Q": {"q_coef": 0.1},
    "psm": {},
    "hilp": {},
    "laplacian": {},
    "random_features": {},
    "hilp, fourier": {
        "fourier_obs": (0, 1),
        "forward_octaves": 2,
        "actor_octaves": 1,
        "feature_obs": (0, 1),
        "feature_octaves": 3,
    },
}


def agents_of(agent, seeds):
    name = agent.split(",")[0]
    module = plugins.load("agents", name)
    agents = []
    for seed in seeds:
        torch.manual_seed(seed)
        agents.append(module.Agent(module.Config(**SMALL, **AGENTS[agent]), OBS, ACTION))
    return agents


def learner(agent, seeds, **how):
    agents = agents_of(agent, seeds)
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in seeds]
    return Learner(agents, generators, LearnerConfig(device="cuda", **how))


def batches(seed, updates):
    generator = torch.Generator("cuda").manual_seed(100 + seed)
    found = []
    for _ in range(updates):
        obs, next_obs, future = torch.randn(3, N, OBS, generator=generator, device="cuda")
        action = 2 * torch.rand(N, ACTION, generator=generator, device="cuda") - 1
        found.append(Batch(obs, action, next_obs, future))
    return found


@pytest.mark.parametrize("seeds", [(0,), (3, 8)])
@pytest.mark.parametrize("agent", AGENTS)
def test_replayed_updates_are_the_updates(agent, seeds):
    """With other batches, draws and learning rates at each, and the actor in turns."""
    plain, recorded = learner(agent, seeds, cuda_graphs=False), learner(agent, seeds)
    for i, batch in enumerate(zip(*(batches(seed, 12) for seed in seeds), strict=True)):
        scale = 1 - i / 20
        want = plain.update(batch, learning_rate_scale=scale)
        got = recorded.update(batch, learning_rate_scale=scale)
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(recorded.tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for ours, theirs in zip(recorded.generators, plain.generators, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("seeds", [(0,), (3, 8)])
def test_going_on_from_a_state(seeds):
    data = list(zip(*(batches(seed, 18) for seed in seeds), strict=True))
    one, other = learner("fb", seeds), learner("fb", [seed + 10 for seed in seeds])
    for batch in data[:9]:
        one.update(batch)
        other.update(batch)
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    other.load_state(state, one.step)
    for batch in data[9:]:
        want, got = one.update(batch), other.update(batch)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_metrics_are_the_callers_to_keep():
    one = learner("fb", (0,), precision="bfloat16")
    found = [one.update([batch]) for batch in batches(0, 12)]
    losses = [metrics["fb_loss"].item() for metrics in found]
    assert len(set(losses)) == len(losses)


def test_what_cannot_be_recorded_is_said_in_one_sentence():
    one = learner("fb", (0,))
    draw = one.agents[0].draw

    def waits(batch, generator, due):
        assert batch.obs.sum().item() != 0
        return draw(batch, generator, due)

    one.agents[0].draw = waits
    *first, last = batches(0, 7)  # fb alone has its turn at every second: the fourth is recorded
    for batch in first:
        one.update([batch])
    with pytest.raises(UserError, match="cannot be recorded as a CUDA graph"):
        one.update([last])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (3, 8)])
def test_compiled_and_recorded(seeds):
    plain = learner("fb", seeds, cuda_graphs=False)
    recorded = learner("fb", seeds, compile=True)
    for batch in zip(*(batches(seed, 10) for seed in seeds), strict=True):
        want, got = plain.update(batch), recorded.update(batch)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_online_training_that_is_replayed_is_the_same(tmp_path):
    """FB-CPR: its gradient penalty is differentiated twice inside what is recorded."""

    def losses(**how):
        source = make(DOMAIN)
        generators = [torch.Generator("cuda").manual_seed(0)]
        learner = Learner([source.agent], generators, LearnerConfig(device="cuda", **how))
        config = TrainerConfig(updates=24, checkpoint_every=10, log_every=2)
        trainer = Trainer(learner, source, config, identity={})
        trainer.run(tmp_path / f"{how}.safetensors")
        return trainer.losses[0]

    for got, want in zip(losses(), losses(cuda_graphs=False), strict=True):
        assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
