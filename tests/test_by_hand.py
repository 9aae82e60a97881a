"""One task by hand: what is saved is what was adapted, and plays as it was evaluated."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bfmpipe import api, by_hand
from bfmpipe.adaptation.protocol import Evaluation, start_states
from bfmpipe.agents import WEIGHTS, load_model, load_tensors, save_model, save_tensors
from bfmpipe.cli import _opengl, main
from bfmpipe.data.tables import open_table
from bfmpipe.files import file_digest
from bfmpipe.inference import Inference

LOLA = {"states": 2, "latents": 2, "horizon": 5, "start_states": "own", "bootstrap": False}
LOLA_WORDS = ["states=2", "latents=2", "horizon=5", "start_states=own", "bootstrap=false"]
TASK = ["--task", "reach_top_left", "--task-set", "target_size=0.1"]
SHORT = ["--episodes", "4", "--every", "2", "--evaluate", "3"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Where files without a directory are written."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def adapt(tiny, *more, method="lola", settings=LOLA_WORDS, data=True):
    options = ["--model", str(tiny.model), "--method", method]
    options += ["--data", str(tiny.dataset)] if data else []
    settings = ["--set", *settings] if settings else []
    return main(["adapt", *options, *TASK, *SHORT, *settings, *map(str, more)])


@pytest.fixture
def latent(tiny, here, capsys):
    assert adapt(tiny) == 0
    capsys.readouterr()
    return here / "reach_top_left-lola.safetensors"


def expected(tiny, **changed):
    """The same by the library: inferred latent, and evaluations."""
    pretrained = api.load(tiny.model)
    tasks = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    data = api.read_transitions(tiny.dataset)
    inferred = api.infer(pretrained, tasks, data)
    arguments = {"episodes": 4, "every": 2, "evaluation": Evaluation(episodes=3), "settings": LOLA}
    arguments = {"method": "lola", **arguments, **changed}
    return inferred, list(api.adapt(pretrained, tasks, inferred, data, **arguments))


def said_returns(out):
    return [float(number) for number in re.findall(r"^episode \d+ +(\S+)$", out, re.MULTILINE)]


def refused(capsys, argv):
    """The one line that a mistake gives."""
    assert main(list(map(str, argv))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix(f"bfmpipe {argv[0]}: error: ")


def test_what_is_saved_is_what_the_library_adapts(tiny, latent):
    inferred, points = expected(tiny)
    tensors, header = load_tensors(latent)
    assert np.array_equal(tensors["z"].numpy(), points[-1].z[0])
    assert not np.array_equal(points[-1].z, points[0].z)
    assert torch.equal(tensors["z_0"], inferred.z[0])
    assert torch.equal(tensors["w"], inferred.w[0])
    saved = by_hand.Saved.model_validate_json(json.dumps(header))
    assert saved.returns_before == tuple(points[0].returns[0])
    assert saved.returns_after == tuple(points[-1].returns[0])
    assert (saved.domain, saved.task, saved.method) == (
        "point_mass_maze",
        "reach_top_left",
        "lola",
    )
    assert saved.domain_settings == {"physics_steps": 5, "episode_steps": 20}
    assert saved.task_settings["target_size"] == 0.1
    assert saved.method_settings.items() >= LOLA.items()
    assert saved.env_steps == 80
    assert saved.model_sha256 == file_digest(tiny.model / WEIGHTS)


def test_the_summary_says_what_was_gained(tiny, capsys):
    _, points = expected(tiny)
    before, after = points[0].returns.mean(), points[-1].returns.mean()
    assert adapt(tiny, "--domain", "point_mass_maze", "--latent-out", "new/z.safetensors") == 0
    captured = capsys.readouterr()
    summary, where = captured.out.splitlines()
    percent = 100 * (after - before) / before
    gain = re.escape(f"({percent:+.0f} %)")
    assert re.fullmatch(
        r"point_mass_maze reach_top_left \(target_size 0\.1, .*\): "
        rf"zero-shot {before:.2f} ± \d+\.\d\d -> lola {after:.2f} ± \d+\.\d\d {gain}, "
        r"after 4 of 4 episodes and \d+\.\d s",
        summary,
    )
    assert where.startswith("new/z.safetensors: ")
    assert Path("new/z.safetensors").is_file()
    assert f"return={after:.2f}" in captured.err
    assert "80/80" in captured.err
    assert f"cosine={points[-1].cosine[0]:.3f}"[:10] in captured.err


def test_the_same_seed_gives_the_same_file_and_another_one_another(tiny, latent):
    adapt(tiny, "--latent-out", "again")
    adapt(tiny, "--latent-out", "other", "--seed", 1)
    assert Path("again").read_bytes() == latent.read_bytes()
    z, other = (load_tensors(Path(name))[0]["z"] for name in ("again", "other"))
    assert not torch.equal(z, other)


def test_a_saved_latent_plays_as_it_was_evaluated(tiny, latent, capsys):
    tensors, header = load_tensors(latent)
    assert main(["play", str(latent), "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    returns = header["returns_after"]
    assert said_returns(out) == pytest.approx(returns, abs=0.0051)
    error = np.std(returns, ddof=1) / 3**0.5
    mean = f"lola: mean return {np.mean(returns):.2f} ± {error:.2f} of 3 episodes"
    settings = "(target_size 0.1, lane_width 0.03, cut_cost 3.0)"
    assert out.splitlines()[-1] == f"point_mass_maze reach_top_left {settings}, {mean}"
    # to the bit, and with the rewards that `api.play` passes
    pretrained = api.load(tiny.model)
    domain = pretrained.domain
    (task,) = domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    starts = start_states(domain, Evaluation(episodes=3))
    found, physics, rewards = by_hand.played(pretrained, task, tensors["z"], starts)
    assert found.tolist() == returns
    passed = api.play(pretrained, tensors["z"], starts)
    assert np.array_equal(physics, passed.physics)
    for t in range(20):
        reward = domain.relabel(task, passed.physics[t + 1], passed.action[t])
        assert np.array_equal(rewards[t], reward)
    np.testing.assert_allclose(rewards.sum(0), returns, rtol=1e-12)


def test_many_episodes_are_played_in_rounds(latent, capsys, monkeypatch):
    assert main(["play", str(latent), "--episodes", "5"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(by_hand, "_ROUND", 2)
    assert main(["play", str(latent), "--episodes", "5"]) == 0
    assert capsys.readouterr().out == whole


@pytest.mark.parametrize("episodes", [1, 5])
def test_any_number_of_episodes_is_played(latent, capsys, episodes):
    _, header = load_tensors(latent)
    assert main(["play", str(latent), "--episodes", str(episodes)]) == 0
    out = capsys.readouterr().out
    returns = said_returns(out)
    assert len(returns) == episodes
    end = {1: "of 1 episode, the first of the evaluation's 3", 5: "of 5 episodes"}
    assert out.endswith(f"{end[episodes]}\n")
    assert ("±" in out) == (episodes > 1)
    if episodes <= 3:  # the first of those evaluated
        assert returns == pytest.approx(header["returns_after"][:episodes], abs=0.0051)


def test_zero_shot_is_played_without_a_file(tiny, capsys):
    _, points = expected(tiny, method="zero-shot", settings={}, evaluation=Evaluation())
    options = ["--model", str(tiny.model), "--data", str(tiny.dataset), "--episodes", "32"]
    assert main(["play", *options, *TASK]) == 0
    out = capsys.readouterr().out
    assert said_returns(out) == pytest.approx(points[0].returns[0], abs=0.0051)
    assert f"zero-shot: mean return {points[0].returns.mean():.2f} ± " in out


def test_zero_shot_saves_the_inferred_latent(tiny, capsys):
    assert adapt(tiny, method="zero-shot", settings=[]) == 0
    assert "after 0 of 4 episodes" in capsys.readouterr().out
    tensors, _ = load_tensors(Path("reach_top_left-zero-shot.safetensors"))
    assert torch.equal(tensors["z"], tensors["z_0"])


def test_a_saved_latent_has_the_settings_that_a_preset_stands_for(tiny, capsys):
    few = {"batch": 16, "updates_per_step": 0.5, "warmup_steps": 20, "latent_warmup_updates": 3}
    words = ["preset=small-point_mass_maze", *(f"{name}={value}" for name, value in few.items())]
    assert adapt(tiny, method="rela", settings=words) == 0
    _, header = load_tensors(Path("reach_top_left-rela.safetensors"))
    given = {"preset": "small-point_mass_maze", "least_cosine": 0.99, "num_envs": 4, **few}
    assert header["method_settings"].items() >= given.items()
    capsys.readouterr()
    said = "method rela: there is no preset 'smal'; did you mean small? valid: "
    argv = ["adapt", "--model", tiny.model, "--method", "rela", *TASK, "--set", "preset=smal"]
    assert refused(capsys, argv).startswith(said)


def test_where_weights_move_there_is_no_latent_to_save(tiny, here, capsys):
    settings = ["num_envs=2", "updates_per_step=0.5", "batch=16", "warmup_steps=20"]
    assert adapt(tiny, method="td3", settings=settings) == 0
    summary, said = capsys.readouterr().out.splitlines()
    assert "-> td3" in summary
    assert said.startswith("no latent is saved: td3 moves the actor's weights")
    assert list(here.iterdir()) == []


def test_the_data_set_of_the_pipeline_is_found(tiny, tmp_path, capsys):
    model = tmp_path / "results/maze/fb/seed0/model"
    model.mkdir(parents=True)
    for file in tiny.model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    argv = ["adapt", "--model", model, *TASK, *SHORT, "--method", "lola", "--set", *LOLA_WORDS]
    line = refused(capsys, argv)
    assert line.startswith(f"{tmp_path}/results/maze/data.parquet: no such file")
    assert line.endswith("say where it is with --data")
    (tmp_path / "results/maze/data.parquet").symlink_to(tiny.dataset)
    assert main(list(map(str, argv))) == 0


def test_the_inference_may_be_chosen(tiny, capsys):
    words = ["--infer", "samples=300", "reward_weighting=softmax"]
    assert adapt(tiny, *words) == 0
    tensors, header = load_tensors(Path("reach_top_left-lola.safetensors"))
    inference = Inference(samples=300, reward_weighting="softmax")
    assert header["infer"] == inference.model_dump()
    pretrained = api.load(tiny.model)
    tasks = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    data = api.read_transitions(tiny.dataset)
    latent = api.infer(pretrained, tasks, data, inference=inference)
    assert torch.equal(tensors["z_0"], latent.z[0])
    assert not torch.equal(tensors["z_0"], expected(tiny)[0].z[0])
    capsys.readouterr()
    model = ["--model", str(tiny.model), "--data", str(tiny.dataset)]
    assert main(["play", *model, *TASK, *words, "--episodes", "3"]) == 0
    zero_shot = said_returns(capsys.readouterr().out)
    # whose start states are those of another evaluation
    z = latent.z[0]
    starts = start_states(pretrained.domain, Evaluation())[:3]
    returns, _, _ = by_hand.played(pretrained, tasks[0], z, starts)
    assert zero_shot == pytest.approx(returns, abs=0.0051)


def test_a_latent_that_does_not_say_how_it_was_inferred_plays(latent):
    tensors, header = load_tensors(latent)
    assert header.pop("infer") == Inference().model_dump()
    save_tensors(latent, tensors, header)
    assert main(["play", str(latent)]) == 0


def roam(tiny, *more, data="own.parquet"):
    argv = ["roam", "--model", tiny.model, "--data", data, "--episodes", 5, *more]
    return main(list(map(str, argv)))


def test_a_model_makes_a_data_set(tiny, capsys):
    words = ["--latent-steps", 7, "--noise-std", 0.1, "--num-envs", 2, "--seed", 3]
    assert roam(tiny, *words) == 0
    captured = capsys.readouterr()
    assert captured.out == "own.parquet: 100 transitions of point_mass_maze in 5 episodes\n"
    assert "5/5" in captured.err
    found = api.read_transitions("own.parquet")
    settings = {"latent_steps": 7, "noise_std": 0.1, "num_envs": 2, "seed": 3}
    made = api.roam(api.load(tiny.model), episodes=5, **settings)
    assert (found.domain, found.domain_settings) == (made.domain, made.domain_settings)
    for name in ("episode", "step", "obs", "action", "physics"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    file, origin = open_table(Path("own.parquet"), "transitions")
    file.close()
    assert origin.settings["domain"]["name"] == "point_mass_maze"
    assert origin.settings["roam"] == {"episodes": 5, **settings}
    assert origin.source == {"weights_sha256": file_digest(tiny.model / WEIGHTS)}
    assert roam(tiny, *words, data="again.parquet") == 0
    assert Path("again.parquet").read_bytes() == Path("own.parquet").read_bytes()
    capsys.readouterr()
    assert adapt(tiny, "--data", "own.parquet", data=False) == 0


def test_what_a_model_made_is_replaced_and_nothing_else(tiny, here, capsys):
    assert roam(tiny) == 0
    first = Path("own.parquet").read_bytes()
    capsys.readouterr()
    assert roam(tiny, "--seed", 1) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said == "own.parquet: holds an earlier data set of `bfmpipe roam`, to be replaced"
    assert Path("own.parquet").read_bytes() != first
    Path("explored.parquet").write_bytes(tiny.dataset.read_bytes())
    Path("notes").write_text("notes")
    Path("losses.parquet").write_bytes(tiny.losses.read_bytes())
    for name in ("explored.parquet", "notes", "losses.parquet"):
        before = Path(name).read_bytes()
        line = refused(capsys, ["roam", "--model", tiny.model, "--data", name])
        assert line == (
            f"{name}: is there already, and is no data set that `bfmpipe roam` wrote; name another "
            "file"
        )
        assert Path(name).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--episodes", "0"], "the arguments: episodes: 0 should be greater than or equal to 1"),
        (["--latent-steps", "x"], "the arguments: latent_steps: 'x' is text, not a whole number"),
        (["--noise-std", "-1"], "the arguments: noise_std: -1 should be greater than or equal"),
        (["--num-envs", "0"], "the arguments: num_envs: 0 should be greater than or"),
        (["--seed", "1", "--seed", "1"], "--seed is given twice"),
        (["--model", "none"], "none/config.json: no such file; a model is a directory"),
        (["--data", "{here}"], "{here}: is a directory; name a file to write"),
    ],
)
def test_a_mistake_in_roaming_is_one_line(tiny, here, capsys, words, said):
    words, (said,) = ([w.format(here=here) for w in these] for these in (words, [said]))
    options = {"--model": tiny.model, "--data": "own.parquet"}
    given = [word for option in options.items() if option[0] not in words for word in option]
    assert refused(capsys, ["roam", *given, *words]).startswith(said)
    assert list(here.iterdir()) == []


OWN = "def near(physics, action):\n    return (physics.position[:, 0] < 0) * 1.0\n"


def test_a_task_of_ones_own(tiny, here, tmp_path, capsys, monkeypatch):
    (here / "mine.py").write_text(OWN)
    options = ["--model", str(tiny.model), "--data", str(tiny.dataset), "--method", "lola"]
    own = ["--task", "near", "--task-set", "file=mine.py"]
    assert main(["adapt", *options, *own, *SHORT, "--set", *LOLA_WORDS]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    played = ["play", "here/near-lola.safetensors", "--episodes", "3"]
    assert main(played) == 0
    _, header = load_tensors(here / "near-lola.safetensors")
    assert said_returns(capsys.readouterr().out) == pytest.approx(header["returns_after"])
    assert all(value == int(value) for value in header["returns_after"])


def said_of_own_task(latent, capsys, *more):
    assert main(["play", str(latent), "--episodes", "3", *map(str, more)]) == 0
    captured = capsys.readouterr()
    return said_returns(captured.out), captured.err


def test_a_latent_outlives_its_own_tasks_file(tiny, here, capsys):
    """What it does is the same whatever has become of the file; the returns are the file's."""
    mine, moved, latent = here / "mine.py", here / "moved.py", here / "near-lola.safetensors"
    mine.write_text(OWN)
    options = ["--model", str(tiny.model), "--data", str(tiny.dataset), "--method", "lola"]
    own = ["--task", "near", "--task-set", "file=mine.py"]
    assert main(["adapt", *options, *own, *SHORT, "--set", *LOLA_WORDS]) == 0
    capsys.readouterr()
    before, said = said_of_own_task(latent, capsys)
    assert said == ""
    mine.write_text(OWN.replace("* 1.0", "* 2.0"))
    after, said = said_of_own_task(latent, capsys)
    assert after == [2 * value for value in before]
    assert said.startswith(f"warning: {mine} has changed since {latent} was adapted to it")
    assert said.count("\n") == 1
    mine.rename(moved)
    line = refused(capsys, ["play", latent])
    assert line.startswith(f"{latent}: its task is a function of {mine}, where there is none; say")
    assert line.endswith("--task-set file=FILE.py")
    moved.write_text(OWN)
    assert said_of_own_task(latent, capsys, "--task-set", f"file={moved}") == (before, "")


