"""Training: interrupted or not it ends in the same bits, and it stops where it breaks down."""

import math
import re

import numpy as np
import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.agents.learner import Learner
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig, divergence
from bfmpipe.config import parse
from bfmpipe.data import checkpoints, transitions
from bfmpipe.data.checkpoints import set_aside
from bfmpipe.data.tables import Provenance
from bfmpipe.types import UserError

CONFIG = fb.Config(
    z_dim=4,
    architecture="concatenated",
    hidden_dim=8,
    backward_hidden_dim=8,
    batch=16,
    actor_every=2,
    learning_rate=1e-3,
    actor_learning_rate=1e-3,
)
TRAINING = TrainerConfig(updates=30, checkpoint_every=20, log_every=5, decay_fraction=0.5)
IDENTITY = {"settings": {"seed": 0}, "code": "c0de", "dataset": "da7a"}


class InterruptionError(Exception):
    """What the tests raise in the middle of a training."""


def trainer(
    identity=None, config=TRAINING, seeds=(0,), rows=200, agent_config=CONFIG, evaluate=None
):
    rng = np.random.default_rng(0)
    data = Data(
        torch.from_numpy(rng.standard_normal((rows, 3)).astype(np.float32)),
        torch.from_numpy(rng.uniform(-1, 1, (rows, 2)).astype(np.float32)),
        torch.arange(rows - 1),
    )
    agents = []
    for seed in seeds:
        torch.manual_seed(seed)
        agents.append(fb.Agent(agent_config, 3, 2))
    return Trainer(
        learner=Learner(agents, [torch.Generator().manual_seed(seed) for seed in seeds], config),
        data=data,
        config=config,
        identity=IDENTITY if identity is None else identity,
        evaluate=evaluate,
    )


def interrupt_at(update):
    seen = 0

    def progress(made):
        nonlocal seen
        seen += made
        if seen >= update:
            raise InterruptionError

    return progress


def interrupted(checkpoint, update=25, **arguments):
    stopped = trainer(**arguments)
    with pytest.raises(InterruptionError):
        stopped.run(checkpoint, interrupt_at(update))
    return stopped


def everything(trained):
    """All state that decides what comes next, by name."""
    state = {}
    for i, agent in enumerate(trained.learner.agents):
        state |= {f"{i}/{k}": v for k, v in agent.state_dict().items()}
    for name, optimiser in trained.learner.optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            state |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
    for i, generator in enumerate(trained.learner.generators):
        state[f"generator/{i}"] = generator.get_state()
    return state


def assert_same(one, two):
    assert one.done == two.done
    assert one.losses == two.losses
    assert one.evaluations == two.evaluations
    a, b = everything(one), everything(two)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.fixture
def straight(tmp_path):
    done = trainer()
    done.run(tmp_path / "straight.safetensors")
    return done


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def test_training_moves_every_part_of_the_model(straight):
    before, after = everything(trainer()), everything(straight)
    parts = ("model.forward_map", "model.backward_map", "model.policy")
    for part in (*parts, "target_forward_map", "target_backward_map"):
        names = [n for n in before if n.startswith(f"0/{part}") and before[n].numel() > 1]
        assert names
        assert any(not torch.equal(before[n], after[n]) for n in names)
    assert [row["update"] for row in straight.losses[0]] == [5, 10, 15, 20, 25, 30]


def test_the_same_seed_trains_the_same_and_another_does_not(straight, checkpoint):
    again, other = trainer(), trainer(seeds=[1])
    again.run(checkpoint.with_name("again.safetensors"))
    assert_same(again, straight)
    other.run(checkpoint)
    assert other.losses != straight.losses


def test_a_killed_and_resumed_training_ends_in_the_same_bits(straight, checkpoint):
    interrupted(checkpoint)
    steps = []
    resumed = trainer()
    resumed.run(checkpoint, steps.append)
    assert steps == [20, 5, 5]  # it went on at the checkpoint
    assert_same(resumed, straight)


