"""Stage adapt: curves and paths of any method, paired at the start, within the budget."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bfmpipe import plugins
from bfmpipe.adaptation import checkpoint
from bfmpipe.agents import learner
from bfmpipe.config import parse
from bfmpipe.data import checkpoints
from bfmpipe.data.tables import read_table
from bfmpipe.kernels.extension import cuda_problem
from bfmpipe.report import timing
from bfmpipe.types import UserError

OFF_POLICY = {"num_envs": 2, "batch": 8, "warmup_steps": 10}
METHODS = {
    "zero-shot": {},
    "lola": {"states": 2, "latents": 2, "horizon": 5},
    "random-search": {"states": 2, "latents": 2, "horizon": 5},  # reads observations
    "rela": {**OFF_POLICY, "latent_warmup_updates": 2},
    "td3": {"preset": "small", "updates_per_step": 1.0, **OFF_POLICY},
}
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda_problem() is not None, reason="needs a GPU"
)
BUDGET = 4 * 20  # episodes x steps: see conftest


def adapt(tiny, directory, method, settings=None, **changed):
    """The files of one model."""
    chosen = {"name": method, "settings": METHODS[method] if settings is None else settings}
    curves = directory / f"{method}.parquet"
    trajectories = directory / f"{method}.trajectories.parquet"
    tiny.run(
        "adapt",
        settings=tiny.settings("adapt", method=chosen, **changed),
        model=[tiny.model],
        dataset=tiny.dataset,
        latents=[tiny.latents],
        curves=[curves],
        trajectories=[trajectories],
    )
    return curves, trajectories


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapt")
    return {method: adapt(tiny, directory, method) for method in METHODS}


@pytest.fixture(scope="module")
def curves(files):
    return {method: read_table(file, "adaptation")[0] for method, (file, _) in files.items()}


@pytest.mark.parametrize("method", METHODS)
def test_files_have_the_declared_schemas(files, method):
    name, number = pa.string(), pa.float64()
    declared = [
        {
            **dict.fromkeys(("domain", "agent", "method"), name),
            "seed": pa.int32(),
            **dict.fromkeys(("family", "task"), name),
            "env_steps": pa.int64(),
            "episodes": number,
            "returns": pa.list_(number, 3),
            "cosine": number,
            "z": pa.list_(pa.float32(), 6),
        },
        {
            **dict.fromkeys(("family", "task", "phase"), name),
            **dict.fromkeys(("episode", "step"), pa.int32()),
            "physics": pa.list_(number, 4),
        },
    ]
    for file, kinds in zip(files[method], declared, strict=True):
        expected = pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()])
        assert pq.read_schema(file).remove_metadata().equals(expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_provenance_names_the_method_and_its_settings(files, method):
    for file, kind in zip(files[method], ("adaptation", "trajectories"), strict=True):
        _, origin = read_table(file, kind)
        assert origin.settings["method"] == {"name": method, "settings": METHODS[method]}
        config = parse(plugins.load("adaptation", method).Config, METHODS[method], method)
        assert origin.source["method_settings"] == config.model_dump(mode="json")


def test_a_variant_has_the_numbers_of_its_method_under_its_own_name(tiny, files, curves, tmp_path):
    file, _ = adapt(tiny, tmp_path, "lola", label="lola-short")
    table, origin = read_table(file, "adaptation")
    assert set(table.pop("method")) == {"lola-short"}
    assert all(np.array_equal(column, curves["lola"][name]) for name, column in table.items())
    _, plain = read_table(files["lola"][0], "adaptation")
    assert origin.settings == {**plain.settings, "label": "lola-short"}
    assert origin.code == plain.code


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_goes_from_zero_to_the_whole_budget(curves, method):
    table = curves[method]
    steps = table["env_steps"][table["task"] == "reach_top_left"]
    expected = [0] if method == "zero-shot" else [0, 20, 40, 60, BUDGET]
    assert steps.tolist() == expected
    np.testing.assert_array_equal(table["episodes"], table["env_steps"] / 20)
    assert len(table["task"]) == 2 * len(expected)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "td3"])
def test_all_methods_start_at_the_same_returns(curves, method):
    start = curves[method]["env_steps"] == 0
    zero = curves["zero-shot"]
    np.testing.assert_array_equal(curves[method]["returns"][start], zero["returns"])
    np.testing.assert_array_equal(curves[method]["z"][start], zero["z"])
    np.testing.assert_allclose(curves[method]["cosine"][start], 1, rtol=1e-6)


def test_td3_starts_at_the_same_policy(curves):
    # the same actor, but as one batched product: equal up to rounding
    start = curves["td3"]["env_steps"] == 0
    np.testing.assert_allclose(
        curves["td3"]["returns"][start], curves["zero-shot"]["returns"], rtol=1e-3
    )


@pytest.mark.parametrize("method", ["lola", "rela"])
def test_latents_move_and_stay_on_the_sphere(curves, method):
    z, cosine = curves[method]["z"], curves[method]["cosine"]
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.sqrt(6), rtol=1e-5)
    assert (cosine[-2:] < 1 - 1e-6).all()
    similarity = (z[-2:] * z[:2]).sum(1) / 6
    np.testing.assert_allclose(cosine[-2:], similarity, rtol=1e-5)


def test_td3_moves_the_policy_and_not_the_latent(curves):
    table = curves["td3"]
    np.testing.assert_allclose(table["cosine"], 1, rtol=1e-6)
    assert not np.array_equal(table["returns"][:2], table["returns"][-2:])


def test_paths_are_of_the_first_and_the_last_evaluation(files, curves):
    paths, _ = read_table(files["lola"][1], "trajectories")
    assert len(paths["step"]) == 2 * 2 * 3 * 21  # phases, tasks, episodes, states
    at = {
        key: np.logical_and.reduce([paths[name] == value for name, value in key])
        for key in (
            (("task", task), ("phase", phase))
            for task in ("reach_top_left", "reach_bottom_right")
            for phase in ("before", "after")
        )
    }
    starts = [paths["physics"][rows & (paths["step"] == 0)] for rows in at.values()]
    for other in starts[1:]:  # paired: every task and phase from the same states
        np.testing.assert_array_equal(other, starts[0])
    for rows in at.values():
        assert paths["step"][rows].tolist() == list(range(21)) * 3
        assert paths["episode"][rows].tolist() == np.repeat([0, 1, 2], 21).tolist()


def test_paths_are_those_of_the_returns(files, curves, tiny):
    from bfmpipe import api

    pretrained = api.load(tiny.model)
    (task,) = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    paths, _ = read_table(files["lola"][1], "trajectories")
    rows = (paths["task"] == "reach_top_left") & (paths["phase"] == "after") & (paths["step"] > 0)
    most = pretrained.domain.relabel(task, paths["physics"][rows], np.zeros((rows.sum(), 2)))
    most = most.reshape(3, 20).sum(1)  # as if every action were free
    table = curves["lola"]
    returns = table["returns"][table["task"] == "reach_top_left"][-1]
    assert (returns <= most + 1e-9).all()
    assert (returns >= 0.8 * most - 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_every_byte_at_any_thread_count(tiny, files, tmp_path, monkeypatch, method):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = adapt(tiny, tmp_path, method)
    for one, two in zip(files[method], again, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_another_seed_adapts_otherwise_from_the_same_start(tiny, curves, tmp_path):
    file, _ = adapt(tiny, tmp_path, "lola", seeds=[1])
    other = read_table(file, "adaptation")[0]
    np.testing.assert_array_equal(other["returns"][:2], curves["lola"]["returns"][:2])
    assert not np.array_equal(other["z"][-2:], curves["lola"]["z"][-2:])


def test_tasks_do_not_feel_each_other_in_the_evaluation(tiny, curves, tmp_path):
    tasks = {"families": {"reach": {"names": ["reach_bottom_right"], "target_size": 0.1}}}
    file, _ = adapt(tiny, tmp_path, "zero-shot", tasks=tasks)
    alone = read_table(file, "adaptation")[0]
    np.testing.assert_allclose(alone["returns"][0], curves["zero-shot"]["returns"][1], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("lola", {"horzon": 5}, "method lola: horzon is not a setting; did you mean horizon?"),
        ("lola", {"horizon": 50}, "lola: a budget of 80 environment steps is too small"),
        ("rela", {"warmup_steps": 80}, "a budget of 80 environment steps a task ends before"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(tiny, tmp_path, method, settings, said):
    with pytest.raises(UserError) as caught:
        adapt(tiny, tmp_path, method, settings)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_task_without_a_latent_is_refused(tiny, tmp_path):
    tasks = {"families": {"reach": {"names": ["reach_top_right"], "target_size": 0.1}}}
    with pytest.raises(UserError, match="no latent of task reach/reach_top_right"):
        adapt(tiny, tmp_path, "lola", tasks=tasks)


@pytest.mark.parametrize("method", METHODS)
def test_seeds_adapted_together_are_those_adapted_alone(tiny, tmp_path, method):
    """The model is the same for both; what differs is the method's seed."""
    chosen = {"name": method, "settings": METHODS[method]}
    together = {
        kind: [tmp_path / f"{kind}{seed}" for seed in (0, 1)] for kind in ("curves", "trajectories")
    }
    tiny.run(
        "adapt",
        settings=tiny.settings("adapt", method=chosen, seeds=[0, 1]),
        model=[tiny.model] * 2,
        dataset=tiny.dataset,
        latents=[tiny.latents] * 2,
        **together,
    )
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        alone = adapt(tiny, tmp_path / str(seed), method, seeds=[seed])
        kinds = zip(alone, ("curves", "trajectories"), ("adaptation", "trajectories"), strict=True)
        for file, name, kind in kinds:
            one, origin = read_table(file, kind)
            two, other = read_table(together[name][seed], kind)
            assert other.settings == {**origin.settings, "seeds_together": [0, 1]}
            for column, values in one.items():
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(two[column], values, rtol=1e-3, atol=1e-4)
                else:
                    assert np.array_equal(two[column], values)


