"""Files of tasks in an experiment, and the page that explains them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import bfmpipe
from bfmpipe import experiment, plugins
from bfmpipe.config import load_yaml
from bfmpipe.envs import make_domain, tasks
from bfmpipe.types import UserError

REPOSITORY = Path(__file__).parents[1]
SMOKE = REPOSITORY / "configs" / "smoke.yaml"
PAGE = REPOSITORY / "docs" / "tasks.md"
TEXT = "def east(physics, action):\n    return physics.position[:, 0]\n"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An experiment in `mine/`, which is not where the jobs run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_tasks.py").write_text(TEXT)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "mine"


def read(directory, **family):
    sections = load_yaml(SMOKE)
    mine = {"file": "my_tasks.py", "names": ["east"], **family}
    sections["domains"]["point_mass_maze"]["tasks"]["mine"] = mine
    return experiment.check(sections, "my.yaml", base=directory)


def settings(exp, stage):
    place = {"domain": "point_mass_maze", "agent": "fb", "seed": "0", "method": "lola"}
    return json.loads(exp.stage(stage, **place))


STAGES = (
    *("collect", "pretrain", "infer", "probe", "diagnose", "adapt", "describe", "tabulate"),
    *("judge", "plot", "report"),
)


def test_the_path_is_relative_to_the_experiment_and_jobs_find_it_where_they_run(directory):
    found = settings(read(directory), "infer")["tasks"]["families"]["mine"]
    digest = tasks.digest(directory / "my_tasks.py")
    assert found == {"file": "../mine/my_tasks.py", "names": ["east"], "digest": digest}
    path = directory / "my.yaml"
    path.write_text(json.dumps({**load_yaml(SMOKE)}))
    assert experiment.read(path).domains["point_mass_maze"].tasks["reach"]["target_size"] == 0.1


def test_an_absolute_path_is_that(directory):
    exp = read(Path(), file=str(directory / "my_tasks.py"))
    assert settings(exp, "infer") == settings(read(directory), "infer")


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        (
            "0]",
            "1]",
            {"pretrain", "infer", "probe", "diagnose", "adapt", "describe", "plot", "report"},
        ),
        ("    return", "    # to the right\n    return", set()),
    ],
)
def test_an_edit_of_the_file_reaches_what_depends_on_it(directory, old, new, stages):
    before = {stage: settings(read(directory), stage) for stage in STAGES}
    (directory / "my_tasks.py").write_text(TEXT.replace(old, new))
    exp = read(directory)
    assert {stage for stage in STAGES if settings(exp, stage) != before[stage]} == stages


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ({"file": "your_tasks.py"}, "../mine/your_tasks.py: no such file"),
        ({"file": "."}, "../mine: cannot be read: Is a directory"),
        ({"file": 3}, "file: 3 is a number, not text"),
        ({"names": ["west"]}, "../mine/my_tasks.py has no function 'west'; it has east"),
        ({"names": []}, "needs 'names', a list of tasks; they are functions of ../mine/my_tasks"),
        ({"target_size": 0.1}, "target_size is not a setting; valid: file, digest"),
        ({"digest": "0" * 16}, "../mine/my_tasks.py has changed"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(directory, family, said):
    with pytest.raises(UserError) as caught:
        read(directory, **family)
    assert str(caught.value).startswith(
        "my.yaml: domains: domain point_mass_maze: task family mine"
    )
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# the page


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def page(tiny, tmp_path, monkeypatch):
    """A directory with what the page's examples read."""
    monkeypatch.chdir(tmp_path)
    seed = tmp_path / "results/point_mass_maze/fb/seed0"
    shutil.copytree(tiny.model, seed / "model")
    shutil.copy(tiny.dataset, tmp_path / "results/point_mass_maze/data.parquet")
    (tmp_path / "my_tasks.py").write_text(blocks("python")[0])
    return tmp_path


def test_the_pages_file_and_experiment(page):
    (block,) = blocks("yaml")
    sections = {**load_yaml(REPOSITORY / "configs" / "walker-small.yaml"), **yaml.safe_load(block)}
    exp = experiment.check(sections, "the page", base=page)
    assert list(exp.domains["walker"].tasks["mine"]["names"]) == ["hop", "crouch"]


def test_the_pages_example_of_the_library(page):
    _, example, _ = blocks("python")
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["latent"].z.shape == (1, 6)
    domain = make_domain("walker", {})
    hop, crouch = domain.tasks("mine", ["hop", "crouch"], {"file": "my_tasks.py"})
    standing = np.zeros((1, 18))
    assert domain.relabel(hop, standing, np.zeros((1, 6))).tolist() == [0]
    standing[0, 0] = -0.6  # the torso stands at 1.3 m
    assert domain.relabel(crouch, standing, np.ones((1, 6))) == pytest.approx(0.8)


def test_the_pages_example_of_gymnasium(page):
    pytest.importorskip("gymnasium", reason="Gymnasium, an extra, is not installed")
    *_, example = blocks("python")
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert np.array_equal(names["mine"].observation_space.sample().shape, (24,))
    assert names["many"].num_envs == 16


def test_the_pages_table_of_quantities():
    table = PAGE.read_text().partition("| domain | quantities |")[2]
    rows = re.findall(r"^ *\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert {"walker", "point_mass_maze"} <= {name for name, _ in rows} <= set(plugins.names("envs"))
    for name, text in rows:
        domain = make_domain(name, {})
        physics = domain.Physics(
            domain, domain.split(domain.start_states(7, np.random.default_rng(0)))
        )
        said = {n: shape for n, shape in re.findall(r"`(\w+)` (\(.*?\))", text)}
        offered = dict.fromkeys((*physics.quantities(), *domain.fields))
        found = [n for n in offered if n not in ("qpos", "qvel")]
        assert list(said) == found
        for n, shape in said.items():
            assert str(getattr(physics, n).shape).replace("7", "n") == shape


def test_the_page_names_what_there_is():
    for name in re.findall(r"bfmpipe\.(\w+)\(", PAGE.read_text()):
        assert callable(getattr(bfmpipe, name))


def test_the_pages_table_of_built_in_tasks():
    table = PAGE.read_text().partition("| domain | tasks |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:5] for line in table.splitlines() if line.startswith("| `")]
    assert {name.strip(" `") for name, *_ in rows} == set(plugins.names("envs"))

    def defaults(text):
        return {n: yaml.safe_load(value) for n, value in re.findall(r"`(\w+): ([\w.]+)`", text)}

    for name, names, settings, of_domain in rows:
        domain = make_domain(name.strip(" `"), {})
        assert re.findall(r"`([\w.-]+)`", names) == list(domain.task_names)
        assert defaults(settings) == domain.TaskConfig().model_dump()
        assert defaults(of_domain) == domain.config.model_dump()