def test_a_training_killed_again_and_again_ends_in_the_same_bits(straight, checkpoint):
    interrupted(checkpoint, 5)
    assert not checkpoint.exists()
    interrupted(checkpoint, 25)
    interrupted(checkpoint, 30)
    resumed = trainer()
    resumed.run(checkpoint)
    assert_same(resumed, straight)


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({**IDENTITY, "settings": {"seed": 1}}, "settings.seed was 1 and is 0"),
        ({**IDENTITY, "code": "other"}, "code was 'other' and is 'c0de'"),
        ({**IDENTITY, "threads": 4}, "threads was 4 and is None"),
        ({**IDENTITY, "threads": None}, "its identity"),
        ({}, "code was None and is 'c0de' and 2 more"),
    ],
)
def test_a_checkpoint_of_another_training_is_named_and_set_aside(
    straight, checkpoint, identity, said, capsys
):
    interrupted(checkpoint, identity=identity)
    kept = checkpoint.read_bytes()
    capsys.readouterr()
    steps = []
    afresh = trainer()
    afresh.run(checkpoint, steps.append)
    assert steps[0] == 0
    assert_same(afresh, straight)
    (aside,) = set_aside(checkpoint)
    assert aside.read_bytes() == kept
    assert capsys.readouterr().err == (
        f"warning: {checkpoint}: a checkpoint of another training: {said}; it is kept as "
        f"{aside.name} until the training here is finished\n"
    )
    # its own training finds it, and sets the other's aside
    trainer(identity=identity).run(checkpoint, steps.append)
    assert steps[-3:] == [20, 5, 5]
    assert aside not in set_aside(checkpoint)
    assert len(set_aside(checkpoint)) == 1


def test_a_training_finds_its_checkpoint_after_another_that_had_none_yet(checkpoint, capsys):
    interrupted(checkpoint)
    trainer(identity={"seed": 1})._resume(checkpoint)  # killed before its first checkpoint
    assert not checkpoint.exists()
    steps = []
    trainer().run(checkpoint, steps.append)
    assert steps[0] == 20
    assert set_aside(checkpoint) == []


def test_a_training_that_breaks_down_names_no_checkpoint_of_another(checkpoint):
    interrupted(checkpoint, identity={"seed": 1})
    broken = trainer()
    broken.data.obs[:] = math.nan
    with pytest.raises(UserError, match="no checkpoint was due yet"):
        broken.run(checkpoint)


def test_a_damaged_checkpoint_is_refused(checkpoint):
    interrupted(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(str(checkpoint))):
        trainer().run(checkpoint)


