"""The humanoid: its kinematics against MuJoCo's, its observation written out again, its body."""

from pathlib import Path

import mujoco
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from bfmpipe.envs import humanoid, make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.humanoid_bodies import BODIES
from bfmpipe.types import UserError

XML = Path(humanoid.__file__).with_suffix(".xml")
MIRROR = np.diag([-1.0, 1.0, 1.0])
SIGNS = np.array([1, -1, -1])  # of what turns about x, y and z, in a mirror that turns left right
OTHER = {"L_": "R_", "R_": "L_"}
SWAPPED = [BODIES.index(OTHER.get(name[:2], name[:2]) + name[2:]) for name in BODIES]


@pytest.fixture(scope="module")
def domain():
    return make_domain("humanoid", {})


def random_states(n, seed=0):
    """Also where no simulation gets to, and with quaternions whose norm is not 1."""
    return np.random.default_rng(seed).normal(size=(n, 151))


def simulated(domain, state):
    data = mujoco.MjData(domain.model)
    data.qpos[:], data.qvel[:] = state[:76], state[76:]
    mujoco.mj_forward(domain.model, data)
    mujoco.mj_subtreeVel(domain.model, data)
    return data


def velocities(domain, data):
    """Angular velocities and velocities (24, 3) of the bodies' frames in the world."""
    found = np.empty((24, 6))
    for i, row in enumerate(found, start=1):
        frame = mujoco.mjtObj.mjOBJ_XBODY
        mujoco.mj_objectVelocity(domain.model, data, frame, i, row, 0)
    return found[:, :3], found[:, 3:]


def physics_of(domain, states):
    return domain.Physics(domain, domain.split(states))


def observed(domain, states):
    return domain.observe(domain.split(states))


def test_kinematics_are_mujocos(domain):
    states = random_states(30)
    ours = physics_of(domain, states)
    chest = mujoco.mj_name2id(domain.model, mujoco.mjtObj.mjOBJ_BODY, "Chest")
    for i, state in enumerate(states):
        data = simulated(domain, state)
        angular, velocity = velocities(domain, data)
        for name, theirs in {
            "position": data.xpos[1:],
            "rotation": data.xmat[1:].reshape(24, 3, 3),
            "velocity": velocity,
            "angular_velocity": angular,
            "centre_velocity": data.subtree_linvel[chest],
            "gyro": data.xmat[1].reshape(3, 3).T @ angular[0],
        }.items():
            np.testing.assert_allclose(getattr(ours, name)[i], theirs, rtol=0, atol=1e-12)


def plain_observation(domain, state):
    data = simulated(domain, state)
    rotations = data.xmat[1:].reshape(24, 3, 3)
    base = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # of the quaternion (.5, .5, .5, .5)
    facing = (rotations[0] @ base.T)[:, 0]
    yaw = np.arctan2(facing[1], facing[0])
    back = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    obs = [data.xpos[1, 2]]
    for position in data.xpos[2:]:
        obs += list(back @ (position - data.xpos[1]))
    for rotation in rotations:
        obs += [*(back @ rotation)[:, 0], *(back @ rotation)[:, 2]]
    angular, velocity = velocities(domain, data)
    for row in (*velocity, *angular):
        obs += list(back @ row)
    return obs


def test_observations_are_those_written_row_by_row(domain):
    states = random_states(30, seed=1)
    expected = [plain_observation(domain, state) for state in states]
    assert domain.obs_dim == len(expected[0]) == 358
    np.testing.assert_allclose(observed(domain, states), expected, rtol=2**-23, atol=1e-6)


