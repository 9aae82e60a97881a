"""The humanoid's rewards: a second, plain implementation of them, and poses done by hand."""

import functools
import math
import re
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from dm_control.utils.rewards import tolerance

from bfmpipe.envs.humanoid_bodies import BODIES
from bfmpipe.envs.humanoid_tasks import STANDARD, parse, reward
from bfmpipe.types import UserError

inf = math.inf
partial = functools.partial
STANDING = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # facing -y
INVERTED = STANDING @ np.diag([1.0, -1, -1])
ON_BACK = np.diag([1.0, 1, 1])
ON_FRONT = np.diag([-1.0, 1, -1])
BACK = ("Spine", "Torso", "Chest", "Pelvis")


@dataclass
class States:
    position: np.ndarray
    rotation: np.ndarray
    centre_velocity: np.ndarray
    gyro: np.ndarray
    action: np.ndarray

    def __getitem__(self, rows):
        return self.of(lambda array: array[rows])

    def __len__(self):
        return len(self.position)

    def of(self, function):
        return States(*(function(getattr(self, field.name)) for field in fields(self)))

    def reward(self, name):
        rewards = reward(name, self, self.action)
        assert rewards.shape == (len(self),)
        assert rewards.dtype == np.float64
        return rewards


def about(axis, angle):
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


# the same rewards, a state at a time


def linear(x, low, high, margin, at_margin=0.0):
    return tolerance(float(x), (low, high), margin, "linear", at_margin)


def z(s, body):
    return s.position[BODIES.index(body), 2]


def axis(s, body, name):
    return s.rotation[BODIES.index(body)][2]["xyz".index(name)]


def yaw(s, body):
    matrix = s.rotation[BODIES.index(body)]
    pitch = -math.asin(np.clip(matrix[2, 0], -1, 1))
    return math.atan2(matrix[1, 0] / math.cos(pitch), matrix[0, 0] / math.cos(pitch))


def control(s):
    return (4 + np.mean([tolerance(float(a), (0, 0), 1, "quadratic", 0) for a in s.action])) / 5


def upright(s):
    return linear(axis(s, "Chest", "y"), 0.9, inf, 1.9)


def still(s, directions="xyz"):
    return np.mean([tolerance(float(v), (0, 0), 0.5) for v in s.centre_velocity[: len(directions)]])


def pace(angle, speed, s):
    if speed == 0:
        return still(s, "xy")
    v = math.hypot(*s.centre_velocity[:2])
    fast = tolerance(v, (speed - speed / 10, speed + speed / 10), speed / 2, "gaussian", 0.5)
    way = math.radians(angle) + yaw(s, "Chest") - math.pi / 2
    angle_between = math.atan2(s.centre_velocity[1], s.centre_velocity[0]) - way
    cosine = math.cos(angle_between) * v / (v + 1e-6)
    return (5 * fast + 1) / 6 * ((1 + cosine) / 2 if v else 1)


def move(angle, speed, s):
    return (
        control(s) * upright(s) * linear(z(s, "Head"), 1.4, inf, 1.4, 0.01) * pace(angle, speed, s)
    )


def move_low(angle, speed, s):
    low = linear(z(s, "Pelvis"), 0.3, 0.6, 0.3, 0.01)
    return control(s) * upright(s) * low * pace(angle, speed, s)


def headstand(s):
    total = linear(axis(s, "Pelvis", "y"), -1, -0.9, 0.9) * control(s) * still(s)
    total *= np.mean([linear(w, -1, 1, 4, 0.1) for w in s.gyro])
    for body in ("Pelvis", "L_Ankle", "R_Ankle"):
        total *= linear(z(s, body), 0.95, inf, 0.95 / 2, 0.01)
    return total * linear(z(s, "Head"), 0.3, inf, 0.1, 0.01)


def jump(height, s):
    total = upright(s) * linear(s.centre_velocity[2], 5, inf, 5)
    return total * linear(z(s, "Head"), height, height + 0.1, height, 0.01)


