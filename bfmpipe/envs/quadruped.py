"""Quadruped: stand, walk, run, jump or roll with a body on four legs.

The body and its start states are dm_control's, and so are the tasks walk and run; the others are
those of the unsupervised-RL benchmarks on it. With zz the torso's z axis's share of the vertical,
v the torso's velocity in its own frame (x forward), h the height of the centre of mass and
`half(x, m) = clip((1 + x / m) / 2, 0, 1)`, which is a half at zero:

    U          = (1 + zz) / 2
    stand      U
    walk       U half(vx, .5)
    run        U half(vx, 5)
    jump       U half(clip(h, 0, 1), 1)
    roll       U half(|v|, .5)
    roll_fast  U half(|v|, 5)

Half of the reward of every move is had by lying still, and a body that landed on its feet earns
more than one on its back whatever it does: read scores beside those of the random policy.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import ClassVar, NamedTuple

import mujoco
import numpy as np
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.domain import Domain as BaseDomain
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.envs.tasks import Physics as BasePhysics
from bfmpipe.envs.tasks import quantity
from bfmpipe.types import Array

_FORWARD = {"walk": 0.5, "run": 5.0}  # metres a second
_ANY_WAY = {"roll": 0.5, "roll_fast": 5.0}  # metres a second
_JUMP_HEIGHT = 1.0  # metres
_FLOOR = 100.0  # half its sides as drawn, metres; to the physics it has no end
_LIFT, _LIFTS = 0.01, 200  # metres a step of lifting; more steps than any orientation needs
_ROOT = 7  # entries of qpos: position and quaternion of the torso

Vector = tuple[Array, Array, Array]


class Config(DomainConfig):
    """As published: 4 physics steps a control step (dt .02 s) and 1000-step episodes."""

    physics_steps: int = Field(4, ge=1)
    episode_steps: int = Field(1000, ge=1)


class TaskConfig(BaseConfig):
    """A task's name says all."""


class QuadrupedPhysics(BasePhysics["Domain"]):
    """What a reward of one's own can be made of."""

    @quantity
    def torso_height(self) -> Array:
        """Height of the torso's centre above the ground (n,), metres."""
        return self.qpos[:, 2]

    @quantity
    def torso_upright(self) -> Array:
        """The torso's z axis's share of the vertical (n,): 1 upright, -1 upside down."""
        return _axes(self.qpos)[2][2]

    @quantity
    def torso_velocity(self) -> Array:
        """The torso's velocity in its own frame (n, 3): forward, left, up, metres a second."""
        return np.stack(_local_velocity(_axes(self.qpos), self.qvel), axis=1)

    @quantity
    def centre_height(self) -> Array:
        """Height of the centre of mass above the ground (n,), metres."""
        return self.domain.centre_height(self.qpos)


