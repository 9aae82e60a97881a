"""An adaptation that is stopped anywhere goes on in the same bits, whatever the method."""

import collections
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bfmpipe import plugins
from bfmpipe.adaptation import checkpoint, lola
from bfmpipe.adaptation.checkpoint import Checkpoint
from bfmpipe.adaptation.protocol import adapt, start_states
from bfmpipe.adaptation.state import NoStateError, State
from bfmpipe.config import Config, parse
from bfmpipe.data import checkpoints

from .test_methods import SETTINGS, STARTS_CONFIG, make_problem
from .test_together import SEEDS, joined, own_problem

VARIANTS = {
    "hybrid": {"shift_ratio": 1e-9},
    "lola": {"optimiser": "sgd"},
    "opti": {"exploration": "thompson"},
    "random-search": {"allocation": "halving"},
    "rela": {"latent_noise_std": 0.1, "base_latent": "initial"},
    "rela-safe": {"train_episodes": 0},
}
SMALL = {name: {"critic_hidden_dim": 16} for name in ("td3-scratch", "td3-z")}
CASES = [(name, {}) for name in plugins.names("adaptation")] + [*VARIANTS.items()]


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


class Copied(Checkpoint):
    """Writes after some of the advances, the last one among them, and keeps it all."""

    advances = 0

    def save(self, method, evaluations):
        self.advances += 1
        if self.advances in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89) or method.left == 0:
            super().save(method, evaluations)
            shutil.copy(self.path, self.path.with_name(f"{method.env_steps}.safetensors"))


def make(name, problem, seeds, settings):
    module = plugins.load("adaptation", name)
    chosen = {**SETTINGS[name], **SMALL.get(name, {}), **settings}
    return module.Method(parse(module.Config, chosen, name), problem, seeds)


def run(method, checkpoint=None, every=40):
    return list(
        adapt(method, start_states(method.problem.domain, STARTS_CONFIG), every, checkpoint)
    )


def assert_same_points(points, expected, *, without_paths):
    assert [point.env_steps for point in points] == [point.env_steps for point in expected]
    for i, (one, other) in enumerate(zip(points, expected, strict=True)):
        for column in ("returns", "z", "cosine"):
            assert np.array_equal(getattr(one, column), getattr(other, column))
        if i not in without_paths:
            assert np.array_equal(one.physics, other.physics)