def test_a_model_short_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="1 paths of model for 2 seeds"):
        adapt(tiny, tmp_path, "lola", seeds=[0, 1])


LONG = {"episodes": 20, "every": 7}
AT_ONCE = """
from bfmpipe.agents import learner
from bfmpipe.cli import main
from bfmpipe.data import checkpoints
checkpoints.SECONDS, checkpoints.SHARE = 0.0, float("inf")
main()
"""


def long_run(tiny, directory, seeds=(0,), **changed):
    """Settings and files of a long adaptation, of one model or of more together."""
    rela = {"name": "rela", "settings": METHODS["rela"]}
    chosen = {"method": rela, "seeds": list(seeds), **LONG, **changed}
    settings = tiny.settings("adapt", **chosen)
    files = {
        "model": [tiny.model] * len(seeds),
        "dataset": tiny.dataset,
        "latents": [tiny.latents] * len(seeds),
        "curves": [directory / f"{seed}.parquet" for seed in seeds],
        "trajectories": [directory / f"{seed}.trajectories.parquet" for seed in seeds],
    }
    return settings, files


def finish(tiny, directory, *arguments, **changed):
    """Run it to its end; the bytes of all its files."""
    settings, files = long_run(tiny, directory, *arguments, **changed)
    tiny.run("adapt", settings=settings, **files)
    expected = {*files["curves"], *files["trajectories"]}
    assert {*directory.iterdir()} == expected  # nothing else is left
    return {file.name: file.read_bytes() for file in expected}


