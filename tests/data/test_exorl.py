"""ExORL's episodes: value for value, in bounded memory, and every bad file named."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bfmpipe.data import exorl, transitions
from bfmpipe.data.tables import open_table
from bfmpipe.stages.collect import Collect, collect
from bfmpipe.types import UserError
from tests.data import exorl_files as files

STEPS = 4


def import_all(path, name="toy", **settings):
    explorer = exorl.Explorer(exorl.Config(path=str(path), **settings), files.domain(name))
    return list(explorer.episodes()), explorer


def stage(path, dataset, **settings):
    explorer = {"name": "exorl", "settings": {"path": str(path), **settings}}
    cfg = {"domain": {"name": "walker"}, "explorer": explorer, "seed": 0}
    collect(Collect.model_validate_json(json.dumps(cfg)), dataset=dataset)


def assert_is(columns, arrays):
    """A row holds the action taken there; ExORL's holds the one that led there."""
    np.testing.assert_array_equal(columns["obs"], arrays["observation"])
    np.testing.assert_array_equal(columns["physics"], arrays["physics"])
    np.testing.assert_array_equal(columns["action"][:-1], arrays["action"][1:])
    assert not columns["action"][-1].any()


# the exact format


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """200 episodes of walker, as they unpack."""
    return files.write(tmp_path_factory.mktemp("exorl") / "buffer", 200, "walker")


@pytest.fixture(scope="module")
def zipped(published, tmp_path_factory):
    return files.pack(published, tmp_path_factory.mktemp("zip") / "rnd.zip")


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    dataset = tmp_path_factory.mktemp("imported") / "data.parquet"
    stage(published, dataset)
    return dataset


def test_200_episodes_come_back_value_for_value(imported):
    data = transitions.read(imported)
    assert data.domain == "walker"
    assert len(data.index) == 200 * 1000
    assert data.obs.dtype == data.action.dtype == np.float32
    assert data.physics.dtype == np.float64
    for i in range(200):
        rows = slice(1001 * i, 1001 * (i + 1))
        assert (data.episode[rows] == i).all()
        assert data.step[rows].tolist() == list(range(1001))
        columns = {name: getattr(data, name)[rows] for name in ("obs", "action", "physics")}
        assert_is(columns, files.episode(i, "walker"))


def test_a_transition_is_the_one_that_exorl_stores(imported):
    data, arrays = transitions.read(imported), files.episode(3, "walker")
    for t in (1, 500, 1000):
        row = data.index[3 * 1000 + t - 1]
        np.testing.assert_array_equal(data.obs[row], arrays["observation"][t - 1])
        np.testing.assert_array_equal(data.action[row], arrays["action"][t])
        np.testing.assert_array_equal(data.obs[row + 1], arrays["observation"][t])
        np.testing.assert_array_equal(data.physics[row + 1], arrays["physics"][t])


