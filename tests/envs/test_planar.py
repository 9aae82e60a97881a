"""Closed-form planar kinematics against MuJoCo's, body by body."""

from importlib.resources import files

import mujoco
import numpy as np
import pytest

from bfmpipe.envs.planar import PlanarTree

# What the suite's models do not have: bodies and inertias turned against their parents, a slide
# after a hinge, oblique slides, references other than zero, a body without joints, two trees.
CROOKED = """
<mujoco>
  <compiler angle="degree"/>
  <worldbody>
    <body pos=".1 0 .2" quat=".8 0 .6 0">
      <joint type="slide" axis=".6 0 .8"/>
      <joint type="hinge" axis="0 1 0" pos=".1 .3 -.2" ref="20"/>
      <joint type="slide" axis="0 0 1" ref=".3"/>
      <geom type="capsule" size=".1 .4" euler="0 40 0" pos=".2 .1 0"/>
      <body pos="-.3 .2 .1" euler="0 -70 0">
        <geom type="box" size=".1 .2 .3" pos="0 0 .4"/>
        <body pos=".2 0 0">
          <joint type="hinge" axis="0 -1 0"/>
          <joint type="hinge" axis="0 1 0" pos=".2 0 .1"/>
          <geom type="ellipsoid" size=".1 .2 .3" euler="0 10 0"/>
        </body>
      </body>
    </body>
    <body pos="1 0 0">
      <joint type="slide" axis="1 0 0"/>
      <geom size=".2"/>
    </body>
  </worldbody>
</mujoco>
"""


def suite_model(name):
    return mujoco.MjModel.from_xml_path(str(files("dm_control") / "suite" / name))


@pytest.mark.parametrize("name", ["walker.xml", "cheetah.xml", None])
def test_everything_is_mujocos_to_rounding(name):
    model = suite_model(name) if name else mujoco.MjModel.from_xml_string(CROOKED)
    tree, data = PlanarTree(model), mujoco.MjData(model)
    rng = np.random.default_rng(0)
    qpos = rng.uniform(-4, 4, (100, model.nq))
    qvel = rng.uniform(-10, 10, (100, model.nv))
    expected: dict[str, list] = {key: [] for key in ("frames", "velocity", "momentum")}
    masses = model.body_mass[1:, None]
    for q, v in zip(qpos, qvel, strict=True):
        data.qpos[:], data.qvel[:] = q, v
        mujoco.mj_forward(model, data)
        mujoco.mj_subtreeVel(model, data)
        frame = np.stack([data.xpos[1:, 0], data.xpos[1:, 2], data.xmat[1:, 0], data.xmat[1:, 2]])
        expected["frames"].append(frame)
        # of all bodies, which the suite's models join below the first one
        centre, speed = data.subtree_com[0], data.subtree_linvel[0]
        if name:
            assert np.array_equal(speed, data.subtree_linvel[1])
        assert np.allclose((masses * data.xipos[1:]).sum(0), masses.sum() * centre)
        expected["velocity"].append(speed[[0, 2]])
        expected["momentum"].append(data.subtree_angmom[0, 1])

    def close(actual, wanted):
        np.testing.assert_allclose(actual, wanted, rtol=1e-14, atol=1e-12)

    frames = tree.frames(qpos, qvel)
    for body, frame in enumerate(frames):
        for entry, value in enumerate((frame.x, frame.z, frame.cos, frame.sin)):
            close(value, np.array(expected["frames"])[:, entry, body])
    close(np.stack(tree.velocity(tree.centres(qpos, qvel)), axis=1), np.array(expected["velocity"]))
    close(tree.angular_momentum(tree.centres(qpos, qvel)), np.array(expected["momentum"]))
    angles = tree.angles(qpos)
    for body, frame in enumerate(frames):
        assert np.array_equal(angles[:, body], np.broadcast_to(frame.angle, 100))


def test_the_velocity_of_a_frame_is_the_derivative_of_its_position():
    model = mujoco.MjModel.from_xml_string(CROOKED)
    tree, rng, step = PlanarTree(model), np.random.default_rng(1), 1e-6
    qpos, qvel = rng.uniform(-1, 1, (20, model.nq)), rng.uniform(-1, 1, (20, model.nv))
    before, here, after = (tree.frames(qpos + dt * qvel, qvel) for dt in (-step, 0, step))
    for a, b, c in zip(before, here, after, strict=True):
        np.testing.assert_allclose((c.x - a.x) / (2 * step), b.vx, atol=1e-8)
        np.testing.assert_allclose((c.z - a.z) / (2 * step), b.vz, atol=1e-8)
        np.testing.assert_allclose((c.angle - a.angle) / (2 * step), b.rate, atol=1e-8)


def test_the_first_bodies_alone_are_the_same():
    model = suite_model("walker.xml")
    tree, rng = PlanarTree(model), np.random.default_rng(2)
    qpos, qvel = rng.uniform(-1, 1, (5, model.nq)), rng.uniform(-1, 1, (5, model.nv))
    for short, full in zip(
        tree.frames(qpos, qvel, bodies=2), tree.frames(qpos, qvel)[:2], strict=True
    ):
        assert np.array_equal(np.broadcast_arrays(*short), np.broadcast_arrays(*full))


@pytest.mark.parametrize(
    ("body", "joint", "said"),
    [
        ("", 'type="hinge" axis="0 1 .1"', "joint 0 is neither"),
        ("", 'type="slide" axis="0 1 0"', "joint 0 is neither"),
        ("", 'type="ball"', "joint 0 is neither"),
        ('euler="0 0 5"', 'type="hinge" axis="0 1 0"', "body 1 is turned out"),
    ],
)
def test_a_model_that_leaves_the_plane_is_refused(body, joint, said):
    xml = f'<body {body}><joint {joint}/><geom size=".1"/></body>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{xml}</worldbody></mujoco>")
    with pytest.raises(ValueError, match=said):
        PlanarTree(model)
