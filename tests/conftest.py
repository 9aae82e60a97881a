"""A tiny data set, model and latents, made by the real stages once a session: read, never write."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bfmpipe import plugins
from bfmpipe.cli import let_threads_sleep

let_threads_sleep()  # before anything imports torch


@dataclass(frozen=True)
class Tiny:
    """Files, and the parts of the settings that they were made with."""

    dataset: Path
    model: Path
    losses: Path
    evaluations: Path
    spectrum: Path
    latents: Path
    domain: dict[str, Any]
    agent: dict[str, Any]
    tasks: dict[str, Any]
    episodes: int
    episode_steps: int

    def settings(self, stage: str, **changed: Any) -> dict[str, Any]:
        """Settings of a stage as plain JSON, some of them changed."""
        names = {"domain": self.domain["name"], "agent": self.agent["name"], "tasks": self.tasks}
        of_stage: dict[str, dict[str, Any]] = {
            "collect": {
                "domain": self.domain,
                "explorer": {"name": "persistent-random"},
                "episodes": self.episodes,
            },
            "pretrain": {
                "domain": self.domain,
                "agent": self.agent,
                "trainer": {"updates": 40, "checkpoint_every": 20, "log_every": 10},
                "seeds": [0],
                "tasks": self.tasks,
                "inference": {"samples": 300},
                "evaluation": {"episodes": 4},
            },
            "infer": {**names, "inference": {"samples": 300}},
            "probe": {**names, "latents": 5, "episodes": 3, "evaluation": {"episodes": 4}},
            "adapt": {
                **names,
                "method": {
                    "name": "lola",
                    "settings": {"states": 2, "latents": 2, "horizon": 5},
                },
                "episodes": 4,
                "every": 1,
                "seeds": [0],
                "evaluation": {"episodes": 3},
            },
            "describe": self.tasks,
            "diagnose": {
                **names,
                "diagnosis": {"samples": 300, "latents": 50, "starts": 4, "tail": 0.5},
            },
        }
        seed = {} if stage in ("pretrain", "adapt", "describe") else {"seed": 0}
        return {**of_stage[stage], **seed, **changed}

    def trained(self) -> dict[str, list[Path]]:
        """What the stage pretrain writes, as it is given it."""
        return {
            name: [getattr(self, name)] for name in ("model", "losses", "evaluations", "spectrum")
        }

    def run(self, name: str, *, settings: dict[str, Any] | None = None, **files: Any) -> None:
        """Run a stage as the command line would, with `settings` or its own."""
        import importlib
        import inspect

        from bfmpipe.config import parse

        stage = getattr(importlib.import_module(f"bfmpipe.stages.{name}"), name)
        cls = inspect.get_annotations(stage, eval_str=True)["cfg"]
        stage(parse(cls, self.settings(name) if settings is None else settings, name), **files)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    directory = tmp_path_factory.mktemp("tiny")
    made = Tiny(
        dataset=directory / "data.parquet",
        model=directory / "model",
        losses=directory / "losses.parquet",
        evaluations=directory / "evaluations.parquet",
        spectrum=directory / "spectrum.parquet",
        latents=directory / "latents.parquet",
        domain={
            "name": "point_mass_maze",
            "settings": {"physics_steps": 5, "episode_steps": 20},
        },
        agent={
            "name": "fb",
            "settings": {
                "z_dim": 6,
                "architecture": "concatenated",
                "hidden_dim": 16,
                "backward_hidden_dim": 16,
                "batch": 32,
                "actor_every": 2,
            },
        },
        tasks={
            "families": {
                "reach": {
                    "names": ["reach_top_left", "reach_bottom_right"],
                    "target_size": 0.1,
                }
            }
        },
        episodes=30,
        episode_steps=20,
    )
    made.run("collect", dataset=made.dataset)
    made.run("pretrain", dataset=made.dataset, **made.trained())
    made.run("infer", model=made.model, dataset=made.dataset, latents=made.latents)
    return made


@pytest.fixture
def model_copy(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny model's directory, to be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny.model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def edit_card(model_copy: Path) -> Any:
    """Change entries of the copied model's config.json; None takes one away."""

    def edit(**changed: Any) -> Path:
        path = model_copy / "config.json"
        card = {**json.loads(path.read_text()), **changed}
        kept = {k: v for k, v in card.items() if v is not None or k not in changed}
        path.write_text(json.dumps(kept))
        return model_copy

    return edit


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for modules of one's own, of which nothing stays."""
    monkeypatch.setenv(plugins.VARIABLE, "")  # put back at the end
    before = set(sys.modules)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
