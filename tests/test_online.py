"""What an agent does while it trains: true transitions, remembered as long as they should be."""

import re

import numpy as np
import pytest
import torch

from bfmpipe import plugins
from bfmpipe.agents import trainer as trainer_module
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.trainer import Trainer, TrainerConfig
from bfmpipe.config import parse
from bfmpipe.data import checkpoints, transitions
from bfmpipe.data.tables import Provenance
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.online import OnlineSource
from bfmpipe.types import UserError

STEPS, L = 12, 2
TINY = {"model": "concatenated", "hidden_dim": 8}
SETTINGS = {
    "z_dim": 4,
    "batch": 16,
    "motion_length": L,
    **{name: TINY for name in ("forward_map", "actor", "critic")},
    **{name: {"hidden_dim": 8} for name in ("backward_map", "discriminator")},
}
ONLINE = {
    "num_envs": 3,
    "steps": 5,
    "updates": 4,
    "random_steps": 8,
    "latent_steps": 5,
    "rounds": 3,
}


DOMAIN = make_domain("point_mass_maze", {"physics_steps": 5, "episode_steps": STEPS})


@pytest.fixture(scope="module")
def domain():
    return DOMAIN


def motions(domain, episodes=4, steps=9):
    rng = np.random.default_rng(0)
    env = BatchedEnv(domain, episodes, 1)
    obs, physics = [env.reset(domain.exploration_states(episodes, rng))], [env.physics]
    for _ in range(steps):
        obs.append(env.step(rng.uniform(-1, 1, (episodes, domain.action_dim))))
        physics.append(env.physics)
    rows = episodes * (steps + 1)
    return transitions.Transitions(
        domain=domain.name,
        domain_settings={},
        episode=np.repeat(np.arange(episodes, dtype=np.int32), steps + 1),
        step=np.tile(np.arange(steps + 1, dtype=np.int32), episodes),
        obs=np.stack(obs, 1).reshape(rows, -1),
        action=np.zeros((rows, domain.action_dim), np.float32),
        physics=np.stack(physics, 1).reshape(rows, -1),
    )


def make(domain, seed=0, online=None, **settings):
    module = plugins.load("agents", "fb_cpr")
    torch.manual_seed(seed)
    given = {**SETTINGS, "online": {**ONLINE, **(online or {})}, **settings}
    agent = module.Agent(parse(module.Config, given, "test"), domain.obs_dim, domain.action_dim)
    return OnlineSource(domain, agent, motions(domain), seed, 1)


def remembered(source):
    """Columns of all that may be drawn: whole rounds, and the running one."""
    rounds = [(number, STEPS) for number in source._remembered()]
    rounds += [(source.round, source.step)] * (source.step > 0)
    pieces = [source._episodes(*one) for one in rounds]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def act(source, turns):
    for turn in range(turns):
        source.advance(turn * source.config.updates)


def rows_of(columns, batch):
    """Where the batch's transitions are: starts may repeat, but not with what came of them."""
    pairs = np.concatenate([columns["obs"][:-1], columns["obs"][1:]], 1)
    known = {tuple(pair): i for i, pair in enumerate(pairs.tolist())}
    assert len(known) == len(pairs)
    return np.array([known[tuple(p)] for p in torch.cat([batch.obs, batch.next_obs], 1).tolist()])


def batch_of(source, n=600, seed=0):
    return source.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("turns", [1, 2, 4, 9, 16])
def test_every_transition_is_what_the_simulator_does(domain, turns):
    source = make(domain)
    act(source, turns)
    assert source.round * STEPS + source.step == 8 + 5 * (turns - 1)
    batch = batch_of(source)
    columns = remembered(source)
    rows = rows_of(columns, batch)
    env = BatchedEnv(domain, len(rows), 1)
    np.testing.assert_array_equal(env.reset(columns["physics"][rows]), batch.obs)
    after = env.step(batch.action.numpy())
    # a stored state lacks the solver's warm start
    np.testing.assert_allclose(after, batch.next_obs, atol=1e-6)
    assert (columns["episode"][rows] == columns["episode"][rows + 1]).all()
    np.testing.assert_array_equal(columns["action"][rows], batch.action)
    assert torch.equal(batch.future, batch.next_obs)