class Domain(BaseDomain):
    """Observation: 16 joint angles, their velocities, 12 activations; the torso's velocity and zz;
    accelerometer and gyroscope; arcsinh of the forces and then torques at the four toes.

    Action: yaw, lift and extend of the front left leg, then front right, back right, back left.
    Forces and accelerations are not in a physics state, so observations are stored with a data
    set; after a reset they are those under controls of zero. Rewards need qpos and qvel alone.
    """

    TaskConfig = TaskConfig
    task_names: ClassVar[tuple[str, ...]] = ("stand", *_FORWARD, "jump", *_ANY_WAY)
    observed_fields: ClassVar[tuple[str, ...]] = ("sensordata",)
    reset_stage = mujoco.mjtStage.mjSTAGE_ACC
    camera = 2  # from the side; the first one is far away
    Physics = QuadrupedPhysics

    def __init__(self, name: str, config: DomainConfig) -> None:
        super().__init__(name, config)
        self.model = _load()
        model, kind = self.model, mujoco.mjtSensor
        self._velocity = _sensors(model, kind.mjSENS_VELOCIMETER)
        self._imu = _sensors(model, kind.mjSENS_GYRO, kind.mjSENS_ACCELEROMETER)
        self._touch = _sensors(model, kind.mjSENS_FORCE, kind.mjSENS_TORQUE)
        self._tree = [_body(model, i) for i in range(2, model.nbody)]
        self._torso = _Share(model.body_mass[1] / model.body_mass.sum(), model.body_ipos[1])
        self.obs_dim = int(model.nq - _ROOT + model.nv - 6 + model.na + 3 + 1) + len(
            [*self._imu, *self._touch]
        )

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """In the order above: (n, 78)."""
        qpos, sensors = fields["qpos"], fields["sensordata"]
        parts = (
            qpos[:, _ROOT:],
            fields["qvel"][:, 6:],
            fields["act"],
            sensors[:, self._velocity],
            _axes(qpos)[2][2][:, None],
            sensors[:, self._imu],
            np.arcsinh(sensors[:, self._touch]),
        )
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def reward(self, task: Task, physics: QuadrupedPhysics, action: Array) -> Array:
        """Of the state reached alone, in [0, 1]; `action` plays no part."""
        upright = np.clip((1 + physics.torso_upright) / 2, 0, 1)
        if task.name == "stand":
            return upright
        if task.name == "jump":
            height = np.clip(physics.centre_height, 0, _JUMP_HEIGHT)
            return upright * _half(height, _JUMP_HEIGHT)
        x, y, z = physics.torso_velocity.T
        if task.name in _FORWARD:
            return upright * _half(x, _FORWARD[task.name])
        return upright * _half(np.sqrt(x * x + y * y + z * z), _ANY_WAY[task.name])

    def centre_height(self, qpos: Array) -> Array:
        """Height of the centre of mass (n,), metres, of qpos (n, 23).

        Only heights are followed down the legs: a frame is its origin's height and `up`, what its
        three axes have of the vertical, the last row of its rotation matrix.
        """
        x, y, z = _axes(qpos)
        frames: list[tuple[Array, Vector]] = [(qpos[:, 2], (x[2], y[2], z[2]))]
        total = self._torso.mass * _raise(*frames[0], self._torso.centre)
        for body in self._tree:
            height, up = frames[body.parent]
            height = _raise(height, up, body.offset)
            up = _turn(up, body.rotation)
            for axis, column in body.hinges:
                up = _hinge(up, axis, qpos[:, column])
            frames.append((height, up))
            total = total + body.share.mass * _raise(height, up, body.share.centre)
        return total

    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """At rest in a uniformly random orientation, legs as the model has them, just in the air.

        As dm_control does, the torso's centre is lifted from the floor by centimetres until
        nothing touches it; here the lowest point of every geom says at once how many.
        """
        model = self.model
        orientation = rng.standard_normal((n, 4))
        orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
        physics = np.zeros((n, self.physics_dim))
        physics[:, : model.nq] = model.qpos0
        physics[:, :2] = 0
        physics[:, 3:_ROOT] = orientation
        heights = np.cumsum(np.full(_LIFTS, _LIFT)) - _LIFT
        physics[:, 2] = heights[np.searchsorted(heights, self._depth(orientation), side="right")]
        return physics

    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """The tasks' own start states: they cover all orientations."""
        return self.start_states(n, rng)

    def _depth(self, orientation: Array) -> Array:
        """How far the body at qpos0 reaches below its torso's centre (n,), metres.

        orientation: unit quaternions (n, 4).
        """
        model, data = self.model, mujoco.MjData(self.model)
        mujoco.mj_kinematics(model, data)
        frames = np.zeros((len(orientation), _ROOT))
        frames[:, 3:] = orientation
        down = -np.stack([axis[2] for axis in _axes(frames)], axis=1)  # in the torso's frame
        depth = np.zeros(len(orientation))
        for i in np.flatnonzero(model.geom_bodyid):
            centre = down @ (data.geom_xpos[i] - data.xpos[1])
            along = down @ data.geom_xmat[i].reshape(3, 3)
            depth = np.maximum(depth, centre + _extent(model, int(i), along))
        return depth


class _Share(NamedTuple):
    """A body's share of the whole mass, and its centre of mass in its own frame."""

    mass: float
    centre: Array


class _Body(NamedTuple):
    """A body in the frame of its parent, which counts from the torso, 0.

    rotation: a matrix (3, 3); hinges: (axis, column of qpos), with axis 0, 1 or 2 for x, y or z.
    """

    parent: int
    offset: Array
    rotation: Array
    hinges: tuple[tuple[int, int], ...]
    share: _Share


def _load() -> mujoco.MjModel:
    """dm_control's model for its tasks walk and run: without terrain, walls, ball and rays."""
    suite = files("dm_control") / "suite"  # imported, it would load all domains and OpenGL
    spec = mujoco.MjSpec.from_file(str(suite / "quadruped.xml"))
    for geom in ("wall_px", "wall_py", "wall_nx", "wall_ny", "terrain"):
        spec.delete(spec.geom(geom))
    spec.delete(spec.body("ball"))
    spec.delete(spec.site("target"))
    for sensor in spec.sensors:
        if sensor.type == mujoco.mjtSensor.mjSENS_RANGEFINDER:
            spec.delete(sensor)
    spec.geom("floor").size[:2] = _FLOOR
    return spec.compile()


