"""RND: its losses against plain forms, what it finds new, and that it resumes to the same bytes."""

import copy
import errno

import numpy as np
import pytest
import torch

from bfmpipe.config import parse
from bfmpipe.data import opening, rnd, transitions
from bfmpipe.data.explorer import History
from bfmpipe.types import UserError

TINY = {
    "preset": "small",
    "num_envs": 4,
    "warmup": 40,
    "batch": 16,
    "hidden_dim": 16,
    "rnd_hidden_dim": 16,
    "rnd_output_dim": 8,
}


def explorer(seed=0, obs_dim=3, action_dim=2, **settings):
    config = parse(rnd.Config, {**TINY, **settings}, "explorer rnd")
    return rnd.Explorer(config, obs_dim, action_dim, np.random.default_rng(seed))


def batch(nstep, n=16, seed=1):
    rng = np.random.default_rng(seed)
    path = rng.standard_normal((n, nstep + 1, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    return torch.from_numpy(path), torch.from_numpy(action)


# settings


def test_the_small_preset_fills_what_is_not_given():
    small = parse(rnd.Config, {"preset": "small", "batch": 7}, "explorer")
    full = parse(rnd.Config, {}, "explorer")
    assert (small.hidden_dim, small.batch, small.discount) == (256, 7, full.discount)
    assert (full.rnd_hidden_dim, full.rnd_output_dim, full.batch) == (1024, 512, 1024)
    assert (full.learning_rate, full.target_tau) == (1e-4, 0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "tiny"}, "explorer rnd: preset: 'tiny' is not a choice; "),
        ({"discount": 1.0}, "explorer rnd: discount: 1.0 should be less than 1"),
        ({"hiden_dim": 3}, "hiden_dim is not a setting; did you mean hidden_dim?"),
        ({"num_envs": 0}, "num_envs: 0 should be greater than or equal to 1"),
    ],
)
def test_bad_settings_are_one_sentence(settings, said):
    with pytest.raises(UserError) as caught:
        explorer(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_episode_shorter_than_nstep_is_refused(tiny, tmp_path):
    settings = tiny.settings(
        "collect", explorer={"name": "rnd", "settings": {**TINY, "nstep": 21}}, episodes=2
    )
    with pytest.raises(UserError, match=r"nstep \(21\) is more than the 20 steps of an episode"):
        tiny.run("collect", settings=settings, dataset=tmp_path / "data.parquet")


# the running moments


def test_running_moments_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(5, (1, 3), (50, 2)).astype(np.float32)
    moments = rnd.Moments(2)
    np.testing.assert_array_equal(moments.std, 1)
    for block in np.split(rows, [1, 20]):
        moments.add(block)
    np.testing.assert_allclose(moments.mean, rows.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.std, rows.astype(np.float64).std(0), rtol=1e-12)
    again = rnd.Moments(2)
    again.load_state(moments.state())
    assert again.count == 50
    np.testing.assert_array_equal(again.std, moments.std)


def test_observations_are_normalised_and_clipped():
    one = explorer()
    one.obs_moments.add(np.array([[0.0, 10, 7], [2, 30, 7]]))
    found = one.normalise(np.array([[2, 20, 7], [1, 1000, 7.1]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 5, 5]], atol=1e-6)


# the losses, against a second form


def plain(network, x):
    """The network's output row by row, in double, in numpy."""
    for layer in network:
        match layer:
            case torch.nn.Linear():
                weight, bias = (p.detach().double().numpy() for p in layer.parameters())
                x = x @ weight.T + bias
            case torch.nn.LayerNorm():
                x = x - x.mean(-1, keepdims=True)
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps)
                scale, shift = (p.detach().double().numpy() for p in layer.parameters())
                x = x * scale + shift
            case torch.nn.ReLU():
                x = np.maximum(x, 0)
            case torch.nn.Tanh():
                x = np.tanh(x)
    return x


@pytest.mark.parametrize("nstep", [1, 3])
def test_the_losses_are_those_of_the_equations(nstep):
    one = explorer(nstep=nstep, noise_std=0.0, discount=0.9)
    one.error_moments.add(np.array([[1.0], [5.0]]))  # sigma 2
    torch.manual_seed(0)
    for parameter in one.critic_targets.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    path, action = batch(nstep)
    before = copy.deepcopy(one)
    losses = {name: float(loss) for name, loss in one.update(path, action).items()}

    states, actions = path.double().numpy(), action.double().numpy()
    error = ((plain(before.predictor, states) - plain(before.target, states)) ** 2).mean(-1)
    last = states[:, -1]
    best = np.concatenate([last, plain(before.actor, last)], 1)
    q_next = np.min([plain(head, best)[:, 0] for head in before.critic_targets.heads], 0)
    y = 0.9**nstep * q_next
    for k in range(nstep):
        y += 0.9**k * error[:, k + 1] / 2
    inputs = np.concatenate([states[:, 0], actions], 1)
    td = [plain(head, inputs)[:, 0] - y for head in before.critics.heads]
    assert losses["predictor"] == pytest.approx(error[:, 1:].mean(), rel=1e-4)
    assert losses["critics"] == pytest.approx((np.square(td).mean(1)).sum(), rel=1e-4)
    # the actor is asked after the critics' step
    inputs = np.concatenate([states[:, 0], plain(before.actor, states[:, 0])], 1)
    q = np.min([plain(head, inputs)[:, 0] for head in one.critics.heads], 0)
    assert losses["actor"] == pytest.approx(-q.mean(), rel=1e-4)