def test_learning_rates_fall_linearly_to_zero_at_the_end(checkpoint):
    rates = []
    trained = trainer()
    update = trained.learner.update

    def watched(batches, *, learning_rate_scale):
        metrics = update(batches, learning_rate_scale=learning_rate_scale)
        rates.append([o.param_groups[0]["lr"] / 1e-3 for o in trained.learner.optimisers.values()])
        return metrics

    trained.learner.update = watched
    trained.run(checkpoint)
    expected = np.array([min(1, (30 - i) / 15) for i in range(30)])
    last = 2 * (np.arange(30) // 2)  # the actor has every second update; it keeps its rate between
    np.testing.assert_allclose(rates, np.stack([expected, expected[last]], axis=1))


def test_rows_are_means_over_log_every_updates(straight, checkpoint):
    each = trainer(config=TRAINING.model_copy(update={"log_every": 1}))
    each.run(checkpoint)
    for name in ("fb_loss", "ortho_loss"):
        rows = np.array([row[name] for row in each.losses[0]]).reshape(6, 5)
        found = [row[name] for row in straight.losses[0]]
        np.testing.assert_allclose(found, rows.mean(1), rtol=1e-5)


def test_a_row_without_an_actor_update_keeps_the_last_value(checkpoint):
    each = trainer(config=TRAINING.model_copy(update={"log_every": 1}))
    each.run(checkpoint)
    q = [row["q"] for row in each.losses[0]]
    assert len(q) == 30
    assert q[0::2] == q[1::2]
    assert q[0] != q[2]


def test_data_too_short_for_a_batch_is_refused():
    with pytest.raises(UserError, match="has 15 transitions, fewer than one batch of 16"):
        trainer(rows=16)
    trainer(rows=17)  # 16 transitions are enough


def test_a_number_that_is_none_stops_training_and_keeps_the_last_good_state(checkpoint):
    config = TRAINING.model_copy(update={"updates": 60})
    broken = trainer(config=config)
    seen = 0

    def poison(made):
        nonlocal seen
        seen += made
        if seen == 25:
            broken.data.obs[:] = math.nan

    with pytest.raises(UserError) as caught:
        broken.run(checkpoint, poison)
    said = str(caught.value)
    # the actor's last turn was before: its own loss, at update 27, is not the first
    assert said.startswith(
        "training broke down: 'fb_loss' is nan at update 26; not finite: tensor 'model."
    )
    assert f"the last good state is in {checkpoint}" in said
    assert "\n" not in said

    whole, rescued = trainer(config=config), trainer(config=config)
    whole.run(checkpoint.with_name("whole.safetensors"))
    rescued.run(checkpoint)  # the data are good again
    assert_same(rescued, whole)


def test_breaking_down_before_the_first_checkpoint_says_that_there_is_none(checkpoint):
    broken = trainer()
    broken.data.obs[:] = math.nan
    with pytest.raises(UserError, match=r"at update 1; .*no checkpoint was due yet"):
        broken.run(checkpoint)
    assert not checkpoint.exists()


def test_the_first_number_that_is_none_is_named(checkpoint):
    broken = trainer(seeds=[0, 1])
    update = broken.learner.update

    def poisoned(batches, **settings):
        metrics = update(batches, **settings)
        if broken.done in (3, 4) and "q" in metrics:  # the actor's turns are updates 1, 3, 5
            metrics["q"] = torch.tensor([1.0, -math.inf])
        if broken.done == 4:
            metrics["fb_loss"] = torch.tensor([math.nan, 1.0])
        return metrics

    broken.learner.update = poisoned
    with pytest.raises(UserError) as caught:
        broken.run(checkpoint)
    said = str(caught.value)
    assert said.startswith("training broke down: 'q' is -inf at update 3; lower the learning rate")


@pytest.mark.parametrize("last", [20, 30])
def test_weights_that_are_no_numbers_are_not_kept(checkpoint, last):
    # no loss shows them before the next update
    broken = trainer()

    def poison(_):
        if broken.done == last:
            broken.learner.tensors["model.policy.map.out.bias"][:] = math.nan

    with pytest.raises(UserError) as caught:
        broken.run(checkpoint, poison)
    said = str(caught.value)
    assert f"not finite after update {last}: tensor 'model.policy.map.out.bias'; " in said
    assert checkpoint.exists() == (last == 30)


@pytest.mark.parametrize("last", [20, 30])
def test_moments_that_have_overflowed_are_not_kept(checkpoint, last):
    # Adam's steps are zero from then on: no loss and no weight ever shows them
    broken = trainer()

    def poison(_):
        if broken.done == last:
            state, *_others = broken.learner.optimisers["actor"].state.values()
            state["exp_avg_sq"][:] = math.inf

    with pytest.raises(UserError) as caught:
        broken.run(checkpoint, poison)
    said = str(caught.value)
    assert f"not finite after update {last}: tensor 'optimiser/actor/0/exp_avg_sq'; " in said
    assert checkpoint.exists() == (last == 30)


@pytest.mark.parametrize(("every", "log_every"), [(15, 10), (5, 10)])
@pytest.mark.parametrize("name", ["checkpoint_every", "evaluate_every"])
def test_checkpoints_and_evaluations_must_stand_at_the_end_of_a_row(name, every, log_every):
    settings = {name: every, "log_every": log_every}
    with pytest.raises(UserError) as caught:
        parse(TrainerConfig, settings, "config.yaml", at="pretrain")
    assert str(caught.value) == (
        f"config.yaml: pretrain: {name} ({every}) must be a multiple of log_every ({log_every})"
    )


# checkpoints by the clock


@pytest.fixture
def saved(monkeypatch):
    """The updates after which checkpoints are written."""
    updates, save = [], Trainer._save

    def watched(self, path):
        save(self, path)
        updates.append(self.done)

    monkeypatch.setattr(Trainer, "_save", watched)
    return updates


@pytest.mark.parametrize(("seconds", "updates"), [(300, [15, 20]), (301, [20]), (450, [20])])
def test_a_checkpoint_is_due_at_the_end_of_a_row_once_its_seconds_have_passed(
    checkpoint, monkeypatch, saved, seconds, updates
):
    """By a clock that an update moves by 20 seconds; one is due after 20 updates in any case."""
    slow = trainer()
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 20.0 * slow.done)
    monkeypatch.setattr(checkpoints, "SECONDS", seconds)
    slow.run(checkpoint)
    assert saved == updates


