"""The experiment file: mistakes are named, and a change reaches only the jobs that it concerns."""

import copy
import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from bfmpipe import code, experiment, plugins
from bfmpipe.cli import NAMES
from bfmpipe.config import load_yaml, parse
from bfmpipe.data import transitions
from bfmpipe.data.tables import Provenance, write_table
from bfmpipe.stages.adopt import Adopt
from bfmpipe.types import UserError

REPOSITORY = Path(__file__).parents[1]
SMOKE = REPOSITORY / "configs" / "smoke.yaml"
FILES = [
    REPOSITORY / "config.yaml",
    *sorted((REPOSITORY / "configs").glob("*.yaml")),
    *sorted((REPOSITORY / "configs" / "suite").glob("*.yaml")),
]


@pytest.fixture
def smoke():
    return load_yaml(SMOKE)


def jobs(exp):
    """Settings of every job of an experiment, by (stage, wildcards)."""
    found = {}
    for domain in exp.domains:
        for stage in ("collect", "coverage"):
            found[stage, domain] = exp.stage(stage, domain=domain)
        for agent in exp.agents:
            place = {"domain": domain, "agent": agent}
            found["plot", domain, agent] = exp.stage("plot", **place)
            for seed in exp.seeds:
                run = {**place, "seed": str(seed)}
                for stage in ("pretrain", "infer", "probe", "diagnose", "describe"):
                    found[stage, domain, agent, seed] = exp.stage(stage, **run)
                for method in exp.methods:
                    key = ("adapt", domain, agent, seed, method)
                    found[key] = exp.stage("adapt", **run, method=method)
    return {**found, **{(stage,): exp.stage(stage) for stage in ("tabulate", "judge", "report")}}


# every stage gets settings it understands


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_settings_of_every_job_parse(path):
    exp = experiment.read(path)
    found = jobs(exp)
    assert {key[0] for key in found} == set(NAMES) - {"adopt", "download"}  # which is run by hand
    for key, text in found.items():
        stage = getattr(importlib.import_module(f"bfmpipe.stages.{key[0]}"), key[0])
        cls = inspect.get_annotations(stage, eval_str=True)["cfg"]
        parsed = parse(cls, json.loads(text), str(key))
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        if key[0] in ("pretrain", "adapt"):
            together = getattr(exp, key[0]).seeds_together
            assert parsed.seeds == (tuple(exp.seeds) if together else (key[3],))
        if key[0] in ("infer", "probe", "diagnose"):
            assert parsed.seed == key[3]


def test_the_full_scale_trains_on_a_gpu_at_constant_rates():
    exp = experiment.read(REPOSITORY / "configs" / "paper.yaml")
    for domain in ("walker", "cheetah", "quadruped"):
        job = json.loads(exp.stage("pretrain", domain=domain, agent="fb", seed="0"))
        assert job["trainer"]["device"] == "cuda"
        assert job["trainer"]["decay_fraction"] == 0
        config = parse(plugins.load("agents", "fb").Config, job["agent"]["settings"], "fb")
        assert (config.target_pessimism, config.actor_pessimism) == (0, 0.5)


def test_the_full_scale_has_critics_on_a_gpu_and_simulates_without_one():
    exp = experiment.read(REPOSITORY / "configs" / "paper.yaml")
    found = {method: exp.device_of(method) for method in exp.methods}
    assert found == {"zero-shot": "cpu", "lola": "cpu", "rela": "cuda", "td3": "cuda"}


# a change reaches the jobs that it concerns, and no others


def stages_changed(smoke, change):
    before = jobs(experiment.check(smoke, "smoke"))
    changed = copy.deepcopy(smoke)
    change(changed)
    after = jobs(experiment.check(changed, "smoke"))
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def setting(*place, value):
    def change(mapping):
        *above, last = place
        for name in above:
            mapping = mapping.setdefault(name, {})
        mapping[last] = value

    return change


