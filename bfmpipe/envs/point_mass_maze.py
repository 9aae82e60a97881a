"""Point mass in a four-room maze: go to a target in one of the rooms, or around the maze.

A ball (radius 1 cm) in an arena of 60 x 60 cm; two motors push it at up to 10 cm/s. A cross of two
boxes leaves 12 cm gaps at the outer walls, so the way to the opposite room leads through a third.

With p = (x, y) the ball's position in metres, v its velocity, u the action, `T(x; s, m)` the
tolerance of [0, s] with margin m of dm_control, and s = `target_size`, b = `lane_width` and
`cut_cost` the settings:

    control        (4 + mean_i (1 - u_i^2)) / 5
    reach_*        T(|p - target|; s, s) control

    ring           o = | max(|x|, |y|) - .24 |, off the middle of the lane around the cross
    clockwise      e = (1, 0) at the top, (0, -1) right, (-1, 0) at the bottom, (0, 1) left
    square         T(o; b, b) clip(e v / .08, 0, 1)
    fast_slow      T(o; b, b) T(|e v / w - 1|; .1, .5), w = .08 at the top, .02 right, .06 at the
                   bottom, .04 left

    loop           T(| |x| + |y| - .24 | / sqrt 2; b, b) clip(f v / .08, 0, 1), along the diamond
                   with f = (sign y, -sign x) / sqrt 2, clockwise as well

    reach_bottom_left_long
                   -cut_cost in the left gap, x < 0 and |y| < .1; elsewhere g + (1 - g) r, with
                   g = T(|p - target|; s, s) and r = T(o; b, b) clip(e v / .08, -1, 1): the way
                   over the other three rooms pays, each step the other way costs, and so does the
                   short cut; resting at the target pays most

The sides meet on the diagonals. The public benchmarks' formulas of the last four differ from each
other; these are ours. Steps follow clockwise lanes from the top-left room, where all tasks begin.
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
from bfmpipe.envs.tasks import Physics as BasePhysics
from bfmpipe.envs.tasks import quantity
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

_LANE = 0.24  # metres from the centre to the middle of the lane around the cross
_FULL_SPEED = 0.08  # metres a second; the motors reach .1 on a straight way
_SPEEDS = (0.08, 0.02, 0.06, 0.04)  # of fast_slow: top, right, bottom, left
_GAP = 0.1  # metres: half the length of the left passage
_LONG = "reach_bottom_left_long"
_AROUND = ("square", "loop", "fast_slow", _LONG)

_GAUSSIAN = np.sqrt(-2 * np.log(0.1))  # its scale: .1 at a margin


class Config(DomainConfig):
    """The published maze has 1 physics step a control step (dt .02 s) and 1000-step episodes."""

    physics_steps: int = Field(1, ge=1)
    episode_steps: int = Field(1000, ge=1)


class TaskConfig(BaseConfig):
    """Settings of the tasks; each reads those that its formula names."""

    target_size: float = Field(0.015, gt=0, lt=REACH)
    """Radius of full reward around the target, and the margin over which it fades, in metres."""
    lane_width: float = Field(0.03, gt=0, lt=REACH)
    """Distance of full reward from the middle of the lane, and the margin over which it fades."""
    cut_cost: float = Field(3.0, ge=0)
    """What a step in the left gap costs where the long way is asked for."""


class MazePhysics(BasePhysics["Domain"]):
    """What a reward of one's own can be made of."""

    @quantity
    def position(self) -> Array:
        """x, y of the ball (n, 2), metres; 0, 0 is the centre of the cross."""
        return self.qpos

    @quantity
    def velocity(self) -> Array:
        """vx, vy of the ball (n, 2), metres a second."""
        return self.qvel


class Domain(BaseDomain):
    """Observation: x, y, vx, vy (metres, metres a second). Action: force along x and y."""

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = (*TARGETS, *_AROUND)
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    Physics = MazePhysics
    obs_dim = 4

    def __init__(self, name: str, config: DomainConfig) -> None:
        super().__init__(name, config)
        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_suffix(".xml")))

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """Position and velocity (n, 4)."""
        return np.concatenate([fields["qpos"], fields["qvel"]], axis=1, dtype=np.float32)

    def reward(self, task: Task, physics: MazePhysics, action: Array) -> Array:
        """As the module says: in [0, 1], but for what a short cut costs."""
        settings = task.settings
        assert isinstance(settings, TaskConfig)
        if task.name in TARGETS:
            force = action.astype(np.float64)
            small = np.maximum(1 - force * force, 0)
            small_control = (small[:, 0] + small[:, 1]) / 2
            near = _near(_distance(physics.qpos, task.name), settings.target_size)
            return near * (small_control + 4) / 5
        (x, y), (vx, vy) = physics.qpos.T, physics.qvel.T
        width = settings.lane_width
        if task.name == "loop":
            off = np.abs(np.abs(x) + np.abs(y) - _LANE) / np.sqrt(2)
            speed = (np.sign(y) * vx - np.sign(x) * vy) / np.sqrt(2)
            return _near(off, width) * np.clip(speed / _FULL_SPEED, 0, 1)
        lane = _near(np.abs(np.maximum(np.abs(x), np.abs(y)) - _LANE), width)
        sides = (y > np.abs(x), x >= np.abs(y), y < -np.abs(x))  # and left, where no other is
        speed = np.select(sides, (vx, -vy, -vx), vy)
        if task.name == "square":
            return lane * np.clip(speed / _FULL_SPEED, 0, 1)
        if task.name == "fast_slow":
            wanted = np.select(sides, _SPEEDS[:3], _SPEEDS[3])
            return lane * tolerance(speed / wanted - 1, bounds=(-0.1, 0.1), margin=0.5)
        near = _near(_distance(physics.qpos, "reach_bottom_left"), settings.target_size)
        way = lane * np.clip(speed / _FULL_SPEED, -1, 1)
        in_gap = (x < 0) & (np.abs(y) < _GAP)
        return np.where(in_gap, -settings.cut_cost, near + (1 - near) * way)

    def show(self, model: mujoco.MjModel, task: Task | None) -> None:
        """The target where it is and as large as it is; none where the task has none."""
        name = task.name if task else ""
        target, site = TARGETS.get(name.removesuffix("_long")), model.site("target")
        if task is None or target is None or not isinstance(task.settings, TaskConfig):
            site.rgba[3] = 0
        else:
            site.pos[:2], site.size[0] = target, task.settings.target_size
            site.sameframe[0] = 0  # else its own position is not looked at

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


def _distance(position: Array, task: str) -> Array:
    x, y = (position - np.array(TARGETS[task])).T
    return np.sqrt(x * x + y * y)


def _near(distance: Array, size: float) -> Array:
    """dm_control's tolerance (bounds (0, size), margin size): 1 up to `size`, .1 at twice that."""
    beyond = np.maximum(distance - size, 0) / size
    return np.exp(-0.5 * (beyond * _GAUSSIAN) ** 2)


def is_free(position: Array) -> Array:
    """Whether the ball fits at `position` (n, 2) without touching the cross: bool (n,)."""
    offset = np.abs(position)
    free = np.ones(len(position), dtype=bool)
    for half in ((CROSS_HALF_LENGTH, CROSS_HALF_WIDTH), (CROSS_HALF_WIDTH, CROSS_HALF_LENGTH)):
        outside = np.maximum(offset - np.array(half), 0)
        free &= np.linalg.norm(outside, axis=-1) > _BALL
    return free