def test_checkpoints_that_take_long_to_write_are_rarer(checkpoint, monkeypatch, saved):
    """By a clock that an update moves by a minute, and a checkpoint by two."""
    slow = trainer(config=TRAINING.model_copy(update={"updates": 420, "checkpoint_every": 1000}))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 60.0 * (slow.done + 2 * len(saved)))
    slow.run(checkpoint)
    assert saved == [5, 205, 405]


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_killed_after_each_of_many_checkpoints_it_ends_in_the_same_bits(
    checkpoint, monkeypatch, saved, seeds
):
    def watched():
        config = TRAINING.model_copy(update={"evaluate_every": 10})
        made = trainer(config=config, seeds=seeds)
        made.evaluate = lambda update: [{"update": update, "rows": len(made.losses[0])}]
        return made

    straight = watched()
    straight.run(checkpoint.with_name("straight.safetensors"))
    assert saved == [20]
    saved.clear()
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)
    never_killed = watched()
    never_killed.run(checkpoint.with_name("never.safetensors"))
    assert saved == [5, 10, 15, 20, 25]
    assert_same(never_killed, straight)
    for done in saved.copy():
        within = watched()
        update = within.learner.update

        def until(*arguments, last=done + 3, learner=within.learner, update=update, **settings):
            if learner.step == last:
                raise InterruptionError
            return update(*arguments, **settings)

        within.learner.update = until
        with pytest.raises(InterruptionError):
            within.run(checkpoint)
    assert saved == [5, 10, 15, 20, 25] * 2  # each went on where the one before was killed
    resumed, steps = watched(), []
    resumed.run(checkpoint, steps.append)
    assert steps == [25, 5]
    assert_same(resumed, straight)


# several seeds, and evaluations


def test_seeds_trained_together_are_those_trained_alone(checkpoint):
    together = trainer(seeds=[0, 1])
    together.run(checkpoint)
    for i, seed in enumerate((0, 1)):
        alone = trainer(seeds=[seed])
        alone.run(checkpoint.with_name(f"{seed}.safetensors"))
        one, two = alone.learner.agents[0].state_dict(), together.learner.agents[i].state_dict()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
        for row, other in zip(alone.losses[0], together.losses[i], strict=True):
            assert other == pytest.approx(row, rel=1e-3, abs=1e-4)
    assert together.losses[0] != together.losses[1]


def test_seeds_trained_together_resume_to_the_same_bits(checkpoint):
    whole = trainer(seeds=[0, 1])
    whole.run(checkpoint.with_name("whole.safetensors"))
    interrupted(checkpoint, seeds=[0, 1])
    resumed = trainer(seeds=[0, 1])
    resumed.run(checkpoint)
    assert_same(resumed, whole)


@pytest.mark.parametrize(("every", "updates"), [(None, [30]), (10, [10, 20, 30]), (20, [20, 30])])
def test_evaluations_stand_at_their_updates_and_at_the_end(checkpoint, every, updates):
    config = TRAINING.model_copy(update={"evaluate_every": every})
    seen = trainer(config=config, evaluate=lambda update: [{"update": update}])
    seen.run(checkpoint)
    assert [one["update"] for one in seen.evaluations] == updates


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_evaluations_see_the_weights_as_they_stand_and_a_resumed_training_has_all(
    checkpoint, seeds
):
    config = TRAINING.model_copy(update={"evaluate_every": 10})

    def watched():
        made = trainer(config=config, seeds=seeds)

        def evaluate(update):
            weights = [agent.model.policy.map.out.bias for agent in made.learner.agents]
            return [{"update": update, "sum": w.double().sum().item()} for w in weights]

        made.evaluate = evaluate
        return made

    whole = watched()
    whole.run(checkpoint.with_name("whole.safetensors"))
    assert len({one["sum"] for one in whole.evaluations}) == 3 * len(seeds)
    with pytest.raises(InterruptionError):
        watched().run(checkpoint, interrupt_at(25))
    resumed = watched()
    resumed.run(checkpoint)
    assert_same(resumed, whole)


@pytest.mark.parametrize("stride", [1, 3])
def test_a_sample_leads_stride_rows_further_by_the_mean_action(stride):
    rows = torch.arange(20.0)[:, None]
    index = torch.tensor([0, 5, 11])
    data = Data(rows, 2 * rows, index, stride)
    obs, action, next_obs, _ = data.sample(200, torch.Generator().manual_seed(0))
    assert set(obs[:, 0].tolist()) == {0, 5, 11}
    assert torch.equal(next_obs, obs + stride)
    torch.testing.assert_close(action, 2 * obs + (stride - 1))


