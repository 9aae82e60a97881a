"""Cheetah: run, walk or flip, either way, with a planar body on two legs.

The body and its start states are dm_control's, and so is the task run; the others are those of the
unsupervised-RL benchmarks on it. With vx the horizontal velocity of the centre of mass, L the
angular momentum about it (y axis: forward) and `up(x) = clip(x, 0, 1)`:

    run   up(vx / 10)    run_backward   up(-vx / 10)
    walk  up(vx / 2)     walk_backward  up(-vx / 2)
    flip  up(L / 5)      flip_backward  up(-L / 5)
"""

import warnings
from collections.abc import Mapping
from importlib.resources import files
from typing import ClassVar

import mujoco
import numpy as np
from mujoco.batch import Batch
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.envs.planar import PlanarDomain, PlanarPhysics
from bfmpipe.types import Array

_SPEED = {"run": 10.0, "run_backward": -10.0, "walk": 2.0, "walk_backward": -2.0}  # metres a second
_MOMENTUM = {"flip": 5.0, "flip_backward": -5.0}  # kg m^2 / s
_SETTLING = 200  # physics steps


class Config(DomainConfig):
    """As published: 1 physics step a control step (dt .01 s) and 1000-step episodes."""

    physics_steps: int = Field(1, ge=1)
    episode_steps: int = Field(1000, ge=1)


class TaskConfig(BaseConfig):
    """A task's name says all."""


class Domain(PlanarDomain):
    """Observation: height, angle, joint angles, and all velocities.

    Action: torques of the back thigh, shin and foot, then the front ones.
    """

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = (*_SPEED, *_MOMENTUM)

    def __init__(self, name: str, config: DomainConfig) -> None:
        super().__init__(name, config, _load())
        self.obs_dim = int(self.model.nq - 1 + self.model.nv)

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """All of qpos but the horizontal position, then qvel: (n, 17)."""
        qpos, qvel = fields["qpos"], fields["qvel"]
        return np.concatenate([qpos[:, 1:], qvel], axis=1, dtype=np.float32)

    def reward(self, task: Task, physics: PlanarPhysics, action: Array) -> Array:
        """Of the state reached alone, in [0, 1]; `action` plays no part."""
        if task.name in _MOMENTUM:
            value, full = physics.angular_momentum, _MOMENTUM[task.name]
        else:
            value, full = physics.velocity[:, 0], _SPEED[task.name]
        return np.clip(value / full, 0, 1)

    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """Joints anywhere in their ranges, then 2 s of physics without torques, to settle.

        dm_control's very first physics step still sees the body where the model file has it; here
        all 200 see the joints as drawn. A start so costs a fifth of an episode's physics.
        """
        model = self.model
        limited = model.jnt_limited.astype(bool)
        low, high = model.jnt_range[limited].T
        physics = np.zeros((n, self.physics_dim))
        physics[:, : model.nq] = model.qpos0
        physics[:, np.flatnonzero(limited)] = rng.uniform(low, high, (n, len(low)))
        if n:
            batch = Batch(model, n, min(threads(), n))
            rows = batch.state[:, 1 : 1 + self.physics_dim]  # after the time
            rows[:] = physics
            batch.step(nstep=_SETTLING)
            physics[:] = rows
        return physics

    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """The tasks' own start states: where a body comes to rest, exploration begins."""
        return self.start_states(n, rng)


def _load() -> mujoco.MjModel:
    """dm_control's model, without MuJoCo's word on the file's `settotalmass`, which is theirs."""

    def pass_on(message: str) -> None:
        if "settotalmass" not in message:
            warnings.warn(message, stacklevel=2)

    suite = files("dm_control") / "suite"  # imported, it would load all domains and OpenGL
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(pass_on)
    try:
        return mujoco.MjModel.from_xml_path(str(suite / "cheetah.xml"))
    finally:
        mujoco.set_mju_user_warning(before)