def test_the_observation_of_the_t_pose(domain):
    state = make_domain("humanoid", {"start": "default"}).start_states(1, np.random.default_rng(0))
    assert state.dtype == np.float64
    (obs,) = observed(domain, state)
    assert obs[0] == np.float32(0.94)
    positions = obs[1:70].reshape(23, 3)
    x, y, z = positions[BODIES.index("L_Hand") - 1]
    assert abs(x) < 0.1  # beside the body,
    assert y > 0.7  # to its left,
    assert 0.4 < z < 0.5  # at its shoulders' height
    assert positions[BODIES.index("L_Toe") - 1][0] > 0.1  # toes are in front
    axes = obs[70:214].reshape(24, 2, 3)
    np.testing.assert_allclose(axes, np.tile([[0, 1, 0], [1, 0, 0]], (24, 1, 1)), atol=1e-6)
    assert not obs[214:].any()
    physics = physics_of(domain, state)
    np.testing.assert_allclose(physics.rotation[0, :, 2], np.tile([0, 1, 0], (24, 1)), atol=1e-12)


def test_observations_know_neither_place_nor_compass(domain):
    states = random_states(50, seed=2)
    angle, moved = 2.1, states.copy()
    half, cos, sin = angle / 2, np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    moved[:, :3] = states[:, :3] @ turn.T + (3, -5, 0)
    w, x, y, z = states[:, 3:7].T
    c, s = np.cos(half), np.sin(half)
    moved[:, 3:7] = np.stack([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w], axis=1)
    moved[:, 76:79] = states[:, 76:79] @ turn.T
    np.testing.assert_allclose(observed(domain, moved), observed(domain, states), atol=2e-6)
    moved[:, 2] += 1
    np.testing.assert_allclose(
        observed(domain, moved) - observed(domain, states), np.eye(358)[[0] * 50], atol=2e-6
    )


def test_a_front_that_points_straight_up_is_no_direction(domain):
    state = np.zeros((1, 151))
    state[0, 3] = 1
    obs = observed(domain, state)
    assert np.isfinite(obs).all()
    np.testing.assert_allclose(obs[0, 70:76], [1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 301])
def test_a_row_is_computed_alone_to_the_last_bit(domain, rows):
    states = random_states(602, seed=3)
    whole, physics = observed(domain, states), physics_of(domain, states)
    for start in (0, 300):
        part = slice(start, start + rows)
        assert np.array_equal(observed(domain, states[part]), whole[part])
        here = physics_of(domain, states[part])
        for name in domain.Physics.quantities():
            assert np.array_equal(getattr(here, name), getattr(physics, name)[part]), name


def test_the_body_is_a_persons(domain):
    model = domain.model
    assert (model.nq, model.nv, model.nu, model.na) == (76, 75, 69, 0)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.timestep * domain.config.physics_steps == pytest.approx(1 / 30)
    assert model.body_mass.sum() == pytest.approx(72)
    data = mujoco.MjData(model)  # at qpos0, the T-pose
    mujoco.mj_forward(model, data)
    assert data.ncon == 0
    floor = [mujoco.mj_geomDistance(model, data, 0, i, 3, None) for i in range(1, model.ngeom)]
    assert 0 < min(floor) < 0.005  # it stands
    heights = dict(zip(BODIES, data.xpos[1:, 2], strict=True))
    assert heights["Pelvis"] == pytest.approx(0.94)
    assert heights["Head"] > 1.4  # which tasks of standing ask for


def posture(domain, height, quaternion, **degrees):
    """A state (1, 151) whose left joints have these angles, and the right ones mirrored."""
    state = np.zeros((1, 151))
    state[0, 2], state[0, 3:7] = height, quaternion
    for name, angle in degrees.items():
        state[0, domain.model.joint(f"L_{name}").qposadr[0]] = np.radians(angle)
        state[0, domain.model.joint(f"R_{name}").qposadr[0]] = np.radians(
            angle if name.endswith("x") else -angle
        )
    return state