def assert_same(one, other, where="", known=None):
    """All that can be reached from two objects is the same to the last bit, in the same shape."""
    known = {} if known is None else known
    if one is other:  # what both were given
        return
    if id(one) in known:
        assert known[id(one)][1] is other, where  # one object here, one there
        return
    assert type(one) is type(other), where
    if isinstance(one, bool | int | float | str):
        assert one == other, where
        return
    known[id(one)] = one, other  # held on to: nothing else may get its id
    if isinstance(one, torch.Tensor):
        assert one.stride() == other.stride(), where
        assert (one.dtype, one.requires_grad) == (other.dtype, other.requires_grad), where
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        assert np.array_equal(one, other), where
    elif isinstance(one, torch.Generator):
        assert torch.equal(one.get_state(), other.get_state()), where
    elif isinstance(one, np.random.Generator):
        assert one.bit_generator.state == other.bit_generator.state, where
    elif isinstance(one, torch.optim.Optimizer):
        for a, b in zip(one.param_groups, other.param_groups, strict=True):
            assert_same(dict(sorted(a.items())), dict(sorted(b.items())), f"{where}.groups", known)
        assert_same(one.state_dict()["state"], other.state_dict()["state"], f"{where}.state", known)
    elif type(one).__name__ == "Replay":
        assert one.size == other.size, where
        for a, b in zip(one.columns, other.columns, strict=True):
            assert torch.equal(a[:, : one.size], b[:, : one.size]), where
    elif type(one).__name__ == "BatchedEnv":
        assert np.array_equal(one.state(), other.state()), where
    elif isinstance(one, Config | torch.device | torch.dtype):
        assert one == other, where
    elif isinstance(one, torch.nn.Module):
        states = one.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
        assert_same(*map(dict, states), f"{where}.{type(one).__name__}", known)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]", known)
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key}]", known)
    else:
        assert_same(vars(one), vars(other), f"{where}.{type(one).__name__}", known)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_method_goes_on_in_the_same_bits(tmp_path, name, settings, together):
    """From any checkpoint: in its episodes and between them, at an evaluation and off it."""
    problem, seeds = make_problem(), (3,)
    if together:
        problem, seeds = joined([own_problem(seed) for seed in SEEDS]), SEEDS
    given = [tensor.clone() for tensor in (problem.w, problem.z)]
    path = tmp_path / "here" / "checkpoint.safetensors"
    straight = make(name, problem, seeds, settings)
    expected = run(straight, Copied(path, {"seed": 3}))
    if not together:  # to be saved disturbs nothing
        plain = run(make(name, problem, seeds, settings))
        assert_same_points(expected, plain, without_paths=())
    copies = {int(file.stem): file for file in path.parent.glob("[0-9]*.safetensors")}
    assert name == "zero-shot" or straight.env_steps in copies
    steps = sorted(copies)
    for i in {0, len(steps) // 2, len(steps) - 1} if steps else ():
        copies.pop(steps[i]).rename(path)
        resumed = make(name, problem, seeds, settings)
        again = Checkpoint(path, {"seed": 3})
        points = run(resumed, again)
        assert again.env_steps == steps[i]
        assert_same_points(points, expected, without_paths=range(1, len(points) - 1))
        assert_same(resumed, straight)
    assert all(torch.equal(a, b) for a, b in zip(given, (problem.w, problem.z), strict=True))


PROBLEM = make_problem()


def method_of(base=lola.Method, problem=PROBLEM, **attributes):
    """LoLA, or another, with attributes more."""
    method = base(parse(lola.Config, SETTINGS["lola"], "lola"), problem, [3])
    vars(method).update(attributes)
    return method


def loaded(method, into):
    State.of(method).load(into)
    assert_same(into, method)
    return into


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


def test_whatever_a_method_holds_is_put_back():
    weights = torch.arange(6.0).view(2, 3)

    def attributes(scale):
        mu = (scale * weights).requires_grad_()
        optimiser = torch.optim.Adam([mu], lr=0.1 * scale)
        if scale > 1:
            mu.sum().backward()
            optimiser.step()
        array = np.arange(6, dtype=np.int16).reshape(2, 3).T * int(scale)
        columns = (scale * weights).mT  # not contiguous: products would round otherwise
        return {
            "optimiser": optimiser,
            "mu": mu,
            "moved": [mu],
            "array": array,
            "columns": columns,
            "same_columns": columns,
            "wide": torch.tensor(scale).expand(4, 2),
            "pair": Pair(scale * weights, int(scale)),
            "scalar": np.float64(scale),
            "half": torch.full((2,), scale, dtype=torch.float16),
            "table": {"a": [1, None, (True, "x")], 3: {}},
            "endless": float("inf") * scale,
            "kind": (torch.float16, torch.device("cpu")),
            "module": torch.nn.Linear(2, 1 + 1),
        }

    method, into = method_of(**attributes(3.0)), method_of(**attributes(1.0))
    wide = torch.ones(3).expand(4, 2, 3)
    method.late = {"rows": [weights.clone(), 2.5], "columns": weights.clone().mT, "wide": wide}
    method.table[4] = [method.late]
    assert loaded(method, into).mu is into.moved[0] is into.optimiser.param_groups[0]["params"][0]
    assert into.table[4][0] is into.late
    assert isinstance(into.scalar, np.float64)


def test_what_all_methods_share_is_not_written_to():
    """A method may begin with its problem's tensors, and move on to others."""
    problem = make_problem()
    z = problem.z.clone()
    method = method_of(problem=problem, mine=z + 1, task=problem.tasks[1])
    method.first, method.second = z + 2, z + 3
    same = torch.zeros_like(z)
    into = method_of(
        problem=problem, mine=problem.z, task=problem.tasks[0], first=same, second=same
    )
    loaded(method, into)
    assert torch.equal(problem.z, z)
    assert into.task is problem.tasks[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (collections.deque([1]), "its odd is a collections.deque"),
        ({"a": [iter([1])]}, r"its odd/a/0 is a list_iterator"),
        (lambda: 0, "its odd is a function"),
        ({(1, 2): 3}, "its odd has a tuple for a key"),
        (np.array(["a"]), "its odd is an array of <U1"),
        (torch.ones(2, requires_grad=True) * 2, "its odd is a tensor that gradients flow through"),
        (torch.ones(1, dtype=torch.complex64), "its odd is a tensor of torch.complex64 on cpu"),
    ],
)
def test_what_cannot_be_kept_is_refused(value, said):
    with pytest.raises(NoStateError, match=said):
        State.of(method_of(odd=value))