DOMAIN = ("domains", "point_mass_maze")
GAIN = {"kind": "gain", "statement": "It gains.", "method": "lola", "bar": 5}
EVERYTHING_WITH_TASKS = {"infer", "probe", "adapt", "diagnose", "describe", "plot"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (setting("collect", "episodes", value=61), {"collect"}),
        (setting("agents", "fb", "hidden_dim", value=64), {"pretrain"}),
        (setting("pretrain", "updates", value=80), {"pretrain"}),
        (setting("pretrain", "tensorboard", value=True), {"pretrain"}),
        (setting("infer", "samples", value=900), {"pretrain", "infer", "diagnose"}),
        (setting("probe", "latents", value=9), {"probe"}),
        (setting("adapt", "every", value=4), {"adapt"}),
        (setting("adapt", "device", value="cuda"), {"adapt"}),
        (setting("evaluate", "episodes", value=5), {"pretrain", "probe", "adapt"}),
        (setting("tabulate", "replicates", value=300), {"tabulate"}),
        (setting("tabulate", "confidence", value=0.9), {"tabulate", "judge"}),
        (setting("claims", "gain", "bar", value=7), {"judge"}),
        (setting("claims", "more", value={**GAIN, "method": "td3"}), {"judge"}),
        (setting("diagnose", "starts", value=9), {"diagnose"}),
        (setting(*DOMAIN, "settings", "episode_steps", value=25), {"collect", "pretrain"}),
        (
            setting(*DOMAIN, "tasks", "reach", "target_size", value=0.2),
            {"pretrain", *EVERYTHING_WITH_TASKS},
        ),
        (setting("results", value="elsewhere"), set()),
    ],
)
def test_a_change_reaches_only_the_stages_it_concerns(smoke, change, stages, monkeypatch):
    monkeypatch.setattr(experiment, "check_tensorboard", lambda: None)
    changed = stages_changed(smoke, change)
    # the report shows the configuration, all but the directory it is written to
    assert {key[0] for key in changed} - {"report"} == stages
    assert (("report",) in changed) == bool(stages)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (setting("infer", "samples", value=900), {"infer", "diagnose"}),
        (setting("evaluate", "episodes", value=5), {"probe", "adapt"}),
        (setting(*DOMAIN, "tasks", "reach", "target_size", value=0.2), EVERYTHING_WITH_TASKS),
    ],
)
def test_models_that_are_not_evaluated_in_training_are_not_trained_again(smoke, change, stages):
    del smoke["pretrain"]["evaluate_every"]
    changed = stages_changed(smoke, change)
    assert {key[0] for key in changed} - {"report"} == stages


def test_one_job_trains_all_seeds_where_these_are_trained_together(smoke):
    place = {"domain": "point_mass_maze", "agent": "fb"}
    alone = json.loads(experiment.check(smoke, "smoke").stage("pretrain", **place, seed="1"))
    smoke["pretrain"]["seeds_together"] = True
    together = json.loads(experiment.check(smoke, "smoke").stage("pretrain", **place))
    assert together == {**alone, "seeds": [0, 1]}
    assert alone["seeds"] == [1]


def test_one_job_adapts_all_seeds_where_these_are_adapted_together(smoke):
    place = {"domain": "point_mass_maze", "agent": "fb", "method": "lola"}
    alone = json.loads(experiment.check(smoke, "smoke").stage("adapt", **place, seed="1"))
    smoke["adapt"]["seeds_together"] = True
    together = json.loads(experiment.check(smoke, "smoke").stage("adapt", **place))
    assert together == {**alone, "seeds": [0, 1]}
    assert alone["seeds"] == [1]


def test_a_method_that_is_on_a_device_of_its_own_has_the_job_it_has_where_all_are_there(smoke):
    """To the letter: else results of earlier experiments would be made again."""
    there = {}
    for device in ("cpu", "cuda", {"rela": "cuda", "lola": "cpu"}):
        smoke["adapt"]["device"] = device
        there[str(device)] = jobs(experiment.check(smoke, "smoke"))
    on_cpu, on_cuda, mapped = there.values()
    del smoke["adapt"]["device"]
    assert on_cpu == jobs(experiment.check(smoke, "smoke"))
    for key in on_cpu.keys() - {("report",)}:  # which shows the experiment
        assert mapped[key] == (on_cuda if key[-1] == "rela" else on_cpu)[key]
    assert '"device":"cuda"' in mapped["adapt", "point_mass_maze", "fb", 0, "rela"]


def test_a_device_may_be_of_a_method_that_is_not_selected(smoke):
    smoke["adapt"]["device"] = {"rela": "cuda", "td3": "cuda"}
    smoke["select"] = ["zero-shot", "td3"]
    smoke["claims"] = {}
    exp = experiment.check(smoke, "smoke")
    assert [exp.device_of(method) for method in exp.methods] == ["cpu", "cuda"]


def test_a_change_of_an_import_reaches_collect_only(smoke):
    smoke["collect"] = {"explorer": "exorl", "settings": {"path": "exorl/{domain}/rnd.zip"}}
    for key, value in (("path", "other.zip"), ("max_episodes", 5), ("on_error", "skip")):
        changed = stages_changed(smoke, setting("collect", "settings", key, value=value))
        assert {key[0] for key in changed} == {"collect", "report"}