def test_only_an_own_task_has_a_file(latent, capsys):
    line = refused(capsys, ["play", latent, "--task-set", "file=mine.py"])
    assert line == f"{latent}: its task is built in; leave --task-set out"


ADAPT_MISTAKES = [
    (["--task", "moon"], "domain point_mass_maze: task family by-hand: no task 'moon'; point_mass"),
    (["--task-set", "szie=1"], "domain point_mass_maze: task family by-hand: szie is not a sett"),
    (["--task-set", "file=none.py"], "{here}/none.py: no such file; it should be Python"),
    (["--task-set", "target_size"], "--task-set: 'target_size' is not KEY=VALUE"),
    (["--task-set", "target_size=1", "target_size=2"], "--task-set: target_size is given twice"),
    (["--domain", "walker"], "--domain: {model} is a model of point_mass_maze, not of walker"),
    (["--method", "moon"], "no 'moon' in bfmpipe.adaptation; it has"),
    (["--set", "sigam=1"], "method lola: sigam is not a setting; did you mean sigma?"),
    (["--set", "sigma=wide"], "method lola: sigma: 'wide' is text, not a number"),
    (["--set", "sigma=NaN"], "the arguments: method_settings.sigma: nan is not a finite number"),
    (["--infer", "weights=ridge"], "the arguments: infer.weights: 'ridge' is not a choice; valid"),
    (["--set", "=1"], "--set: '=1' is not KEY=VALUE"),
    (["--episodes", "0"], "the arguments: episodes: 0 should be greater than or equal to 1"),
    (["--episodes", "ten"], "the arguments: episodes: 'ten' is text, not a whole number"),
    (["--every", "2.5"], "the arguments: every: 2.5 is not a whole number"),
    (["--device", "gpu"], "the arguments: device: 'gpu' is not"),
    (["--device", "cuda"], "--device is cuda, but torch finds no usable GPU on this machine"),
    (["--evaluate", "1"], "the arguments: evaluate: 1 should be greater than or equal to 2"),
    (["--seed", "-1"], "the arguments: seed: -1 should be greater than or equal to 0"),
    (["--set", "horizon=50"], "lola: a budget of 80 environment steps is too small for one update"),
    (["--task", "reach_top_right"], "--task is given twice"),
    (["--latent-out", "a", "--latent-out", "b"], "--latent-out is given twice"),
    (["--model", "none"], "none/config.json: no such file; a model is a directory"),
    (["--model", "{data}"], "{data}: is a file; a model is a directory with config.json and"),
    (["--data", "{model}/config.json"], "{model}/config.json: is text, not a Parquet file"),
    (["--data", "none.parquet"], "none.parquet: no such file"),
    (["--latent-out", "{here}"], "{here}: is a directory; name a file to write"),
    (["--latent-out", "{model}/config.json/z"], "{model}/config.json/z: cannot be written: Not a"),
]


