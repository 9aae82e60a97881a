"""Motions: states from files, observed as the domain observes them, and every bad file named."""

import json
import os
import sys

import h5py
import numpy as np
import pyarrow as pa
import pytest

from bfmpipe.config import parse
from bfmpipe.data import motions, transitions
from bfmpipe.data.tables import Provenance, open_table, write_table
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.stages.collect import Collect, collect
from bfmpipe.types import UserError

FRAMES = (5, 3, 8)


@pytest.fixture(scope="module")
def walker():
    return make_domain("walker", {})


def states(domain, frames, seed=0):
    rng = np.random.default_rng(seed)
    physics = domain.start_states(frames, rng)
    physics[:, domain.model.nq :] = rng.normal(size=(frames, domain.model.nv))
    return physics


def save(path, physics, nq):
    np.savez(path, qpos=physics[:, :nq], qvel=physics[:, nq:], name=np.array("a walk"))


@pytest.fixture
def folder(walker, tmp_path):
    for i, frames in enumerate(FRAMES):
        save(tmp_path / f"m{i}.npz", states(walker, frames, i), 9)
    return tmp_path


def write_trajectories(path, domain, owner="walker", **settings):
    """Two tasks, before and after, two episodes of four frames each."""
    rows = [
        (task, phase, episode, step)
        for task in ("stand", "walk")
        for phase in ("before", "after")
        for episode in (0, 1)
        for step in range(4)
    ]
    task, phase, episode, step = zip(*rows, strict=True)
    physics = states(domain, len(rows), 9)
    columns = {"task": task, "phase": phase, "episode": episode, "step": step, "physics": physics}
    kinds = dict.fromkeys(("task", "phase"), pa.string())
    kinds |= dict.fromkeys(("episode", "step"), pa.int32())
    kinds["physics"] = pa.list_(pa.float64(), physics.shape[1])
    shape = pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()])
    source = {"domain_settings": {**domain.config.model_dump(), **settings}}
    origin = Provenance("trajectories", {"domain": owner}, "test", source=source)
    write_table(path, shape, columns, origin)
    return np.array(task), np.array(phase), physics


def read(domain, path, **settings):
    return list(motions.Explorer(motions.Config(path=str(path), **settings), domain).episodes())


def test_motions_are_the_files_states_observed_as_the_domain_does(walker, folder):
    found = read(walker, folder / "*.npz")
    assert [len(one["obs"]) for one in found] == [*FRAMES]
    for i, (one, frames) in enumerate(zip(found, FRAMES, strict=True)):
        expected = states(walker, frames, i)
        np.testing.assert_array_equal(one["physics"], expected)
        np.testing.assert_array_equal(one["obs"], BatchedEnv(walker, frames, 1).reset(expected))
        assert not one["action"].any()
        assert one["episode"].tolist() == [i] * frames
        assert one["step"].tolist() == [*range(frames)]
    assert len(read(walker, folder / "*.npz", max_episodes=2)) == 2