def rotate(name, rate, height, s):
    w = math.copysign(1, rate) * s.gyro["xyz".index(name)]
    total = linear(w, abs(rate), abs(rate) + 5, abs(rate) / 2) * control(s)
    total *= linear(z(s, "Pelvis"), height, inf, height, 0.01)
    if name == "y":
        return total * linear(axis(s, "Pelvis", "y"), 0.9, inf, 0.9)
    return total * linear(axis(s, "Pelvis", name), -0.1, 0.1, 0.9)


def raise_arms(left, right, s):
    total = control(s) * upright(s) * still(s) * linear(z(s, "Head"), 1.4, inf, 1.4, 0.01)
    for body, level in ("L_Hand", left), ("R_Hand", right):
        height = z(s, body)
        if level == "l":
            total *= (4 * linear(height, 0, 0.8, 0.2) + 1) / 5
        elif level == "m":
            total *= (4 * linear(height, 1.4, 1.6, 0.1) + 1) / 5
        else:
            total *= (4 * linear(height, 1.8, inf, 0.2) + 1) / 5
    return total


def squat(height, knees, s):
    total = control(s) * still(s) * linear(axis(s, "Chest", "y"), 0.85, inf, 1.9)
    total *= linear(z(s, "Pelvis"), height, height + 0.15, 0.7)
    total *= linear(z(s, "Head"), height + 0.58, height + 0.78, 0.1, 0.01)
    return total * linear(z(s, "L_Knee"), *knees) * linear(z(s, "R_Knee"), *knees)


