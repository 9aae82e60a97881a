"""Stage pretrain: models, tables of their training, and what is refused."""

import json
import sys
import types
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bfmpipe
from bfmpipe.adaptation.protocol import Evaluation, start_states
from bfmpipe.agents import event_files, hilp, load_model, load_tensors
from bfmpipe.agents.learner import Learner
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig
from bfmpipe.config import parse
from bfmpipe.data import transitions
from bfmpipe.data.checkpoints import set_aside
from bfmpipe.data.tables import Provenance, read_table
from bfmpipe.envs import make_domain
from bfmpipe.evaluator import Evaluator, spectrum_of
from bfmpipe.files import file_digest
from bfmpipe.inference.reward import Inference, left_out
from bfmpipe.metrics.correlation import rank_correlation
from bfmpipe.stages.pretrain import Pretrain
from bfmpipe.types import UserError

MODEL = ("model/config.json", "model/model.safetensors")
TABLES = ("losses.parquet", "evaluations.parquet", "spectrum.parquet")
FILES = (*MODEL, *TABLES)


def train(tiny, *directories, dataset=None, **changed):
    """Train a model a directory."""
    tables = {
        name.removesuffix(".parquet"): [directory / name for directory in directories]
        for name in TABLES
    }
    tiny.run(
        "pretrain",
        settings=tiny.settings("pretrain", **changed),
        dataset=dataset or tiny.dataset,
        model=[directory / "model" for directory in directories],
        **tables,
    )


def trained(tiny, directory, **changed):
    train(tiny, directory, **changed)
    return [(directory / name).read_bytes() for name in FILES]


def test_the_config_says_what_the_model_was_made_from(tiny):
    _, card = load_model(tiny.model)
    assert (card["agent"], card["domain"], card["seed"]) == ("fb", "point_mass_maze", 0)
    assert card["domain_settings"] == tiny.domain["settings"]
    assert card["transitions"] == tiny.episodes * tiny.episode_steps
    assert card["dataset_sha256"] == file_digest(tiny.dataset)
    assert card["explorer"] == "persistent-random"
    assert card["trainer"]["updates"] == 40
    assert card["versions"]["numpy"] == np.__version__
    assert set(card["config"]) > set(tiny.agent["settings"])  # defaults are written out


def test_observations_are_normalised_by_the_data(tiny):
    model, _ = load_model(tiny.model)
    obs = np.asarray(transitions.read(tiny.dataset).obs)
    np.testing.assert_allclose(model.obs_mean, obs.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.obs_std, obs.std(0, ddof=1), rtol=1e-4)


def test_losses_have_the_declared_schema_and_one_row_every_log_every_updates(tiny):
    columns, origin = read_table(tiny.losses, "losses")
    assert columns["update"].tolist() == [10, 20, 30, 40]
    assert np.isfinite([columns[name] for name in columns]).all()
    schema = pq.read_schema(tiny.losses)
    kinds = {field.name: field.type for field in schema}
    assert (kinds.pop("update"), kinds.pop("alarm")) == (pa.int64(), pa.bool_())
    assert {"fb_loss", "ortho_loss", "q"} <= kinds.keys()
    assert set(kinds.values()) == {pa.float64()}
    assert not any(field.nullable for field in schema)
    assert origin.settings["agent"] == tiny.agent


def test_a_seed_decides_every_byte(tiny, tmp_path):
    expected = [(tiny.model.parent / name).read_bytes() for name in FILES]
    assert trained(tiny, tmp_path / "again") == expected
    other = trained(tiny, tmp_path / "other", seeds=[1])
    assert all(a != b for a, b in zip(other, expected, strict=True))


