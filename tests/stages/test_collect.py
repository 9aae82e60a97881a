"""Stage collect: what the data set holds, and that a seed decides it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from bfmpipe import plugins
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.stages.sections import digest
from bfmpipe.types import UserError


@pytest.fixture
def data(tiny):
    return transitions.read(tiny.dataset)


def test_episodes_stand_one_after_the_other(data, tiny):
    rows = tiny.episode_steps + 1
    assert len(data.step) == tiny.episodes * rows
    assert data.episode.tolist() == np.repeat(np.arange(tiny.episodes), rows).tolist()
    assert len(data.index) == tiny.episodes * tiny.episode_steps
    last = data.action[data.step == tiny.episode_steps]
    np.testing.assert_array_equal(last, np.zeros_like(last))
    assert (data.action[data.index] != 0).all()


def test_stepping_a_stored_state_with_its_action_gives_the_next_row(data, tiny):
    domain = make_domain(tiny.domain["name"], tiny.domain["settings"])
    rows = data.index[::7]
    env = BatchedEnv(domain, len(rows), 1)
    np.testing.assert_array_equal(env.reset(data.physics[rows]), data.obs[rows])
    obs = env.step(data.action[rows])
    # the warm start of the contact solver is not stored
    np.testing.assert_allclose(env.physics, data.physics[rows + 1], atol=1e-6)
    np.testing.assert_allclose(obs, data.obs[rows + 1], atol=1e-6)


def test_exploration_starts_everywhere(data):
    starts = data.physics[data.step == 0]
    for x in (-1, 1):
        for y in (-1, 1):
            assert ((starts[:, :2] * (x, y)) > 0).all(axis=1).any()


def test_the_file_has_the_declared_schema_and_provenance(tiny):
    assert pq.read_schema(tiny.dataset).remove_metadata().equals(transitions.schema(4, 2, 4))
    _, origin = read_table(tiny.dataset, "transitions")
    assert origin.settings["episodes"] == tiny.episodes
    assert origin.settings["domain"] == tiny.domain
    used = {"envs": "point_mass_maze", "data": "persistent-random"}
    assert origin.code == digest("collect", used)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_seed_decides_every_byte_at_any_thread_count(tiny, tmp_path, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    tiny.run("collect", dataset=tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == tiny.dataset.read_bytes()


def test_another_seed_explores_otherwise(tiny, tmp_path, data):
    other = tmp_path / "other.parquet"
    tiny.run("collect", settings=tiny.settings("collect", seed=1), dataset=other)
    assert not np.array_equal(transitions.read(other).obs, data.obs)


def test_the_explorer_gets_its_settings(tiny, tmp_path):
    held = tmp_path / "held.parquet"
    explorer = {
        "name": "persistent-random",
        "settings": {"redraw_probability": 0.0, "noise_std": 0.0},
    }
    tiny.run("collect", settings=tiny.settings("collect", explorer=explorer), dataset=held)
    columns, _ = read_table(held, "transitions")
    action = columns["action"].reshape(tiny.episodes, tiny.episode_steps + 1, 2)[:, :-1]
    assert (action == action[:, :1]).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"explorer": {"name": "random"}}, "no 'random' in bfmpipe.data; it has"),
        ({"episodes": None}, "collect.episodes is missing"),
        (
            {"explorer": {"name": "exorl", "settings": {"path": "nowhere"}}},
            "collect.episodes: exorl takes episodes from files; set collect.settings.max_episodes",
        ),
        (
            {"explorer": {"name": "exorl"}, "episodes": None},
            "explorer exorl: path is missing",
        ),
        (
            {"explorer": {"name": "exorl", "settings": {"path": "x"}}, "episodes": None},
            "x: ExORL recorded point_mass_maze at 1 physics steps",
        ),
        ({"domain": {"name": "maze"}}, "no 'maze' in bfmpipe.envs; it has"),
        ({"domain": {"name": "point_mass_maze", "settings": {"dt": 1}}}, "dt is not a setting"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_written(tiny, tmp_path, changed, said):
    settings = tiny.settings("collect", **changed)
    with pytest.raises(UserError, match=said):
        tiny.run("collect", settings=settings, dataset=tmp_path / "data.parquet")
    assert not list(tmp_path.iterdir())


IMPORTS = ("exorl", "motions", "recorded")  # they bring their own episodes


@pytest.mark.parametrize("name", [n for n in plugins.names("data") if n not in IMPORTS])
def test_every_explorer_gives_valid_data(tiny, tmp_path, name):
    settings = tiny.settings("collect", explorer={"name": name}, episodes=2)
    tiny.run("collect", settings=settings, dataset=tmp_path / "data.parquet")
    assert len(transitions.read(tmp_path / "data.parquet").index) == 2 * tiny.episode_steps


def test_the_metadata_is_json_with_sorted_keys(tiny):
    text = pq.read_metadata(tiny.dataset).metadata[b"bfmpipe"].decode()
    assert text == json.dumps(json.loads(text), sort_keys=True)
