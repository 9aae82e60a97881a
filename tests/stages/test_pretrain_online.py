"""Stage pretrain with an agent trained online: what it leaves, resumed and used."""

import numpy as np
import pytest

from bfmpipe import api
from bfmpipe.agents import load_model
from bfmpipe.agents.card import readme
from bfmpipe.agents.learner import Learner
from bfmpipe.config import parse
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.envs import make_domain
from bfmpipe.evaluator import Evaluator
from bfmpipe.stages.infer import read_latents, read_model
from bfmpipe.stages.pretrain import Pretrain
from bfmpipe.types import UserError

TINY = {"model": "concatenated", "hidden_dim": 16}
AGENT = {
    "name": "fb_cpr",
    "settings": {
        "z_dim": 6,
        "batch": 32,
        "motion_length": 4,
        **dict.fromkeys(("forward_map", "actor", "critic"), TINY),
        **{name: {"hidden_dim": 16} for name in ("backward_map", "discriminator")},
        "online": {
            "num_envs": 4,
            "steps": 5,
            "updates": 4,
            "random_steps": 30,
            "latent_steps": 8,
            "rounds": 4,
            "experience": 6,
        },
    },
}
FILES = ("model/config.json", "model/model.safetensors", "losses.parquet", "evaluations.parquet")
FILES += ("spectrum.parquet", "experience.parquet")


def train(tiny, directory, *, seeds=(0,), **files):
    names = ("model", "losses.parquet", "evaluations.parquet", "spectrum.parquet")
    names += ("experience.parquet",)
    given = {name.partition(".")[0]: [directory / name] * len(seeds) for name in names}
    settings = tiny.settings("pretrain", agent=AGENT, seeds=list(seeds))
    tiny.run("pretrain", settings=settings, dataset=tiny.dataset, **{**given, **files})


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("env_steps")
    train(tiny, directory)
    return directory


def test_a_share_of_its_episodes_is_a_data_set(tiny, trained):
    data = transitions.read(trained / "experience.parquet")
    assert (data.domain, data.domain_settings) == (tiny.domain["name"], tiny.domain["settings"])
    # 30 random steps and nine turns of five are three rounds of twenty, and a part of the fourth
    assert sorted(set(data.episode)) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert set(np.bincount(data.episode)) == {0, tiny.episode_steps + 1, 15 + 1}
    model, card = load_model(trained / "model")
    assert card["env_steps"] == 4 * (30 + 9 * 5)
    said = readme({**card, "tasks": {}, "zero_shot": []}, model)
    assert 'read_transitions("path/to/experience.parquet")' in said
    columns, _ = read_table(trained / "losses.parquet", "losses")
    assert {"fb_loss", "critic_loss", "discriminator_loss", "q"} <= columns.keys()


def test_latents_are_inferred_from_it(tiny, trained, tmp_path):
    settings = {**tiny.settings("infer"), "agent": "fb_cpr"}
    files = {"model": trained / "model", "dataset": trained / "experience.parquet"}
    tiny.run("infer", settings=settings, latents=tmp_path / "latents.parquet", **files)
    pretrained = read_model(trained / "model", tiny.domain["name"], "fb_cpr")
    tasks = pretrained.domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1})
    found = read_latents(tmp_path / "latents.parquet", tasks, pretrained)
    points = api.adapt(
        pretrained,
        tasks,
        found,
        transitions.read(files["dataset"]),
        method="lola",
        episodes=2,
        every=1,
        settings={"states": 1, "latents": 2, "horizon": 5},
    )
    assert all(np.isfinite(point.returns).all() for point in points)


def test_killed_and_run_again_it_ends_in_the_same_bytes(tiny, trained, tmp_path, monkeypatch):
    update = Learner.update

    def until_30(self, *arguments, **settings):
        if self.step == 30:
            raise KeyboardInterrupt
        return update(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", until_30)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path)
    left = {path.suffix for path in tmp_path.iterdir()}
    assert left == {".safetensors", ".kept"}
    train(tiny, tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert found == {"model", *FILES}
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_killed_at_each_checkpoint_by_the_clock_it_ends_in_the_same_bytes(
    tiny, trained, tmp_path, killed_at_each_checkpoint
):
    assert killed_at_each_checkpoint(lambda: train(tiny, tmp_path)) == [10, 20, 30]
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"model", *FILES}
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_along_the_way_it_is_evaluated_as_at_the_end(tiny, trained):
    """By latents of its own episodes, not of the motions."""
    settings = tiny.settings("pretrain", agent=AGENT)
    cfg = parse(Pretrain, settings, "pretrain")
    domain = make_domain(tiny.domain["name"], tiny.domain["settings"])
    data = transitions.read(trained / "experience.parquet")
    tasks = cfg.tasks.tasks(domain)
    evaluator = Evaluator.of(domain, tasks, data, 1, 0, cfg.inference, cfg.evaluation)
    model, _ = load_model(trained / "model")
    columns, _ = read_table(trained / "evaluations.parquet", "evaluations")
    expected = evaluator(model)["tasks"]
    assert columns["mean"].tolist() == [row["mean"] for row in expected]
    assert columns["q_predicted"].tolist() == [row["q_predicted"] for row in expected]


def test_an_agent_that_needs_actions_refuses_motions(tiny, tmp_path):
    np.savez(tmp_path / "m.npz", qpos=np.zeros((60, 2)), qvel=np.zeros((60, 2)))
    explorer = {"name": "motions", "settings": {"path": str(tmp_path / "m.npz")}}
    cfg = {"domain": tiny.domain, "explorer": explorer, "seed": 0}
    tiny.run("collect", settings=cfg, dataset=tmp_path / "data.parquet")
    names = ("losses", "evaluations", "spectrum")
    files = {name: [tmp_path / f"{name}.parquet"] for name in names}
    files |= {"model": [tmp_path / "model"], "dataset": tmp_path / "data.parquet"}
    with pytest.raises(
        UserError, match="fb learns from actions, and a data set of motions has none"
    ):
        tiny.run("pretrain", settings=tiny.settings("pretrain"), **files)


def test_a_seed_a_job_and_a_place_for_what_it_does(tiny, tmp_path):
    with pytest.raises(UserError, match="fb_cpr is trained online, one seed a job; set pre"):
        train(tiny, tmp_path, seeds=(0, 1))
    with pytest.raises(UserError, match="0 paths of experience for 1 seeds of fb_cpr; valid: 1"):
        train(tiny, tmp_path, experience=[])
    assert not list(tmp_path.iterdir())