def test_a_change_of_imported_files_is_seen(smoke, tmp_path):
    folder = tmp_path / "point_mass_maze"
    smoke["collect"] = {"explorer": "exorl", "settings": {"path": f"{tmp_path}/{{domain}}"}}
    exp = experiment.check(smoke, "smoke.yaml")
    seen = [exp.source("point_mass_maze")]
    assert seen == [""]
    folder.mkdir()
    for name, text in (("a.npz", "1"), ("b.npz", "1"), ("b.npz", "22"), ("b.txt", "3")):
        (folder / name).write_text(text)
        seen.append(exp.source("point_mass_maze"))
    assert len(set(seen[:-1])) == 4
    assert seen[-1] == seen[-2]
    (folder / "a.npz").touch()
    assert exp.source("point_mass_maze") == seen[-1]


def test_imported_files_may_go(smoke, tmp_path):
    imported = Provenance(transitions.KIND, {}, "code", source={"fingerprint": "f1"})
    results = tmp_path / "results"
    write_table(results / "point_mass_maze" / "data.parquet", pa.schema([]), {}, imported)
    smoke["collect"] = {"explorer": "exorl", "settings": {"path": str(tmp_path / "gone.zip")}}
    exp = experiment.check(smoke, "smoke.yaml").model_copy(update={"results": str(results)})
    assert exp.source("point_mass_maze") == "f1"


@pytest.mark.parametrize("method", ["lola", "lola-short"])
def test_a_change_of_one_method_reaches_its_own_adaptation_only(smoke, method):
    changed = stages_changed(smoke, setting("methods", method, "horizon", value=6))
    adapted = {("adapt", "point_mass_maze", "fb", seed, method) for seed in (0, 1)}
    assert changed == {*adapted, ("report",)}


# variants, selections, names


def test_a_variant_is_its_method_with_settings_of_its_own(smoke):
    exp = experiment.check(smoke, "smoke")
    place = {"domain": "point_mass_maze", "agent": "fb"}
    one, two = (json.loads(exp.stage("adapt", **place, method=m)) for m in ("lola", "lola-short"))
    assert (one.pop("label"), two.pop("label")) == ("lola", "lola-short")
    settings = {"states": 2, "latents": 4}
    assert one.pop("method") == {"name": "lola", "settings": {**settings, "horizon": 5}}
    assert two.pop("method") == {"name": "lola", "settings": {**settings, "horizon": 3}}
    assert one == two
    codes = {m: exp.code("adapt", **place, method=m) for m in exp.methods}
    assert codes["lola"] == codes["lola-short"]
    assert len(set(codes.values())) == len(codes) - 1


def test_a_method_may_say_that_it_is_itself(smoke):
    before = jobs(experiment.check(smoke, "smoke"))
    smoke["methods"]["lola"]["method"] = "lola"
    after = jobs(experiment.check(smoke, "smoke"))
    assert {key for key in before if before[key] != after[key]} == {("report",)}


def test_a_selection_runs_the_same_jobs_of_fewer_methods(smoke):
    del smoke["claims"]
    everything = jobs(experiment.check(smoke, "smoke"))
    smoke["select"] = ["lola-short", "zero-shot"]
    exp = experiment.check(smoke, "smoke")
    assert list(exp.methods) == ["zero-shot", "lola-short"]  # in the order of the methods
    selected = jobs(exp)
    assert {key[-1] for key in selected if key[0] == "adapt"} == {"zero-shot", "lola-short"}
    changed = {key[0] for key in selected if selected[key] != everything[key]}
    assert changed == {"plot", "report"}  # it shows the paths of another method


@pytest.mark.parametrize(
    ("methods", "shown"),
    [
        (["zero-shot", "td3", "lola"], "lola"),
        (["zero-shot", "td3", "lola-short"], "lola-short"),
        (["zero-shot"], "zero-shot"),
    ],
)
def test_where_one_method_is_shown_it_is_lola_or_the_first_that_learns(smoke, methods, shown):
    del smoke["claims"]
    smoke["select"] = methods
    exp = experiment.check(smoke, "smoke")
    plot = exp.stage("plot", domain="point_mass_maze", agent="fb")
    assert json.loads(plot)["method"] == shown


@pytest.mark.parametrize("name", ["first", "2nd_try", "a.b-c"])
def test_a_name_is_no_setting_of_any_job_but_the_report(smoke, name):
    """Whose title it stands in; its page is another file anyway."""
    before = jobs(experiment.check(smoke, "smoke"))
    after = jobs(experiment.check({**smoke, "name": name}, "smoke"))
    assert {key for key in before if before[key] != after[key]} == {("report",)}