def test_a_zip_gives_the_same_data_and_identity_as_its_directory(imported, zipped, tmp_path):
    stage(zipped, tmp_path / "data.parquet")
    one, two = transitions.read(imported), transitions.read(tmp_path / "data.parquet")
    for name in ("episode", "step", "obs", "action", "physics"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    (_, a), (_, b) = (
        open_table(path, transitions.KIND) for path in (imported, tmp_path / "data.parquet")
    )
    assert a.source == b.source
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


def test_the_provenance_names_settings_and_source(imported, published):
    _, origin = open_table(imported, transitions.KIND)
    assert origin.settings["explorer"]["settings"] == {"path": str(published)}
    sizes = [file.stat().st_size for file in published.iterdir()]
    assert origin.source["bytes"] == sum(sizes)
    assert origin.source["episodes"] == 200
    assert (origin.source["skipped"], origin.source["skipped_first"]) == (0, [])


def test_the_same_source_gives_the_same_bytes_and_another_another_digest(tmp_path):
    source = files.write(tmp_path / "source", 3, "walker", STEPS)
    for name in ("one", "two"):
        stage(source, tmp_path / f"{name}.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    np.savez_compressed(source / "episode_000001_4.npz", **files.episode(9, "walker", STEPS))
    stage(source, tmp_path / "other.parquet")
    _, before = open_table(tmp_path / "one.parquet", transitions.KIND)
    _, after = open_table(tmp_path / "other.parquet", transitions.KIND)
    assert before.source["sha256"] != after.source["sha256"]


@pytest.mark.parametrize("reward_width", [1, 4])
def test_rewards_of_one_or_four_columns_are_left_alone(tmp_path, reward_width):
    source = files.write(tmp_path, 1, steps=STEPS, reward_width=reward_width)
    (columns,), _ = import_all(source)
    assert_is(columns, files.episode(0, "toy", STEPS))
    assert set(columns) == {"episode", "step", "obs", "action", "physics"}


def test_files_go_by_name_and_the_first_are_taken(tmp_path):
    source = files.write(tmp_path / "source", 12, steps=STEPS)
    for i, file in enumerate(sorted(source.iterdir())):
        file.rename(source / f"20220101_{i}_4.npz")  # without leading zeros, and "0" < "_"
    (source / "README.txt").write_text("not an episode")
    (source / "._20220101_0_4.npz").write_bytes(b"what macOS leaves")
    for path in (source, files.pack(source, tmp_path / "set.zip")):
        found, explorer = import_all(path, max_episodes=5)
        assert explorer.total == 5
        for columns, seed in zip(found, (0, 10, 11, 1, 2), strict=True):
            assert_is(columns, files.episode(seed, "toy", STEPS))


def test_the_domain_stands_in_the_path(tmp_path):
    files.write(tmp_path / "toy" / "rnd", 2, steps=STEPS)
    found, _ = import_all(tmp_path / "{domain}")
    assert len(found) == 2


def test_further_arrays_do_no_harm(tmp_path):
    arrays = {**files.episode(0, "toy", STEPS), "skill": np.zeros((STEPS + 1, 16), np.float32)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert len(import_all(tmp_path)[0]) == 1


def test_pretraining_runs_on_an_import(tmp_path):
    from bfmpipe.stages.pretrain import Pretrain, pretrain

    dataset = tmp_path / "data.parquet"
    stage(files.write(tmp_path / "source", 3, "walker", 40), dataset)
    small = {"hidden_dim": 8, "backward_hidden_dim": 8, "batch": 16, "z_dim": 4}
    cfg = {
        "domain": {"name": "walker"},
        "agent": {"name": "fb", "settings": {**small, "architecture": "concatenated"}},
        "trainer": {"updates": 10, "log_every": 5, "checkpoint_every": 10},
        "seeds": [0],
    }
    tables = {k: [tmp_path / f"{k}.parquet"] for k in ("losses", "evaluations", "spectrum")}
    settings = Pretrain.model_validate_json(json.dumps(cfg))
    pretrain(settings, dataset=dataset, model=[tmp_path / "model"], **tables)
    assert (tmp_path / "model" / "model.safetensors").exists()


# memory

PEAK = """
import sys
from pathlib import Path
from tests.data.test_exorl import stage

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

source, dataset, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
stage(source, dataset, max_episodes=20)  # libraries are loaded, pools have grown
Path("/proc/self/clear_refs").write_text("5")
stage(source, dataset, max_episodes=most)
print(status("VmHWM"))
"""


def peak(source, dataset, most):
    """kB that a process that imports so many episodes has at most; the least of three.

    Its allocators have one pool, which gives back what is freed: as they come they keep 2 to 12 MiB
    of it, more or less from one run to the next.
    """
    argv = [sys.executable, "-c", PEAK, str(source), str(dataset), str(most)]
    pool = {
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    environment = {**os.environ, **pool, "OMP_NUM_THREADS": "1"}
    top = Path(__file__).parents[2]
    printed = [subprocess.check_output(argv, text=True, cwd=top, env=environment) for _ in range(3)]
    return min(int(lines.splitlines()[-1]) for lines in printed)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's reset of the peak"
)
@pytest.mark.parametrize("form", ["directory", "zip"])
def test_peak_memory_does_not_depend_on_the_number_of_episodes(published, zipped, tmp_path, form):
    source = published if form == "directory" else zipped
    few, many = (peak(source, tmp_path / "data.parquet", most) for most in (50, 200))
    episode_kb = 1001 * (4 * 24 + 4 * 6 + 8 * 18) // 1024
    # 150 more would be 38 MiB
    assert many - few < 10 * episode_kb


# bad input


def npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def changed(**arrays):
    """An episode with some arrays changed, and those that are None left out."""
    merged = {**files.episode(1, "toy", STEPS), **arrays}
    return npz(**{name: values for name, values in merged.items() if values is not None})


def spoilt(name, row, value):
    values = files.episode(1, "toy", STEPS)[name]
    values[row] = value
    return changed(**{name: values})


def lying(good):
    """An archive whose header says that an array has 2^40 rows."""
    content = io.BytesIO()
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3), }"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            new.writestr(name, body if name == "observation.npy" else old.read(name))
    return content.getvalue()


def flipped(good):
    """An episode with one bit of its compressed physics turned."""
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        place = file.getinfo("physics.npy").header_offset + 100
    return good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]


