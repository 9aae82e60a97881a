"""Trainings on another device, pretended: they do what they do on the CPU, to the last bit."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from bfmpipe.agents import learner as learner_module
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.trainer import Trainer, TrainerConfig
from bfmpipe.networks import Tanh
from tests.elsewhere import THERE, Generator, There, pretended
from tests.test_online import DOMAIN, make, remembered

from .test_graphs import ACTION, AGENTS, OBS, agents_of


@pytest.fixture(autouse=True)
def same_arithmetic(monkeypatch):
    """What is done in another way on a CPU: Adam's steps, tanh, products."""
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, fused, **k: adam(*a, **k))
    monkeypatch.setattr(Tanh, "forward", lambda self, x: torch.tanh(x))
    monkeypatch.setattr(learner_module, "fast_float32", nullcontext)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which is off


def trained(agent, seeds, device):
    """The state of a learner after a few updates, with its metrics."""
    generators = [Generator(device).manual_seed(seed) for seed in seeds]
    learner = Learner(agents_of(agent, seeds), generators, LearnerConfig())
    source, metrics = Generator().manual_seed(9), []
    for _ in range(4):
        batch = []
        for _ in seeds:
            obs, next_obs, future = torch.randn(3, 32, OBS, generator=source).to(device)
            action = (2 * torch.rand(32, ACTION, generator=source) - 1).to(device)
            batch.append(Batch(obs, action, next_obs, future))
        metrics.append(learner.update(batch))
    named = {f"{i}/{name}": x for i, one in enumerate(metrics) for name, x in one.items()}
    return learner, {**learner.state(), **named}


@pytest.mark.parametrize("seeds", [(0,), (3, 8)])
@pytest.mark.parametrize("agent", AGENTS)
def test_there_an_agent_learns_what_it_learns_here(agent, seeds):
    with pretended() as device:
        _, expected = trained(agent, seeds, torch.device("cpu"))
        learner, found = trained(agent, seeds, device)
        assert learner.device == THERE
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(value.cpu(), expected[name]), name
        assert all(isinstance(tensor, There) for tensor in learner.tensors.values())


def trained_online(device, checkpoint, updates=24):
    """FB-CPR, trained until the last update from its checkpoint if there is one."""
    source = make(DOMAIN)
    generators = [Generator(device).manual_seed(0)]
    learner = Learner([source.agent], generators, LearnerConfig())
    config = TrainerConfig(updates=updates, checkpoint_every=10, log_every=2)
    trainer = Trainer(learner, source, config, identity={})
    trainer.run(checkpoint)
    return trainer


def test_there_an_agent_is_trained_online_as_here_and_goes_on(tmp_path):
    with pretended() as device:
        expected = trained_online(torch.device("cpu"), tmp_path / "here")
        found = trained_online(device, tmp_path / "there")
        assert found.data.obs.device == device
        resumed = trained_online(device, tmp_path / "there")  # from update 20
        for trainer in (found, resumed):
            assert trainer.losses == expected.losses
            for ours, theirs in zip(
                (trainer.learner.state(), trainer.data.state()),
                (expected.learner.state(), expected.data.state()),
                strict=True,
            ):
                assert ours.keys() == theirs.keys()
                for name, value in ours.items():
                    assert torch.equal(value.cpu(), theirs[name]), name
        for name, column in remembered(found.data).items():
            assert np.array_equal(column, remembered(expected.data)[name])
