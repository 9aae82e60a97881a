"""Stage infer: one latent a task, by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bfmpipe import api, plugins
from bfmpipe.agents import fb, save_model
from bfmpipe.config import load_yaml
from bfmpipe.data.tables import read_table
from bfmpipe.experiment import check
from bfmpipe.inference import Inference
from bfmpipe.stages.infer import read_latents
from bfmpipe.types import UserError

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
Z_DIM = 6  # of the model of `tiny`


def infer(tiny, path, **changed):
    settings = tiny.settings("infer", **changed)
    tiny.run("infer", settings=settings, model=tiny.model, dataset=tiny.dataset, latents=path)
    return read_table(path, "latents")[0]


def test_a_model_that_is_only_loaded_goes_through_the_stages(tiny, tmp_path, monkeypatch):
    """An agent's module may have no Agent: the stages after the training do without."""
    defines = plugins._defines
    monkeypatch.setattr(plugins, "_defines", lambda path, n: n != "Agent" and defines(path, n))
    assert plugins.names("agents") == ()
    files = {"model": tiny.model, "dataset": tiny.dataset, "latents": tmp_path / "latents"}
    tiny.run("infer", **files)
    tiny.run("probe", **files, scores=tmp_path / "scores")
    tiny.run("diagnose", **files, diagnosis=tmp_path / "diagnosis")
    lists = {name: [path] for name, path in files.items() if name != "dataset"}
    paths = {name: [tmp_path / name] for name in ("curves", "trajectories")}
    tiny.run("adapt", **lists, dataset=tiny.dataset, **paths)
    assert (tmp_path / "latents").read_bytes() == tiny.latents.read_bytes()
    assert all((tmp_path / name).exists() for name in ("scores", "diagnosis", *paths))


def test_every_task_has_weights_and_a_latent_on_the_sphere(tiny):
    columns, origin = read_table(tiny.latents, "latents")
    assert columns["family"].tolist() == ["reach", "reach"]
    assert columns["task"].tolist() == ["reach_top_left", "reach_bottom_right"]
    assert columns["w"].shape == columns["z"].shape == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(columns["z"], axis=1), math.sqrt(6), rtol=1e-6)
    lengths = np.linalg.norm(columns["w"], axis=1, keepdims=True)
    np.testing.assert_allclose(columns["z"], math.sqrt(6) * columns["w"] / lengths, rtol=1e-5)
    assert origin.settings["inference"]["samples"] == 300


def test_the_file_has_the_declared_schema(tiny):
    latent = pa.list_(pa.float32(), 6)
    kinds = {"family": pa.string(), "task": pa.string(), "w": latent, "z": latent}
    expected = pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()])
    assert pq.read_schema(tiny.latents).remove_metadata().equals(expected)


def test_all_samples_give_the_mean_over_the_whole_data_set(tiny, tmp_path):
    found = infer(tiny, tmp_path / "latents.parquet", inference={"samples": 10**6})["w"]
    pretrained = api.load(tiny.model)
    data = api.read_transitions(tiny.dataset)
    (task,) = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    reward = pretrained.domain.relabel(task, data.physics[data.index + 1], data.action[data.index])
    features = pretrained.model.phi(torch.from_numpy(data.obs[data.index + 1])).numpy()
    expected = (features.astype(np.float64) * reward[:, None]).mean(0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-7)


