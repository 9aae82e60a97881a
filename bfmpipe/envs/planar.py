"""Planar models in closed form: kinematics and momenta as array code over many states.

For trees of bodies joined by slides in the x-z plane and hinges about y, such as dm_control's
walker and cheetah. MuJoCo needs a simulation a state to say where a body is; from qpos and qvel
alone these formulas say the same to rounding, for millions of stored states a second. A frame that
is turned by the angle t about y, and turns at the rate w, takes an offset (dx, dz) of its own to

    (rx, rz) = (cos t dx + sin t dz, cos t dz - sin t dx)     in the world,
    w (rz, -rx)                                               its velocity.

Every operation is elementwise over states, so what is computed of a state does not depend, to the
last bit, on the states computed beside it.
"""

from functools import cached_property
from typing import ClassVar, NamedTuple

import mujoco
import numpy as np

from bfmpipe.envs.domain import Domain, DomainConfig
from bfmpipe.envs.tasks import Physics, quantity
from bfmpipe.types import Array

Value = Array | float
"""Of n states (n,), or the same for all of them."""


class Frame(NamedTuple):
    """Frames in the plane, of n states: each entry is (n,), or () where all states share it.

    x, z: origin, metres; cos, sin: of `angle`, radians about y; vx, vz: velocity of the origin,
    metres a second; rate: of the angle, radians a second.
    """

    x: Array
    z: Array
    angle: Array
    cos: Array
    sin: Array
    vx: Array
    vz: Array
    rate: Array

    def turn(self, offset: tuple[Value, Value]) -> tuple[Array, Array]:
        """An offset (dx, dz) given in this frame, in the world's directions."""
        dx, dz = offset
        return self.cos * dx + self.sin * dz, self.cos * dz - self.sin * dx

    def shifted(self, offset: tuple[Value, Value]) -> "Frame":
        """The frame with its origin at an offset (dx, dz), given in this frame."""
        rx, rz = self.turn(offset)
        return self._replace(
            x=self.x + rx,
            z=self.z + rz,
            vx=self.vx + self.rate * rz,
            vz=self.vz - self.rate * rx,
        )

    def turned(self, angle: Value, rate: Value) -> "Frame":
        """The frame turned about its origin by an angle that changes at a rate."""
        total = self.angle + angle
        return self._replace(
            angle=total, cos=np.cos(total), sin=np.sin(total), rate=self.rate + rate
        )

    def slid(self, axis: tuple[float, float], distance: Array, speed: Array) -> "Frame":
        """The frame moved along an axis, given in this frame, by a distance and at a speed."""
        ax, az = axis
        moved = self.shifted((ax * distance, az * distance))
        dx, dz = self.turn(axis)
        return moved._replace(vx=moved.vx + dx * speed, vz=moved.vz + dz * speed)


class _Joint(NamedTuple):
    """A joint in the frame of its body: `qpos` and `dof` are its columns."""

    qpos: int
    dof: int
    reference: float
    sign: float  # of a hinge about +y or -y; 0 for a slide
    anchor: tuple[float, float]
    axis: tuple[float, float]


class _Body(NamedTuple):
    """A body in the frame of its parent; `parent` counts from 0, and is -1 for the world."""

    parent: int
    offset: tuple[float, float]
    angle: float
    joints: tuple[_Joint, ...]
    mass: float
    centre: tuple[float, float]  # of mass, in the body's own frame
    inertia: float  # about y through the centre of mass


_WORLD = Frame(*np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))