def lie(sign, s):
    total = control(s) * still(s) * linear(axis(s, "Chest", "y"), 0, 0.2, 1)
    for body in ("Pelvis", "Head", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle"):
        total *= linear(z(s, body), 0, 0.2, 0.7)
        total *= linear(sign * axis(s, body, "z"), 0.95, inf, 1.9)
    for body in ("Torso", "Chest"):
        total *= linear(sign * axis(s, body, "z"), 0.95, inf, 1.9)
    return total


def split(distance, s):
    ankles = [s.position[BODIES.index(body)] for body in ("L_Ankle", "R_Ankle")]
    total = control(s) * still(s) * linear(math.dist(*ankles), distance, inf, 0.5)
    return total * linear(z(s, "Head"), 0.5, inf, 0.3) * linear(z(s, "Pelvis"), 0, 0.2, 0.5)


def crawl(height, speed, sign, s):
    bodies = [*BACK, "Head", "L_Hip", "R_Hip", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle"]
    total = pace(0, speed, s)
    for body in bodies:
        total *= linear(sign * axis(s, body, "z"), 0.5, inf, 0.5)
    level = linear(z(s, "Head"), 0.3, 1, 0.1, 0.01)
    straight = 1.0
    for body in BACK:
        level *= linear(z(s, body), height, height + 0.2, 0.1, 0.01)
        turns = yaw(s, body) - yaw(s, "Chest")
        straight *= linear(min(abs(turns), 2 * math.pi - abs(turns)), 0, 0.1, 0.5)
    steady = np.mean([linear(abs(w), 0, 2.5, 2) for w in s.gyro])
    return total * (1 + level) / 2 * (1 + steady) / 2 * (1 + straight) / 2


PLAIN = {
    "move-ego-0-0": partial(move, 0, 0),
    "move-ego-low-0-0": partial(move_low, 0, 0),
    "headstand": headstand,
    **{f"move-ego-{a}-{v}": partial(move, a, v) for a in (0, -90, 90, 180) for v in (2, 4)},
    **{f"move-ego-low-{a}-2": partial(move_low, a, 2) for a in (0, -90, 90, 180)},
    "jump-2": partial(jump, 2),
    **{f"rotate-{n}-{w}-0.8": partial(rotate, n, w, 0.8) for n in "xyz" for w in (-5, 5)},
    **{f"raisearms-{a}-{b}": partial(raise_arms, a, b) for a in "lmh" for b in "lmh"},
    "crouch-0": partial(squat, 0, (0.2, 1, 0.1)),
    "sitonground": partial(squat, 0, (0, 0.1, 0.7)),
    "lieonground-up": partial(lie, 1),
    "lieonground-down": partial(lie, -1),
    "split-0.5": partial(split, 0.5),
    "split-1": partial(split, 1),
    **{
        f"crawl-{h}-{v}-{d}": partial(crawl, h, v, {"u": 1, "d": -1}[d])
        for h in (0.4, 0.5)
        for v in (0, 2)
        for d in "ud"
    },
}
OTHERS = {
    "move-ego-45-3": partial(move, 45, 3),
    "move-ego--22.5-0.7": partial(move, -22.5, 0.7),
    "move-ego-low--135-1": partial(move_low, -135, 1),
    "jump-1.5": partial(jump, 1.5),
    "rotate-y--2.5-0.6": partial(rotate, "y", -2.5, 0.6),
    "crouch-0.2": partial(squat, 0.2, (0.2, 1, 0.1)),
    "split-1.25": partial(split, 1.25),
    "crawl-0.1-0.5-d": partial(crawl, 0.1, 0.5, -1),
}


def draw(n=500, seed=0):
    """States near what the tasks ask for, each far from it in something, facing any way."""
    rng = np.random.default_rng(seed)
    bases = np.array([STANDING, INVERTED, ON_BACK, ON_FRONT])
    position = rng.normal(0, 1, (n, 24, 3))
    level, spread = rng.choice([0.1, 0.5, 0.9, 1.5], (n, 1)), rng.choice([0.03, 0.1, 0.5], (n, 1))
    position[..., 2] = level + spread * rng.normal(size=(n, 24))
    tall = rng.random(n) < 0.5
    for body, height in {"Head": 1.5, "Pelvis": 0.9, "L_Ankle": 0.1, "R_Ankle": 0.1}.items():
        position[tall, BODIES.index(body), 2] = height + 0.2 * rng.normal(size=tall.sum())
    sits = rng.random(n) < 0.3
    position[sits, BODIES.index("Head"), 2] = position[sits, 0, 2] + rng.normal(
        0.68, 0.1, sits.sum()
    )
    position[..., 2] = np.where(rng.random(n) < 0.2, 2 - position[..., 2].T, position[..., 2].T).T
    wobble = rng.choice([0.03, 0.1, 0.3], (n, 1, 1)) * rng.normal(size=(n, 24, 3))
    turn = rng.uniform(-math.pi, math.pi, n)
    rotation = np.array(
        [
            [about(2, turn[i]) @ base @ about(0, a) @ about(1, b) @ about(2, c) for a, b, c in row]
            for i, (base, row) in enumerate(
                zip(bases[rng.integers(4, size=n)], wobble, strict=True)
            )
        ]
    )
    speeds = rng.choice([0, 0.2, 1, 2, 4], (n, 1))
    return States(
        position,
        rotation,
        speeds * rng.normal(size=(n, 3)),
        rng.choice([0.5, 3, 6], (n, 1)) * rng.normal(size=(n, 3)),
        rng.uniform(-1.2, 1.2, (n, 69)),
    )


def locked(array):
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def drawn():
    return draw().of(locked)


def test_the_standard_tasks_are_45():
    assert len(STANDARD) == len(set(STANDARD)) == 45
    assert set(STANDARD) == set(PLAIN)
    assert STANDARD[:4] == ("move-ego-0-0", "move-ego-low-0-0", "headstand", "move-ego-0-2")
    assert STANDARD[-4:] == ("crawl-0.5-0-u", "crawl-0.5-0-d", "crawl-0.5-2-u", "crawl-0.5-2-d")


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_rewards_are_those_of_a_plain_implementation(drawn, name):
    rewards = drawn.reward(name)
    plain = (PLAIN | OTHERS)[name]
    expected = np.array([plain(drawn[i]) for i in range(len(drawn))])
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-12)
    assert rewards.min() >= 0
    assert rewards.max() <= 1
    assert np.sum((rewards > 0.001) & (rewards < 0.999)) > 10
    assert np.ptp(rewards) > 0.1


@pytest.mark.parametrize("name", STANDARD)
def test_a_row_is_computed_from_itself_alone(drawn, name):
    some = drawn[:100]
    rewards = some.reward(name)
    for size in (1, 7, 64):
        parts = [some[i : i + size].reward(name) for i in range(0, len(some), size)]
        assert np.array_equal(np.concatenate(parts), rewards)
    for other in (some[::-1], some.of(np.asfortranarray)[::-1]):
        assert np.array_equal(other.reward(name), rewards[::-1])
        alone = [other[i : i + 1].reward(name) for i in range(len(other))]
        assert np.array_equal(np.concatenate(alone), rewards[::-1])


def turned(states, angle):
    turn = about(2, angle)
    return replace(
        states,
        position=states.position @ turn.T + np.array([3.0, -5, 0]),
        rotation=turn @ states.rotation,
        centre_velocity=states.centre_velocity @ turn.T,
    )


@pytest.mark.parametrize("name", STANDARD)
def test_turning_and_moving_the_whole_state_changes_nothing(drawn, name):
    """By any angle, but for stillness: that goes by the world's axes, so by right angles."""
    some, stands = drawn, not re.match("move-.*-[24]|rotate|jump|crawl-.*-2", name)
    for angle in (math.pi / 2, math.pi, 2.2):
        if stands and angle == 2.2:
            some = replace(some, centre_velocity=some.centre_velocity * [0, 0, 1])
        rewards = turned(some, angle).reward(name)
        np.testing.assert_allclose(rewards, some.reward(name), rtol=0, atol=1e-12)


def mirrored_name(name):
    if match := re.fullmatch(r"raisearms-(.)-(.)", name):
        return f"raisearms-{match[2]}-{match[1]}"
    number = re.search(r"^(?:move-ego(?:-low)?|rotate-[yz])-(-?)", name)
    if not number:
        return name
    return name[: number.start(1)] + ("" if number[1] else "-") + name[number.end(1) :]


@pytest.mark.parametrize("name", STANDARD)
def test_a_mirrored_state_earns_the_mirrored_tasks_reward(drawn, name):
    some, mirror = drawn, np.diag([-1.0, 1, 1])
    other = [BODIES.index({"L": "R", "R": "L"}[b[0]] + b[1:] if b[1] == "_" else b) for b in BODIES]
    mirrored = replace(
        some,
        position=some.position[:, other] @ mirror,
        rotation=mirror @ some.rotation[:, other] @ mirror,
        centre_velocity=some.centre_velocity @ mirror,
        gyro=-some.gyro @ mirror,
    )
    rewards = mirrored.reward(mirrored_name(name))
    np.testing.assert_allclose(rewards, some.reward(name), rtol=0, atol=1e-12)


def test_some_tasks_are_not_their_own_mirror_image():
    assert mirrored_name("move-ego-low--90-2") == "move-ego-low-90-2"
    assert mirrored_name("rotate-z-5-0.8") == "rotate-z--5-0.8"
    assert mirrored_name("raisearms-l-h") == "raisearms-h-l"
    assert mirrored_name("rotate-x-5-0.8") == "rotate-x-5-0.8"


# poses done by hand


def pose(rotation, others=0.5, velocity=(0, 0, 0), gyro=(0, 0, 0), action=0.0, **heights):
    """One state: all bodies turned alike, at the heights given, or at that of the others."""
    position = np.zeros((1, 24, 3))
    position[..., 2] = others
    for body, height in heights.items():
        position[0, BODIES.index(body), 2] = height
    return States(
        position,
        np.tile(rotation, (1, 24, 1, 1)),
        np.array([velocity], float),
        np.array([gyro], float),
        np.full((1, 69), action),
    )


standing = partial(pose, STANDING, Pelvis=0.94, Head=1.5, L_Ankle=0.1, R_Ankle=0.1)
inverted = partial(pose, INVERTED, Pelvis=1.0, Head=0.35, L_Ankle=1.8, R_Ankle=1.8)
on_back, on_front = partial(pose, ON_BACK), partial(pose, ON_FRONT)
sitting = partial(pose, STANDING, Pelvis=0.1, Head=0.7)
HALF_SPEED = (5 * 0.5 ** (0.8**2) + 1) / 6  # 1 m/s where 2 +- .2 are asked for


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("move-ego-0-0", standing(), 1),
        ("move-ego-0-0", standing(action=1), 4 / 5),
        ("move-ego-0-0", standing(action=-0.5), 4.75 / 5),
        ("move-ego-0-0", standing(velocity=(0.5, 0, 9)), 1.1 / 2),
        ("move-ego-0-0", pose(STANDING, Head=0.7), 1 - 0.99 / 2),
        ("move-ego-0-0", pose(ON_BACK, Head=1.5), 1 / 1.9),
        ("move-ego-0-0", pose(INVERTED, Head=1.5), 0),
        ("move-ego-0-2", standing(velocity=(0, -2, 0)), 1),
        ("move-ego-0-2", standing(velocity=(0, -1, 0)), HALF_SPEED),
        ("move-ego-0-2", standing(velocity=(2, 0, 0)), 1 / 2),
        ("move-ego-0-2", standing(velocity=(0, 2, 0)), 0),
        ("move-ego-0-2", standing(), (5 * 0.5 ** (1.8**2) + 1) / 6),
        ("move-ego-180-2", standing(velocity=(0, 2, 0)), 1),
        ("move-ego-90-2", standing(velocity=(2, 0, 0)), 1),
        ("move-ego--90-2", standing(velocity=(-2, 0, 0)), 1),
        ("move-ego--90-2", standing(velocity=(2, 0, 0)), 0),
        ("move-ego-low-0-0", pose(STANDING), 1),
        ("move-ego-low-0-0", pose(STANDING, Pelvis=0.75), 1 - 0.99 / 2),
        ("headstand", inverted(), 1),
        ("headstand", inverted(gyro=(0, 0, 5)), 2.1 / 3),
        ("headstand", inverted(velocity=(0, 0, 0.5)), 2.1 / 3),
        ("headstand", pose(INVERTED, 1.0, Head=0.25), 1 - 0.99 / 2),
        ("headstand", standing(), 0),
        ("jump-2", standing(velocity=(0, 0, 5)), 1 - 0.99 / 4),
        ("jump-2", pose(STANDING, 2.05, velocity=(0, 0, 2.5)), 1 / 2),
        ("jump-1.5", standing(velocity=(1, 0, 6)), 1),
        ("rotate-y-5-0.8", standing(gyro=(0, 6, 0)), 1),
        ("rotate-y-5-0.8", standing(gyro=(0, 3.75, 0)), 1 / 2),
        ("rotate-y-5-0.8", standing(gyro=(0, 2.5, 0)), 0),
        ("rotate-y--5-0.8", standing(gyro=(0, -6, 0)), 1),
        ("rotate-y--5-0.8", standing(gyro=(0, 6, 0)), 0),
        ("rotate-y-5-0.8", pose(ON_BACK, 0.9, gyro=(0, 6, 0)), 0),
        ("rotate-x-5-0.8", standing(gyro=(6, 0, 0)), 1),
        ("rotate-z-5-0.8", pose(STANDING, 0.4, gyro=(0, 0, 6)), 1 - 0.99 / 2),
        ("raisearms-h-h", standing(L_Hand=1.9, R_Hand=2.2), 1),
        ("raisearms-l-h", standing(L_Hand=0.7, R_Hand=2.2), 1),
        ("raisearms-h-l", standing(L_Hand=0.7, R_Hand=2.2), 1 / 25),
        ("raisearms-m-l", standing(L_Hand=1.65, R_Hand=0.0), 3 / 5),
        ("raisearms-l-l", standing(velocity=(0, 0, 0.5)), 2.1 / 3),
        ("sitonground", sitting(L_Knee=0.05, R_Knee=0.05), 1),
        ("sitonground", sitting(L_Knee=0.05, R_Knee=0.45), 1 / 2),
        ("crouch-0", sitting(), 1),
        ("crouch-0", sitting(R_Knee=0.15), 1 / 2),
        ("crouch-0.3", sitting(Pelvis=0.4, Head=0.98), 1),
        ("crouch-0", pose(STANDING, 0.5, Head=0.7), 1 / 2),
        ("lieonground-up", on_back(0.1), 1),
        ("lieonground-up", on_front(0.1), 0),
        ("lieonground-down", on_front(0.1), 1),
        ("lieonground-down", on_front(0.1, R_Ankle=0.55, L_Knee=0.55), 1 / 4),
        ("split-1", pose(STANDING, Pelvis=0.1, L_Ankle=1.6), 1),
        ("split-1", pose(STANDING, Pelvis=0.1, L_Ankle=1.25), 1 / 2),
        ("split-0.5", pose(STANDING, Pelvis=0.45, L_Ankle=1.25), 1 / 2),
        ("crawl-0.4-0-u", on_back(), 1),
        ("crawl-0.4-0-u", on_back(action=1), 1),
        ("crawl-0.4-0-d", on_back(), 0),
        ("crawl-0.4-0-d", on_front(), 1),
        ("crawl-0.4-0-d", on_front(0.1), 1 / 2),
        ("crawl-0.4-0-d", on_front(Head=0.25), 1 - 0.99 / 4),
        ("crawl-0.4-0-d", on_front(gyro=(0, -3.5, 0)), (1 + 2.5 / 3) / 2),
        ("crawl-0.5-2-u", on_back(0.6, velocity=(0, -2, 0)), 1),
        ("crawl-0.5-2-u", on_back(0.6, velocity=(0, -1, 0)), HALF_SPEED),
        ("crawl-0.5-2-d", on_front(0.6, velocity=(0, -2, 0)), 0),
        ("crawl-0.5-2-d", on_front(0.6, velocity=(0, 2, 0)), 1),
    ],
)
def test_poses_done_by_hand(name, state, expected):
    np.testing.assert_allclose(state.reward(name), [expected], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("angle", "expected"), [(0.05, 1), (0.35, 3 / 4), (-0.35, 3 / 4), (2, 0.5)]
)
@pytest.mark.parametrize("facing", [0, math.pi - 0.02])
def test_crawling_bodies_face_as_the_chest_does(facing, angle, expected):
    """Also across the cut, where the yaw jumps from pi to -pi."""
    state = pose(about(2, facing) @ ON_BACK)
    state.rotation[:, BODIES.index("Torso")] = about(2, facing + angle) @ ON_BACK
    np.testing.assert_allclose(state.reward("crawl-0.4-0-u"), [expected], rtol=0, atol=1e-12)


NO_TASKS = (
    *("", "walk", "Headstand", "move-ego-0", "move-ego-1e3-2", "move-ego-0--2", "move-ego-nan-2"),
    *("jump", "jump--1", "jump-2 ", "jump-2\n", "jump-.5", "jump-2.", "jump-٣", "crawl-0.4-2-x"),
    *("rotate-w-5-0.8", "rotate-x-5--0.8", "raisearms-l", "raisearms-x-l", "raisearms-L-L"),
)


@pytest.mark.parametrize("name", NO_TASKS)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="the humanoid has no task") as error:
        parse(name)
    assert f"'{name}'; it has move-ego-ANGLE-SPEED, " in str(error.value)


def test_a_slip_gets_a_guess():
    with pytest.raises(UserError, match=r"negative; did you mean rotate-x-5-0\.8\?$"):
        parse("rotatex-5-0.8")


def test_a_name_is_parsed_once():
    assert parse("crawl-0.4-2-u") is parse("crawl-0.4-2-u")