def test_what_is_remembered_is_drawn_uniformly(domain):
    source = make(domain)
    act(source, 12)
    assert (source.round, source.step) == (5, 3)
    columns = remembered(source)
    # the running round, and the two before it that still have a place
    assert sorted(set(columns["episode"])) == list(range(9, 18))
    n = 20_000
    rows = rows_of(columns, batch_of(source, n))
    counts = np.bincount(rows, minlength=len(columns["obs"]))
    last = np.append(columns["episode"][1:] != columns["episode"][:-1], True)
    assert not counts[last].any()
    expected = n / (~last).sum()
    assert (~last).sum() == 3 * (12 + 12 + 3)
    assert np.abs(counts[~last] - expected).max() < 6 * expected**0.5


def test_latents_are_played_as_long_as_they_should_be(domain):
    source = make(domain, goal_fraction=0.0, motion_fraction=0.0)  # no two are the same
    act(source, 6)  # in the third round
    columns = remembered(source)
    batch = batch_of(source, 3000)
    found = {}
    for row, z in zip(rows_of(columns, batch), batch.z.tolist(), strict=True):
        key = (columns["episode"][row], columns["step"][row] // 5)
        found.setdefault(key, set()).add(tuple(z))
    assert all(len(latents) == 1 for latents in found.values())
    assert len({next(iter(latents)) for latents in found.values()}) == len(found)
    assert {segment for _, segment in found} == {0, 1, 2}
    lengths = batch.z.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0))  # sqrt(4)


