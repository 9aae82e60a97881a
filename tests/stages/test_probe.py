"""Stage probe: scores of random, of many latents, and of the best of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bfmpipe import api
from bfmpipe.agents import fb
from bfmpipe.config import parse
from bfmpipe.data.tables import read_table
from bfmpipe.networks import project_z
from bfmpipe.stages import probe as stage
from bfmpipe.types import UserError

KINDS = {
    "domain": pa.string(),
    "agent": pa.string(),
    "seed": pa.int32(),
    "family": pa.string(),
    "task": pa.string(),
    "policy": pa.string(),
    "index": pa.int32(),
    "value": pa.float64(),
    "mean": pa.float64(),
    "standard_error": pa.float64(),
    "episodes": pa.int32(),
}
TASKS = ("reach_top_left", "reach_bottom_right")


def probe(tiny, path, **changed):
    settings = tiny.settings("probe", **changed)
    files = {"model": tiny.model, "dataset": tiny.dataset, "latents": tiny.latents}
    tiny.run("probe", settings=settings, **files, scores=path)
    return read_table(path, "probe")[0]


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.parquet"
    probe(tiny, path)
    return path


@pytest.fixture(scope="module")
def scores(file):
    return read_table(file, "probe")[0]


def test_the_file_has_the_declared_schema(file):
    expected = pa.schema([pa.field(k, v, nullable=False) for k, v in KINDS.items()])
    assert pq.read_schema(file).remove_metadata().equals(expected)


def test_every_task_has_random_best_and_all_latents(scores):
    found = list(zip(scores["task"], scores["policy"], scores["index"], strict=True))
    for task in TASKS:
        rows = [row[1:] for row in found if row[0] == task]
        policies = [policy for policy, _ in rows]
        assert policies == ["random", "best", "predicted", *["latent"] * 5]
        assert [index for policy, index in rows if policy == "latent"] == list(range(5))
    assert len(found) == 2 * 8


def test_the_best_is_the_latent_of_the_highest_mean_at_selection(scores):
    for task in TASKS:
        here = scores["task"] == task
        latents = scores["mean"][here & (scores["policy"] == "latent")]
        (best,) = scores["index"][here & (scores["policy"] == "best")]
        assert best == latents.argmax()


def test_the_predicted_one_is_the_latent_of_the_highest_value(scores):
    for task in TASKS:
        here = scores["task"] == task
        values = scores["value"][here & (scores["policy"] == "latent")]
        predicted = here & (scores["policy"] == "predicted")
        assert scores["index"][predicted] == values.argmax()
        assert scores["value"][predicted] == values.max()
    assert np.isnan(scores["value"][scores["policy"] == "random"]).all()


def test_selection_and_evaluation_have_episodes_of_their_own(scores):
    selected = scores["policy"] == "latent"
    assert set(scores["episodes"][selected]) == {3}
    assert set(scores["episodes"][~selected]) == {4}


def test_the_best_is_not_scored_on_the_start_states_that_it_was_picked_on(tiny, tmp_path):
    scores = probe(tiny, tmp_path / "even.parquet", episodes=4)  # as many as the evaluation's
    here = scores["task"] == "reach_top_left"  # where the episodes start: no return is zero
    best = here & (scores["policy"] == "best")
    picked = here & (scores["policy"] == "latent") & (scores["index"] == scores["index"][best])
    assert scores["mean"][best] > 1
    assert not np.isclose(scores["mean"][best], scores["mean"][picked], rtol=1e-3)


def test_returns_are_possible(scores, tiny):
    assert (scores["mean"] >= 0).all()
    assert (scores["mean"] <= tiny.episode_steps).all()
    assert (scores["standard_error"] >= 0).all()
    assert scores["standard_error"].any()


def test_a_seed_decides_every_byte_at_any_thread_count(tiny, file, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = tmp_path / "again.parquet"
    probe(tiny, again)
    assert again.read_bytes() == file.read_bytes()


def test_another_seed_draws_other_latents_and_starts(tiny, scores, tmp_path):
    other = probe(tiny, tmp_path / "other.parquet", seed=1)
    latent = scores["policy"] == "latent"
    assert not np.array_equal(other["mean"][latent], scores["mean"][latent])


def test_more_latents_than_states_are_all_states(tiny, tmp_path):
    scores = probe(tiny, tmp_path / "all.parquet", latents=10**6, episodes=2)
    count = (scores["policy"] == "latent").sum() / 2
    assert count == tiny.episodes * tiny.episode_steps


def test_latents_are_those_of_reaching_states_by_the_models_own_inference(
    tiny, tmp_path, monkeypatch
):
    """project_z(C^+ phi) where weights are by least squares, which is far from project_z(phi)."""
    played, play = [], stage._play_all

    def watched(pretrained, tasks, z, starts):
        played.append(z)
        return play(pretrained, tasks, z, starts)

    monkeypatch.setattr(stage, "_play_all", watched)
    monkeypatch.setattr(fb.Model, "inference_weights", "least-squares")
    data = api.read_transitions(tiny.dataset)
    many = len(data.index)
    settings = tiny.settings("probe", latents=many)
    files = {"model": tiny.model, "dataset": tiny.dataset, "latents": tiny.latents}
    stage.probe(parse(stage.Probe, settings, "probe"), **files, scores=tmp_path / "probe.parquet")
    phi = api.load(tiny.model).model.phi(torch.from_numpy(data.obs[data.index + 1])).double()
    expected = project_z(phi @ torch.linalg.pinv(phi.mT @ phi / len(phi))).float()
    nearest = torch.cosine_similarity(played[0][:, None], expected, dim=-1).amax(1)
    assert len(played[0]) == many
    torch.testing.assert_close(nearest, torch.ones(many), rtol=0, atol=1e-3)


def test_an_unknown_task_is_refused(tiny, tmp_path):
    tasks = {"families": {"reach": {"names": ["reach_the_moon"]}}}
    with pytest.raises(UserError, match="no task 'reach_the_moon'; point_mass_maze has"):
        probe(tiny, tmp_path / "x.parquet", tasks=tasks)
    assert not list(tmp_path.iterdir())