def test_a_model_of_longer_transitions_is_asked_about_the_states_they_lead_to(tiny, edit_card):
    card = json.loads((tiny.model / "config.json").read_text())
    pretrained = api.load(edit_card(config={**card["config"], "stride": 3}))
    data = api.read_transitions(tiny.dataset)
    (task,) = tasks_of(tiny, ["reach_top_left"])
    found = api.infer(pretrained, [task], data, inference=Inference(samples=10**6)).w[0]
    total, rows = np.zeros(Z_DIM), 0
    for row in range(len(data.step)):
        if data.step[row] < 3:  # no transition leads here
            continue
        # the reward counts the action that led there
        (reward,) = pretrained.domain.relabel(task, data.physics[[row]], data.action[[row - 1]])
        total += reward * pretrained.model.phi(torch.from_numpy(data.obs[[row]]))[0].numpy()
        rows += 1
    assert rows == tiny.episodes * (tiny.episode_steps - 2)
    np.testing.assert_allclose(found, total / rows, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stage", ["infer", "probe", "diagnose", "adapt"])
@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("domain", "walker", "the model's domain is point_mass_maze, but the settings say walker"),
        ("agent", "hilp", "the model's agent is fb, but the settings say hilp"),
    ],
)
def test_a_model_of_something_else_is_refused(tiny, tmp_path, stage, name, other, said):
    settings = tiny.settings(
        stage, **({"method": {"name": "lola", "settings": {}}} if stage == "adapt" else {})
    )
    files = {
        "infer": {"latents": tmp_path / "out"},
        "probe": {"latents": tiny.latents, "scores": tmp_path / "out"},
        "diagnose": {"latents": tiny.latents, "diagnosis": tmp_path / "out"},
        "adapt": {
            "latents": [tiny.latents],
            "curves": [tmp_path / "out"],
            "trajectories": [tmp_path / "paths"],
        },
    }[stage]
    model = [tiny.model] if stage == "adapt" else tiny.model
    with pytest.raises(UserError, match=said):
        tiny.run(
            stage, settings={**settings, name: other}, model=model, dataset=tiny.dataset, **files
        )
    assert not (tmp_path / "out").exists()


def test_a_seed_decides_every_byte(tiny, tmp_path):
    again = infer(tiny, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == tiny.latents.read_bytes()
    other = infer(tiny, tmp_path / "other.parquet", seed=1)
    assert not np.array_equal(other["w"], again["w"])


def test_the_way_of_inference_is_a_setting(tiny, tmp_path):
    how = {"samples": 300, "weights": "least-squares"}
    other = infer(tiny, tmp_path / "other.parquet", inference=how)
    assert not np.allclose(other["z"], read_table(tiny.latents, "latents")[0]["z"], atol=1e-2)


FIT = {"weights": "least-squares"}
SOFTMAX = {"reward_weighting": "softmax"}


@pytest.mark.parametrize(
    ("how", "other"),
    [
        (FIT, {}),
        (SOFTMAX, {}),
        ({"centred": True}, {}),
        ({**FIT, **SOFTMAX}, FIT),
        ({**FIT, "centred": True}, FIT),
        ({**SOFTMAX, "inverse_temperature": 1.0}, SOFTMAX),
    ],
)
def test_the_section_infer_of_an_experiment_reaches_the_stage(tiny, tmp_path, how, other):
    """Through the experiment file and the stage's own settings to what the library gives."""
    found = []
    for name, section in (("how", how), ("other", other)):
        smoke = load_yaml(SMOKE)
        smoke["infer"] = {"samples": 300, **section}
        job = check(smoke, "smoke").stage("infer", domain="point_mass_maze", agent="fb")
        stage = json.loads(job)
        columns = infer(tiny, tmp_path / f"{name}.parquet", inference=stage["inference"])
        pretrained, data = api.load(tiny.model), api.read_transitions(tiny.dataset)
        tasks = tasks_of(tiny, columns["task"].tolist())
        settings = Inference(samples=300, **section)
        expected = api.infer(pretrained, tasks, data, inference=settings)
        np.testing.assert_array_equal(columns["w"], expected.w)
        np.testing.assert_array_equal(columns["z"], expected.z)
        found.append(columns["w"])
    assert not np.allclose(*found, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"weights": "ridge"},
            "smoke: infer.weights: 'ridge' is not a choice; valid: model, expectation, "
            "least-squares",
        ),
        (
            {"reward_weighting": "softmx"},
            "smoke: infer.reward_weighting: 'softmx' is not a choice; did you mean softmax? "
            "valid: uniform, softmax",
        ),
        (
            {"inverse_temperature": 0},
            "smoke: infer.inverse_temperature: 0 should be greater than 0",
        ),
        ({"centred": "yes"}, "smoke: infer.centred: 'yes' is text, not true or false"),
        (
            {"centered": True},
            "smoke: infer.centered is not a setting; did you mean centred? valid: samples, "
            "weights, reward_weighting, inverse_temperature, centred",
        ),
        ({"samples": 0}, "smoke: infer.samples: 0 should be greater than or equal to 1"),
    ],
)
def test_mistakes_in_the_section_are_named(section, said):
    with pytest.raises(UserError) as caught:
        check({**load_yaml(SMOKE), "infer": section}, "smoke")
    assert str(caught.value) == said