# the same of the code


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package and its kernels, to be edited."""
    top = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(REPOSITORY / "bfmpipe", top / "bfmpipe", ignore=ignore)
    shutil.copytree(REPOSITORY / "csrc", top / "csrc")
    return top


JOBS = {
    "collect": {"envs": "point_mass_maze", "data": "persistent-random"},
    "coverage": {"envs": "point_mass_maze"},
    "pretrain": {"envs": "point_mass_maze", "agents": "fb"},
    "infer": {"envs": "point_mass_maze", "agents": "fb"},
    "probe": {"envs": "point_mass_maze", "agents": "fb"},
    "diagnose": {"envs": "point_mass_maze", "agents": "fb"},
    "describe": {"envs": "point_mass_maze", "agents": "fb"},
    **{
        f"adapt {method}": {"envs": "point_mass_maze", "agents": "fb", "adaptation": method}
        for method in ("zero-shot", "lola", "rela", "td3")
    },
    "tabulate": {},
    "judge": {},
    "plot": {"envs": "point_mass_maze", "agents": "fb"},
    "report": {},
}


def digests(root):
    found = {}
    for job, used in JOBS.items():
        names = [plugins.module_name(kind, name, root=root) for kind, name in used.items()]
        found[job] = code.digest(f"bfmpipe.stages.{job.split()[0]}", *names, root=root)
    return found


def edited(tree, name, old, new):
    """Jobs whose digest changes with an edit of the copied tree, which is taken back."""
    path, before = tree / name, digests(tree / "bfmpipe")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        after = digests(tree / "bfmpipe")
    finally:
        path.write_text(text)
    return {job for job in before if before[job] != after[job]}


def test_digests_of_the_copy_are_those_that_the_rules_carry(tree, smoke):
    exp, copied = experiment.check(smoke, "smoke"), digests(tree / "bfmpipe")
    place = {"domain": "point_mass_maze", "agent": "fb"}
    for job, digest in copied.items():
        stage, *method = job.split()
        wildcards = {
            "collect": {"domain": "point_mass_maze"},
            "coverage": {"domain": "point_mass_maze"},
            **{name: {} for name in ("tabulate", "judge", "report")},
            "adapt": {**place, "method": method[0] if method else ""},
        }
        assert exp.code(stage, **wildcards.get(stage, place)) == digest


ADAPTATIONS = {job for job in JOBS if job.startswith("adapt")}
OFF_POLICY = {"adapt rela", "adapt td3"}
AGENT = {"pretrain", "infer", "probe", "diagnose", *ADAPTATIONS}
RETURN = "    return sqrt_2\n"


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("adaptation/lola.py", {"adapt lola"}),
        ("adaptation/rela.py", {"adapt rela"}),
        ("adaptation/off_policy.py", OFF_POLICY),
        ("data/persistent_random.py", {"collect"}),
        ("stages/collect.py", {"collect"}),
        ("adaptation/diagnosis.py", {"diagnose"}),
        ("stages/infer.py", {"infer", "probe", "diagnose", *ADAPTATIONS}),
        ("stages/probe.py", {"probe"}),
        ("stages/diagnose.py", {"diagnose"}),
        ("stages/judge.py", {"judge"}),
        ("report/verdicts.py", {"judge"}),
        ("stages/describe.py", {"describe"}),
        ("agents/card.py", {"describe"}),
        ("stages/adapt.py", ADAPTATIONS),
    ],
)
def test_an_edit_reaches_only_the_jobs_that_use_the_module(tree, name, jobs):
    text = (tree / "bfmpipe" / name).read_text()
    edit = f"{text}\n\nEDITED = 1\n"
    assert edited(tree, f"bfmpipe/{name}", text, edit) & (set(JOBS) - {"plot"}) == jobs


def test_an_edit_of_a_comment_reaches_no_job(tree):
    first = "from typing import Literal"
    assert edited(tree, "bfmpipe/adaptation/lola.py", first, f"# a remark\n{first}") == set()


def test_an_edit_of_a_kernel_reaches_the_jobs_that_call_it(tree):
    (name,) = (path.name for path in (tree / "csrc" / "cpu").glob("leave_one_out*.cpp"))
    changed = edited(tree, f"csrc/cpu/{name}", "\n", "\n// faster\n")
    assert "adapt lola" in changed
    assert not changed & {"collect", "tabulate", "judge", "report"}


def test_an_edit_of_the_maze_reaches_what_simulates_it(tree):
    changed = edited(tree, "bfmpipe/envs/point_mass_maze.xml", "<mujoco", "<mujoco  ")
    assert {"collect", *AGENT} <= changed
    assert "tabulate" not in changed


# mistakes


MISTAKES = [
    (setting("resluts", value="x"), "resluts is not a setting; did you mean results?"),
    (setting("pretrain", "updtaes", value=1), "pretrain.updtaes is not a setting"),
    (setting("agents", "fb", "z_dmi", value=1), "agents.fb.z_dmi is not a setting; did you mean"),
    (
        setting("agents", "fb", "learning_rate", value="1e-4"),
        "agents.fb.learning_rate: '1e-4' is text, not a number (YAML reads 1e-4 as a string",
    ),
    (setting("domains", "maze", value={"tasks": {"a": {}}}), "domains: no 'maze' in bfmpipe.envs"),
    (
        setting(*DOMAIN, "settings", "dt", value=1),
        "domains: domain point_mass_maze: dt is not a setting",
    ),
    (setting("agents", "bf", value={}), "agents: no 'bf' in bfmpipe.agents; it has "),
    (setting("methods", "lloa", value={}), "methods: no 'lloa' in bfmpipe.adaptation; it has "),
    (
        setting("methods", "lola-long", value={"method": "lloa"}),
        "methods: no 'lloa' in bfmpipe.adaptation; it has ",
    ),
    (
        setting("methods", "lola-long", value={"horizon": 9}),
        "methods: no 'lola-long' in bfmpipe.adaptation; it has ",
    ),
    (
        setting("methods", "lola-long", value={"method": "lola", "horzon": 9}),
        "methods.lola-long.horzon is not a setting; did you mean horizon?",
    ),
    (
        setting("adapt", "episodes", value=1),
        "methods.rela: on point_mass_maze, rela: the budget allows 2 updates, and the latent moves",
    ),
    (
        setting("methods", "lola", "horizon", value=50),
        "methods.lola: on point_mass_maze, lola: a budget of 160 environment steps is too small",
    ),
    (
        setting("methods", "rela-safe", value={}),
        "methods.rela-safe: on point_mass_maze, rela-safe: a budget of 160 environment steps",
    ),
    (
        setting("methods", "cem", value={"latents": 4, "horizon": 5, "minimum_sigma": 1.0}),
        "methods.cem: on point_mass_maze, cem: minimum_sigma 1.0 is above sigma",
    ),
    (
        setting("methods", "lola-long", value={"method": {"name": "lola"}}),
        "methods.lola-long.method must be the name of a method",
    ),
    (
        setting("methods", "zero-shot", value={"method": "lola"}),
        "methods.zero-shot: a variant of lola needs a name of its own; zero-shot is another",
    ),
    (
        setting("methods", "random", value={"method": "lola"}),
        "methods.random: a variant of lola needs a name of its own; random is another policy's",
    ),
    (
        setting("methods", "LoLA 2", value={"method": "lola"}),
        "methods.LoLA 2: 'LoLA 2' is not made of small letters, digits and - only",
    ),
    (setting("methods", value={"lola": {}}), "methods: zero-shot is missing; every table"),
    (
        setting("select", value=["zero-shot", "lloa"]),
        "select: no method lloa; there are zero-shot, lola, lola-short, rela, td3",
    ),
    (setting("select", value=["lola"]), "select: zero-shot is missing; every table compares"),
    (setting("select", value="lola"), "select: 'lola' is text, not a list"),
    (
        setting("select", value=["zero-shot", "lola"]),
        "claims.horizon: the method lola-short is not run; there are zero-shot, lola",
    ),
    (setting("claims", "gain", "kind", value="gian"), "claims.gain.kind: 'gian' is not a choice"),
    (setting("claims", "gain", "br", value=1), "claims.gain.br is not a setting"),
    (setting("claims", "gain", "bar", value="5"), "claims.gain.bar: '5' is text, not a number"),
    (setting("claims", "gain", "method", value=""), "claims.gain: gain needs 'method', a method"),
    (setting("claims", "horizon", "than", value=""), "claims.horizon: better needs 'than'"),
    (setting("claims", value=["gain"]), "claims: ['gain'] is a list, not a mapping"),
    (setting("diagnose", "starts", value=2), "diagnose.starts: 2 should be greater than or equal"),
    (setting("diagnose", "sample", value=2), "diagnose.sample is not a setting; did you mean"),
    (
        setting("results", value="my results"),
        "results: 'my results' is not made of letters, digits and ./_+- only",
    ),
    (
        setting("name", value="../x"),
        "name: '../x' is not a letter or digit and then letters, digits and ._- only",
    ),
    (setting("name", value=".."), "name: '..' is not"),
    (setting("name", value="a/b"), "name: 'a/b' is not"),
    (setting("name", value="tables"), "name: results/smoke/tables is kept for the files"),
    (
        setting("name", value="point_mass_maze"),
        "name: results/smoke/point_mass_maze is kept for the files of a stage or a domain; choose",
    ),
    (setting("methods", "lola", "horzon", value=1), "methods.lola.horzon is not a setting"),
    (
        setting("collect", "explorer", value="random"),
        "collect: no 'random' in bfmpipe.data; it has exorl, motions, persistent-random",
    ),
    (
        setting("collect", "explorer", value="exorl"),
        "collect.settings.path is missing",
    ),
    (
        setting("collect", value={"explorer": "exorl", "settings": {"path": "x"}, "episodes": 3}),
        "collect.episodes: exorl takes episodes from files; set collect.settings.max_episodes",
    ),
    (setting("collect", "episodes", value=None), "collect.episodes is missing"),
    (
        setting("collect", "settings", value={"noise": 1}),
        "collect.settings.noise is not a setting",
    ),
    (
        setting(*DOMAIN, "tasks", "reach", "names", value=["reach_up"]),
        "domains: domain point_mass_maze: task family reach: no task 'reach_up'; point_mass_maze",
    ),
    (
        setting(*DOMAIN, "tasks", "reach", "names", value=[]),
        "domains: domain point_mass_maze: task family reach needs 'names', a list of tasks",
    ),
    (
        setting(*DOMAIN, "tasks", "reach", "names", value=["reach_top_left"] * 2),
        "domains: domain point_mass_maze: task family reach names a task twice",
    ),
    (
        setting(*DOMAIN, "tasks", "reach", "target_szie", value=0.1),
        "domains: domain point_mass_maze: task family reach: target_szie is not a setting",
    ),
    (
        setting(*DOMAIN, "tasks", value={}),
        "domains.point_mass_maze.tasks: has 0 entries, but needs 1 or more",
    ),
    (
        setting("agents", "fb", "backward_obs", value=[0, 9]),
        "agents.fb: on point_mass_maze, backward_obs is [0, 9]; an observation has 4 entries",
    ),
    (
        setting("agents", "hilp", value={"stride": 21, "batch": 2}),
        "agents.hilp: on point_mass_maze, a stride of 21 is longer than an episode of 20 steps",
    ),
    (
        setting("agents", "fb", "batch", value=1201),
        "agents.fb: on point_mass_maze, 60 episodes are 1,200 transitions, fewer than one batch of",
    ),
    (setting("seeds", value=[]), "seeds: has 0 entries, but needs 1 or more"),
    (setting("seeds", value=3), "seeds: 3 is a number, not a list"),
    (setting("seeds", value=[0, 0]), "seeds: 0 is listed twice, and its runs"),
    (setting("seeds", value=[-1]), "seeds[0]: -1 should be greater than or equal to 0"),
    (setting("seeds", value=[2**31]), "seeds[0]: 2147483648 should be less than 2147483648"),
    (setting("seeds", value=[0.5]), "seeds[0]: 0.5 is not a whole number"),
    (setting("adapt", value=None), "adapt is empty, not a mapping"),
    (
        setting("adapt", "device", value="gpu"),
        "adapt.device: 'gpu' is not a choice; did you mean cpu? valid: cpu, cuda",
    ),
    (
        setting("adapt", "device", value={"rela": "gpu"}),
        "adapt.device.rela: 'gpu' is not a choice; did you mean cpu? valid: cpu, cuda",
    ),
    (
        setting("adapt", "device", value={"rlea": "cuda"}),
        "adapt.device: no method rlea; there are zero-shot, lola, lola-short, rela, td3; did you "
        "mean rela?",
    ),
    (setting("pretrain", "checkpoint_every", value=15), "pretrain: checkpoint_every (15) must be"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[said[:40] for _, said in MISTAKES])
def test_a_mistake_is_named_in_one_line(smoke, change, said):
    change(smoke)
    with pytest.raises(UserError) as caught:
        experiment.check(smoke, "my.yaml")
    text = str(caught.value)
    assert text.startswith(f"my.yaml: {said}")
    assert "\n" not in text


def test_the_largest_batch_and_stride_that_can_be_run_are_taken(smoke):
    smoke["agents"]["fb"] |= {"batch": 60, "stride": 20}
    experiment.check(smoke, "my.yaml")
    smoke["agents"]["fb"] |= {"batch": 61}
    with pytest.raises(UserError, match="60 episodes are 60 transitions"):
        experiment.check(smoke, "my.yaml")
    smoke["collect"] = {"explorer": "exorl", "settings": {"path": "x"}}  # nobody knows yet
    experiment.check(smoke, "my.yaml")


def test_event_files_that_cannot_be_written_are_refused(smoke, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    smoke["pretrain"]["tensorboard"] = True
    with pytest.raises(UserError, match=r"^my\.yaml: pretrain\.tensorboard is true, but the pack"):
        experiment.check(smoke, "my.yaml")


def test_a_gpu_is_not_asked_for_where_only_jobs_need_it(smoke, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a cluster's login node
    smoke["pretrain"]["device"] = smoke["adapt"]["device"] = "cuda"
    experiment.check(smoke, "my.yaml")
    smoke["adapt"]["device"] = {"rela": "cuda"}
    experiment.check(smoke, "my.yaml")


@pytest.mark.parametrize("results", ["a", "a/b"])
def test_results_where_a_file_is_are_refused(smoke, tmp_path, monkeypatch, results):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("mine")
    smoke["results"] = results
    with pytest.raises(UserError, match=r"^my\.yaml: results: a is a file; name a directory$"):
        experiment.check(smoke, "my.yaml")


@pytest.mark.parametrize("section", ["seeds", "domains", "agents", "methods", "collect", "adapt"])
def test_a_missing_section_is_named(smoke, section):
    del smoke[section]
    with pytest.raises(UserError, match=f"^my.yaml: {section} is missing$"):
        experiment.check(smoke, "my.yaml")


def test_a_rate_that_yaml_reads_as_text_is_explained(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        SMOKE.read_text().replace("batch: 32\n", "batch: 32\n    learning_rate: 1e-4\n")
    )
    with pytest.raises(UserError) as caught:
        experiment.read(path)
    assert str(caught.value) == (
        f"{path}: agents.fb.learning_rate: '1e-4' is text, not a number "
        "(YAML reads 1e-4 as a string; write 1.0e-4)"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        experiment.read(tmp_path / "none.yaml")


def test_an_agent_trained_online_has_a_job_a_seed_in_any_experiment(smoke):
    smoke["agents"]["fb_cpr"] = {"preset": "small"}
    smoke["pretrain"]["seeds_together"] = True
    exp = experiment.check(smoke, "my.yaml")
    assert exp.online == ("fb_cpr",)
    names = {"domain": "point_mass_maze", "seed": "1"}
    seeds = {a: json.loads(exp.stage("pretrain", agent=a, **names))["seeds"] for a in exp.agents}
    assert seeds == {"fb": [0, 1], "fb_cpr": [1]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"adapt": {"episodes": 8, "every": 2, "seeds_together": True}},
            "adapt.seeds_together: each seed of fb_cpr has a data set of its own, its episodes",
        ),
        (
            {"collect": {"explorer": "motions", "settings": {"path": "motions/*.npz"}}},
            "agents: fb learns from actions, which motions does not have; it needs an experiment",
        ),
        (
            {"agents": {"fb_cpr": {"preset": "small", "online": {"random_steps": 5}}}},
            "agents.fb_cpr: online: 50 environments and random_steps 5 make 250 transitions before",
        ),
    ],
)
def test_what_an_agent_trained_online_cannot_have_is_refused(smoke, changed, said):
    smoke["agents"]["fb_cpr"] = {"preset": "small"}
    with pytest.raises(UserError) as caught:
        experiment.check({**smoke, **changed}, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {said}")


# models that are finished


@pytest.fixture
def finished(smoke, tmp_path):
    """Models of two seeds, as somebody may have left them, and an experiment with them alone."""
    for seed in smoke["seeds"]:
        directory = tmp_path / f"models/point_mass_maze-{seed}"
        directory.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (directory / name).touch()
    smoke["agents"] = {"fb": {"pretrained": str(tmp_path / "models/{domain}-{seed}")}}
    del smoke["pretrain"]
    return smoke


def test_finished_models_are_taken_over_and_not_trained(finished, tmp_path):
    exp = experiment.check(finished, "my.yaml")
    assert (exp.finished, exp.online) == (("fb",), ())
    place = {"domain": "point_mass_maze", "agent": "fb", "seed": "1"}
    assert exp.pretrained(**place) == f"{tmp_path}/models/point_mass_maze-1"
    settings = json.loads(exp.stage("adopt", **place))
    assert parse(Adopt, settings, "adopt").seed == 1
    assert settings["domain"] == {
        "name": "point_mass_maze",
        "settings": {"physics_steps": 5, "episode_steps": 20},
    }
    assert exp.code("adopt", domain="point_mass_maze", agent="fb")


def test_finished_models_need_no_agent_and_none_of_what_training_needs(finished, monkeypatch):
    names = plugins.names
    monkeypatch.setattr(plugins, "names", lambda k, **root: () if k == "agents" else names(k))
    finished["collect"] = {"explorer": "motions", "settings": {"path": "motions/*.npz"}}
    experiment.check(finished, "my.yaml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"z_dim": 8}, "z_dim: a finished model has settings of its own; remove it"),
        ({"pretrained": 3}, "pretrained must be a path"),
        ({"pretrained": "models/{domain}"}, "pretrained: models/{domain} is one for all; it needs"),
        (
            {"pretrained": "no/{seed}"},
            f"pretrained: {Path.cwd()}/no/0 has no config.json; name a directory that",
        ),
        ({"pretrained": "~/no/{seed}"}, f"pretrained: {Path.home()}/no/0 has no config.json"),
    ],
)
def test_a_mistake_about_finished_models_is_named(finished, settings, said):
    finished["agents"]["fb"] |= settings
    with pytest.raises(UserError) as caught:
        experiment.check(finished, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: agents.fb: {said}")


def test_a_mistake_in_the_module_of_a_finished_model_is_named(finished, own_modules):
    """Before anything runs, and where the module itself is none of it."""
    agents = own_modules / "agents"
    agents.mkdir()
    (agents / "my_model_3.py").write_text("from .my_layers_3 import A\nclass Model: pass\n")
    (agents / "my_layers_3.py").write_text("A = (\n")
    finished |= {"plugins": ".", "agents": {"my_model_3": finished["agents"]["fb"]}}
    with pytest.raises(UserError) as caught:
        experiment.check(finished, "my.yaml", base=own_modules)
    assert str(caught.value) == (
        f"my.yaml: agents.my_model_3: {agents}/my_model_3.py, line 1: {agents}/my_layers_3.py: "
        "line 1: is not Python: '(' was never closed"
    )


def test_what_is_trained_needs_a_section_on_it(smoke):
    del smoke["pretrain"]
    with pytest.raises(UserError) as caught:
        experiment.check(smoke, "my.yaml")
    assert str(caught.value) == (
        "my.yaml: pretrain is missing; it says how fb is trained, unless agents.fb.pretrained says "
        "where finished models are"
    )


# modules of one's own


def test_the_directory_of_ones_own_modules_is_beside_the_experiment(smoke, own_modules):
    mine = own_modules / "modules" / "adaptation" / "mine_too.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("from bfmpipe.adaptation.lola import Config, Method as LoLA\n")
    smoke |= {"plugins": "modules", "claims": {}}
    smoke["methods"] = {"zero-shot": {}, "short": {"method": "mine-too", "horizon": 5}}
    with pytest.raises(UserError, match=r"no 'mine-too' in bfmpipe\.adaptation: mine_too\.py def"):
        experiment.check(smoke, "my.yaml", base=own_modules)
    mine.write_text(f"{mine.read_text()}class Method(LoLA): pass\n")
    exp = experiment.check(smoke, "my.yaml", base=own_modules)
    place = {"domain": "point_mass_maze", "agent": "fb"}
    before = (
        exp.code("adapt", **place, method="short"),
        exp.code("adapt", **place, method="zero-shot"),
    )
    mine.write_text(f"{mine.read_text()}EDITED = 1\n")
    after = (
        exp.code("adapt", **place, method="short"),
        exp.code("adapt", **place, method="zero-shot"),
    )
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_it_is_beside_the_file_that_names_it_where_files_are_laid_over_each_other(
    smoke, own_modules
):
    (own_modules / "modules" / "adaptation").mkdir(parents=True)
    smoke |= {"plugins": "modules"}
    experiment.check(smoke, "my.yaml", base=Path("elsewhere"), modules=own_modules)
    assert plugins.own_directory() == own_modules / "modules"


def test_a_directory_of_ones_own_modules_that_is_none_is_named(smoke, own_modules):
    with pytest.raises(UserError) as caught:
        experiment.check({**smoke, "plugins": "modulse"}, "my.yaml", base=own_modules)
    assert str(caught.value) == (
        f"my.yaml: plugins: BFMPIPE_PLUGINS: {own_modules}/modulse is no directory; name one that "
        "has modules in its directories adaptation, agents, data, envs"
    )
