"""A data set that is there already: its episodes as they are, and what is none is refused."""

import os

import numpy as np
import pytest

from bfmpipe.data import recorded, transitions
from bfmpipe.data.tables import read_table
from bfmpipe.stages.collect import Collect, collect
from bfmpipe.types import UserError


def settings(tiny, **changed):
    explorer = {"name": "recorded", "settings": {"path": str(tiny.dataset), **changed}}
    return {"domain": tiny.domain, "explorer": explorer, "seed": 0}


def test_it_is_the_same_data_set(tiny, tmp_path):
    path = tmp_path / "again.parquet"
    collect(Collect.model_validate(settings(tiny)), dataset=path)
    data, again = transitions.read(tiny.dataset), transitions.read(path)
    for name in ("episode", "step", "obs", "action", "physics"):
        rows = slice(None)
        np.testing.assert_array_equal(getattr(again, name)[rows], getattr(data, name)[rows])


def test_the_first_episodes_are_taken_in_numbers_from_zero(tiny, tmp_path):
    path, late = tmp_path / "again.parquet", tmp_path / "late.parquet"
    data = transitions.read(tiny.dataset)
    rows = data.episode >= 2
    columns = {name: getattr(data, name)[rows] for name in ("step", "obs", "action", "physics")}
    _, origin = transitions.open_table(tiny.dataset, transitions.KIND)
    part = transitions.Transitions(data.domain, data.domain_settings, data.episode[rows], **columns)
    transitions.write(late, part, origin)
    cfg = settings(tiny, path=str(late), max_episodes=3)
    collect(Collect.model_validate(cfg), dataset=path)
    found = transitions.read(path)
    assert np.bincount(found.episode).tolist() == [tiny.episode_steps + 1] * 3
    np.testing.assert_array_equal(found.obs[:], part.obs[: 3 * (tiny.episode_steps + 1)])


def test_its_provenance_says_where_it_came_from(tiny, tmp_path):
    path = tmp_path / "again.parquet"
    collect(Collect.model_validate(settings(tiny)), dataset=path)
    _, origin = read_table(path, transitions.KIND)
    assert origin.source["format"] == "recorded"
    assert origin.source["episodes"] == tiny.episodes
    assert origin.source["fingerprint"] == recorded.fingerprint(str(tiny.dataset), "any")


def test_another_file_has_another_fingerprint(tmp_path):
    path = tmp_path / "walker.parquet"
    pattern = str(tmp_path / "{domain}.parquet")
    assert recorded.fingerprint(pattern, "walker") is None
    path.write_bytes(b"one")
    before = recorded.fingerprint(pattern, "walker")
    assert recorded.fingerprint(pattern, "walker") == before
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert recorded.fingerprint(pattern, "walker") != before


@pytest.mark.parametrize(
    ("domain", "path", "said"),
    [
        (
            {"settings": {"physics_steps": 4}},
            {},
            r"data\.parquet: the data set is of point_mass_maze with physics_steps 5, the exp",
        ),
        (
            {"name": "walker", "settings": {}},
            {},
            "data.parquet: the data set is of point_mass_maze, the experiment of walker",
        ),
        ({}, {"path": "nowhere.parquet"}, "nowhere.parquet: no such file"),
    ],
)
def test_what_is_none_of_the_domain_is_refused(tiny, tmp_path, domain, path, said):
    cfg = settings(tiny, **path)
    cfg["domain"] = {**cfg["domain"], **domain}
    with pytest.raises(UserError, match=said):
        collect(Collect.model_validate(cfg), dataset=tmp_path / "data.parquet")
    assert not any(tmp_path.iterdir())