@pytest.mark.parametrize(
    ("task", "height", "quaternion", "degrees"),
    [
        ("move-ego-0-0", 0.94, (1, 1, 0, 0), {}),
        ("move-ego-low-0-0", 0.55, (1, 1, 0, 0), {"Hip_x": -110, "Knee_x": 130, "Ankle_x": -20}),
        ("raisearms-h-h", 0.94, (1, 1, 0, 0), {"Shoulder_z": 90}),
        ("raisearms-m-m", 0.94, (1, 1, 0, 0), {"Shoulder_z": 5}),
        ("raisearms-l-l", 0.94, (1, 1, 0, 0), {"Shoulder_z": -85}),
        ("sitonground", 0.14, (1, 1, 0, 0), {"Hip_x": -90}),
        ("lieonground-up", 0.12, (1, 0, 0, 0), {}),
        ("lieonground-down", 0.16, (0, 1, 0, 0), {"Ankle_x": 20}),
    ],
)
def test_the_body_can_do_what_tasks_ask_for(domain, task, height, quaternion, degrees):
    state = posture(domain, height, quaternion, **degrees)
    low, high = domain.model.jnt_range[1:].T
    assert ((low <= state[0, 7:76]) & (state[0, 7:76] <= high)).all()
    contacts = simulated(domain, state[0]).contact
    assert contacts.dist.size == 0 or contacts.dist.min() > -0.04
    (asked,) = domain.tasks("all", [task], {})
    assert domain.relabel(asked, state, np.zeros((1, 69)))[0] > 0.95


def mirrored(states):
    """States (n, 151) of a body that does on the right what that one does on the left."""
    found = states.copy()
    found[:, 0] *= -1
    found[:, 5:7] *= -1
    found[:, 76] *= -1
    found[:, 79:82] *= SIGNS
    for columns in (slice(7, 76), slice(82, 151)):
        found[:, columns] = mirrored_joints(states[:, columns])
    return found


def mirrored_joints(values):
    joints = values.reshape(len(values), 23, 3)[:, np.array(SWAPPED[1:]) - 1]
    return (SIGNS * joints).reshape(len(values), 69)


def test_the_right_mirrors_the_left(domain):
    rng = np.random.default_rng(4)
    low, high = domain.model.jnt_range[1:].T
    states = rng.normal(size=(10, 151))
    states[:, 2] = 5
    states[:, 7:76] = rng.uniform(low, high, (10, 69))
    action = rng.uniform(-1, 1, (10, 69))
    ours, theirs = physics_of(domain, states), physics_of(domain, mirrored(states))
    np.testing.assert_allclose(theirs.position, ours.position[:, SWAPPED] @ MIRROR, atol=1e-12)
    np.testing.assert_allclose(
        theirs.rotation, MIRROR @ ours.rotation[:, SWAPPED] @ MIRROR, atol=1e-12
    )
    np.testing.assert_allclose(theirs.velocity, ours.velocity[:, SWAPPED] @ MIRROR, atol=1e-12)
    ends = np.sort(mirrored_joints(np.stack([low, high])), axis=0)
    assert np.array_equal(ends, [low, high])
    env = BatchedEnv(domain, 10, 1)
    env.reset(states)
    env.step(action)
    expected = mirrored(env.physics)
    env.reset(mirrored(states))
    env.step(mirrored_joints(action))
    np.testing.assert_allclose(env.physics, expected, atol=1e-6)


def test_servos_aim_at_shares_of_the_joints_ranges(domain):
    model, rng = domain.model, np.random.default_rng(5)
    low, high = model.jnt_range[1:].T
    assert np.array_equal(model.actuator_trnid[:, 0], np.arange(1, 70))
    assert np.array_equal(model.actuator_ctrlrange, [[-1, 1]] * 69)
    assert model.actuator_forcelimited.all()
    for control in (-np.ones(69), np.zeros(69), np.ones(69), rng.uniform(-1, 1, 69)):
        data = mujoco.MjData(model)
        aim = low + (high - low) * (control + 1) / 2
        data.ctrl[:], data.qpos[7:] = control, aim
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.actuator_force, 0, atol=1e-9)
        data.qpos[7:] = aim + 0.01
        mujoco.mj_forward(model, data)
        assert (data.actuator_force < 0).all()