def test_a_data_set_of_compressed_pages_trains_the_same_weights(tiny, tmp_path):
    origin = pq.read_metadata(tiny.dataset).metadata[b"bfmpipe"]
    table = pq.read_table(tiny.dataset).replace_schema_metadata({b"bfmpipe": origin})
    pq.write_table(table, tmp_path / "data.parquet", compression="zstd")
    train(tiny, tmp_path, dataset=tmp_path / "data.parquet")
    for name in ("model/model.safetensors", *TABLES):
        assert (tmp_path / name).read_bytes() == (tiny.model.parent / name).read_bytes()


def test_data_of_an_explorer_that_is_gone_are_as_good_as_ever(tiny, tmp_path):
    origin = json.loads(pq.read_metadata(tiny.dataset).metadata[b"bfmpipe"])
    origin["settings"]["explorer"]["name"] = "my-own"
    metadata = {b"bfmpipe": json.dumps(origin).encode()}
    table = pq.read_table(tiny.dataset).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "data.parquet", write_page_checksum=True)
    train(tiny, tmp_path, dataset=tmp_path / "data.parquet")
    assert load_model(tmp_path / "model")[1]["explorer"] == "my-own"


def test_nothing_but_model_and_tables_is_left(tiny, tmp_path):
    train(tiny, tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"model", *FILES}


def test_no_updates_past_the_last_row_are_lost(tiny, tmp_path):
    trainer = {"updates": 25, "checkpoint_every": 10, "log_every": 10}
    train(tiny, tmp_path, trainer=trainer)
    columns, _ = read_table(tmp_path / "losses.parquet", "losses")
    assert columns["update"].tolist() == [10, 20, 25]


def test_rows_shorter_than_the_interval_of_the_actor_are_whole(tiny, tmp_path):
    train(tiny, tmp_path, trainer={"updates": 4, "checkpoint_every": 4, "log_every": 1})
    columns, _ = read_table(tmp_path / "losses.parquet", "losses")
    assert np.isfinite(columns["q"]).all()