def _sensors(model: mujoco.MjModel, *kinds: mujoco.mjtSensor) -> Array:
    """Columns of sensordata that hold sensors of these kinds, in the model's order."""
    columns: list[int] = []
    for sensor in np.flatnonzero(np.isin(model.sensor_type, [int(kind) for kind in kinds])):
        first = model.sensor_adr[sensor]
        columns += range(first, first + model.sensor_dim[sensor])
    return np.array(columns)


def _body(model: mujoco.MjModel, i: int) -> _Body:
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_quat[i])
    first = model.body_jntadr[i]
    hinges = []
    for j in range(first, first + model.body_jntnum[i]):
        assert model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE
        assert not model.jnt_pos[j].any()
        assert sorted(model.jnt_axis[j]) == [0, 0, 1]
        hinges.append((int(model.jnt_axis[j].argmax()), int(model.jnt_qposadr[j])))
    return _Body(
        parent=int(model.body_parentid[i]) - 1,
        offset=model.body_pos[i].copy(),
        rotation=rotation.reshape(3, 3),
        hinges=tuple(hinges),
        share=_Share(model.body_mass[i] / model.body_mass.sum(), model.body_ipos[i].copy()),
    )


def _axes(qpos: Array) -> tuple[Vector, Vector, Vector]:
    """The torso's x, y and z axes in the world, each (x, y, z) of (n,).

    MuJoCo takes a quaternion for the rotation of its unit quaternion, and so does this.
    """
    w, x, y, z = (qpos[:, i] for i in range(3, _ROOT))
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    scale = 1 / (ww + xx + yy + zz)
    twice = 2 * scale
    return (
        ((ww + xx - yy - zz) * scale, (x * y + w * z) * twice, (x * z - w * y) * twice),
        ((x * y - w * z) * twice, (ww - xx + yy - zz) * scale, (y * z + w * x) * twice),
        ((x * z + w * y) * twice, (y * z - w * x) * twice, (ww - xx - yy + zz) * scale),
    )


def _local_velocity(axes: tuple[Vector, Vector, Vector], qvel: Array) -> Vector:
    """The torso's velocity along its own axes; a free joint's is that of the frame's origin."""
    vx, vy, vz = qvel[:, 0], qvel[:, 1], qvel[:, 2]
    x, y, z = (a[0] * vx + a[1] * vy + a[2] * vz for a in axes)
    return x, y, z


def _raise(height: Array, up: Vector, offset: Array) -> Array:
    """Height of the point at an offset (3,), given in a frame at `height` with `up`."""
    for share, length in zip(up, offset.tolist(), strict=True):
        if length:
            height = height + share * length
    return height


def _turn(up: Vector, rotation: Array) -> Vector:
    """`up` of a frame turned against this one by a constant matrix (3, 3)."""
    if np.array_equal(rotation, np.eye(3)):
        return up
    x, y, z = (_raise(np.zeros(()), up, column) for column in rotation.T)
    return x, y, z


def _hinge(up: Vector, axis: int, angle: Array) -> Vector:
    """`up` of a frame turned against this one by an angle (n,) about one of its axes."""
    turned = list(up)
    cos, sin, i, j = np.cos(angle), np.sin(angle), (axis + 1) % 3, (axis + 2) % 3
    turned[i] = cos * up[i] + sin * up[j]
    turned[j] = cos * up[j] - sin * up[i]
    x, y, z = turned
    return x, y, z


def _half(value: Array, full: float) -> Array:
    """A half at zero, 1 from `full` on, 0 up to -`full`."""
    return np.clip((1 + value / full) / 2, 0, 1)


def _extent(model: mujoco.MjModel, geom: int, direction: Array) -> Array:
    """How far a geom reaches from its centre (n,) in directions (n, 3), unit, in its own frame."""
    shape, size, kind = model.geom_type[geom], model.geom_size[geom], mujoco.mjtGeom
    if shape == kind.mjGEOM_ELLIPSOID:
        return np.linalg.norm(direction * size, axis=1)
    if shape == kind.mjGEOM_SPHERE:
        return np.full(len(direction), size[0])
    ends = np.abs(direction[:, 2]) * size[1]
    if shape == kind.mjGEOM_CAPSULE:
        return ends + size[0]
    assert shape == kind.mjGEOM_CYLINDER
    return ends + np.hypot(direction[:, 0], direction[:, 1]) * size[0]