@pytest.mark.parametrize(("tasks", "phase"), [(None, "after"), (("walk",), "before")])
def test_trajectories_of_the_pipeline_are_motions(walker, tmp_path, tasks, phase):
    path = tmp_path / "lola.trajectories.parquet"
    task, when, physics = write_trajectories(path, walker)
    found = read(walker, path, tasks=tasks, phase=phase)
    expected = physics[(when == phase) & np.isin(task, tasks or ("stand", "walk"))]
    assert [len(one["obs"]) for one in found] == [4] * (len(expected) // 4)
    np.testing.assert_array_equal(np.concatenate([one["physics"] for one in found]), expected)


def write_hdf5(path, groups, nq=9):
    with h5py.File(path, "w") as file:
        file.attrs["num_episodes"] = len(groups)
        for name, physics in groups.items():
            group = file if name == "/" else file.create_group(name)
            group["qpos"], group["qvel"] = physics[:, :nq], physics[:, nq:]
            group["observation"] = np.zeros((len(physics), 3))  # left alone


def test_groups_of_an_hdf5_file_are_motions_in_their_order(walker, tmp_path):
    groups = {f"ep_{i}": states(walker, 3 + i, i) for i in range(11)}
    write_hdf5(tmp_path / "all.hdf5", groups)
    write_hdf5(tmp_path / "one.h5", {"/": groups["ep_4"]})
    found = read(walker, tmp_path / "*")
    assert len(found) == 12
    for one, expected in zip(found, [*groups.values(), groups["ep_4"]], strict=True):
        np.testing.assert_array_equal(one["physics"], expected)
        np.testing.assert_array_equal(one["obs"], walker.observe(walker.split(expected)))
    assert len(read(walker, tmp_path / "all.hdf5", max_episodes=2)) == 2


def test_an_hdf5_file_that_holds_no_motion_is_refused(walker, tmp_path, monkeypatch):
    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            read(walker, tmp_path / "*.h5")
        assert "\n" not in str(caught.value)

    path = tmp_path / "a.h5"
    path.write_bytes(b"nothing")
    refused(r"a\.h5: cannot be read as an HDF5 file \(")
    write_hdf5(path, {})
    refused(r"a\.h5: no array 'qpos'; a motion has qpos \(T, 9\)")
    write_hdf5(path, {"ep_0": states(walker, 3), "ep_1": states(walker, 1)})
    refused(r"a\.h5, ep_1: a motion of 1 frame")
    write_hdf5(path, {"ep_0": states(walker, 3), "ep_1": states(walker, 3)[:, :17]})
    refused(r"a\.h5, ep_1: qvel is float64 of shape \(3, 8\); a motion of walker has")
    with h5py.File(path, "w") as file:
        file.create_group("ep_0").create_group("qpos")
    refused(r"a\.h5, ep_0: qpos is no array")
    before = motions.fingerprint(str(path), "walker")
    os.utime(path, ns=(0, 1))
    assert motions.fingerprint(str(path), "walker") != before
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(r"a\.h5: an HDF5 file, but the package h5py is not installed; pip install 'bfmpipe\[h")


def test_the_stage_writes_a_data_set_that_says_where_it_is_from(folder, tmp_path):
    settings = {"path": str(folder / "*.npz")}
    cfg = {"domain": {"name": "walker"}, "explorer": {"name": "motions", "settings": settings}}
    dataset = tmp_path / "data.parquet"
    collect(Collect.model_validate_json(json.dumps({**cfg, "seed": 0})), dataset=dataset)
    data = transitions.read(dataset)
    assert np.bincount(data.episode).tolist() == [*FRAMES]
    assert len(data.index) == sum(FRAMES) - len(FRAMES)
    file, origin = open_table(dataset, transitions.KIND)
    file.close()
    assert origin.source["episodes"] == 3
    assert origin.source["fingerprint"] == motions.fingerprint(settings["path"], "walker")


def test_a_fingerprint_is_of_the_files_that_are_there(folder):
    pattern = str(folder / "{domain}*.npz")
    assert motions.fingerprint(pattern, "walker") is None
    first = motions.fingerprint(pattern, "m")
    assert first
    save(folder / "m1.npz", states(make_domain("walker", {}), FRAMES[1], 77), 9)
    second = motions.fingerprint(pattern, "m")
    assert second != first  # as many frames, others
    first = second
    (folder / "m1.npz").unlink()
    assert motions.fingerprint(pattern, "m") != first


def test_what_is_no_motion_is_refused(walker, tmp_path):
    def refused(match, pattern="*", domain=walker, **settings):
        with pytest.raises(UserError, match=match) as caught:
            read(domain, tmp_path / pattern, **settings)
        assert "\n" not in str(caught.value)

    refused("no such files; motions are npz or HDF5 files with qpos and qvel, or tables of")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    refused(r"a\.npz: cannot be read as an npz file; it is")
    np.savez(tmp_path / "a.npz", qpos=np.zeros((3, 9)))
    refused(r"a\.npz: no array 'qvel'; a motion has qpos \(T, 9\), qvel \(T, 9\)")
    np.savez(tmp_path / "a.npz", qpos=np.zeros((3, 9)), qvel=np.zeros((3, 8)))
    refused(r"qvel is float64 of shape \(3, 8\); a motion of walker has qpos \(T, 9\)")
    np.savez(tmp_path / "a.npz", qpos=np.zeros((3, 9)), qvel=np.array([["x"] * 9] * 3))
    refused(r"a\.npz: qvel is <U1; it must be real numbers")
    np.savez(tmp_path / "a.npz", qpos=np.zeros((3, 9)), qvel=np.zeros((4, 9)))
    refused("arrays have different numbers of frames")
    np.savez(tmp_path / "a.npz", qpos=np.zeros((1, 9)), qvel=np.zeros((1, 9)))
    refused("a motion of 1 frame; it needs two or more")
    broken = np.zeros((3, 9))
    broken[2, 4] = np.nan
    np.savez(tmp_path / "a.npz", qpos=broken, qvel=np.zeros((3, 9)))
    refused("frame 2 has a number that is not finite")
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, broken)
    refused(r"a\.npz: cannot be read as an npz file")
    physics = make_domain("humanoid", {}).start_states(3, np.random.default_rng(0))
    physics[1, 3:7] = 0  # of a quaternion
    save(tmp_path / "a.npz", physics, 76)
    refused(r"a\.npz: frame 1 is no state of humanoid: what is", domain=make_domain("humanoid", {}))
    (tmp_path / "a.npz").unlink()
    write_trajectories(tmp_path / "t.parquet", walker)
    refused("no task run; it has stand, walk", "t.parquet", tasks=("walk", "run"))
    write_trajectories(tmp_path / "t.parquet", walker, owner="cheetah")
    refused("trajectories of cheetah; the domain is walker", "t.parquet")
    write_trajectories(tmp_path / "t.parquet", walker, episode_steps=50)  # which is no matter
    assert len(read(walker, tmp_path / "t.parquet")) == 4
    write_trajectories(tmp_path / "t.parquet", walker, physics_steps=5)
    refused("trajectories of walker with physics_steps 5; here it is 10", "t.parquet")
    with pytest.raises(UserError, match="tasks: has 0 entries, but needs 1 or more"):
        parse(motions.Config, {"path": "x", "tasks": []}, "explorer motions")
    quadruped = make_domain("quadruped", {})
    refused(r"quadruped: .* \(sensordata\) cannot be told from a state", domain=quadruped)