@pytest.mark.parametrize(
    ("changed", "said"), ADAPT_MISTAKES, ids=[" ".join(argv) for argv, _ in ADAPT_MISTAKES]
)
def test_a_mistake_is_one_line_and_writes_nothing(tiny, here, capsys, monkeypatch, changed, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changed, (said,) = (
        [word.format(here=here, model=tiny.model, data=tiny.dataset) for word in words]
        for words in (changed, [said])
    )
    options = {
        "--model": tiny.model,
        "--data": tiny.dataset,
        "--method": "lola",
        "--episodes": 4,
        "--every": 2,
        "--evaluate": 3,
        "--task": "reach_top_left",
    }
    if "twice" not in said:
        options = {name: value for name, value in options.items() if name not in changed}
    words = [word for option in options.items() for word in option]
    argv = ["adapt", *words, "--set", *LOLA_WORDS[:2], *changed]
    assert refused(capsys, argv).startswith(said)
    assert list(here.iterdir()) == []


def _as_it_is(file):
    """All but when it was read."""
    now = file.lstat()
    content = file.read_bytes() if file.is_file() else None
    return now.st_mode, now.st_ino, now.st_size, now.st_mtime_ns, content


@pytest.mark.parametrize("there", ["model", "text", "link", "dangling", "pipe"])
def test_nothing_but_a_latent_is_written_over(tiny, here, model_copy, capsys, there):
    out = here / "out"
    if there == "model":
        out = model_copy / WEIGHTS
    elif there == "text":
        out.write_text("notes")
    elif there == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to(model_copy / WEIGHTS if there == "link" else here / "nothing")
    before = _as_it_is(out)
    options = ["--model", tiny.model, "--data", tiny.dataset, "--method", "lola", *SHORT]
    argv = ["adapt", *options, *TASK, "--set", *LOLA_WORDS, "--latent-out", out]
    kind = "no latent that `bfmpipe adapt` saved" if there in ("model", "text") else "a link"
    line = refused(capsys, argv)
    assert line.startswith(f"{out}: is ")
    assert kind in line
    assert _as_it_is(out) == before


def test_a_latent_that_is_replaced_is_announced_first(tiny, latent, capsys):
    _, header = load_tensors(latent)
    assert adapt(tiny, "--seed", "1") == 0
    first = capsys.readouterr().err.splitlines()[0]
    mean = np.mean(header["returns_after"])
    assert first.startswith(f"{latent.name}: holds a latent of lola that returns {mean:.2f}; what ")
    assert load_tensors(latent)[1]["seed"] == 1


def test_a_gain_of_nothing_has_no_sign_of_a_loss():
    def point(value):
        return SimpleNamespace(returns=np.full((1, 3), value))

    assert by_hand._gain(point(100.0), point(99.9)) == " (+0 %)"
    assert by_hand._gain(point(100.0), point(98.9)) == " (-1 %)"


def test_a_task_that_is_never_rewarded_is_one_line(tiny, here, capsys):
    (here / "mine.py").write_text("def never(physics, action):\n    return 0 * action[:, 0]\n")
    options = ["--model", tiny.model, "--data", tiny.dataset, "--method", "lola"]
    line = refused(capsys, ["adapt", *options, "--task", "never", "--task-set", "file=mine.py"])
    assert line.startswith("task by-hand/never: ")
    assert [path.name for path in here.iterdir()] == ["mine.py"]


def test_a_latent_of_another_model_is_refused(latent, model_copy, capsys):
    model, card = load_model(model_copy)
    next(model.parameters()).add_(1e-6)
    save_model(model_copy, model, card)
    line = refused(capsys, ["play", latent, "--model", model_copy])
    assert line.startswith(f"{latent}: a latent of another model than {model_copy}, whose weights")


def test_a_latent_of_other_domain_settings_is_refused(latent, edit_card, capsys):
    model = edit_card(domain_settings={"physics_steps": 5, "episode_steps": 30})
    line = refused(capsys, ["play", latent, "--model", model])
    assert line.startswith(f"{latent}: was adapted under other settings of point_mass_maze than")


def test_a_model_that_moved_is_asked_for(latent, model_copy, capsys):
    tensors, header = load_tensors(latent)
    save_tensors(latent, tensors, {**header, "model": "/nowhere/model"})
    assert "say where it is now with --model" in refused(capsys, ["play", latent])
    assert main(["play", str(latent), "--model", str(model_copy)]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"z": torch.zeros(3)}, "z must be 6 finite numbers"),
        ({"z": torch.full((6,), torch.nan)}, "z must be 6 finite numbers"),
        ({"task": "moon"}, "no task 'moon'"),
        ({"kind": "model"}, "holds a model; expected a latent that `bfmpipe adapt` saved"),
        ({"env_steps": "many"}, "env_steps: 'many' is text, not a whole number"),
    ],
)
def test_a_latent_that_is_none_is_refused(latent, capsys, change, said):
    tensors, header = load_tensors(latent)
    tensors |= {k: v for k, v in change.items() if k in tensors}
    header |= {k: v for k, v in change.items() if k in header}
    save_tensors(latent, tensors, header)
    assert said in refused(capsys, ["play", latent])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name the file of a latent, or a --model and a --task to play zero-shot"),
        (["--model", "{model}"], "name the file of a latent, or a --model and a --task"),
        (["--task", "reach_top_left"], "name the file of a latent, or a --model and a --task"),
        (["none"], "none: no such file"),
        (["{model}/config.json"], "{model}/config.json: is text, not a safetensors file"),
        (["{data}"], "{data}: is a Parquet file, not a safetensors file"),
        (["{model}/model.safetensors"], "{model}/model.safetensors: holds a model; expected a"),
        (["{latent}", "--task", "x"], "{latent} says what is played; leave --task out"),
        (["{latent}", "--seed", "0"], "{latent} says what is played; leave --seed out"),
        (["{latent}", "--data", "x"], "{latent} says what is played; leave --data out"),
        (["{latent}", "--infer", "a=1"], "{latent} says what is played; leave --infer out"),
        (["{latent}", "--task-set", "a=1"], "{latent} says what is played; leave --task-set out"),
        (["{latent}", "--episodes", "0"], "the arguments: episodes: 0 should be greater than or"),
        (["{latent}", "--video", "a.avi"], "a.avi: no kind of film; valid: .gif, .mp4, .png"),
    ],
)
def test_a_mistake_in_playing_is_one_line(tiny, latent, capsys, argv, said):
    argv, (said,) = (
        [word.format(latent=latent, model=tiny.model, data=tiny.dataset) for word in words]
        for words in (argv, [said])
    )
    assert refused(capsys, ["play", *argv]).startswith(said)