def test_falls(domain):
    n = 1500
    for kind in ("start_states", "exploration_states"):
        states = getattr(domain, kind)(n, np.random.default_rng(6))
        np.testing.assert_allclose(np.linalg.norm(states[:, 3:7], axis=1), 1)
        assert ((states[:, 2] > 0.75) & (states[:, 2] < 1.15)).all()
        still = ~states[:, 76:].any(axis=1)
        assert chisquare([still.sum(), (~still).sum()], [n / 5, n * 4 / 5]).pvalue > 1e-3
        assert (states[still, 2] == 1).all()
        assert not states[still, 7:].any()
        # an axis of a uniformly turned frame is uniform on the sphere: so are its coordinates
        for coordinate in physics_of(domain, states[still]).rotation[:, 0].reshape(-1, 9).T:
            assert kstest(coordinate, "uniform", (-1, 2)).pvalue > 1e-3
        assert (np.abs(states[~still, 7:76]).max(axis=1) > 0.01).all()


def test_random_actions_do_not_break_it(domain):
    rng = np.random.default_rng(7)
    env = BatchedEnv(domain, 8, 2)
    env.reset(domain.start_states(8, rng))
    for _ in range(150):  # a step of an unstable simulation raises
        env.step(np.sign(rng.normal(size=(8, 69))))
        assert np.abs(env.physics[:, 76:82]).max() < 50
    assert not env._batch.warning[:, :, 1].any()


def test_any_numbers_make_a_task(domain):
    names = ["move-ego-45-3", "jump-1.5", "headstand"]
    tasks = domain.tasks("mine", names, {})
    assert [task.name for task in tasks] == names
    states = domain.start_states(5, np.random.default_rng(8))
    for task in tasks:
        assert domain.relabel(task, states, np.zeros((5, 69))).shape == (5,)
    with pytest.raises(UserError, match="no task 'move-ego'; humanoid has move-ego-0-0, "):
        domain.tasks("mine", ["move-ego"], {})
    with pytest.raises(UserError, match="humanoid has a task 'headstand' already"):
        domain.task_from(lambda physics, action: physics.gyro[:, 0], name="headstand")


def package(path, text):
    """A package humenv with this body; importing it fails."""
    (path / "humenv/assets").mkdir(parents=True)
    (path / "humenv/__init__.py").write_text("raise ImportError")
    if text is not None:
        (path / "humenv/assets/robot.xml").write_text(text)


def test_the_body_of_humenv(domain, tmp_path, monkeypatch):
    package(tmp_path, XML.read_text().replace('mass="10.2"', 'mass="12.2"'))
    monkeypatch.syspath_prepend(tmp_path)
    theirs = make_domain("humanoid", {"body": "humenv"})
    assert theirs.model.body_mass.sum() == pytest.approx(74)
    assert theirs.model.opt.timestep == domain.model.opt.timestep
    states = theirs.start_states(3, np.random.default_rng(0))
    assert BatchedEnv(theirs, 3, 1).reset(states).shape == (3, 358)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "needs the package humenv of Meta, whose file humenv/assets/robot.xml is not here"),
        ("<mujoco><worldbody/></mujoco>", "robot.xml is another body than HumEnv's"),
        ("<mujoco", "robot.xml is no model of MuJoCo's: "),
    ],
)
def test_another_package_called_humenv(tmp_path, monkeypatch, text, said):
    package(tmp_path, text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="domain humanoid: body 'humenv'") as error:
        make_domain("humanoid", {"body": "humenv"})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_humenv_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        make_domain("humanoid", {"body": "humenv"})
    assert str(error.value) == (
        "domain humanoid: body 'humenv' needs the package humenv of Meta, whose file "
        "humenv/assets/robot.xml is not here: pip install "
        "git+https://github.com/facebookresearch/humenv (PyPI has another package of this name)"
    )
