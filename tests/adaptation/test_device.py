"""Adaptation on another device: on one that is pretended, and on a GPU where there is one."""

import copy

import numpy as np
import pytest
import torch

import bfmpipe
from bfmpipe import plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.checkpoint import Checkpoint
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.kernels.extension import cuda_problem
from bfmpipe.networks import Tanh
from bfmpipe.types import UserError
from tests.elsewhere import There, pretended

from .test_checkpoint import CASES, always_due, assert_same_points, make, run
from .test_methods import make_problem
from .test_together import SEEDS, joined, own_problem

__all__ = ["always_due"]  # a fixture that is used by its name

NAMES = plugins.names("adaptation")

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda_problem() is not None, reason="needs a GPU"
)


def moved(problem, device):
    """The problem there, as `bfmpipe.adapt` makes it."""
    model, w, z = copy.deepcopy((problem.model, problem.w, problem.z))
    if hasattr(model, "models"):
        model.models = tuple(one.to(device) for one in model.models)
    tensors = {"model": model.to(device), "w": w.to(device), "z": z.to(device)}
    return Problem(**{**vars(problem), **tensors})


@pytest.fixture
def same_arithmetic(monkeypatch):
    """What is done in another way on a CPU: Adam's steps, and tanh."""
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, fused=None, **k: adam(*a, **k))
    monkeypatch.setattr(Tanh, "forward", lambda self, x: torch.tanh(x))


def tensors_of(value, seen=None):
    """All tensors that an object of ours reaches."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_of(one, seen)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_of(one, seen)
    elif type(value).__module__.startswith(("bfmpipe", "torch.nn")):
        yield from tensors_of(vars(value), seen)


@pytest.mark.usefixtures("same_arithmetic")
@pytest.mark.parametrize(
    ("name", "settings", "together"),
    [(*case, False) for case in CASES] + [(name, {}, True) for name in NAMES],
)
def test_there_every_method_does_what_it_does_here(name, settings, together):
    problem, seeds = make_problem(), [5]
    if together:
        problem, seeds = joined([own_problem(seed) for seed in SEEDS]), SEEDS
    with pretended() as device:
        expected = run(make(name, problem, seeds, settings))
        method = make(name, moved(problem, device), seeds, settings)
        points = run(method)
        assert_same_points(points, expected, without_paths=())
        if name == "cma-es":
            del method.search  # which is on the CPU everywhere
        here = [x for x in tensors_of(method) if x.device != device and x.dim()]
    assert not here, f"{len(here)} tensors, one of {tuple(here[0].shape)}"
    assert isinstance(method.z, There)


class Seldom(Checkpoint):
    """Writes early and, where a method advances by single steps, when it has learnt."""

    advances = 0

    def save(self, method, evaluations):
        self.advances += 1
        if self.advances in (2, 30):
            super().save(method, evaluations)


@pytest.mark.usefixtures("same_arithmetic")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero-shot"])
def test_there_what_was_stopped_goes_on_in_the_same_bits(name, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with pretended() as device:
        problem = moved(make_problem(), device)
        expected = run(make(name, problem, [5], {}), Seldom(path, {}))
        method, checkpoint = make(name, problem, [5], {}), Checkpoint(path, {})
        points = run(method, checkpoint)
        assert checkpoint.env_steps
        assert_same_points(points, expected, without_paths=range(1, len(points)))
        assert method.z.device == device


def test_random_numbers_are_those_of_the_cpu():
    def drawn(draws):
        yield draws.normal(4, 3)
        yield draws.uniform(4, 3)
        yield draws.integers(10, 4, 3)
        yield draws.noise(torch.zeros(4, 2, device=draws.device), 0.2, 0.3)
        yield from draws.network(4, lambda n: torch.nn.Linear(3, n)).parameters()

    expected = list(drawn(Generators([1, 2])))
    with pretended() as device:
        for one, other in zip(drawn(Generators([1, 2], device)), expected, strict=True):
            assert one.device == device
            assert torch.equal(one.cpu(), other)


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with pretended() as device:
        there = torch.ones(3).to(device)
        assert (there + torch.tensor(1.0)).sum().item() == 6  # a single number may be here
        for mixed in (lambda: there + torch.ones(3), lambda: torch.cat([there, torch.ones(3)])):
            with pytest.raises(RuntimeError, match="one tensor is there"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert np.array_equal(there.numpy(force=True), np.ones(3))
        there[:2].mul_(2)  # a view of it
        assert there.cpu().tolist() == [2, 2, 1]


@needs_gpu
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_on_a_gpu_every_method_does_what_it_does_here(name, settings, together):
    problem, seeds = make_problem(), [5]
    if together:
        problem, seeds = joined([own_problem(seed) for seed in SEEDS]), SEEDS
    expected = run(make(name, problem, seeds, settings))
    points = run(make(name, moved(problem, torch.device("cuda")), seeds, settings))
    assert [point.env_steps for point in points] == [point.env_steps for point in expected]
    for one, other in zip(points, expected, strict=True):
        np.testing.assert_allclose(one.z, other.z, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(one.returns, other.returns, rtol=1e-2, atol=1e-2)


@pytest.fixture
def arguments(tiny):
    """Of `bfmpipe.adapt`."""
    pretrained, data = bfmpipe.load(tiny.model), bfmpipe.read_transitions(tiny.dataset)
    tasks = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    latent = bfmpipe.infer(pretrained, tasks, data)
    evaluation, settings = Evaluation(episodes=2), {"states": 2, "latents": 2, "horizon": 5}
    given = {"method": "lola", "episodes": 4, "evaluation": evaluation, "settings": settings}
    return {"pretrained": pretrained, "tasks": tasks, "latent": latent, "data": data, **given}


@needs_gpu
def test_the_models_of_the_caller_stay_where_they_are(arguments):
    points = list(bfmpipe.adapt(**arguments, device="cuda"))
    assert np.isfinite(points[-1].returns).all()
    assert arguments["pretrained"].model.obs_mean.device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "device is 'gpu'; valid: cpu, cuda"),
        ("cuda", "device is cuda, but torch finds no usable GPU on this machine"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, said, arguments, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^{said}"):
        bfmpipe.adapt(**arguments, device=device)