def test_memory_in_two_places_is_refused():
    method = method_of()
    method.view = method.mu[0]
    with pytest.raises(NoStateError, match="its view shares memory with its mu"):
        State.of(method)


@pytest.mark.parametrize(
    "value", [torch.nn.Linear(1, 1), torch.Generator(), Pair(torch.ones(1), 1), lola.Config()]
)
def test_what_the_new_method_has_no_place_for_is_refused_and_nothing_changes(value):
    method, into = method_of(), method_of()
    method.advance()
    method.late = value
    with pytest.raises(NoStateError, match=r"its late \(.*\) is not there from the beginning"):
        State.of(method).load(into)
    assert_same(into, method_of())


class Forgetful(lola.Method):
    """Keeps, from its first update on, what no checkpoint can hold."""

    def advance(self):
        self.recent = collections.deque([self.env_steps])
        return super().advance()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_method_that_cannot_be_kept_adapts_without_a_checkpoint(tmp_path, capsys, at_once):
    path = tmp_path / "checkpoint.safetensors"
    attributes = {"recent": collections.deque()} if at_once else {}
    points = run(method_of(Forgetful, **attributes), Checkpoint(path, {}))
    assert_same_points(points, run(method_of()), without_paths=())
    assert capsys.readouterr().err.splitlines() == [
        "warning: test-checkpoint: its recent is a collections.deque, which no checkpoint can "
        "hold; killed, this adaptation begins anew"
    ]
    assert not path.exists()


def stopped(path, identity, after=3):
    """An adaptation that ends after some updates, its checkpoint written."""
    starts = start_states(PROBLEM.domain, STARTS_CONFIG)
    points = adapt(method_of(), starts, 40, Checkpoint(path, identity))
    for _ in range(after):
        next(points)
    points.close()
    assert path.exists()


def test_a_checkpoint_of_another_adaptation_is_named_and_set_aside(tmp_path, capsys):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path, {"settings": {"seed": 1}, "threads": 1})
    kept = path.read_bytes()
    here = Checkpoint(path, {"settings": {"seed": 3}, "threads": 1})
    assert_same_points(run(method_of(), here), run(method_of()), without_paths=())
    assert here.env_steps == 0
    (aside,) = tmp_path.glob("checkpoint.of-*.safetensors")
    assert aside.read_bytes() == kept
    assert capsys.readouterr().err == (
        f"warning: {path}: a checkpoint of another adaptation: settings.seed was 1 and is 3; it is "
        f"kept as {aside.name} until the adaptation here is finished\n"
    )
    here.remove()
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_begins_anew_with_a_warning(tmp_path, capsys):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path, {})
    path.write_bytes(path.read_bytes()[:-1])
    here = Checkpoint(path, {})
    assert_same_points(run(method_of(), here), run(method_of()), without_paths=())
    assert here.env_steps == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: damaged or not a safetensors file")
    assert line.endswith("); the adaptation begins anew")


def test_checkpoints_take_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    """By a clock that an update moves by a minute, and a checkpoint by five."""
    now, saved = [0.0], []
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    save_tensors = checkpoint.save_tensors

    def slow(*arguments):
        saved.append(now[0] / 60)
        now[0] += 300
        save_tensors(*arguments)

    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    method, here = method_of(), Checkpoint(tmp_path / "checkpoint.safetensors", {})
    here.resume(method)
    for _ in range(1100):
        now[0] += 60
        here.save(method, [])
    assert saved == [5, 510, 1015]
