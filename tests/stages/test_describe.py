"""Stage describe: a card that reads as the model is, with zero-shot's reported scores."""

import json
import re

import numpy as np
import pytest

from bfmpipe import plugins
from bfmpipe.agents import load_model
from bfmpipe.agents.card import readme
from bfmpipe.data.tables import Provenance, open_table, read_table, write_table
from bfmpipe.files import file_digest
from bfmpipe.types import UserError


@pytest.fixture(scope="module")
def zero_shot(tiny, tmp_path_factory):
    """The table of zero-shot's adaptation: three episodes a task."""
    return adapt(tiny, tmp_path_factory.mktemp("zero-shot"), "zero-shot")


def adapt(tiny, directory, method, settings=None, **changed):
    method = {"name": method, "settings": settings or {}}
    tiny.run(
        "adapt",
        settings=tiny.settings("adapt", method=method, **changed),
        model=[tiny.model],
        dataset=tiny.dataset,
        latents=[tiny.latents],
        curves=[directory / "curves.parquet"],
        trajectories=[directory / "trajectories.parquet"],
    )
    return directory / "curves.parquet"


def describe(tiny, zero_shot, card, model=None):
    tiny.run("describe", model=model or tiny.model, zero_shot=zero_shot, card=card)
    return card.read_text()


@pytest.fixture(scope="module")
def text(tiny, zero_shot, tmp_path_factory):
    return describe(tiny, zero_shot, tmp_path_factory.mktemp("card") / "README.md")


def test_the_card_reads_as_the_model_is(tiny, text):
    assert text.startswith("---\nlibrary_name: bfmpipe\n")
    assert "Touati & Ollivier 2021" in text
    assert "40 updates with seed 0, and" in text
    assert "600 transitions, explored by `persistent-random`; SHA-256" in text
    assert file_digest(tiny.dataset) in text
    changed = next(line for line in text.splitlines() if "differ from its defaults" in line)
    assert all(f"{name} `{json.dumps(v)}`" in changed for name, v in tiny.agent["settings"].items())
    assert "discount" not in changed
    assert "| `discount` | `0.98` |" in text  # but all settings are there
    assert "The divergence alarm did not ring." in text


def test_its_scores_are_those_that_are_reported_and_not_those_of_the_training(
    tiny, text, zero_shot
):
    table, _ = read_table(zero_shot, "adaptation")
    rows = re.findall(r"\| reach \| (\w+) \| (.*) \| (.*) \| (\d+) \|", text)
    found = [(task, float(mean), float(error), int(n)) for task, mean, error, n in rows]
    returns = table["returns"]
    assert [row[0] for row in found] == ["reach_top_left", "reach_bottom_right"]
    np.testing.assert_allclose([row[1] for row in found], returns.mean(1), atol=0.00501)
    errors = np.sqrt(((returns - returns.mean(1, keepdims=True)) ** 2).sum(1) / 2 / 3)
    np.testing.assert_allclose([row[2] for row in found], errors, atol=0.00501)
    assert [row[3] for row in found] == [3, 3]
    _, said = load_model(tiny.model)
    assert [row["episodes"] for row in said["zero_shot"]] == [4, 4]  # of the training's own
    assert "| family | settings |\n| --- | --- |\n| reach | target_size `0.1` |\n" in text


def test_what_the_card_says_of_loading_works(tiny, text):
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/directory", str(tiny.model))
    code = code.replace("path/to/data.parquet", str(tiny.dataset))
    found = {}
    exec(code, found)
    assert found["latent"].z.shape == (1, 6)


def test_the_card_says_that_the_alarm_rang_and_which_seeds_were_trained_together(
    tiny, zero_shot, edit_card, tmp_path
):
    model = edit_card(diverged_at=1200, seeds_together=[0, 1])
    text = describe(tiny, zero_shot, tmp_path / "README.md", model=model)
    assert "**The divergence alarm rang at update 1,200**" in text
    assert "with seed 0, as one batched model with the seeds 0, 1, and" in text