class Evil:
    """Unpickled, it would leave a mark."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


GOOD = changed()
ROWS = STEPS + 1
BAD = {
    "empty": (b"", "damaged, truncated or no npz file"),
    "text": (b"<html>not found</html>", "damaged, truncated or no npz file"),
    "truncated": (GOOD[: len(GOOD) // 2], "damaged, truncated or no npz file"),
    "cut by one byte": (GOOD[:-1], "damaged, truncated or no npz file"),
    "a bit turned": (flipped(GOOD), "damaged, truncated or no npz file"),
    "a header that lies": (lying(GOOD), "damaged, truncated or no npz file"),
    "a pickle": (pickle.dumps(Evil()), "damaged, truncated or no npz file"),
    "a pickle inside": (
        changed(observation=np.array([Evil()] * ROWS, object)),
        "damaged, truncated or no npz file (Object arrays cannot be loaded when",
    ),
    "a single array": (b"", "a single array, not an npz file"),
    "no physics": (changed(physics=None), "no array 'physics'; it holds observation, action"),
    "other keys": (npz(obs=np.zeros(3)), "no array 'observation'; it holds obs"),
    "no arrays": (npz(), "no array 'observation'; it holds nothing"),
    "another domain": (
        changed(observation=np.zeros((ROWS, 24), np.float32)),
        "observation has the shape (5, 24); an episode of toy has (T + 1, 3)",
    ),
    "flat actions": (changed(action=np.zeros(ROWS, np.float32)), "action has the shape (5,)"),
    "a number for an array": (changed(observation=np.float32(1)), "observation has the shape ()"),
    "rewards of two": (
        changed(reward=np.zeros((ROWS, 2), np.float32)),
        "reward has the shape (5, 2); an episode of toy has (T + 1, 1) or (T + 1, 4)",
    ),
    "double observations": (
        changed(observation=np.zeros((ROWS, 3))),
        "observation is float64; an ExORL episode has float32",
    ),
    "single physics": (changed(physics=np.zeros((ROWS, 5), np.float32)), "physics is float32"),
    "big-endian": (changed(action=np.zeros((ROWS, 2), ">f4")), "action is >f4"),
    "fewer actions": (
        changed(action=np.zeros((ROWS - 1, 2), np.float32)),
        "action has 4 rows and observation 5; all have T + 1",
    ),
    "NaN": (spoilt("physics", 3, np.nan), "physics has a number that is not finite in row 3"),
    "infinite": (spoilt("observation", 0, np.inf), "observation has a number that is not finite"),
    "an action outside": (spoilt("action", 2, 1.5), "an action is outside [-1, 1]"),
    "no dummy": (spoilt("action", 0, 0.5), "the action in row 0 is not zero"),
    "an end before time": (spoilt("discount", 4, 0.0), "a discount is not 1"),
    "too short": (npz(**files.episode(1, "toy", 0)), "it has 1 rows"),
    "another length": (
        npz(**files.episode(1, "toy", STEPS + 2)),
        "it has 7 rows; the episodes before have 5",
    ),
}


@pytest.fixture(params=BAD)
def bad(request, tmp_path, monkeypatch):
    """Three episodes, the one in the middle bad, and what is to be said of it."""
    monkeypatch.chdir(tmp_path)
    source = files.write(tmp_path / "source", 3, steps=STEPS)
    content, said = BAD[request.param]
    if request.param == "a single array":
        array = io.BytesIO()
        np.save(array, np.zeros(3))
        content = array.getvalue()
    (source / "episode_000001_4.npz").write_bytes(content)
    yield source, said
    assert not (tmp_path / "unpickled").exists()


def paths(source, tmp_path):
    return source, files.pack(source, tmp_path / "set.zip")


def test_a_bad_file_stops_the_import_and_is_named(bad, tmp_path):
    source, said = bad
    for path in paths(source, tmp_path):
        with pytest.raises(UserError) as caught:
            import_all(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert f"episode_000001_4.npz: {said}" in text
        assert text.endswith("; 'on_error: skip' leaves such files out")
        assert "\n" not in text


def test_a_bad_file_is_left_out_and_reported_where_the_config_says_so(bad, tmp_path):
    source, said = bad
    for path in paths(source, tmp_path):
        found, explorer = import_all(path, on_error="skip")
        for number, (columns, seed) in enumerate(zip(found, (0, 2), strict=True)):
            assert_is(columns, files.episode(seed, "toy", STEPS))
            assert (columns["episode"] == number).all()
        assert explorer.skipped == explorer.source["skipped"] == 1
        (first,) = explorer.source["skipped_first"]
        assert first["file"].endswith("episode_000001_4.npz")
        assert first["reason"].startswith(said)
        assert explorer.report.startswith(f"{path}: 1 files left out (")
        assert said in explorer.report
        assert "\n" not in explorer.report


def test_no_turned_bit_changes_a_value_unnoticed(tmp_path):
    domain, refused, said = files.domain(), 0, set()
    for place in range(0, len(GOOD), 3):
        content = GOOD[:place] + bytes([GOOD[place] ^ 0x10]) + GOOD[place + 1 :]
        try:
            columns = exorl.parse_episode(content, domain, None)
        except exorl.EpisodeError as error:
            refused += 1
            said.add(str(error))
            continue
        assert_is(columns, files.episode(1, "toy", STEPS))
    assert refused > 100
    assert not any("\n" in text for text in said)


def test_an_import_that_stops_leaves_nothing(tmp_path):
    source = files.write(tmp_path / "source", 3, "walker", STEPS)
    (source / "episode_000002_4.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"episode_000002_4\.npz: damaged"):
        stage(source, tmp_path / "data.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_was_skipped_is_in_the_artifact_and_on_the_screen(tmp_path, capsys):
    source = files.write(tmp_path / "source", 9, "walker", STEPS)
    for i in range(7):
        (source / f"episode_{i:06d}_4.npz").write_bytes(b"nothing")
    stage(source, tmp_path / "data.parquet", on_error="skip")
    _, origin = open_table(tmp_path / "data.parquet", transitions.KIND)
    assert (origin.source["episodes"], origin.source["skipped"]) == (2, 7)
    assert len(origin.source["skipped_first"]) == 5
    printed = capsys.readouterr()
    assert "warning: " in printed.err
    assert "7 files left out (episode_000000_4.npz: damaged" in printed.err
    assert "; and 2 more)" in printed.err
    assert "8 transitions of walker in 2 episodes" in printed.out


def test_skipped_files_do_not_count_towards_the_most(tmp_path):
    source = files.write(tmp_path, 4, steps=STEPS)
    (source / "episode_000000_4.npz").write_bytes(b"nothing")
    found, _ = import_all(source, on_error="skip", max_episodes=2)
    assert_is(found[1], files.episode(2, "toy", STEPS))


def test_nothing_but_bad_files_is_an_error_even_where_they_are_skipped(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 files left out \(a\.npz: .*no episode of toy is left"):
        import_all(tmp_path, on_error="skip")


@pytest.mark.parametrize(
    "name",
    ["../outside.npz", "/outside.npz", "a/../../outside.npz", "..\\outside.npz", "C:/outside.npz"],
)
def test_a_zip_with_a_path_outside_is_refused_or_the_path_left_out(tmp_path, name):
    path = files.pack(files.write(tmp_path / "source", 2, steps=STEPS), tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, GOOD)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        import_all(path)
    said = f"{path}: {name}: a path that leads outside the zip; 'on_error: skip' leaves"
    assert str(caught.value).startswith(said)
    found, explorer = import_all(path, on_error="skip")
    assert (len(found), explorer.skipped) == (2, 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_in_a_zip_twice_is_named(tmp_path):
    path = files.pack(files.write(tmp_path / "source", 1, steps=STEPS), tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(file.namelist()[0], GOOD)
    with pytest.raises(UserError, match="it is in the zip twice"):
        import_all(path)
    (columns,), _ = import_all(path, on_error="skip")
    assert_is(columns, files.episode(0, "toy", STEPS))


def test_a_member_damaged_in_the_zip_is_named(tmp_path):
    path = files.pack(files.write(tmp_path / "source", 2, steps=STEPS), tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[1]
    content[info.header_offset + 150] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"episode_000001_4\.npz: damaged in the zip"):
        import_all(path)
    assert len(import_all(path, on_error="skip")[0]) == 1


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(UserError, match=r"a\.npz: it has 268,435,457 bytes, too many"):
        import_all(tmp_path)


def test_an_array_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("observation", "action", "reward", "discount", "physics"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(257 if name == "physics" else 0):
                    member.write(bytes(2**20))
    with pytest.raises(UserError, match=r"a\.npz: physics\.npy has 269,484,032 bytes, too many"):
        import_all(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    files.write(tmp_path, 1, steps=STEPS)
    (tmp_path / "episode_000000_4.npz").chmod(0)
    with pytest.raises(UserError, match=r"_4\.npz: cannot be read \(Permission denied\)"):
        import_all(tmp_path)


def test_a_path_without_episodes_is_named(tmp_path):
    for path, said in (
        (tmp_path / "none", "no such directory or zip; `bfmpipe download` fetches"),
        (tmp_path, "no npz file in it"),
        (tmp_path / "not.zip", "damaged, truncated or no zip"),
        (tmp_path / "cut.zip", "damaged, truncated or no zip"),
        (tmp_path / "empty.zip", "no npz file in it"),
    ):
        (tmp_path / "not.zip").write_bytes(b"<html>")
        (tmp_path / "cut.zip").write_bytes(_zip_of(tmp_path)[:-5])
        zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
        with pytest.raises(UserError) as caught:
            import_all(path)
        assert str(caught.value).startswith(f"{path}: {said}")


def _zip_of(directory):
    path = directory / "whole.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npz", GOOD)
    return path.read_bytes()


def test_another_clock_than_that_of_the_recordings_is_refused(tmp_path):
    source = files.write(tmp_path, 1, "walker", STEPS)
    with pytest.raises(UserError, match=r"recorded walker at 10 physics .* has 5; set its"):
        exorl.Explorer(exorl.Config(path=str(source)), files.domain("walker", 5))
