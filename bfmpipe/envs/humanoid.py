"""Humanoid: a person's body, its 24 parts named as in SMPL, with the interface of HumEnv.

What is observed, how a body starts and what it is rewarded for are HumEnv's; the body is this
project's own, since that one's file may not be passed on. `body: humenv` takes the file from the
package of HumEnv where it is installed: scores are comparable with published ones on that body
only. The tasks stand in `humanoid_tasks`, the kinematics in `humanoid_bodies`.
"""

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import mujoco
import numpy as np
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs import humanoid_tasks
from bfmpipe.envs.domain import Domain as BaseDomain
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.envs.humanoid_bodies import BODIES, PELVIS, Motion, Pose, Skeleton
from bfmpipe.envs.tasks import Physics as BasePhysics
from bfmpipe.envs.tasks import quantity
from bfmpipe.types import Array, UserError

_TIMESTEP = 1 / 450  # seconds
_STANDING = (0.0, 0.0, 0.94, 0.5**0.5, 0.5**0.5, 0.0, 0.0)  # of the pelvis: y up, facing -y
_FALL_HEIGHT = 1.0  # metres
_FALL_STEPS, _FALL_CONTROL = 4, 0.5  # at most
_SIZES = {"nq": 76, "nv": 75, "nu": 69}
_OBTAIN = "pip install git+https://github.com/facebookresearch/humenv"


class Config(DomainConfig):
    """As published: 15 physics steps a control step (dt 1/30 s) and 300-step episodes."""

    physics_steps: int = Field(15, ge=1)
    episode_steps: int = Field(300, ge=1)
    body: Literal["own", "humenv"] = "own"
    """`humenv` needs that package, of its git repository."""
    start: Literal["fall", "default"] = "fall"
    """`default` is the T-pose, at rest, and always the same; for `fall` see `start_states`."""


class TaskConfig(BaseConfig):
    """A task's name says all."""


class HumanoidPhysics(BasePhysics["Domain"]):
    """What rewards are made of; bodies are in the order of `humanoid_bodies.BODIES`."""

    @quantity
    def position(self) -> Array:
        """Origins of the bodies' frames in the world (n, 24, 3), metres."""
        return self._pose.position.transpose(2, 1, 0)

    @quantity
    def rotation(self) -> Array:
        """Orientations of the bodies (n, 24, 3, 3), world from body: [..., 2] is a z axis."""
        return self._pose.rotation.transpose(3, 2, 0, 1)

    @quantity
    def velocity(self) -> Array:
        """Velocities of the frames' origins in the world (n, 24, 3), metres a second."""
        return self._motion.velocity.transpose(2, 1, 0)

    @quantity
    def angular_velocity(self) -> Array:
        """Of the bodies, in the world (n, 24, 3), radians a second."""
        return self._motion.angular_velocity.transpose(2, 1, 0)

    @quantity
    def centre_velocity(self) -> Array:
        """Velocity of the centre of mass of chest, head and arms (n, 3), metres a second."""
        return self.domain.skeleton.centre_velocity(self._pose, self._motion).T

    @quantity
    def gyro(self) -> Array:
        """Angular velocity of the pelvis in its own frame (n, 3), radians a second."""
        return self.qvel[:, 3:6]

    @cached_property
    def _pose(self) -> Pose:
        return self.domain.skeleton.pose(self.qpos)

    @cached_property
    def _motion(self) -> Motion:
        return self.domain.skeleton.motion(self._pose, self.qpos, self.qvel)