# Pictures: a process of its own, whose OpenGL works. Small ones are drawn faster.

FILM = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from bfmpipe import cli
from bfmpipe.adaptation.protocol import Evaluation, start_states
from bfmpipe.envs import rendering

rendering._TILE = (64, 48)
latent = sys.argv[1]
for episodes, name in ((3, "a.gif"), (3, "a.png"), (2, "a.mp4"), (1, "nowhere/b.mp4")):
    print(cli.main(["play", latent, "--episodes", str(episodes), "--video", name]))

from bfmpipe.envs import make_domain
domain = make_domain("point_mass_maze", {"physics_steps": 5, "episode_steps": 20})
starts = start_states(domain, Evaluation(episodes=3))
(task,) = domain.tasks("mine", ["reach_top_left"], {"target_size": 0.1})
np.save("starts.npy", rendering.render(domain, starts, 64, 48, task))
"""

# what ffmpeg is given is kept as it came; it fails where the file is to be called b.mp4
FFMPEG = """#!/bin/sh
for last; do :; done
echo "$@" >> arguments
case "$last" in *b.mp4*) echo first >&2; echo no such codec >&2; exit 1;; esac
cat > "${last#file:}"
"""


@pytest.fixture(scope="module")
def backend():
    name = os.environ.get("MUJOCO_GL", "disabled")
    if name == "disabled":
        name = _opengl()
    if name == "disabled":
        pytest.skip("no OpenGL without a display here")
    return name


def test_films(backend, latent, here):
    from PIL import Image

    (here / "bin").mkdir()
    (here / "bin/ffmpeg").write_text(FFMPEG)
    (here / "bin/ffmpeg").chmod(0o755)
    path = f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MUJOCO_GL": backend, "PATH": path}
    environment.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", FILM, str(latent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert [line for line in done.stdout.splitlines() if line in "012"] == list("0002"), done
    first = np.load("starts.npy")
    height = 48 + 16  # each picture has a strip above it, with its caption

    with Image.open("a.gif") as gif:
        assert gif.size == (2 * 64, 2 * height)
        # .1 s a step; a state after which nothing moves lasts on
        durations, frames = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert sum(durations) == 21 * 100
    assert not frames[0][height:, 64:].any()  # three episodes, and a place left over
    tiles = [frames[0][:height, :64], frames[0][:height, 64:], frames[0][height:, :64]]
    for tile, picture in zip(tiles, first, strict=True):
        assert np.abs(tile[16:] - picture).mean() < 4  # 256 colours
        assert tile[:16].max() > 200

    with Image.open("a.png") as png:
        sheet = np.asarray(png)
    assert sheet.shape == (3 * height, 6 * 64, 3)
    rows = np.split(sheet, 3)
    for row, picture in zip(rows, first, strict=True):
        assert np.array_equal(row[16:, :64], picture)
        assert not np.array_equal(row[16:, -64:], picture)

    raw = np.frombuffer(Path("a.mp4").read_bytes(), np.uint8).reshape(21, height, 2 * 64, 3)
    assert np.array_equal(raw[0, :, :64], rows[0][:, :64])
    assert np.array_equal(raw[-1, :, 64:], rows[1][:, -64:])
    assert "-s 128x64 -r 10 " in Path("arguments").read_text()
    assert done.stderr.splitlines()[-1] == "bfmpipe play: error: ffmpeg failed: no such codec"
    assert list(Path("nowhere").iterdir()) == []


def test_without_ffmpeg_an_mp4_is_refused(latent, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    line = refused(capsys, ["play", latent, "--video", "a.mp4"])
    assert line.startswith("a.mp4: an .mp4 is made by the program ffmpeg")
    assert line.endswith("name a .gif")


def test_without_opengl_nothing_is_played(latent, here):
    command = [sys.executable, "-m", "bfmpipe", "play", latent, "--video", "a.gif"]
    environment = {**os.environ, "MUJOCO_GL": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("bfmpipe play: error: no picture can be drawn without OpenGL")
    assert done.stderr.count("\n") == 1
    assert not (here / "a.gif").exists()