def test_a_task_that_the_data_never_reward_is_named(tiny, tmp_path):
    tasks = {"families": {"tiny": {"names": ["reach_top_left"], "target_size": 1e-7}}}
    with pytest.raises(UserError) as caught:
        infer(tiny, tmp_path / "x.parquet", tasks=tasks)
    said = str(caught.value)
    assert said.startswith("task tiny/reach_top_left: all 300 rewards in the inference data are")
    assert not list(tmp_path.iterdir())


def test_the_mean_over_fewer_samples_than_asked_for_is_no_error(tiny):
    pretrained, data = api.load(tiny.model), api.read_transitions(tiny.dataset)
    tasks = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    one, two = (
        api.infer(pretrained, tasks, data, inference=Inference(samples=n), seed=seed)
        for n, seed in ((600, 0), (10**6, 5))
    )
    assert torch.equal(one.w, two.w)  # all of the data, in their own order, whatever the seed


def tasks_of(tiny, names, family="reach"):
    return api.load(tiny.model).domain.tasks(family, names, {"target_size": 0.1})


def test_latents_of_another_length_are_refused(tiny):
    model = fb.Model(fb.Config(z_dim=Z_DIM + 1, hidden_dim=4, backward_hidden_dim=4), 4, 2)
    wider = replace(api.load(tiny.model), model=model)
    with pytest.raises(UserError, match="column 'w' must hold 7 finite numbers a task"):
        read_latents(tiny.latents, tasks_of(tiny, ["reach_top_left"]), replace(wider, card={}))


def test_latents_of_another_model_are_refused(tiny, tmp_path):
    pretrained = api.load(tiny.model)
    with torch.no_grad():
        for weights in pretrained.model.parameters():
            weights.mul_(1.1)
    save_model(tmp_path, pretrained.model, pretrained.card)
    other, tasks = api.load(tmp_path), tasks_of(tiny, ["reach_top_left"])
    with pytest.raises(UserError) as caught:
        read_latents(tiny.latents, tasks, other)
    assert str(caught.value) == (
        f"{tiny.latents}: latents of a model of other weights; run the stage infer again"
    )
    _, origin = read_table(tiny.latents, "latents")
    digest = api.load(tiny.model).card["weights_sha256"]
    assert origin.source == {"weights_sha256": digest}
    # a model of an earlier version does not say its digest
    card = {name: value for name, value in other.card.items() if name != "weights_sha256"}
    read_latents(tiny.latents, tasks, replace(other, card=card))


def test_latents_of_a_model_that_does_not_say_its_digest_say_none(tiny, edit_card, tmp_path):
    latents = tmp_path / "latents.parquet"
    model = edit_card(weights_sha256=None)
    tiny.run("infer", model=model, dataset=tiny.dataset, latents=latents)
    assert read_table(latents, "latents")[1].source == {}
    read_latents(latents, tasks_of(tiny, ["reach_top_left"]), api.load(tiny.model))


def test_latents_are_read_by_name_not_by_row(tiny):
    columns, _ = read_table(tiny.latents, "latents")
    tasks = tasks_of(tiny, ["reach_bottom_right", "reach_top_left"])
    latent = read_latents(tiny.latents, tasks, api.load(tiny.model))
    np.testing.assert_array_equal(latent.w, columns["w"][::-1])
    np.testing.assert_array_equal(latent.z, columns["z"][::-1])


@pytest.mark.parametrize(("name", "family"), [("reach_top_right", "reach"), ("reach_top_left", "")])
def test_a_task_without_a_latent_is_named(tiny, name, family):
    with pytest.raises(UserError) as caught:
        read_latents(tiny.latents, tasks_of(tiny, [name], family), api.load(tiny.model))
    assert f"{tiny.latents}: no latent of task {family}/{name}" in str(caught.value)