def test_a_model_that_was_trained_without_tasks_has_the_same_card(
    tiny, text, zero_shot, edit_card, tmp_path
):
    model = edit_card(zero_shot=None)
    assert describe(tiny, zero_shot, tmp_path / "README.md", model=model) == text


def test_a_model_made_elsewhere_has_a_card_that_says_so(tiny, zero_shot, edit_card, tmp_path):
    _, card = load_model(tiny.model)
    known = {"agent", "domain", "domain_settings", "obs_dim", "action_dim", "config"}
    trained = dict.fromkeys(card.keys() - known - {"weights_sha256"})
    text = describe(tiny, zero_shot, tmp_path / "README.md", model=edit_card(**trained))
    assert "Method: fb. It was not trained by bfmpipe, but made elsewhere, and has" in text
    assert "| reach | reach_top_left |" in text
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## Loading", "## Zero-shot scores", "## Settings"]
    assert "Of the training" not in text


def test_the_same_model_has_the_same_card_and_stays_as_it_is(tiny, text, zero_shot, model_copy):
    before = {path.name: path.read_bytes() for path in model_copy.iterdir()}
    assert describe(tiny, zero_shot, model_copy / "README.md", model=model_copy) == text
    after = {path.name: path.read_bytes() for path in model_copy.iterdir()}
    assert after == {**before, "README.md": text.encode()}
    load_model(model_copy)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": [1]}, "scores of fb on point_mass_maze with seed 1, but"),
        ({"agent": "hilp"}, "scores of hilp on point_mass_maze with seed 0, but"),
        ({"domain": "walker"}, "scores of fb on walker with seed 0, but"),
        ({"method": {"name": "lola", "settings": {}}}, "returns of lola, not of zero-shot"),
    ],
)
def test_scores_of_anything_else_are_refused(tiny, zero_shot, tmp_path, changed, said):
    columns, origin = read_table(zero_shot, "adaptation")
    settings = {**origin.settings, **changed}
    file, _ = open_table(zero_shot, "adaptation")
    with file:
        schema = file.schema_arrow.remove_metadata()
    other = tmp_path / "other.parquet"
    write_table(other, schema, columns, Provenance("adaptation", settings, origin.code))
    with pytest.raises(UserError) as caught:
        describe(tiny, other, tmp_path / "README.md")
    assert str(caught.value).startswith(f"{other}: {said}")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other.parquet"]


def test_the_snippet_loads_tasks_that_need_no_file_of_the_users_where_there_are_some(tiny):
    model, card = load_model(tiny.model)
    score = {"mean": 1.0, "standard_error": 0.1, "episodes": 3}
    families = {"mine": {"names": ["push"], "file": "my.py"}, "reach": {"names": ["a"]}}
    rows = [{"family": family, "task": of["names"][0], **score} for family, of in families.items()]
    for tasks, said in ((families, '"reach", ["a"], {}'), ({"mine": families["mine"]}, '"my.py"')):
        scores = [row for row in rows if row["family"] in tasks]
        text = readme({**card, "tasks": tasks, "zero_shot": scores}, model)
        assert said in text.split("## Zero-shot scores")[0].split("## Loading")[1]


def test_of_a_model_of_ones_own_it_says_that_its_module_is_needed(tiny, own_modules):
    model, card = load_model(tiny.model)
    content = {**card, "tasks": {}, "zero_shot": []}
    assert "needs no knowledge of the agent's class" in readme(content, model)
    (own_modules / "agents").mkdir()
    (own_modules / "agents" / "mine_too.py").write_text("class Model: pass\n")
    plugins.use(own_modules)
    text = readme({**content, "agent": "mine_too"}, model)
    assert "BFMPIPE_PLUGINS names the directory that has agents/mine_too.py" in text
    assert "needs no knowledge" not in text