@pytest.mark.parametrize("rate", [1e6, 1e8])
def test_a_training_that_breaks_down_resumes_from_its_checkpoint(tiny, tmp_path, rate):
    # at such a rate float32 overflows a few updates after the first checkpoint, or only Adam's
    # second moments do, and nothing would move any more
    wild = {**tiny.agent, "settings": {**tiny.agent["settings"], "learning_rate": rate}}
    trainer = {"updates": 40, "checkpoint_every": 1, "log_every": 1}
    with pytest.raises(
        UserError, match=r"training broke down: '.*' is (nan|inf|-inf) at update|not finite"
    ):
        train(tiny, tmp_path, agent=wild, trainer=trainer)
    assert [path.name for path in tmp_path.iterdir()] == [".model.checkpoint.safetensors"]
    tensors, header = load_tensors(tmp_path / ".model.checkpoint.safetensors")
    assert 1 <= header["done"] < 40
    assert header["identity"]["dataset"] == file_digest(tiny.dataset)
    json.dumps(header["losses"], allow_nan=False)  # the last good state
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_checkpoint_of_other_settings_is_set_aside_until_training_has_finished(
    tiny, tmp_path, monkeypatch, capsys
):
    update = Learner.update

    def until_30(self, *arguments, **settings):
        if self.step == 30:
            raise KeyboardInterrupt
        return update(self, *arguments, **settings)

    trainer = {**tiny.settings("pretrain")["trainer"], "decay_fraction": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", until_30)
        for settings in (trainer, {**trainer, "decay_fraction": 0.25}):
            with pytest.raises(KeyboardInterrupt):
                train(tiny, tmp_path, trainer=settings)
    checkpoint = tmp_path / ".model.checkpoint.safetensors"
    assert {*tmp_path.iterdir()} == {checkpoint, *set_aside(checkpoint)}
    assert len(set_aside(checkpoint)) == 1
    said = capsys.readouterr().err
    assert "settings.trainer.decay_fraction was 0.5 and is 0.25; it is kept as .model" in said
    train(tiny, tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"model", *FILES}


@pytest.mark.parametrize(
    ("domain", "settings", "said"),
    [
        ("walker", {}, "the data set is of walker, the model of point_mass_maze"),
        (
            "point_mass_maze",
            {"physics_steps": 2},
            "with physics_steps 2, the model of physics_steps 5; collect the data with the same",
        ),
    ],
)
def test_data_of_another_domain_are_refused(tiny, tmp_path, domain, settings, said):
    data = replace(transitions.read(tiny.dataset), domain=domain, domain_settings=settings)
    origin = Provenance("transitions", {"domain": {"name": domain, "settings": settings}}, "code")
    dataset = tmp_path / "data.parquet"
    transitions.write(dataset, data, origin)
    with pytest.raises(UserError, match=said):
        train(tiny, tmp_path, dataset=dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": {"name": "bf"}}, "no 'bf' in bfmpipe.agents; it has "),
        (
            {"agent": {"name": "fb", "settings": {"preset": "wlaker"}}},
            "agent fb: there is no preset 'wlaker'; did you mean walker? valid: ",
        ),
        (
            {"tasks": {"families": {"reach": {"names": ["reach_top"]}}}},
            "domain point_mass_maze: task family reach: no task 'reach_top'",
        ),
        ({"seeds": []}, "pretrain: seeds: has 0 entries, but needs 1 or more"),
        ({"seeds": [0, 1]}, "1 paths of model for 2 seeds of fb; valid: 2"),
        (
            {"tasks": {"families": {"reach": {"names": ["reach_top_left"], "target_size": 1e-9}}}},
            "task reach/reach_top_left: all 300 rewards in the inference data are zero",
        ),
        (
            {"agent": {"name": "fb", "settings": {"z_dmi": 8}}},
            "agent fb: z_dmi is not a setting; did you mean z_dim?",
        ),
        (
            {"agent": {"name": "fb", "settings": {"batch": 601}}},
            "the data set has 600 transitions, fewer than one batch of 601",
        ),
        (
            {"agent": {"name": "fb", "settings": {"batch": 541, "stride": 3}}},
            "the data set has 540 stretches of 3 steps, fewer than one batch of 541; collect more",
        ),
        (
            {"agent": {"name": "fb", "settings": {"stride": 21}}},
            "data.parquet: no episode is long enough for a transition of 21 steps (the agent's "
            "stride): the longest has 20; set a smaller stride or collect longer episodes",
        ),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(tiny, tmp_path, changed, said):
    with pytest.raises(UserError) as caught:
        train(tiny, tmp_path, **changed)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.filterwarnings("error")
def test_a_data_set_without_transitions_is_one_sentence(tiny, tmp_path, rows):
    data = transitions.read(tiny.dataset)
    columns = ("episode", "step", "obs", "action", "physics")
    short = replace(data, **{name: getattr(data, name)[:rows] for name in columns})
    _, origin = read_table(tiny.dataset, "transitions")
    transitions.write(tmp_path / "data.parquet", short, origin)
    with pytest.raises(UserError) as caught:
        train(tiny, tmp_path, dataset=tmp_path / "data.parquet")
    assert str(caught.value).startswith(
        f"{tmp_path / 'data.parquet'}: no episode is long enough for a transition of 1 steps"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


# transitions of several steps


STRIDE = 3
LENGTHS = (9, 2, 14, 21)  # rows an episode


@pytest.fixture(scope="module")
def uneven(tiny, tmp_path_factory):
    """The tiny data, cut to episodes of several lengths."""
    data = transitions.read(tiny.dataset)
    starts = (tiny.episode_steps + 1) * np.arange(len(LENGTHS))
    rows = np.concatenate([s + np.arange(n) for s, n in zip(starts, LENGTHS, strict=True)])
    columns = ("episode", "step", "obs", "action", "physics")
    cut = replace(data, **{name: getattr(data, name)[rows] for name in columns})
    _, origin = read_table(tiny.dataset, "transitions")
    path = tmp_path_factory.mktemp("uneven") / "data.parquet"
    transitions.write(path, cut, origin)
    return path


def seen_in_training(monkeypatch, *arguments, **settings):
    """Train, and what the learner was given: a list of batches an update, one a seed."""
    seen = []
    update = Learner.update

    def watched(self, batches, **given):
        seen.append(batches)
        return update(self, batches, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", watched)
        train(*arguments, **settings)
    return seen


def strided(name, **settings):
    common = {"z_dim": 6, "architecture": "concatenated", "hidden_dim": 16, "batch": 16}
    return {"name": name, "settings": {**common, "stride": STRIDE, **settings}}


def test_a_stride_trains_what_a_trainer_made_by_hand_trains(tiny, tmp_path, uneven):
    agent, seed = strided("hilp", feature_hidden_dim=8), 1
    trainer = {"updates": 6, "checkpoint_every": 6, "log_every": 2}
    train(tiny, tmp_path, dataset=uneven, agent=agent, trainer=trainer, seeds=[seed])

    data = transitions.read(uneven)
    obs, action = (torch.from_numpy(np.asarray(x)) for x in (data.obs, data.action))
    index, last, first = [], [], 0
    for length in LENGTHS:
        end = first + length - 1
        index += range(first, end - STRIDE + 1)
        last += [end] * max(0, length - STRIDE)
        first = end + 1
    torch.manual_seed(seed)
    by_hand = hilp.Agent(parse(hilp.Config, agent["settings"], "hilp"), 4, 2)
    by_hand.model.obs_mean.copy_(obs.mean(0))
    by_hand.model.obs_std.copy_(obs.std(0))
    config = parse(TrainerConfig, trainer, "trainer")
    learner = Learner([by_hand], [torch.Generator().manual_seed(seed)], config)
    rows = Data(obs, action, torch.tensor(index), STRIDE, torch.tensor(last))
    Trainer(learner, rows, config, {}).run(tmp_path / "checkpoint.safetensors")

    model, _ = load_model(tmp_path / "model")
    expected = by_hand.model.state_dict()
    assert [n for n, t in model.state_dict().items() if not torch.equal(t, expected[n])] == []
    # what it is looked at on are the states that training led to
    phi = model.phi(obs[torch.tensor(index) + STRIDE]).double().numpy()
    eigenvalues = np.linalg.svd(phi, compute_uv=False) ** 2 / len(phi)
    found = spectrum(tmp_path)["eigenvalues"][-1]
    np.testing.assert_allclose(found, eigenvalues, rtol=1e-5, atol=1e-9)


def test_transitions_of_several_steps_stay_in_their_episodes(tiny, tmp_path, uneven, monkeypatch):
    data = transitions.read(uneven)
    obs = np.asarray(data.obs)
    row = {tuple(x): i for i, x in enumerate(obs.tolist())}
    assert len(row) == len(obs)

    def rows(x):
        return np.array([row[tuple(one)] for one in x.tolist()])

    agent = strided("hilp", feature_hidden_dim=8)
    seen = seen_in_training(monkeypatch, tiny, tmp_path, dataset=uneven, agent=agent)
    (batches,) = zip(*seen, strict=True)
    now, then, later = (
        np.concatenate([rows(getattr(batch, name)) for batch in batches])
        for name in ("obs", "next_obs", "future")
    )
    assert set(now) == set(data.index_of(STRIDE))
    np.testing.assert_array_equal(then, now + STRIDE)
    np.testing.assert_array_equal(data.episode[then], data.episode[now])
    np.testing.assert_array_equal(data.episode[later], data.episode[now])
    assert (later >= then).all()
    assert (later > then).any()
    action = np.concatenate([batch.action for batch in batches])
    expected = np.stack([np.asarray(data.action[now + i]) for i in range(STRIDE)]).mean(0)
    np.testing.assert_allclose(action, expected, atol=1e-6)


def test_tasks_are_inferred_from_the_states_that_a_stride_leads_to(tiny, uneven):
    data = transitions.read(uneven)
    domain = make_domain(tiny.domain["name"], tiny.domain["settings"])
    cfg = parse(Pretrain, tiny.settings("pretrain", agent=strided("fb")), "pretrain")
    tasks = cfg.tasks.tasks(domain)
    how = cfg.inference, cfg.evaluation
    evaluator = Evaluator.of(domain, tasks, data, STRIDE, 0, *how)
    reached = [i for i in range(len(data.step)) if data.step[i] >= STRIDE]
    np.testing.assert_array_equal(evaluator.obs, data.obs[reached])
    np.testing.assert_array_equal(evaluator.states, data.obs[reached])
    for i, task in enumerate(tasks):
        # a target's reward counts the action that led there
        expected = [domain.relabel(task, data.physics[[r]], data.action[[r - 1]]) for r in reached]
        np.testing.assert_allclose(evaluator.reward[i], np.concatenate(expected))


def test_every_seed_draws_batches_of_its_own(tiny, tmp_path, monkeypatch):
    trainer = {"updates": 2, "checkpoint_every": 2, "log_every": 2}
    places = [tmp_path / "seed0", tmp_path / "seed1"]
    seen = seen_in_training(monkeypatch, tiny, *places, seeds=[0, 1], trainer=trainer)
    for one, two in seen:
        assert not torch.equal(one.obs, two.obs)
    alone = seen_in_training(monkeypatch, tiny, tmp_path / "alone", seeds=[1], trainer=trainer)
    for (one,), (_, two) in zip(alone, seen, strict=True):
        assert torch.equal(one.obs, two.obs)


def test_an_entry_that_never_moves_trains_no_nan(tiny, tmp_path):
    data = transitions.read(tiny.dataset)
    obs = np.array(data.obs)
    obs[:, 2] = 0.5
    _, origin = read_table(tiny.dataset, "transitions")
    transitions.write(tmp_path / "data.parquet", replace(data, obs=obs), origin)
    train(tiny, tmp_path, dataset=tmp_path / "data.parquet")
    model, _ = load_model(tmp_path / "model")
    assert model.obs_std[2] == pytest.approx(1e-6)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


# evaluations while it trains


EVERY_20 = {"updates": 40, "checkpoint_every": 20, "log_every": 10, "evaluate_every": 20}


def evaluations(directory):
    return read_table(directory / "evaluations.parquet", "evaluations")[0]


def spectrum(directory):
    return read_table(directory / "spectrum.parquet", "spectrum")[0]


@pytest.fixture(scope="module")
def watched(tiny, tmp_path_factory):
    """A training that is evaluated twice."""
    directory = tmp_path_factory.mktemp("watched")
    train(tiny, directory, trainer=EVERY_20)
    return directory


def test_tables_of_evaluations_have_the_declared_schemas(watched, tiny):
    found = pq.read_schema(watched / "evaluations.parquet")
    assert found.names == [
        *("update", "family", "task", "mean", "standard_error"),
        *("q_predicted", "q_monte_carlo", "q_correlation", "episodes"),
    ]
    assert not any(field.nullable for field in found)
    table = evaluations(watched)
    assert table["update"].tolist() == [20, 20, 40, 40]
    assert table["task"].tolist() == ["reach_top_left", "reach_bottom_right"] * 2
    assert table["episodes"].tolist() == [4] * 4
    table, origin = read_table(watched / "spectrum.parquet", "spectrum")
    assert table["update"].tolist() == [20, 40]
    assert table["eigenvalues"].shape == (2, 6)
    assert origin.settings["agent"] == tiny.agent
    assert evaluations(tiny.model.parent)["update"].tolist() == [40, 40]  # the end always has one


def test_an_evaluation_is_that_of_the_inferred_latents_from_starts_of_its_own(tiny):
    # worked out again from the stage infer's latents, one task and one step at a time
    pretrained = bfmpipe.load(tiny.model)
    domain, model = pretrained.domain, pretrained.model
    latents, _ = read_table(tiny.latents, "latents")
    starts = domain.start_states(4, np.random.default_rng([0, 0x7EA1]))
    reported = start_states(domain, Evaluation(episodes=4))
    assert not np.isin(starts[:, :2], reported[:, :2]).any()  # the others rest
    tasks = domain.tasks("reach", ["reach_top_left", "reach_bottom_right"], {"target_size": 0.1})
    table = evaluations(tiny.model.parent)
    for i, task in enumerate(tasks):
        z, w = (torch.from_numpy(latents[name][i]) for name in "zw")
        played = bfmpipe.play(pretrained, z, starts)
        returns, discounted = np.zeros(4), np.zeros(4)
        for t, action in enumerate(played.action):
            rewards = domain.relabel(task, played.physics[t + 1], action)
            returns += rewards
            discounted += model.discount**t * rewards
        values = model.q(
            torch.from_numpy(played.obs[0]),
            torch.from_numpy(played.action[0]),
            z.expand(4, -1),
            w.expand(4, -1),
        )
        assert table["mean"][i] == pytest.approx(returns.mean())
        assert table["standard_error"][i] == pytest.approx(returns.std(ddof=1) / 2)
        assert table["q_monte_carlo"][i] == pytest.approx(discounted.mean())
        assert table["q_predicted"][i] == pytest.approx(values.mean().item(), rel=1e-5)
        correlation = rank_correlation(values.numpy(), discounted)
        assert table["q_correlation"][i] == pytest.approx(correlation, nan_ok=True)


def test_the_spectrum_is_that_of_the_features_over_the_data(tiny):
    model, _ = load_model(tiny.model)
    data = transitions.read(tiny.dataset)
    phi = model.phi(torch.from_numpy(data.obs[data.index + 1])).double().numpy()
    expected = np.linalg.svd(phi, compute_uv=False) ** 2 / len(phi)
    table = spectrum(tiny.model.parent)
    np.testing.assert_allclose(table["eigenvalues"][-1], expected, rtol=1e-5, atol=1e-9)
    share = expected / expected.sum()
    rank = np.exp(-(share * np.log(share)).sum())
    assert table["effective_rank"][-1] == pytest.approx(rank, rel=1e-5)


def test_without_tasks_there_is_the_spectrum_alone(tiny, tmp_path):
    train(tiny, tmp_path, tasks={"families": {}})
    one, two = (place / "model.safetensors" for place in (tmp_path / "model", tiny.model))
    assert one.read_bytes() == two.read_bytes()
    assert len(evaluations(tmp_path)["update"]) == 0
    one, two = spectrum(tmp_path), spectrum(tiny.model.parent)
    assert all(np.array_equal(one[name], two[name]) for name in two)
    assert "zero_shot" not in load_model(tmp_path / "model")[1]
    assert [r["mean"] for r in load_model(tiny.model)[1]["zero_shot"]] == (
        evaluations(tiny.model.parent)["mean"].tolist()
    )


def test_the_spectrum_is_that_of_second_moments_not_of_the_covariance():
    phi = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert spectrum_of(phi).tolist() == [2.0, 0.5]


def test_evaluations_change_nothing_of_the_training(watched, tiny):
    assert (watched / "model" / "model.safetensors").read_bytes() == (
        tiny.model / "model.safetensors"
    ).read_bytes()
    one, two = (read_table(path, "losses")[0] for path in (watched / "losses.parquet", tiny.losses))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    for read in (evaluations, spectrum):
        one, two = read(watched), read(tiny.model.parent)
        last = one["update"] == 40
        assert all(np.array_equal(column[last], two[name]) for name, column in one.items())


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_killed_training_has_the_same_evaluations_in_the_end(tiny, tmp_path, monkeypatch, seeds):
    whole = [tmp_path / f"whole{seed}" for seed in seeds]
    train(tiny, *whole, trainer=EVERY_20, seeds=seeds)
    killed = [tmp_path / f"killed{seed}" for seed in seeds]
    update = Learner.update

    def until_30(self, *arguments, **settings):
        if self.step == 30:
            raise KeyboardInterrupt
        return update(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", until_30)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, *killed, trainer=EVERY_20, seeds=seeds)
    _, header = load_tensors(killed[0] / ".model.checkpoint.safetensors")
    assert [look["update"] for look in header["evaluations"]] == [20] * len(seeds)
    train(tiny, *killed, trainer=EVERY_20, seeds=seeds)
    for one, two in zip(whole, killed, strict=True):
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


def test_how_often_checkpoints_are_written_changes_nothing_else(
    tiny, tmp_path, monkeypatch, capsys
):
    train(tiny, tmp_path / "whole", trainer=EVERY_20)
    update = Learner.update

    def until_30(self, *arguments, **settings):
        if self.step == 30:
            raise KeyboardInterrupt
        return update(self, *arguments, **settings)

    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", until_30)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, killed, trainer=EVERY_20)
    train(tiny, killed, trainer={**EVERY_20, "checkpoint_every": 10})
    assert "a checkpoint of another" not in capsys.readouterr().err
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    one, two = (
        read_table(tmp_path / x / "losses.parquet", "losses")[0] for x in ("whole", "killed")
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_killed_at_each_checkpoint_by_the_clock_it_ends_in_the_same_bytes(
    tiny, tmp_path, killed_at_each_checkpoint, seeds
):
    straight, killed = ([tmp_path / x / str(seed) for seed in seeds] for x in ("one", "two"))
    for directory in (*straight, *killed):
        directory.mkdir(parents=True)
    train(tiny, *straight, seeds=seeds, trainer=EVERY_20)
    again = partial(train, tiny, *killed, seeds=seeds, trainer=EVERY_20)
    assert killed_at_each_checkpoint(again) == [10, 20, 30]
    for one, two in zip(straight, killed, strict=True):
        assert {str(path.relative_to(two)) for path in two.rglob("*")} == {"model", *FILES}
        for name in FILES:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_constant_that_weights_leave_out_is_added_to_values():
    """psi of a reward's mean is unknown to weights that stand for the rest of it."""
    obs = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    phi = obs - obs.mean(0)
    w = torch.tensor([1.0, -2.0, 0.5])

    class Centred:
        inference_weights = "least-squares"

        def phi(self, x):
            return x - obs.mean(0)

    model = Centred()
    reward = (phi @ w + 3)[None].double()

    def constant(**settings):
        return left_out(model, obs, reward, w[None], Inference(**settings))

    np.testing.assert_allclose(constant(), [3], rtol=1e-6)
    np.testing.assert_allclose(constant(weights="expectation"), [0])
    np.testing.assert_allclose(constant(weights="expectation", centred=True), [3], rtol=1e-6)


# several seeds in one job


def test_seeds_trained_together_are_those_trained_alone(tiny, tmp_path):
    places = [tmp_path / "seed0", tmp_path / "seed1"]
    train(tiny, *places, seeds=[0, 1], trainer=EVERY_20)
    for seed, place in enumerate(places):
        assert {str(p.relative_to(place)) for p in place.rglob("*")} == {"model", *FILES}
        alone = tmp_path / f"alone{seed}"
        train(tiny, alone, seeds=[seed], trainer=EVERY_20)
        one, two = (load_model(directory / "model")[0].state_dict() for directory in (alone, place))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
        for name in TABLES:
            kind = name.removesuffix(".parquet")
            a, origin = read_table(alone / name, kind)
            b, together = read_table(place / name, kind)
            assert a.keys() == b.keys()
            for column in a.keys() - {"family", "task", "q_correlation"}:
                np.testing.assert_allclose(b[column], a[column], rtol=1e-3, atol=1e-4)
            assert together.settings == {**origin.settings, "seeds_together": [0, 1]}
        _, card = load_model(place / "model")
        assert (card["seed"], card["seeds_together"]) == (seed, [0, 1])
    weights = [(place / "model" / "model.safetensors").read_bytes() for place in places]
    assert weights[0] != weights[1]


# alarms and damage


def test_an_alarm_is_told_in_the_words_of_the_agent(tiny, tmp_path, capsys):
    # with no margin it rings wherever the loss is not at its minimum
    trainer = {"updates": 60, "checkpoint_every": 60, "log_every": 1, "divergence_margin": 1e-9}
    train(tiny, tmp_path, trainer=trainer)
    columns, _ = read_table(tmp_path / "losses.parquet", "losses")
    first = columns["update"][columns["alarm"]][0]
    _, card = load_model(tmp_path / "model")
    assert card["diverged_at"] == first
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'model'}: fb_loss turned at update {first} while q kept" in said


def test_a_model_of_another_architecture_and_a_damaged_one_are_refused(model_copy, edit_card):
    _, card = load_model(model_copy)
    edit_card(config={**card["config"], "hidden_dim": 32})
    with pytest.raises(UserError, match=r"does not fit config.json: tensor '.*' has shape") as said:
        load_model(model_copy)
    assert "\n" not in str(said.value)
    path = model_copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"the contents are not those that were saved"):
        load_model(model_copy)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load_model(model_copy)


# TensorBoard


def test_without_tensorboard_its_event_files_are_refused_at_the_start(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'bfmpipe\[tensorboard\]'"):
        train(tiny, tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


class Writer:
    """Stands in for torch.utils.tensorboard.SummaryWriter: keeps what it is told."""

    made: ClassVar[list] = []

    def __init__(self, directory):
        directory.mkdir(parents=True)
        self.directory, self.scalars, self.closed = directory, {}, False
        self.made.append(self)

    def add_scalar(self, name, value, step):
        assert (name, step) not in self.scalars
        self.scalars[name, step] = value

    def close(self):
        self.closed = True


def test_event_files_hold_losses_and_evaluations_and_change_no_byte(
    tiny, tmp_path, monkeypatch, watched
):
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(event_files.importlib.util, "find_spec", lambda name: name)
    Writer.made.clear()
    train(tiny, tmp_path, trainer=EVERY_20, tensorboard=True)
    assert all((tmp_path / name).read_bytes() == (watched / name).read_bytes() for name in FILES)
    (writer,) = Writer.made
    assert (writer.directory, writer.closed) == (tmp_path / "tensorboard", True)
    losses, _ = read_table(tmp_path / "losses.parquet", "losses")
    for i, update in enumerate(losses["update"].tolist()):
        assert writer.scalars["losses/fb_loss", update] == losses["fb_loss"][i]
    table = evaluations(tmp_path)
    for i, update in enumerate(table["update"].tolist()):
        name = f"evaluations/mean/reach/{table['task'][i]}"
        assert writer.scalars[name, update] == table["mean"][i]
    assert ("evaluations/effective_rank", 40) in writer.scalars


def test_tensorboard_reads_the_event_files(tiny, tmp_path, watched):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny, tmp_path, trainer=EVERY_20, tensorboard=True)
    assert all((tmp_path / name).read_bytes() == (watched / name).read_bytes() for name in FILES)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("losses/fb_loss")] == [10, 20, 30, 40]
    assert [e.step for e in events.Scalars("evaluations/effective_rank")] == [20, 40]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(tiny, tmp_path):
    trainer = {**tiny.settings("pretrain")["trainer"], "device": "cuda"}
    with pytest.raises(UserError, match="torch finds no usable GPU on this machine; set it to cpu"):
        train(tiny, tmp_path, trainer=trainer)
    assert not list(tmp_path.iterdir())