class Domain(BaseDomain):
    """Observation: the pelvis's height; of the other 23 bodies their positions relative to it; of
    all 24 the x and z axes, the velocities and the angular velocities, body by body each.

    All directions are relative to where the pelvis's z axis, its front, points on the ground.
    Action: what angle each hinge's servo aims at, -1 and 1 being the ends of the hinge's range:
    about x, y and z of each body in turn.
    """

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = humanoid_tasks.STANDARD
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    Physics = HumanoidPhysics

    config: Config

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(name, config)
        self.model = _own_body() if config.body == "own" else _humenv_body(name)
        self.model.opt.timestep = _TIMESTEP
        self.skeleton = Skeleton(self.model)
        self.obs_dim = 1 + 3 * (5 * len(BODIES) - 1)

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """In the order above: (n, 358)."""
        qpos, n = fields["qpos"], len(BODIES)
        pose = self.skeleton.pose(qpos)
        motion = self.skeleton.motion(pose, qpos, fields["qvel"])
        x, y, z = vectors = np.empty((3, 5 * n - 1, len(qpos)))
        relative, axes, velocity, angular = np.split(vectors, (n - 1, 3 * n - 1, 4 * n - 1), 1)
        relative[:] = pose.position[:, 1:] - pose.position[:, :1]
        axes[:, 0::2], axes[:, 1::2] = pose.rotation[:, 0], pose.rotation[:, 2]
        velocity[:], angular[:] = motion
        cos, sin = _heading(pose.rotation[:, 2, PELVIS])
        obs = np.empty((len(qpos), self.obs_dim), np.float32)
        obs[:, 0] = pose.position[2, PELVIS]
        obs[:, 1::3] = (cos * x + sin * y).T
        obs[:, 2::3] = (cos * y - sin * x).T
        obs[:, 3::3] = z.T
        return obs

    def reward(self, task: Task, physics: HumanoidPhysics, action: Array) -> Array:
        """See `humanoid_tasks`."""
        return humanoid_tasks.reward(task.name, physics, action)

    def has_task(self, name: str) -> bool:
        """The standard tasks, and those that have other numbers in their names."""
        try:
            humanoid_tasks.parse(name)
        except UserError:
            return False
        return True

    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """As the setting `start` has it.

        A fall begins in the T-pose, its pelvis at 1 m in a uniformly random orientation, and goes
        on under random controls for up to 4 control steps. HumEnv draws no negative entry of a
        quaternion: its falls begin in an eighth of all orientations.
        """
        if self.config.start == "fall":
            return self._falls(n, rng)
        physics = np.zeros((n, self.physics_dim))
        physics[:, : len(_STANDING)] = _STANDING
        return physics

    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """Falls: they cover all orientations."""
        return self._falls(n, rng)

    def _falls(self, n: int, rng: np.random.Generator) -> Array:
        model, data = self.model, mujoco.MjData(self.model)
        orientation = rng.standard_normal((n, 4))
        orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
        steps = rng.integers(_FALL_STEPS, size=n, endpoint=True)
        control = rng.uniform(-_FALL_CONTROL, _FALL_CONTROL, (n, _FALL_STEPS, model.nu))
        physics = np.zeros((n, self.physics_dim))
        for i in range(n):
            mujoco.mj_resetData(model, data)
            data.qpos[:] = 0
            data.qpos[2], data.qpos[3:7] = _FALL_HEIGHT, orientation[i]
            for step in range(steps[i]):
                data.ctrl[:] = control[i, step]
                mujoco.mj_step(model, data, self.config.physics_steps)
            physics[i] = np.concatenate([data.qpos, data.qvel])
        return physics


def _heading(front: Array) -> tuple[Array, Array]:
    """Cosine and sine (n,) of where vectors (3, n) point on the ground; 0 rad for vertical ones."""
    x, y, _ = front
    length = np.sqrt(x * x + y * y)
    vertical = length == 0
    scale = 1 / np.where(vertical, 1, length)
    return np.where(vertical, 1, x * scale), y * scale


def _own_body() -> mujoco.MjModel:
    """With the servos' controls mapped from [-1, 1] to the ranges of their joints."""
    model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_suffix(".xml")))
    low, high = model.actuator_ctrlrange.T
    stiffness = model.actuator_gainprm[:, 0].copy()
    model.actuator_gainprm[:, 0] = stiffness * (high - low) / 2
    model.actuator_biasprm[:, 0] = stiffness * (high + low) / 2
    model.actuator_ctrlrange[:] = -1, 1
    return model


def _humenv_body(domain: str) -> mujoco.MjModel:
    """The body of the package humenv, which is found and not imported.

    Raises:
        UserError: it is not installed, or is another package of this name.
    """
    where = f"domain {domain}: body 'humenv'"
    package = importlib.util.find_spec("humenv")
    found = [Path(p) for p in (package and package.submodule_search_locations) or ()]
    files = [file for p in found if (file := p / "assets" / "robot.xml").is_file()]
    if not files:
        raise UserError(
            f"{where} needs the package humenv of Meta, whose file humenv/assets/robot.xml is not "
            f"here: {_OBTAIN} (PyPI has another package of this name)"
        )
    try:
        model = mujoco.MjModel.from_xml_path(str(files[0]))
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where}: {files[0]} is no model of MuJoCo's: {said}") from None
    sizes = {name: getattr(model, name) for name in _SIZES}
    names = tuple(model.body(i).name for i in range(1, model.nbody))
    if sizes != _SIZES or names != BODIES:
        raise UserError(f"{where}: {files[0]} is another body than HumEnv's")
    return model