def test_after_the_random_steps_actions_are_the_actors(domain):
    source = make(domain, noise_std=0.0, online={"random_steps": STEPS})
    act(source, 3)
    slot, model = source.round, source.agent.model
    for t in range(source.step):
        z = source.z[slot, :, t // 5]
        expected = model.actor(source.obs[slot, :, t], z)
        torch.testing.assert_close(source.action[slot, :, t], expected)
    random = source.action[0]
    assert not torch.allclose(random, model.actor(source.obs[0, :, 0], source.z[0, :, 0])[:, None])
    assert random.abs().max() <= 1


def test_motions_come_in_stretches_of_frames_that_follow_each_other(domain):
    source = make(domain)
    act(source, 1)
    data = motions(domain)
    known = {tuple(obs): i for i, obs in enumerate(data.obs.tolist())}
    batch = batch_of(source, 400)
    rows, after = (
        np.array([known[tuple(obs)] for obs in frames.tolist()])
        for frames in (batch.motion, batch.next_motion)
    )
    assert (after == rows + 1).all()
    assert (data.episode[rows] == data.episode[after]).all()
    assert (rows.reshape(-1, L)[:, 1:] == rows.reshape(-1, L)[:, :-1] + 1).all()
    assert len(set(rows)) > 20


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rounds_begin_in_motions_as_often_as_they_should(domain, share):
    source = make(
        domain, online={"motion_starts": share, "num_envs": 100, "random_steps": STEPS + 1}
    )
    act(source, 1)
    known = {tuple(state) for state in source.motion_physics.tolist()}
    starts = source.physics[:2, :, 0].reshape(200, -1)
    assert not np.array_equal(starts[:100], starts[100:])
    of_motions = np.array([tuple(state) in known for state in starts.tolist()])
    x, y = starts[~of_motions, :2].T
    assert (x < -0.15).all()  # the tasks' own are all in one room
    assert (y > 0.15).all()
    found = of_motions.mean()
    assert found == pytest.approx(share, abs=0.12)
    assert (found == share) == (share in (0, 1))


@pytest.mark.parametrize(
    ("episodes", "rounds"), [(1, [2]), (4, [1, 3]), (9, [0, 2, 3]), (10**6, [0, 1, 2, 3])]
)
def test_its_episodes_are_a_data_set(domain, tmp_path, episodes, rounds):
    source = make(domain, online={"rounds": 6, "experience": episodes})
    act(source, 9)
    assert (source.round, source.step) == (4, 0)
    data = source.experience()
    assert sorted(set(data.episode)) == [3 * r + i for r in rounds for i in range(3)]
    origin = Provenance("transitions", {"domain": {"name": domain.name, "settings": {}}}, "test")
    transitions.write(tmp_path / "data.parquet", data, origin)
    read = transitions.read(tmp_path / "data.parquet")
    np.testing.assert_array_equal(domain.observe(domain.split(read.physics[:])), read.obs[:])
    transitions.check_domain(data, domain)


def test_the_running_round_is_part_of_it_as_far_as_it_is(domain):
    source = make(domain, online={"experience": 10**6})
    act(source, 1)
    assert np.bincount(source.experience().episode).tolist() == [9] * 3
    source = make(domain, online={"experience": 10**6})
    act(source, 8)  # 43 steps, of which the first round's are forgotten
    assert np.bincount(source.experience().episode)[3:].tolist() == [13] * 6 + [8] * 3


def test_latents_are_of_all_kinds_in_their_shares(domain):
    """Goals are of states that were passed, and motions' codes of the frames after each."""
    source = make(
        domain,
        online={"num_envs": 2000, "random_steps": 6, "latent_steps": 5},
        goal_fraction=0.3,
        motion_fraction=0.5,
        z_dim=32,  # where none is near another by chance
    )
    act(source, 1)  # drawn at the start, of motions alone, and after five steps
    agent, model = source.agent, source.agent.model
    data = motions(domain)
    frames = np.array([row + np.arange(1, L + 1) for row in data.index_of(L)])
    codes = agent.encode_motions(torch.from_numpy(data.obs[frames.ravel()]))
    passed = model.phi(source.obs[0, :, 1:6].flatten(0, 1))

    def share(z, candidates):
        distance = torch.cdist(z, candidates, compute_mode="donot_use_mm_for_euclid_dist")
        return (distance.min(1).values < 1e-4).float().mean().item()

    first, second = source.z[0, :, 0], source.z[0, :, 1]
    assert share(first, codes) == pytest.approx(0.5, abs=0.05)
    assert share(first, model.phi(torch.from_numpy(data.obs))) == pytest.approx(0.3, abs=0.05)
    assert share(second, codes) == pytest.approx(0.5, abs=0.05)
    assert share(second, passed) == pytest.approx(0.3, abs=0.05)


def test_what_is_drawn_is_the_seeds_own_and_not_the_trainings(domain):
    one, two = make(domain, 0), make(domain, 1)
    act(one, 1)
    act(two, 1)
    assert not torch.equal(one.action[0, :, :8], two.action[0, :, :8])
    training = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not torch.equal(one.action[0, :, 0], training)


def trainer(domain, updates=48, seed=0):
    source = make(domain, seed)
    learner = Learner([source.agent], [torch.Generator().manual_seed(seed)], LearnerConfig())
    config = TrainerConfig(updates=updates, checkpoint_every=6, log_every=2)
    return Trainer(learner, source, config, identity={"seed": seed})


class InterruptionError(Exception):
    """What the tests raise in the middle of a training."""


@pytest.mark.parametrize("killed", [8, 26, 44])
def test_a_resumed_training_goes_on_as_if_it_had_never_stopped(domain, tmp_path, killed):
    straight, interrupted, resumed = (trainer(domain) for _ in range(3))
    straight.run(tmp_path / "straight.safetensors")
    checkpoint, seen = tmp_path / "checkpoint.safetensors", 0

    def interrupt(made):
        nonlocal seen
        seen += made
        if seen == killed:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        interrupted.run(checkpoint, interrupt)
    first = []
    resumed.run(checkpoint, first.append)
    assert first[0] == killed // 6 * 6
    assert_same(resumed, straight)


def assert_same(resumed, straight):
    assert resumed.losses == straight.losses
    for one, two in (
        (resumed.learner.state(), straight.learner.state()),
        (resumed.data.state(), straight.data.state()),
    ):
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
    for name, column in remembered(resumed.data).items():
        np.testing.assert_array_equal(column, remembered(straight.data)[name])


def test_killed_after_each_of_many_checkpoints_it_goes_on_just_the_same(
    domain, tmp_path, monkeypatch
):
    """In the middle of its turns and at them, before what only older checkpoints need is gone."""
    straight, checkpoint = trainer(domain), tmp_path / "checkpoint.safetensors"
    straight.run(tmp_path / "straight.safetensors")
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))
    for done in range(2, 48, 2):
        interrupted, first = trainer(domain), []
        interrupted.data.drop = interrupt_in_drop
        with pytest.raises(InterruptionError):
            interrupted.run(checkpoint, first.append)
        assert (first[0], interrupted.done) == (done - 2, done)
    resumed = trainer(domain)
    resumed.run(checkpoint)
    assert_same(resumed, straight)


def interrupt_in_drop(*_):
    raise InterruptionError


def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(
    domain, tmp_path, monkeypatch
):
    straight, interrupted, resumed = (trainer(domain) for _ in range(3))
    straight.run(tmp_path / "straight.safetensors")
    checkpoint, save, saved = tmp_path / "checkpoint.safetensors", trainer_module.save_tensors, 0

    def until_the_last(*arguments):
        nonlocal saved
        saved += 1
        if saved == 7:  # two rounds of the checkpoint before are forgotten by now
            raise InterruptionError
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_tensors", until_the_last)
        with pytest.raises(InterruptionError):
            interrupted.run(checkpoint)
    resumed.run(checkpoint)
    assert resumed.losses == straight.losses


