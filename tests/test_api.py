"""The library as its docstring shows it, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import bfmpipe
from bfmpipe import api
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.types import UserError

LOLA = {"states": 2, "latents": 2, "horizon": 5}


@pytest.fixture
def pretrained(tiny):
    return bfmpipe.load(tiny.model)


@pytest.fixture
def data(tiny):
    return bfmpipe.read_transitions(tiny.dataset)


@pytest.fixture
def tasks(pretrained):
    names = ["reach_top_left", "reach_bottom_right"]
    return pretrained.domain.tasks("reach", names, {"target_size": 0.1})


def adapt(pretrained, tasks, data, **changed):
    latent = bfmpipe.infer(pretrained, tasks, data)
    arguments = {
        "method": "lola",
        "episodes": 4,
        "every": 2,
        "settings": LOLA,
        "evaluation": Evaluation(episodes=3),
    }
    return list(bfmpipe.adapt(pretrained, tasks, latent, data, **{**arguments, **changed}))


def test_load_infer_adapt(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    assert latent.w.shape == latent.z.shape == (2, 6)
    points = adapt(pretrained, tasks, data)
    assert [point.env_steps for point in points] == [0, 40, 80]
    assert all(point.returns.shape == (2, 3) for point in points)
    assert torch.equal(torch.from_numpy(points[0].z), latent.z)
    assert not np.array_equal(points[-1].z, points[0].z)


def test_adaptation_leaves_model_latents_and_data_as_they_are(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    before = {name: t.clone() for name, t in pretrained.model.state_dict().items()}
    z, physics = latent.z.clone(), np.array(data.physics)
    list(api.adapt(pretrained, tasks, latent, data, method="lola", episodes=4, settings=LOLA))
    assert all(torch.equal(t, before[n]) for n, t in pretrained.model.state_dict().items())
    assert torch.equal(latent.z, z)
    np.testing.assert_array_equal(data.physics, physics)


def test_the_library_and_the_stage_agree(pretrained, tasks, data, tiny, tmp_path):
    from bfmpipe.data.tables import read_table

    settings = tiny.settings("adapt", every=2)
    files = {"curves": tmp_path / "c.parquet", "trajectories": tmp_path / "t.parquet"}
    tiny.run(
        "adapt",
        settings=settings,
        model=tiny.model,
        dataset=tiny.dataset,
        latents=tiny.latents,
        **files,
    )
    latent = api.infer(pretrained, tasks, data, inference=api.Inference(samples=300))
    points = api.adapt(
        pretrained,
        tasks,
        latent,
        data,
        method="lola",
        episodes=4,
        every=2,
        evaluation=Evaluation(episodes=3),
        settings=LOLA,
    )
    curves, _ = read_table(files["curves"], "adaptation")
    np.testing.assert_array_equal(curves["returns"], np.concatenate([p.returns for p in points]))


def test_evaluations_come_lazily(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    running = api.adapt(
        pretrained, tasks, latent, data, method="lola", episodes=10**9, settings=LOLA
    )
    assert next(running).env_steps == 0  # ten centuries of adaptation have not been waited for


def test_importing_the_package_does_not_import_torch():
    code = "import bfmpipe, sys; assert 'torch' not in sys.modules; assert bfmpipe.adapt"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'adpat'"):
        _ = bfmpipe.adpat  # type: ignore[attr-defined]


def test_a_model_that_does_not_fit_its_domain_is_refused(tmp_path):
    from bfmpipe.agents import fb, save_model

    model = fb.Model(fb.Config(z_dim=2, hidden_dim=4, backward_hidden_dim=4), 3, 2)
    save_model(tmp_path, model, {"agent": "fb", "domain": "point_mass_maze", "domain_settings": {}})
    with pytest.raises(UserError) as caught:
        bfmpipe.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: a model of 3 observations and 2 actions; point_mass_maze has 4 and 2"
    )


@pytest.mark.parametrize("name", ["domain", "domain_settings"])
def test_a_card_without_a_domain_is_refused(edit_card, name):
    directory = edit_card(**{name: None})
    with pytest.raises(UserError) as caught:
        bfmpipe.load(directory)
    assert str(caught.value) == f"{directory}: config.json does not say the model's {name}"


def test_a_card_with_an_unknown_domain_is_refused(edit_card):
    with pytest.raises(UserError, match=r"no 'walkre' in bfmpipe\.envs; it has"):
        bfmpipe.load(edit_card(domain="walkre"))


def test_data_of_another_domain_are_refused(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    other = replace(data, domain="walker")
    said = "the data set is of walker, the model of point_mass_maze"
    with pytest.raises(UserError, match=said):
        bfmpipe.infer(pretrained, tasks, other)
    with pytest.raises(UserError, match=said):
        api.adapt(pretrained, tasks, latent, other, method="zero-shot", episodes=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "loal"}, "no 'loal' in bfmpipe.adaptation; it has lola"),
        ({"settings": {"sigam": 1.0}}, "method lola: sigam is not a setting; did you mean sigma?"),
        ({"settings": {"sigma": "1e-1"}}, "(YAML reads 1e-1 as a string; write 1.0e-1)"),
        ({"settings": {}}, "lola: a budget of 80 environment steps is too small"),
    ],
)
def test_bad_requests_are_refused(pretrained, tasks, data, changed, said):
    with pytest.raises(UserError) as caught:
        adapt(pretrained, tasks, data, **changed)
    assert said in str(caught.value)


def test_unknown_tasks_and_task_settings_are_refused(pretrained):
    domain = pretrained.domain
    with pytest.raises(UserError, match="no task 'reach_roof'; point_mass_maze has reach_top"):
        domain.tasks("reach", ["reach_roof"], {})
    with pytest.raises(UserError, match="target_szie is not a setting; did you mean target_size"):
        domain.tasks("reach", ["reach_top_left"], {"target_szie": 0.1})


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("1", 1)])
def test_threads_are_those_that_snakemake_gives(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert api.threads() == expected


@pytest.mark.parametrize("given", ["", "0", "many"])
def test_threads_are_one_a_core_where_nothing_sensible_is_given(monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert api.threads() >= 1


def test_the_card_is_what_config_json_says(pretrained, tiny):
    assert pretrained.card == json.loads((tiny.model / "config.json").read_text())