@pytest.mark.parametrize("stride", [1, 3])
def test_rows_on_disk_give_the_same_batches_as_tensors(tmp_path, stride):
    rng = np.random.default_rng(0)
    data = transitions.Transitions(
        domain="toy",
        domain_settings={},
        episode=np.repeat(np.arange(300, dtype=np.int32), 100),
        step=np.tile(np.arange(100, dtype=np.int32), 300),
        obs=rng.standard_normal((30_000, 3), np.float32),
        action=rng.uniform(-1, 1, (30_000, 2)).astype(np.float32),
        physics=np.zeros((30_000, 1)),
    )
    origin = Provenance("transitions", {"domain": {"name": "toy", "settings": {}}}, "code")
    transitions.write(tmp_path / "data.parquet", data, origin)
    disk = transitions.read(tmp_path / "data.parquet")
    index = torch.from_numpy(data.index_of(stride))
    tensors = Data(torch.from_numpy(data.obs), torch.from_numpy(data.action), index, stride)
    rows = Data(disk.obs, disk.action, index, stride)
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    for _ in range(5):
        for a, b in zip(tensors.sample(64, one), rows.sample(64, two), strict=True):
            assert torch.equal(a, b)


# the divergence alarm


def rings(loss, q, **settings):
    watched = trainer(config=TrainerConfig(**settings))
    watched.losses = [
        [
            {"update": 100 * (i + 1), "fb_loss": x, "q": y}
            for i, (x, y) in enumerate(zip(loss, q, strict=True))
        ]
    ]
    return watched.diverged_at()


FALLING = np.linspace(0, -10, 60)
TURNED = np.concatenate([FALLING, np.linspace(-10, 5, 60)])


def test_the_alarm_rings_where_the_loss_turns_while_q_climbs():
    rang = rings(TURNED.tolist(), np.linspace(0, 50, 120).tolist())
    assert rang is not None
    assert 6000 < rang < 9000  # after the turn, well before the end


def test_the_alarm_is_silent_on_a_healthy_training():
    rng = np.random.default_rng(0)
    loss = -10 * (1 - np.exp(-np.arange(200) / 30)) + 0.1 * rng.standard_normal(200)
    q = 20 * (1 - np.exp(-np.arange(200) / 50)) + 0.1 * rng.standard_normal(200)
    assert rings(loss.tolist(), q.tolist()) is None


def test_the_alarm_is_silent_where_the_loss_turns_but_q_does_not_climb():
    q = np.concatenate([np.linspace(0, 50, 60), np.linspace(50, 30, 60)])
    assert rings(TURNED.tolist(), q.tolist()) is None


def test_the_alarm_is_silent_without_losses_or_with_those_of_another_agent():
    assert rings([], []) is None
    other = trainer()
    other.losses = [[{"update": 1, "hilbert_loss": 1.0}]]
    assert other.diverged_at() is None


def test_the_alarm_watches_the_loss_that_the_agent_names():
    rows = [
        {"update": i, "fb_loss": float(x), "other_loss": -float(i), "q": float(i)}
        for i, x in enumerate(TURNED)
    ]
    assert any(divergence(rows, 0.2, "fb_loss"))
    assert not any(divergence(rows, 0.2, "other_loss"))
    assert divergence(rows, 0.2, "loss_of_another") == [False] * len(rows)


def test_each_seed_has_an_alarm_of_its_own():
    two = trainer(seeds=[0, 1])
    q = np.linspace(0, 50, 120)
    two.losses = [
        [{"update": i, "fb_loss": x, "q": q[i]} for i, x in enumerate(loss.tolist())]
        for loss in (np.linspace(0, -10, 120), TURNED)
    ]
    assert two.diverged_at(0) is None
    assert two.diverged_at(1) is not None


def test_the_alarm_is_silent_before_the_loss_has_fallen():
    # it first climbs for a few rows, as losses of fresh targets do
    loss = [0.0] * 10 + [1.0] * 2 + np.linspace(-5, -40, 40).tolist()
    assert rings(loss, list(range(len(loss)))) is None


def test_the_alarm_is_silent_where_the_loss_only_swings():
    # within ten rows it is up and down again
    loss = np.concatenate([FALLING, -10 + 5 * np.sin(np.arange(60) * 2 * np.pi / 10)])
    assert rings(loss.tolist(), np.linspace(0, 50, 120).tolist()) is None


def test_a_wider_margin_rings_later():
    q = np.linspace(0, 50, 120).tolist()
    assert rings(TURNED.tolist(), q, divergence_margin=0.5) > rings(TURNED.tolist(), q)
