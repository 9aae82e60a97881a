"""The 24 bodies of a humanoid in SMPL's convention, and their kinematics as array code.

A body is joined to its parent by hinges about its own x, y and z axes, in this order, all of them
through its origin; where every angle is zero, all frames are parallel. A body whose joint has the
angles (a, b, c), at an offset d in its parent's frame, has

    rotation          R = R_parent Rx(a) Ry(b) Rz(c)
    position          p = p_parent + R_parent d
    angular velocity  w = w_parent + R_parent (a' ex + b' Rx(a) ey + c' Rx(a) Ry(b) ez)
    velocity          v = v_parent + w_parent x R_parent d

In what is returned states come last, so that every operation is one over contiguous rows of them;
all are elementwise, and what is computed of a state does not depend, to the last bit, on the states
computed beside it.
"""

from typing import NamedTuple

import mujoco
import numpy as np

from bfmpipe.types import Array

_LEG = ("Hip", "Knee", "Ankle", "Toe")
_ARM = ("Thorax", "Shoulder", "Elbow", "Wrist", "Hand")
BODIES: tuple[str, ...] = (
    "Pelvis",
    *(f"L_{name}" for name in _LEG),
    *(f"R_{name}" for name in _LEG),
    *("Torso", "Spine", "Chest", "Neck", "Head"),
    *(f"L_{name}" for name in _ARM),
    *(f"R_{name}" for name in _ARM),
)
"""Names of the bodies, in the order of all arrays: depth first."""

PELVIS, CHEST = BODIES.index("Pelvis"), BODIES.index("Chest")

_ROOT_Q, _ROOT_V = 7, 6  # entries of qpos and qvel that are the pelvis's


class Pose(NamedTuple):
    """Frames of all bodies in the world.

    rotation: (3, 3, 24, n), [:, k] are the bodies' axes k; position: (3, 24, n) of the origins,
    metres; arm: (3, 23, n), from each body's parent's origin to its own, but for the pelvis.
    """

    rotation: Array
    position: Array
    arm: Array


class Motion(NamedTuple):
    """Velocities in the world (3, 24, n): of the frames' origins, m/s, and angular ones, rad/s."""

    velocity: Array
    angular_velocity: Array


class Skeleton:
    """The kinematics of a model, from its numbers.

    Args:
        model: of bodies as above.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        _check(model)
        self._parents = model.body_parentid[2:] - 1  # of all bodies but the pelvis
        self._offset = model.body_pos[2:].T[:, :, None].copy()
        self._levels = _levels(self._parents)
        self._upper = _subtree(self._parents, CHEST)
        mass = model.body_mass[1:][self._upper]
        self._share = mass / mass.sum()
        self._centre = model.body_ipos[1:][self._upper].T[:, :, None].copy()

    def pose(self, qpos: Array) -> Pose:
        """Frames of the states qpos (n, 76), whose quaternions need not be of unit length."""
        turned = _turned(_joints(qpos, _ROOT_Q))
        rotation = np.empty((3, 3, len(BODIES), len(qpos)))
        rotation[:, :, PELVIS] = _from_quaternion(*qpos[:, 3:_ROOT_Q].T)
        for bodies in self._levels:
            of_parent = rotation[:, :, self._parents[bodies - 1]]
            rotation[:, :, bodies] = _times(of_parent, turned[:, :, bodies - 1])
        arm = _apply(rotation[:, :, self._parents], self._offset)
        return Pose(rotation, self._summed(qpos[:, :3].T, arm), arm)

    def motion(self, pose: Pose, qpos: Array, qvel: Array) -> Motion:
        """Velocities of the states qpos (n, 76) and qvel (n, 75), whose frames are `pose`."""
        turning = _apply(
            pose.rotation[:, :, self._parents],
            _rates(_joints(qpos, _ROOT_Q), _joints(qvel, _ROOT_V)),
        )
        own = np.ascontiguousarray(qvel[:, 3:_ROOT_V].T)  # a free joint turns about its own axes
        angular = self._summed(_apply(pose.rotation[:, :, PELVIS], own), turning)
        sweeping = _cross(angular[:, self._parents], pose.arm)
        return Motion(self._summed(qvel[:, :3].T, sweeping), angular)

    def centre_velocity(self, pose: Pose, motion: Motion) -> Array:
        """Velocity (3, n) of the centre of mass of the chest and all that hangs on it, m/s."""
        upper = self._upper
        lever = _apply(pose.rotation[:, :, upper], self._centre)
        velocity = motion.velocity[:, upper] + _cross(motion.angular_velocity[:, upper], lever)
        total = np.zeros((3, velocity.shape[-1]))
        for i, share in enumerate(self._share):
            total += share * velocity[:, i]
        return total

    def _summed(self, root: Array, steps: Array) -> Array:
        """`root` (3, n) of the pelvis, each other body its parent's and its step (3, 23, n)."""
        total = np.empty((3, len(BODIES), steps.shape[-1]))
        total[:, PELVIS] = root
        for bodies in self._levels:
            total[:, bodies] = total[:, self._parents[bodies - 1]] + steps[:, bodies - 1]
        return total