@pytest.fixture
def went_on_at(monkeypatch):
    """Environment steps a task at which adaptations went on, 0 where one began anew.

    Here as in a process of its own they have one thread: sums in another order are other bytes.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps, resume = [], checkpoint.Checkpoint.resume

    def watched(self, method):
        evaluations = resume(self, method)
        steps.append(self.env_steps)
        return evaluations

    monkeypatch.setattr(checkpoint.Checkpoint, "resume", watched)
    yield steps
    torch.set_num_threads(threads)


@pytest.fixture
def interrupted(tiny, tmp_path, monkeypatch, went_on_at):
    """A function: an adaptation that ends after some checkpoints; the file that it leaves."""

    def run(after=20, **changed):
        save, saved = checkpoint.save_tensors, []

        def save_and_end(*arguments):
            save(*arguments)
            saved.append(1)
            if len(saved) == after:
                raise KeyboardInterrupt

        directory = tmp_path / "interrupted"
        directory.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "SECONDS", 0.0)
            patch.setattr(checkpoints, "SHARE", float("inf"))
            patch.setattr(checkpoint, "save_tensors", save_and_end)
            settings, files = long_run(tiny, directory, **changed)
            with pytest.raises(KeyboardInterrupt):
                tiny.run("adapt", settings=settings, **files)
        (file,) = directory.iterdir()
        went_on_at.clear()
        return file

    return run


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_killed_it_goes_on_and_ends_in_the_same_bytes(tiny, tmp_path, went_on_at, seeds):
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = finish(tiny, tmp_path / "straight", seeds)
    settings, files = long_run(tiny, tmp_path / "killed", seeds)
    argv = ["adapt", "--cfg", json.dumps(settings)]
    for name, paths in files.items():
        argv += [f"--{name}", *map(str, paths if isinstance(paths, list) else [paths])]
    kept = tmp_path / "killed" / ".0.checkpoint.safetensors"
    with subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, *argv], stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 60
        while not kept.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not any(path.exists() for path in files["curves"] + files["trajectories"])
    went_on_at.clear()
    resumed = finish(tiny, tmp_path / "killed", seeds)
    assert [name for name in straight if resumed[name] != straight[name]] == []
    assert went_on_at[0] > 0


def test_it_goes_on_from_the_last_evaluation_too(tiny, tmp_path, interrupted, went_on_at, capsys):
    """Whose paths are stored, and no checkpoint holds them."""
    kept = interrupted(after=LONG["episodes"] * 20 // OFF_POLICY["num_envs"])
    capsys.readouterr()
    resumed = finish(tiny, kept.parent)
    assert went_on_at == [LONG["episodes"] * 20]
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "straight").mkdir()
    assert resumed == finish(tiny, tmp_path / "straight")


def test_it_counts_what_it_had_cost_before_it_was_killed(tiny, interrupted, monkeypatch):
    """Or a method whose job was killed would cost less than another, in the verdict of a claim."""
    monkeypatch.setattr(timing, "_before", timing.Cost(wall=1e6, cpu=1e6, memory=1e6))
    kept = interrupted()
    monkeypatch.setattr(timing, "_before", timing.Cost(0.0, 0.0, 0.0))  # another process
    assert timing.spent().wall < 1e6
    finish(tiny, kept.parent)
    cost = timing.spent()
    assert cost.wall > 1e6
    assert cost.cpu > 1e6
    assert cost.memory == 1e6


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"episodes": 21}, "settings.episodes was 20 and is 21"),
        ({"seeds": (1,)}, "settings.seeds was [0] and is [1]"),
        ({"method": {"name": "lola"}}, "code was '"),
    ],
)
def test_of_other_settings_it_begins_anew_and_says_so(
    tiny, interrupted, went_on_at, capsys, changed, said
):
    kept = interrupted()
    moved = kept.with_name(f".{changed.get('seeds', (0,))[0]}.checkpoint.safetensors")
    kept.rename(moved)
    capsys.readouterr()
    finish(tiny, kept.parent, **changed)
    assert went_on_at == [0]
    assert f"{moved}: a checkpoint of another adaptation: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["model", "latents", "threads"])
def test_of_other_files_or_threads_it_begins_anew(
    tiny, interrupted, went_on_at, capsys, monkeypatch, edit_card, tmp_path, what
):
    kept = interrupted()
    settings, files = long_run(tiny, kept.parent)
    if what == "model":
        files["model"] = [edit_card(diverged_at=3)]
    elif what == "latents":
        files["latents"] = [tmp_path / "latents.parquet"]
        settings_of = tiny.settings("infer", seed=1)
        tiny.run(
            "infer",
            settings=settings_of,
            model=tiny.model,
            dataset=tiny.dataset,
            latents=files["latents"][0],
        )
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tiny.run("adapt", settings=settings, **files)
    assert went_on_at == [0]
    assert f"another adaptation: {what.removesuffix('s')}" in capsys.readouterr().err


def test_a_damaged_checkpoint_begins_anew_and_says_so(
    tiny, tmp_path, interrupted, went_on_at, capsys
):
    kept = interrupted()
    kept.write_bytes(kept.read_bytes()[:-100])
    capsys.readouterr()
    begun = finish(tiny, kept.parent)
    assert went_on_at == [0]
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert f"warning: {kept}: damaged" in said
    assert "; the adaptation begins anew\n" in said
    (tmp_path / "straight").mkdir()
    assert begun == finish(tiny, tmp_path / "straight")


def test_without_a_gpu_cuda_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^adapt\.device is cuda, but torch finds no usable GPU"):
        adapt(tiny, tmp_path, "lola", device="cuda")


def test_what_has_no_cuda_kernels_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(learner, "without_cuda", lambda: ("bfmpipe has none", "do this"))
    said = r"^adapt\.device is cuda, but bfmpipe has none; set it to cpu, or do this$"
    with pytest.raises(UserError, match=said):
        adapt(tiny, tmp_path, "lola", device="cuda")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("method", METHODS)
def test_tables_are_alike_on_every_device(tiny, tmp_path, files, method, device):
    here, there = files[method], adapt(tiny, tmp_path, method, device=device)
    for i, kind in enumerate(("adaptation", "trajectories")):
        one, other = (read_table(paths[i], kind)[0] for paths in (here, there))
        assert one.keys() == other.keys()
        for name, column in one.items():
            if column.dtype.kind == "f":
                np.testing.assert_allclose(column, other[name], rtol=1e-2, atol=1e-2)
            else:
                assert np.array_equal(column, other[name])