def test_an_update_moves_every_network_but_the_random_one():
    one = explorer()
    before = copy.deepcopy(one.modules)
    one.update(*batch(3))
    for name, module in one.modules.items():
        same = [
            torch.equal(a, b)
            for a, b in zip(module.parameters(), before[name].parameters(), strict=True)
        ]
        assert all(same) if name == "target" else not any(same), name
    old, new = before["critics"], one.critics  # the targets were equal to the critics
    for a, b, average in zip(
        old.parameters(), new.parameters(), one.critic_targets.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.99 * a + 0.01 * b)


def test_the_actor_climbs_the_critics():
    one = explorer(learning_rate=3e-3, noise_std=0.0)
    path, _ = batch(3)
    for parameter in one.critics.parameters():
        parameter.requires_grad_(False)
    before = float(one.actor_loss(path[:, 0]).detach())
    for _ in range(100):
        one._descend("actor", one.actor_loss(path[:, 0]))
    assert float(one.actor_loss(path[:, 0]).detach()) < before - 0.05


def test_the_critics_find_the_value_of_a_reward_that_never_changes():
    """With r = 1 for ever the value is 1 / (1 - gamma), here 2."""
    one = explorer(nstep=1, discount=0.5, noise_std=0.0, learning_rate=3e-3)
    obs = batch(1, n=64)[0][:, 0]
    action = one.actor(obs).detach()
    for _ in range(400):
        loss = one.critic_loss(obs, action, torch.ones(64, 1), obs)  # states that lead nowhere
        one._descend("critics", loss)
        for average, value in zip(
            one.critic_targets.parameters(), one.critics.parameters(), strict=True
        ):
            average.data.lerp_(value.data, 0.1)
    np.testing.assert_allclose(one.critics(obs, action).detach(), 2, atol=0.1)


# novelty


def test_what_is_seen_again_is_no_longer_new_and_what_is_not_stays_so():
    one = explorer(rnd_hidden_dim=64, rnd_output_dim=32)
    rng = np.random.default_rng(0)
    here = torch.from_numpy(rng.normal(-1, 0.3, (64, 4, 3)).astype(np.float32))
    there = torch.from_numpy(rng.normal(2, 0.3, (64, 3)).astype(np.float32))
    one.error_moments.add(one.errors(here[:, 0]).detach().numpy()[:, None])
    with torch.no_grad():
        first = [float(one.rewards(one.errors(x)).mean()) for x in (here[:, 1], there)]
    losses = [float(one.update(here, torch.zeros(64, 2))["predictor"]) for _ in range(300)]
    with torch.no_grad():
        last = [float(one.rewards(one.errors(x)).mean()) for x in (here[:, 1], there)]
    assert losses[-1] < 0.05 * losses[0]
    assert last[0] < 0.05 * first[0]
    assert last[1] > 0.3 * first[1]
    assert last[1] > 10 * last[0]


def test_it_acts_at_random_until_it_has_learnt():
    one = explorer()
    obs = np.zeros((500, 3), np.float32)
    early = one.act(obs)
    np.testing.assert_allclose(early.var(0), 1 / 3, rtol=0.15)
    one.obs_moments.add(np.eye(3))
    one.update(*batch(3))
    late = one.act(obs)
    with torch.no_grad():
        mean = one.actor(one.normalise(obs[:1]))[0].numpy()
    noisy = (mean + 0.5 * np.random.default_rng(0).standard_normal((10**5, 2))).clip(-1, 1)
    np.testing.assert_allclose(late.mean(0), noisy.mean(0), atol=0.1)
    assert late.dtype == np.float32
    assert np.abs(late).max() <= 1


def test_nothing_is_learnt_before_the_warmup_and_then_every_step():
    one = explorer(warmup=8, updates_per_step=2)
    history = History(np.ones((6, 11, 3), np.float32), np.zeros((6, 11, 2), np.float32))
    history.running = 2
    made = []
    for step in range(1, 7):
        history.step = step
        one.learn(history)
        made.append(one.updates)
    assert made == [0, 0, 0, 2, 4, 6]
    assert one.obs_moments.count == 2 * 7