def test_a_round_that_is_missing_is_named(domain, tmp_path):
    training = trainer(domain)
    training.run(tmp_path / "checkpoint.safetensors")
    (directory,) = tmp_path.glob("checkpoint.of-*.kept")
    next(directory.iterdir()).unlink()
    said = "no such file; without it the checkpoint is of no use: delete both to train anew"
    with pytest.raises(UserError, match=said):
        trainer(domain).run(tmp_path / "checkpoint.safetensors")


def test_an_actor_that_is_broken_is_named_as_such(domain, tmp_path):
    training = trainer(domain)
    update = training.learner.update

    def breaking(batches, **settings):
        metrics = update(batches, **settings)
        if training.done == 8:
            for weight in training.agent.model.policy.parameters():
                weight.data.fill_(float("nan"))
        return metrics

    training.learner.update = breaking
    with pytest.raises(UserError) as caught:
        training.run(tmp_path / "checkpoint.safetensors")
    assert str(caught.value).startswith(
        "training broke down: an action is not finite after update 8; lower the learning rates; "
        f"the last good state is in {tmp_path / 'checkpoint.safetensors'}"
    )


def with_bad_frames(source, rows):
    """Some frames that are finite, but that the simulator cannot go on from."""
    source.motion_physics = source.motion_physics.copy()
    source.motion_physics[rows, -1] = 1e12
    return source


def test_a_round_from_a_frame_that_the_simulator_cannot_go_on_from_begins_anew(domain, capsys):
    source = with_bad_frames(make(domain, online={"motion_starts": 1.0}), slice(None, None, 8))
    act(source, 30)
    assert source.env_steps == 3 * (8 + 5 * 29)
    warnings = capsys.readouterr().err.splitlines()
    assert warnings
    said = (
        r"warning: point_mass_maze: an episode that began in frame (\d) of motion (\d) "
        r"became unstable after 0 control steps; round \d+ begins anew"
    )
    found = [re.fullmatch(said, line).groups() for line in warnings]
    assert {(int(motion) * 10 + int(frame)) % 8 for frame, motion in found} == {0}
    assert source.attempt == 0
    columns = remembered(source)
    assert all(np.isfinite(columns[name]).all() for name in ("obs", "action", "physics"))
    assert columns["physics"][columns["step"] == 0][:, -1].max() < 1e12


def test_where_most_frames_are_bad_training_ends_and_names_one(domain):
    source = with_bad_frames(make(domain, online={"motion_starts": 1.0}), slice(None))
    said = (
        r"an episode that began in frame \d of motion \d became unstable after 0 "
        "control steps, and so did 9 others in its place; take such frames out of the motions"
    )
    with pytest.raises(UserError, match=said):
        act(source, 1)


def test_a_resumed_training_begins_a_round_anew_where_the_straight_one_did(domain, tmp_path):
    def training():
        made = trainer(domain)
        with_bad_frames(made.data, slice(None, None, 6))
        return made

    straight, interrupted, resumed = training(), training(), training()
    straight.run(tmp_path / "straight.safetensors")

    def interrupt(made):
        interrupted.seen = getattr(interrupted, "seen", 0) + made
        if interrupted.seen == 26:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        interrupted.run(tmp_path / "checkpoint.safetensors", interrupt)
    resumed.run(tmp_path / "checkpoint.safetensors")
    assert resumed.losses == straight.losses


def test_only_rounds_that_are_remembered_stay_on_disk(domain, tmp_path):
    training = trainer(domain)
    training.run(tmp_path / "checkpoint.safetensors")
    (directory,) = tmp_path.glob("checkpoint.of-*.kept")
    kept = sorted(file.name for file in directory.iterdir())
    # at the last checkpoint, after 42 updates, the fifth round ran
    assert kept == ["round-000002.safetensors", "round-000003.safetensors"]


def test_what_cannot_be_trained_online_is_refused(domain):
    with pytest.raises(UserError, match="the longest has 10: give longer ones or set a smaller"):
        make(domain, motion_length=16)
    with pytest.raises(
        UserError, match="make 15 transitions before the first update, fewer than one"
    ):
        make(domain, online={"random_steps": 5})
    with pytest.raises(
        UserError, match=r"takes \d+ GB, and this machine has \d+; set fewer rounds"
    ):
        make(domain, online={"rounds": 10**8})