def _check(model: mujoco.MjModel) -> None:
    """What the formulas rely on."""
    assert tuple(model.body(i).name for i in range(1, model.nbody)) == BODIES
    joints = 3 * (len(BODIES) - 1)
    assert (model.nq, model.nv) == (_ROOT_Q + joints, _ROOT_V + joints)
    assert model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
    assert (model.jnt_type[1:] == mujoco.mjtJoint.mjJNT_HINGE).all()
    assert np.array_equal(model.jnt_bodyid[1:], np.repeat(np.arange(2, model.nbody), 3))
    assert np.array_equal(model.jnt_axis[1:], np.tile(np.eye(3), (len(BODIES) - 1, 1)))
    assert not model.jnt_pos[1:].any()
    assert not model.qpos0[_ROOT_Q:].any()
    assert (model.body_quat[2:] == (1, 0, 0, 0)).all()


def _levels(parents: Array) -> list[Array]:
    """Bodies by their depth below the pelvis, from 1."""
    depth = [0]
    for parent in parents:
        depth.append(depth[parent] + 1)
    return [np.flatnonzero(np.equal(depth, level)) for level in range(1, max(depth) + 1)]


def _subtree(parents: Array, top: int) -> Array:
    """A body and all below it."""
    found = {top}
    for body, parent in enumerate(parents.tolist(), start=1):
        if parent in found:
            found.add(body)
    return np.array(sorted(found))


def _joints(rows: Array, root: int) -> Array:
    """The joints' part of qpos or qvel, (3, 23, n), contiguous."""
    return np.ascontiguousarray(rows[:, root:].T.reshape(-1, 3, len(rows)).swapaxes(0, 1))


def _from_quaternion(w: Array, x: Array, y: Array, z: Array) -> Array:
    """Rotations (3, 3, n) of the unit quaternions of these."""
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    scale = 1 / (ww + xx + yy + zz)
    twice = 2 * scale
    return np.array(
        [
            [(ww + xx - yy - zz) * scale, (x * y - w * z) * twice, (x * z + w * y) * twice],
            [(x * y + w * z) * twice, (ww - xx + yy - zz) * scale, (y * z - w * x) * twice],
            [(x * z - w * y) * twice, (y * z + w * x) * twice, (ww - xx - yy + zz) * scale],
        ]
    )


def _turned(angles: Array) -> Array:
    """Rx(a) Ry(b) Rz(c), (3, 3, 23, n), of angles (3, 23, n)."""
    (sa, sb, sc), (ca, cb, cc) = np.sin(angles), np.cos(angles)
    sasb, casb = sa * sb, ca * sb
    return np.array(
        [
            [cb * cc, -cb * sc, sb],
            [ca * sc + sasb * cc, ca * cc - sasb * sc, -sa * cb],
            [sa * sc - casb * cc, sa * cc + casb * sc, ca * cb],
        ]
    )


def _rates(angles: Array, rates: Array) -> Array:
    """Angular velocities (3, 23, n) in the parents' frames, of angles and rates (3, 23, n)."""
    (sa, sb, _), (ca, cb, _) = np.sin(angles), np.cos(angles)
    about_x, about_y, about_z = rates
    return np.array(
        [
            about_x + sb * about_z,
            ca * about_y - sa * cb * about_z,
            sa * about_y + ca * cb * about_z,
        ]
    )


def _times(a: Array, b: Array) -> Array:
    """Products of matrices, each (3, 3, ...)."""
    return a[:, 0, None] * b[0] + a[:, 1, None] * b[1] + a[:, 2, None] * b[2]


def _apply(a: Array, v: Array) -> Array:
    """Matrices (3, 3, ...) times vectors (3, ...)."""
    return a[:, 0] * v[0] + a[:, 1] * v[1] + a[:, 2] * v[2]


def _cross(a: Array, b: Array) -> Array:
    """Cross products of vectors (3, ...)."""
    (ax, ay, az), (bx, by, bz) = a, b
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
