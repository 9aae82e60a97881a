"""Point mass in a four-room maze: go to a target in one of the rooms.

A ball (radius 1 cm) in an arena of 60 x 60 cm; two motors push it at up to 10 cm/s. A cross of two
boxes leaves 12 cm gaps at the outer walls, so the way to the opposite room leads through a third.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import mujoco
import numpy as np
from dm_control.utils.rewards import tolerance
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.domain import Domain as BaseDomain
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.types import Array

# Metres; they mirror point_mass_maze.xml, and a test holds the two together.
REACH = 0.29
_BALL = 0.01
CROSS_HALF_LENGTH = 0.18
CROSS_HALF_WIDTH = 0.02

TARGETS = {
    "reach_top_left": (-0.15, 0.15),
    "reach_top_right": (0.15, 0.15),
    "reach_bottom_left": (-0.15, -0.15),
    "reach_bottom_right": (0.15, -0.15),
}


class Config(DomainConfig):
    """The published maze has 1 physics step a control step (dt .02 s) and 1000-step episodes."""

    physics_steps: int = Field(1, ge=1)
    episode_steps: int = Field(1000, ge=1)


class TaskConfig(BaseConfig):
    """Settings of the reach tasks."""

    target_size: float = Field(0.015, gt=0, lt=REACH)
    """Radius of full reward around the target, and the margin over which it fades, in metres."""


class Domain(BaseDomain):
    """Observation: x, y, vx, vy (metres, metres a second). Action: force along x and y."""

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = tuple(TARGETS)
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    obs_dim = 4

    def __init__(self, name: str, config: DomainConfig) -> None:
        super().__init__(name, config)
        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_suffix(".xml")))

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """Position and velocity (n, 4)."""
        return np.concatenate([fields["qpos"], fields["qvel"]], axis=1, dtype=np.float32)

    def reward(self, task: Task, fields: Mapping[str, Array], action: Array) -> Array:
        """Near the target, with up to a fifth off for large actions."""
        assert isinstance(task.settings, TaskConfig)
        size = task.settings.target_size
        distance = np.linalg.norm(fields["qpos"] - np.array(TARGETS[task.name]), axis=-1)
        near = tolerance(distance, bounds=(0, size), margin=size)
        small_control = tolerance(
            action.astype(np.float64), margin=1, value_at_margin=0, sigmoid="quadratic"
        ).mean(-1)
        return near * (small_control + 4) / 5

    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """At rest, uniform over the top-left room."""
        physics = np.zeros((n, 4))
        physics[:, 0] = rng.uniform(-REACH, -0.15, n)
        physics[:, 1] = rng.uniform(0.15, REACH, n)
        return physics

    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """At rest, uniform over the free area of all rooms."""
        physics = np.zeros((0, 4))
        while len(physics) < n:
            draw = np.zeros((2 * n, 4))
            draw[:, :2] = rng.uniform(-REACH, REACH, (2 * n, 2))
            physics = np.concatenate([physics, draw[is_free(draw[:, :2])]])
        return physics[:n]


def is_free(position: Array) -> Array:
    """Whether the ball fits at `position` (n, 2) without touching the cross: bool (n,)."""
    offset = np.abs(position)
    free = np.ones(len(position), dtype=bool)
    for half in ((CROSS_HALF_LENGTH, CROSS_HALF_WIDTH), (CROSS_HALF_WIDTH, CROSS_HALF_LENGTH)):
        outside = np.maximum(offset - np.array(half), 0)
        free &= np.linalg.norm(outside, axis=-1) > _BALL
    return free
