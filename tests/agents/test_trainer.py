"""Training: interrupted or not it ends in the same bits, and it stops where it breaks down."""

import re

import numpy as np
import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig
from bfmpipe.config import parse
from bfmpipe.data import transitions
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


def trainer(identity=None, config=TRAINING, seed=0, rows=200, agent_config=CONFIG):
    rng = np.random.default_rng(0)
    data = Data(
        torch.from_numpy(rng.standard_normal((rows, 3)).astype(np.float32)),
        torch.from_numpy(rng.uniform(-1, 1, (rows, 2)).astype(np.float32)),
        torch.arange(rows - 1),
    )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    agent = fb.Agent(agent_config, 3, 2, generator)
    return Trainer(
        agent=agent,
        data=data,
        batch=agent_config.batch,
        config=config,
        generator=generator,
        identity=IDENTITY if identity is None else identity,
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
    agent = trained.agent
    state = {f"model/{k}": v for k, v in agent.model.state_dict().items()}
    for name, target in agent.targets.items():
        state |= {f"{name}/{k}": v for k, v in target.state_dict().items()}
    for name, optimiser in agent.optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            state |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
    return {**state, "generator": trained.generator.get_state()}


def assert_same(one, two):
    assert (one.done, one.agent.step) == (two.done, two.agent.step)
    assert one.losses == two.losses
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
    parts = ("forward_map", "backward_map", "policy")
    for part in parts:
        names = [n for n in before if n.startswith(f"model/{part}") and before[n].numel() > 1]
        assert names
        assert any(not torch.equal(before[n], after[n]) for n in names)
    assert [row["update"] for row in straight.losses] == [5, 10, 15, 20, 25, 30]


def test_the_same_seed_trains_the_same_and_another_does_not(straight, checkpoint):
    again, other = trainer(), trainer(seed=1)
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
    "identity",
    [
        {**IDENTITY, "settings": {"seed": 1}},
        {**IDENTITY, "code": "other"},
        {**IDENTITY, "dataset": "other"},
        {},
    ],
)
def test_a_checkpoint_of_another_training_is_ignored(straight, checkpoint, identity):
    interrupted(checkpoint, identity=identity)
    steps = []
    afresh = trainer()
    afresh.run(checkpoint, steps.append)
    assert steps[0] == 0
    assert_same(afresh, straight)


def test_a_training_that_breaks_down_names_no_checkpoint_of_another(checkpoint):
    interrupted(checkpoint, identity={"seed": 1})
    broken = trainer()
    broken.data.obs[:] = float("nan")
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
    update = trained.agent.update

    def watched(*batch, learning_rate_scale):
        metrics = update(*batch, learning_rate_scale=learning_rate_scale)
        rates.append([o.param_groups[0]["lr"] / 1e-3 for o in trained.agent.optimisers.values()])
        return metrics

    trained.agent.update = watched
    trained.run(checkpoint)
    expected = [min(1, (30 - i) / 15) for i in range(30)]
    np.testing.assert_allclose(rates, np.array([expected, expected]).T)


def test_rows_are_means_over_log_every_updates(straight, checkpoint):
    each = trainer(config=TRAINING.model_copy(update={"log_every": 1}))
    each.run(checkpoint)
    for name in ("fb_loss", "ortho_loss"):
        rows = np.array([row[name] for row in each.losses]).reshape(6, 5)
        np.testing.assert_allclose([row[name] for row in straight.losses], rows.mean(1), rtol=1e-5)


def test_a_row_without_an_actor_update_keeps_the_last_value(checkpoint):
    each = trainer(config=TRAINING.model_copy(update={"log_every": 1}))
    each.run(checkpoint)
    q = [row["q"] for row in each.losses]
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
            broken.data.obs[:] = float("nan")

    with pytest.raises(UserError) as caught:
        broken.run(checkpoint, poison)
    said = str(caught.value)
    assert said.startswith("training broke down: 'fb_loss' is nan by update 30; ")
    assert f"the last good state is in {checkpoint}" in said
    assert "\n" not in said

    whole, rescued = trainer(config=config), trainer(config=config)
    whole.run(checkpoint.with_name("whole.safetensors"))
    rescued.run(checkpoint)  # the data are good again
    assert_same(rescued, whole)


def test_breaking_down_before_the_first_checkpoint_says_that_there_is_none(checkpoint):
    broken = trainer()
    broken.data.obs[:] = float("nan")
    with pytest.raises(UserError, match=r"by update 5; .*no checkpoint was due yet"):
        broken.run(checkpoint)
    assert not checkpoint.exists()


@pytest.mark.parametrize(("checkpoint_every", "log_every"), [(15, 10), (5, 10)])
def test_checkpoints_must_stand_at_the_end_of_a_row(checkpoint_every, log_every):
    settings = {"checkpoint_every": checkpoint_every, "log_every": log_every}
    with pytest.raises(UserError) as caught:
        parse(TrainerConfig, settings, "config.yaml", at="pretrain")
    assert str(caught.value) == (
        f"config.yaml: pretrain: checkpoint_every ({checkpoint_every}) must be a multiple of "
        f"log_every ({log_every})"
    )


@pytest.mark.parametrize("stride", [1, 3])
def test_a_sample_leads_stride_rows_further_by_the_mean_action(stride):
    rows = torch.arange(20.0)[:, None]
    index = torch.tensor([0, 5, 11])
    data = Data(rows, 2 * rows, index, stride)
    obs, action, next_obs = data.sample(200, torch.Generator().manual_seed(0))
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
        {"update": 100 * (i + 1), "fb_loss": x, "q": y}
        for i, (x, y) in enumerate(zip(loss, q, strict=True))
    ]
    return watched.diverged_at


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
    other.losses = [{"update": 1, "hilbert_loss": 1.0}]
    assert other.diverged_at is None


def test_a_wider_margin_rings_later():
    q = np.linspace(0, 50, 120).tolist()
    assert rings(TURNED.tolist(), q, divergence_margin=0.5) > rings(TURNED.tolist(), q)