class PlanarTree:
    """The bodies of a planar model, in MuJoCo's order without the world.

    In what follows qpos is (n, nq) and qvel (n, nv), of n states.

    Args:
        model: the model; all of its numbers are read from it.

    Raises:
        ValueError: for a model that can leave the plane.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._bodies = [_body(model, i) for i in range(1, model.nbody)]
        self._mass = sum(body.mass for body in self._bodies)

    def angles(self, qpos: Array) -> Array:
        """Angles of all bodies about y (n, bodies), radians, not wrapped."""
        angles: list[Array] = []
        for body in self._bodies:
            angle = body.angle + (angles[body.parent] if body.parent >= 0 else _WORLD.angle)
            for joint in body.joints:
                angle = angle + joint.sign * (qpos[:, joint.qpos] - joint.reference)
            angles.append(np.broadcast_to(angle, len(qpos)))
        return np.stack(angles, axis=1)

    def frames(self, qpos: Array, qvel: Array, *, bodies: int | None = None) -> list[Frame]:
        """Frames of all bodies, or of the first few."""
        frames: list[Frame] = []
        for body in self._bodies[:bodies]:
            frame = (frames[body.parent] if body.parent >= 0 else _WORLD).shifted(body.offset)
            if body.angle:
                frame = frame.turned(body.angle, 0)
            for joint in body.joints:
                q, v = qpos[:, joint.qpos] - joint.reference, qvel[:, joint.dof]
                if not joint.sign:
                    frame = frame.slid(joint.axis, q, v)
                    continue
                ax, az = joint.anchor
                if joint.anchor == (0, 0):  # for speed only
                    frame = frame.turned(joint.sign * q, joint.sign * v)
                else:
                    frame = frame.shifted((ax, az)).turned(joint.sign * q, joint.sign * v)
                    frame = frame.shifted((-ax, -az))
            frames.append(frame)
        return frames

    def centres(self, qpos: Array, qvel: Array) -> list[Frame]:
        """The bodies' frames, moved to their centres of mass."""
        frames = self.frames(qpos, qvel)
        return [f.shifted(body.centre) for f, body in zip(frames, self._bodies, strict=True)]

    def velocity(self, centres: list[Frame]) -> tuple[Array, Array]:
        """Velocity (vx, vz) of the common centre of mass, each (n,), metres a second.

        Args:
            centres: of all bodies, see `centres`.
        """
        return self._mean([c.vx for c in centres]), self._mean([c.vz for c in centres])

    def angular_momentum(self, centres: list[Frame]) -> Array:
        """About y, of all bodies about their common centre of mass (n,), kg m^2 / s.

        Args:
            centres: of all bodies, see `centres`.
        """
        x = self._mean([centre.x for centre in centres])
        z = self._mean([centre.z for centre in centres])
        vx, vz = self.velocity(centres)
        total = np.zeros(())
        for body, at in zip(self._bodies, centres, strict=True):
            orbit = (at.z - z) * (at.vx - vx) - (at.x - x) * (at.vz - vz)
            total = total + (body.inertia * at.rate + body.mass * orbit)
        return total

    def _mean(self, values: list[Array]) -> Array:
        """Mean over the bodies, weighted by mass."""
        total = np.zeros(())
        for body, value in zip(self._bodies, values, strict=True):
            total = total + body.mass * value
        return total / self._mass


class PlanarPhysics(Physics["PlanarDomain"]):
    """What rewards of a planar body can be made of."""

    @quantity
    def torso_height(self) -> Array:
        """Height of the torso's centre above the ground (n,), metres."""
        return self._torso.z

    @quantity
    def torso_upright(self) -> Array:
        """The torso's z axis's share of the vertical (n,): 1 upright, -1 upside down."""
        return self._torso.cos

    @quantity
    def velocity(self) -> Array:
        """vx (forward), vz (up) of the centre of mass (n, 2), metres a second."""
        return np.stack(self.domain.tree.velocity(self._centres), axis=1)

    @quantity
    def angular_momentum(self) -> Array:
        """About the y axis and the centre of mass (n,), kg m^2 / s: positive forward."""
        return self.domain.tree.angular_momentum(self._centres)

    @cached_property
    def _torso(self) -> Frame:
        return self.domain.tree.frames(self.qpos, self.qvel, bodies=1)[0]

    @cached_property
    def _centres(self) -> list[Frame]:
        return self.domain.tree.centres(self.qpos, self.qvel)


class PlanarDomain(Domain):
    """A domain of one planar body, whose torso comes first.

    Everything is computed from qpos and qvel, so stored physics states are enough for observations
    as well.
    """

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    Physics = PlanarPhysics

    def __init__(self, name: str, config: DomainConfig, model: mujoco.MjModel) -> None:
        super().__init__(name, config)
        self.model = model
        self.tree = PlanarTree(model)


def _body(model: mujoco.MjModel, i: int) -> _Body:
    quat = model.body_quat[i]
    if quat[1] or quat[3]:
        raise ValueError(f"body {i} is turned out of the x-z plane")
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_iquat[i])
    first = model.body_jntadr[i]
    return _Body(
        parent=int(model.body_parentid[i]) - 1,
        offset=_in_plane(model.body_pos[i]),
        angle=2 * float(np.arctan2(quat[2], quat[0])),
        joints=tuple(_joint(model, j) for j in range(first, first + model.body_jntnum[i])),
        mass=float(model.body_mass[i]),
        centre=_in_plane(model.body_ipos[i]),
        inertia=float(np.square(rotation[3:6]) @ model.body_inertia[i]),
    )


def _joint(model: mujoco.MjModel, j: int) -> _Joint:
    hinge = model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE
    slide = model.jnt_type[j] == mujoco.mjtJoint.mjJNT_SLIDE
    axis = model.jnt_axis[j]
    if not (hinge and abs(axis[1]) == 1) and not (slide and axis[1] == 0):
        raise ValueError(f"joint {j} is neither a hinge about y nor a slide in the x-z plane")
    return _Joint(
        qpos=int(model.jnt_qposadr[j]),
        dof=int(model.jnt_dofadr[j]),
        reference=float(model.qpos0[model.jnt_qposadr[j]]),
        sign=float(axis[1]) if hinge else 0.0,
        anchor=_in_plane(model.jnt_pos[j]),
        axis=_in_plane(axis),
    )


def _in_plane(vector: Array) -> tuple[float, float]:
    x, _, z = vector.tolist()
    return x, z
