"""Walker: stand, walk, run, flip or spin with a planar body on two legs.

The body and its start states are dm_control's, and so are the tasks stand, walk and run; flip and
spin are those of the unsupervised-RL benchmarks on it. With h the torso's height, zz its z axis's
share of the vertical, vx the horizontal velocity of the centre of mass and L the angular momentum
about it (y axis: forward), `T` dm_control's tolerance and `up(x) = clip(x, 0, 1)`:

    S    = (3 T(h; [1.2, inf), margin .6) + (1 + zz) / 2) / 4
    stand  S
    walk   S (5 up(vx / 1) + 1) / 6
    run    S (5 up(vx / 8) + 1) / 6
    flip   S (5 up(L / 5) + 1) / 6
    spin   up(L / 10)
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import ClassVar

import mujoco
import numpy as np
from dm_control.utils.rewards import tolerance
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.envs.planar import PlanarDomain, PlanarPhysics
from bfmpipe.types import Array

_STAND_HEIGHT = 1.2  # metres
_SPEED = {"walk": 1.0, "run": 8.0}  # metres a second
_FLIP, _SPIN = 5.0, 10.0  # kg m^2 / s


class Config(DomainConfig):
    """As published: 10 physics steps a control step (dt .025 s) and 1000-step episodes."""

    physics_steps: int = Field(10, ge=1)
    episode_steps: int = Field(1000, ge=1)


class TaskConfig(BaseConfig):
    """A task's name says all."""


class Domain(PlanarDomain):
    """Observation: xx and xz of each body's orientation, the torso's height, all velocities.

    Action: torques of the right hip, knee and ankle, then the left ones.
    """

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = ("stand", "walk", "run", "flip", "spin")

    def __init__(self, name: str, config: DomainConfig) -> None:
        suite = files("dm_control") / "suite"  # imported, it would load all domains and OpenGL
        model = mujoco.MjModel.from_xml_path(str(suite / "walker.xml"))
        super().__init__(name, config, model)
        self._heading = 2 * (self.model.nbody - 1)  # columns of the observation
        self.obs_dim = self._heading + 1 + int(self.model.nv)

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """Orientations of the 7 bodies, torso first; height; velocities: (n, 24)."""
        qpos, qvel = fields["qpos"], fields["qvel"]
        angles = self.tree.angles(qpos)
        obs = np.empty((len(qpos), self.obs_dim), np.float32)
        obs[:, 0 : self._heading : 2] = np.cos(angles)
        obs[:, 1 : self._heading : 2] = np.sin(angles)
        obs[:, self._heading] = self.tree.frames(qpos, qvel, bodies=1)[0].z
        obs[:, self._heading + 1 :] = qvel
        return obs

    def reward(self, task: Task, physics: PlanarPhysics, action: Array) -> Array:
        """Of the state reached alone, in [0, 1]; `action` plays no part."""
        if task.name == "spin":
            return _up_to(_SPIN, physics.angular_momentum)
        standing = tolerance(
            physics.torso_height, bounds=(_STAND_HEIGHT, np.inf), margin=_STAND_HEIGHT / 2
        )
        stand = (3 * standing + (1 + physics.torso_upright) / 2) / 4
        if task.name == "stand":
            return stand
        if task.name == "flip":
            move = _up_to(_FLIP, physics.angular_momentum)
        else:
            move = _up_to(_SPEED[task.name], physics.velocity[:, 0])
        return stand * (5 * move + 1) / 6

    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """At rest where the torso starts, turned any way, its joints anywhere in their ranges."""
        model = self.model
        low, high = model.qpos0.copy(), model.qpos0.copy()
        hinge = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
        low[hinge], high[hinge] = -np.pi, np.pi
        limited = model.jnt_limited.astype(bool)
        low[limited], high[limited] = model.jnt_range[limited].T
        physics = np.zeros((n, self.physics_dim))
        physics[:, : model.nq] = rng.uniform(low, high, (n, model.nq))
        return physics

    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """The tasks' own start states: they cover all postures."""
        return self.start_states(n, rng)


def _up_to(full: float, value: Array) -> Array:
    """0 up to zero, then rising to 1 at `full`."""
    return np.clip(value / full, 0, 1)