# in the stage


def run(tiny, path, seed=0, episodes=10, **settings):
    chosen = {"name": "rnd", "settings": {**TINY, **settings}}
    tiny.run(
        "collect",
        settings=tiny.settings("collect", explorer=chosen, episodes=episodes, seed=seed),
        dataset=path,
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """Ten episodes in rounds of 4, 4 and 2."""
    path = tmp_path_factory.mktemp("rnd") / "data.parquet"
    return run(tiny, path), transitions.read(path)


def test_the_budget_is_spent_exactly_in_rounds(straight, tiny):
    _, data = straight
    assert len(data.index) == 10 * tiny.episode_steps
    assert data.episode.tolist() == np.repeat(np.arange(10), tiny.episode_steps + 1).tolist()
    assert (np.abs(np.asarray(data.action)[data.index]).max(1) > 0).all()


def test_a_seed_decides_every_byte(straight, tiny, tmp_path):
    assert run(tiny, tmp_path / "again.parquet") == straight[0]
    assert run(tiny, tmp_path / "other.parquet", seed=1) != straight[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class InterruptionError(Exception):
    pass


def interrupted(tiny, path, monkeypatch, calls, **settings):
    """Run until the explorer has learnt `calls` times."""
    left = calls
    learn = rnd.Explorer.learn

    def counted(self, history):
        nonlocal left
        if left == 0:
            raise InterruptionError
        left -= 1
        learn(self, history)

    with monkeypatch.context() as patch:
        patch.setattr(rnd.Explorer, "learn", counted)
        with pytest.raises(InterruptionError):
            run(tiny, path, **settings)
    assert not path.exists()


@pytest.mark.parametrize("calls", [(5,), (20,), (31,), (25, 25), (59,)])
def test_interrupted_it_ends_in_the_same_bytes(straight, tiny, tmp_path, monkeypatch, calls):
    path = tmp_path / "data.parquet"
    finished = again = 0
    for number in calls:  # 20 a round
        interrupted(tiny, path, monkeypatch, number)
        finished = (finished + number) // 20 * 20
    learn = rnd.Explorer.learn

    def counted(self, history):
        nonlocal again
        again += 1
        learn(self, history)

    monkeypatch.setattr(rnd.Explorer, "learn", counted)
    assert run(tiny, path) == straight[0]
    assert again == 60 - finished  # rounds that were complete are not explored again
    assert [file.name for file in tmp_path.iterdir()] == ["data.parquet"]


def test_the_rounds_of_another_exploration_are_not_continued(straight, tiny, tmp_path, monkeypatch):
    path = tmp_path / "data.parquet"
    interrupted(tiny, path, monkeypatch, 25, seed=1)
    assert run(tiny, path) == straight[0]


def test_rounds_that_cannot_be_read_are_kept(tiny, tmp_path, monkeypatch):
    path = tmp_path / "data.parquet"
    interrupted(tiny, path, monkeypatch, 45)
    rounds = tmp_path / ".data.parquet.rounds"
    kept = {file.name: file.read_bytes() for file in rounds.iterdir()}

    def refuse(path):
        raise opening.unreadable(path, OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr("bfmpipe.data.tensors.load_tensors", refuse)
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        run(tiny, path)
    assert {file.name: file.read_bytes() for file in rounds.iterdir()} == kept


@pytest.mark.parametrize("name", ["from-episode-000000", "from-episode-000004", "state"])
@pytest.mark.parametrize("keep", [None, 100])
def test_damaged_or_missing_rounds_are_explored_anew(
    straight, tiny, tmp_path, monkeypatch, capsys, name, keep
):
    path = tmp_path / "data.parquet"
    interrupted(tiny, path, monkeypatch, 45)
    file = tmp_path / ".data.parquet.rounds" / f"{name}.safetensors"
    content = file.read_bytes()
    file.unlink()
    if keep:
        file.write_bytes(content[:keep])
    capsys.readouterr()
    assert run(tiny, path) == straight[0]
    assert [file.name for file in tmp_path.iterdir()] == ["data.parquet"]
    said = capsys.readouterr().err
    if (name, keep) != ("state", None):  # without a state nothing is known to have begun
        assert f"warning: {file}: " in said
        assert "; exploration begins anew\n" in said
        assert "delete" not in said


def test_persistent_random_takes_rounds_too(tiny, tmp_path):
    explorer = {"name": "persistent-random", "settings": {"num_envs": 4}}
    settings = tiny.settings("collect", explorer=explorer, episodes=10)
    tiny.run("collect", settings=settings, dataset=tmp_path / "data.parquet")
    assert len(transitions.read(tmp_path / "data.parquet").index) == 10 * tiny.episode_steps
    assert [file.name for file in tmp_path.iterdir()] == ["data.parquet"]
