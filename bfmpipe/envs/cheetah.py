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
from bfmpipe.envs.domain import Domain as BaseDomain
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.envs.planar import Frame, PlanarTree
from bfmpipe.envs.tasks import Physics as BasePhysics
from bfmpipe.envs.tasks import quantity
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


class Physics(BasePhysics["Domain"]):
    """What a reward of one's own can be made of."""

    @quantity
    def torso_height(self) -> Array:
        """Height of the torso's centre above the ground (n,), metres."""
        return self._torso().z

    @quantity
    def torso_upright(self) -> Array:
        """The torso's z axis's share of the vertical (n,): 1 upright, -1 upside down."""
        return self._torso().cos

    @quantity
    def velocity(self) -> Array:
        """vx (forward), vz (up) of the centre of mass (n, 2), metres a second."""
        return np.stack(self.domain.tree.velocity(self.qpos, self.qvel), axis=1)

    @quantity
    def angular_momentum(self) -> Array:
        """About the y axis and the centre of mass (n,), kg m^2 / s: positive forward."""
        return self.domain.tree.angular_momentum(self.qpos, self.qvel)

    def _torso(self) -> Frame:
        return self.domain.tree.frames(self.qpos, self.qvel, bodies=1)[0]


class Domain(BaseDomain):
    """Observation: height, angle, joint angles, and all velocities.

    Action: torques of the back thigh, shin and foot, then the front ones. Everything is computed
    from qpos and qvel, so stored physics states are enough for observations as well.
    """

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = (*_SPEED, *_MOMENTUM)
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    Physics = Physics

    def __init__(self, name: str, config: DomainConfig) -> None:
        super().__init__(name, config)
        self.model = _load()
        self.tree = PlanarTree(self.model)
        self.obs_dim = int(self.model.nq - 1 + self.model.nv)

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """All of qpos but the horizontal position, then qvel: (n, 17)."""
        qpos, qvel = fields["qpos"], fields["qvel"]
        return np.concatenate([qpos[:, 1:], qvel], axis=1, dtype=np.float32)

    def reward(self, task: Task, fields: Mapping[str, Array], action: Array) -> Array:
        """Of the state reached alone, in [0, 1]; `action` plays no part."""
        qpos, qvel = fields["qpos"], fields["qvel"]
        if task.name in _MOMENTUM:
            value, full = self.tree.angular_momentum(qpos, qvel), _MOMENTUM[task.name]
        else:
            value, full = self.tree.velocity(qpos, qvel)[0], _SPEED[task.name]
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
