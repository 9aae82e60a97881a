"""Rewards of the humanoid's tasks, by name; names carry numbers, and any numbers will do.

The tasks are HumEnv's, of which 45 are standard. `Body` stands for the height of its origin and
`Body.y` for its y axis's share of the vertical; in the T-pose every body has x to its left, y up
and z to the front. Where a body faces is a quarter turn right of its x axis, seen from above. v is
the velocity of the centre of mass of the chest and all that hangs on it, w the angular velocity of
the pelvis about its own axes, a the action. T(x; bounds, margin) is dm_control's tolerance, 1
within the bounds and falling linearly to 0 at the margin beyond them, or to .01 (T1); G is the
Gaussian one, at .1 there, or at .5 (G5). A product or mean goes over what is in braces or, without
these, over all elements; +- is + for up and u, - for down and d.

    control          (4 + mean max(1 - a^2, 0)) / 5
    upright          T(Chest.y; [.9, inf), 1.9)
    tall             T1(Head; [1.4, inf), 1.4)
    still            mean G(v; [0, 0], .5)
    pace(ANGLE, 0)   mean G(v_xy; [0, 0], .5)
    pace(ANGLE, S)   (5 G5(|v_xy|; [.9 S, 1.1 S], S / 2) + 1) / 6 (1 + along / |v_xy|) / 2, with
                     v's share along the direction ANGLE degrees to the left of where the chest
                     faces; |v_xy| as a divisor has 1e-6 added, and the last factor is 1 at rest

    move-ego-ANGLE-SPEED         control upright tall pace(ANGLE, SPEED)
    move-ego-low-ANGLE-SPEED     control upright T1(Pelvis; [.3, .6], .3) pace(ANGLE, SPEED)
    headstand                    control still T(Pelvis.y; [-1, -.9], .9)
                                 prod T1({Pelvis, L_Ankle, R_Ankle}; [.95, inf), .475)
                                 T1(Head; [.3, inf), .1) mean T(w; [-1, 1], 4), which falls to .1
    jump-HEIGHT                  upright T1(Head; [HEIGHT, HEIGHT + .1], HEIGHT)
                                 T(v_z; [5, inf), 5)
    rotate-AXIS-RATE-HEIGHT      control T1(Pelvis; [HEIGHT, inf), HEIGHT)
                                 T(sign(RATE) w_AXIS; [|RATE|, |RATE| + 5], |RATE| / 2)
                                 T(Pelvis.AXIS; y: [.9, inf), x and z: [-.1, .1]; .9)
    raisearms-LEFT-RIGHT         control upright tall still prod (4 T({L_Hand, R_Hand};
                                 l: [0, .8], .2; m: [1.4, 1.6], .1; h: [1.8, inf), .2) + 1) / 5
    crouch-HEIGHT                control still T(Chest.y; [.85, inf), 1.9)
                                 T(Pelvis; [HEIGHT, HEIGHT + .15], .7)
                                 T1(Head; [HEIGHT + .58, HEIGHT + .78], .1)
                                 prod T({L_Knee, R_Knee}; [.2, 1], .1)
    sitonground                  as crouch-0, but for prod T({L_Knee, R_Knee}; [0, .1], .7)
    lieonground-{up,down}        control still T(Chest.y; [0, .2], 1)
                                 prod T({Pelvis, Head, knees, ankles}; [0, .2], .7) prod T(+-
                                 {Pelvis, Torso, Chest, Head, knees, ankles}.z; [.95, inf), 1.9)
    split-DISTANCE               control still T(|L_Ankle to R_Ankle|; [DISTANCE, inf), .5)
                                 T(Head; [.5, inf), .3) T(Pelvis; [0, .2], .5)
    crawl-HEIGHT-SPEED-{u,d}     pace(0, SPEED) prod T(+-{Pelvis, Torso, Spine, Chest, Head, hips,
                                 knees, ankles}.z; [.5, inf), .5)
                                 (1 + T1(Head; [.3, 1], .1) prod T1({Pelvis, Torso, Spine, Chest};
                                 [HEIGHT, HEIGHT + .2], .1)) / 2
                                 (1 + mean T(w; [-2.5, 2.5], 2)) / 2
                                 (1 + prod T(angle between where {Pelvis, Torso, Spine} and the
                                 chest face; [-.1, .1], .5)) / 2

Two things to know of HumEnv. Its crawl takes that last angle as a difference of two angles in
[-pi, pi], so that the reward may halve where the two are on either side of the cut; here it is
the angle between two directions. And `still` goes by the world's axes: drifting along one of them
earns more than drifting as fast between them. That is kept.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from dm_control.utils.rewards import tolerance

from bfmpipe.envs.humanoid_bodies import BODIES
from bfmpipe.types import Array, UserError, meant


class State(Protocol):
    """What the rewards read of n states, float64; bodies are in the order of `BODIES`."""

    @property
    def position(self) -> Array:
        """Origins of the bodies' frames (n, 24, 3), metres; z is the height above the ground."""

    @property
    def rotation(self) -> Array:
        """Orientations of the bodies' frames (n, 24, 3, 3): world from body."""

    @property
    def centre_velocity(self) -> Array:
        """Velocity of the centre of mass of the chest's subtree (n, 3), metres a second."""

    @property
    def gyro(self) -> Array:
        """Angular velocity of the pelvis in its own frame (n, 3), radians a second."""


Reward = Callable[[State, Array], Array]
"""Rewards (n,), float64 in [0, 1], of states and the actions (n, 69) that led to them.

Each is computed from its own row, and to the same bits whatever rows are beside it.
"""


def _expand(names: str) -> Iterable[str]:
    parts = re.split(r"\{(.*?)\}", names)
    return map("".join, itertools.product(*(part.split(",") for part in parts)))


_SETS = (
    *("move-ego-0-0", "move-ego-low-0-0", "headstand"),
    *("move-ego-{0,-90,90,180}-{2,4}", "move-ego-low-{0,-90,90,180}-2"),
    *("jump-2", "rotate-{x,y,z}-{-5,5}-0.8", "raisearms-{l,m,h}-{l,m,h}"),
    *("crouch-0", "sitonground", "lieonground-{up,down}", "split-{0.5,1}"),
    "crawl-{0.4,0.5}-{0,2}-{u,d}",
)
STANDARD: tuple[str, ...] = tuple(name for names in _SETS for name in _expand(names))
"""The 45 tasks that averages are over."""

_INDEX = {body: i for i, body in enumerate(BODIES)}
_AXES = {"x": 0, "y": 1, "z": 2}
_SIGNS = {"up": 1, "u": 1, "down": -1, "d": -1}
_LEGS = ("L_Knee", "R_Knee", "L_Ankle", "R_Ankle")
_BACK = ("Spine", "Torso", "Chest", "Pelvis")
_ARMS = {"l": (0, 0.8, 0.2), "m": (1.4, 1.6, 0.1), "h": (1.8, np.inf, 0.2)}
_LOW = 0.01  # what T1 is at its margin
_GAP = 0.58  # metres from the pelvis up to the head of a body that sits
_REST, _SLIGHT = 1e-8, 1e-6  # metres a second: without a direction; added before dividing

_FORMS: dict[str, Callable[..., Array]] = {}


def _form(form: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Make a function the reward of names of this form: {one,of} and NUMBERS are its arguments."""

    def register(function: Callable[..., Array]) -> Callable[..., Array]:
        _FORMS[form] = function
        return function

    return register


@functools.cache
def parse(name: str) -> Reward:
    """The reward of a task, such as `move-ego-45-3`, `rotate-x--5-0.8` or `crawl-0.4-2-u`.

    Raises:
        UserError: no task has this name.
    """
    for form, function in _FORMS.items():
        if match := re.fullmatch(_pattern(form), name):
            words = match.groups()
            return functools.partial(function, *(float(w) if w[-1].isdigit() else w for w in words))
    raise UserError(
        f"the humanoid has no task '{name}'; it has {', '.join(_FORMS)}, where words in capitals "
        f"are decimal numbers, of which ANGLE and RATE may be negative{meant(name, STANDARD)}"
    )


def reward(name: str, physics: State, action: Array) -> Array:
    """Rewards (n,), float64 in [0, 1], of the task `name`; see `parse` and `Reward`."""
    return parse(name)(physics, action)


def _pattern(form: str) -> str:
    form = re.sub(r"\{(.*?)\}", lambda choice: f"({choice[1].replace(',', '|')})", form)
    form = re.sub(r"ANGLE|RATE", r"(-?[0-9]+(?:\\.[0-9]+)?)", form)
    return re.sub(r"[A-Z]{2,}", r"([0-9]+(?:\\.[0-9]+)?)", form)


@_form("move-ego-ANGLE-SPEED")
def _move(angle: float, speed: float, physics: State, action: Array) -> Array:
    posture = _upright(physics) * _tall(physics)
    return _control(action) * posture * _pace(angle, speed, physics)


@_form("move-ego-low-ANGLE-SPEED")
def _move_low(angle: float, speed: float, physics: State, action: Array) -> Array:
    posture = _upright(physics) * _linear(_height(physics, "Pelvis"), 0.3, 0.6, 0.3, _LOW)
    return _control(action) * posture * _pace(angle, speed, physics)


@_form("headstand")
def _headstand(physics: State, action: Array) -> Array:
    high = math.prod(
        _linear(_height(physics, body), 0.95, np.inf, 0.475, _LOW)
        for body in ("Pelvis", "L_Ankle", "R_Ankle")
    )
    head = _linear(_height(physics, "Head"), 0.3, np.inf, 0.1, _LOW)
    inverted = _linear(_share(physics, "Pelvis", "y"), -1, -0.9, 0.9)
    steady = _mean(_linear(physics.gyro[:, i], -1, 1, 4, 0.1) for i in range(3))
    return _control(action) * _still(physics) * steady * inverted * high * head


@_form("jump-HEIGHT")
def _jump(height: float, physics: State, action: Array) -> Array:
    head = _linear(_height(physics, "Head"), height, height + 0.1, height, _LOW)
    return _upright(physics) * head * _linear(physics.centre_velocity[:, 2], 5, np.inf, 5)


@_form("rotate-{x,y,z}-RATE-HEIGHT")
def _rotate(axis: str, rate: float, height: float, physics: State, action: Array) -> Array:
    turn = np.sign(rate) * physics.gyro[:, _AXES[axis]]
    turning = _linear(turn, abs(rate), abs(rate) + 5, abs(rate) / 2)
    bounds = (0.9, np.inf) if axis == "y" else (-0.1, 0.1)
    aligned = _linear(_share(physics, "Pelvis", axis), *bounds, 0.9)
    high = _linear(_height(physics, "Pelvis"), height, np.inf, height, _LOW)
    return _control(action) * turning * aligned * high


@_form("raisearms-{l,m,h}-{l,m,h}")
def _raise_arms(left: str, right: str, physics: State, action: Array) -> Array:
    arms = math.prod(
        (4 * _linear(_height(physics, hand), *_ARMS[level]) + 1) / 5
        for hand, level in (("L_Hand", left), ("R_Hand", right))
    )
    return _control(action) * _upright(physics) * _tall(physics) * _still(physics) * arms


@_form("sitonground")
def _sit(physics: State, action: Array) -> Array:
    return _squat(0, (0, 0.1, 0.7), physics, action)


@_form("crouch-HEIGHT")
def _crouch(height: float, physics: State, action: Array) -> Array:
    return _squat(height, (0.2, 1, 0.1), physics, action)


def _squat(
    height: float, knees: tuple[float, float, float], physics: State, action: Array
) -> Array:
    """The pelvis at a height, the head above it; knees: bounds and margin of their heights."""
    pelvis = _linear(_height(physics, "Pelvis"), height, height + 0.15, 0.7)
    head = _linear(_height(physics, "Head"), height + _GAP, height + _GAP + 0.2, 0.1, _LOW)
    legs = math.prod(_linear(_height(physics, body), *knees) for body in ("L_Knee", "R_Knee"))
    posture = _upright(physics, 0.85) * pelvis * head * legs
    return _control(action) * _still(physics) * posture


@_form("lieonground-{up,down}")
def _lie(way: str, physics: State, action: Array) -> Array:
    low = math.prod(
        _linear(_height(physics, body), 0, 0.2, 0.7) for body in ("Pelvis", "Head", *_LEGS)
    )
    facing = math.prod(
        _linear(_SIGNS[way] * _share(physics, body, "z"), 0.95, np.inf, 1.9)
        for body in ("Head", "Torso", "Chest", "Pelvis", *_LEGS)
    )
    level = _linear(_share(physics, "Chest", "y"), 0, 0.2, 1)
    return _control(action) * _still(physics) * level * low * facing


@_form("split-DISTANCE")
def _split(distance: float, physics: State, action: Array) -> Array:
    x, y, z = (_position(physics, "L_Ankle") - _position(physics, "R_Ankle")).T
    apart = _linear(np.sqrt(x * x + y * y + z * z), distance, np.inf, 0.5)
    head = _linear(_height(physics, "Head"), 0.5, np.inf, 0.3)
    pelvis = _linear(_height(physics, "Pelvis"), 0, 0.2, 0.5)
    return _control(action) * _still(physics) * head * pelvis * apart


@_form("crawl-HEIGHT-SPEED-{u,d}")
def _crawl(height: float, speed: float, way: str, physics: State, action: Array) -> Array:
    facing = math.prod(
        _linear(_SIGNS[way] * _share(physics, body, "z"), 0.5, np.inf, 0.5)
        for body in (*_BACK, "Head", "L_Hip", "R_Hip", *_LEGS)
    )
    back = math.prod(
        _linear(_height(physics, body), height, height + 0.2, 0.1, _LOW) for body in _BACK
    )
    head = _linear(_height(physics, "Head"), 0.3, 1, 0.1, _LOW)
    steady = _mean(_linear(physics.gyro[:, i], -2.5, 2.5, 2) for i in range(3))
    yaw = _yaw(physics, "Chest")
    straight = math.prod(
        _linear(_wrapped(_yaw(physics, body) - yaw), -0.1, 0.1, 0.5)
        for body in ("Spine", "Torso", "Pelvis")
    )
    posture = facing * (1 + back * head) / 2 * (1 + steady) / 2 * (1 + straight) / 2
    return posture * _pace(0, speed, physics)


def _control(action: Array) -> Array:
    a = np.ascontiguousarray(action, np.float64)  # the order of a row's sum is that of its memory
    return (4 + np.maximum(1 - a * a, 0).mean(axis=1)) / 5


def _upright(physics: State, least: float = 0.9) -> Array:
    return _linear(_share(physics, "Chest", "y"), least, np.inf, 1.9)


def _tall(physics: State) -> Array:
    return _linear(_height(physics, "Head"), 1.4, np.inf, 1.4, _LOW)


def _still(physics: State, axes: int = 3) -> Array:
    return _mean(tolerance(physics.centre_velocity[:, i], margin=0.5) for i in range(axes))


def _pace(angle: float, speed: float, physics: State) -> Array:
    if speed == 0:
        return _still(physics, axes=2)
    vx, vy = physics.centre_velocity[:, 0], physics.centre_velocity[:, 1]
    pace = np.sqrt(vx * vx + vy * vy)
    fast = tolerance(pace, (0.9 * speed, 1.1 * speed), speed / 2, value_at_margin=0.5)
    way = _yaw(physics, "Chest") + np.radians(angle - 90)
    along = vx * np.cos(way) + vy * np.sin(way)
    ahead = np.where(pace > _REST, (1 + along / (pace + _SLIGHT)) / 2, 1)
    return (5 * fast + 1) / 6 * ahead


def _position(physics: State, body: str) -> Array:
    return physics.position[:, _INDEX[body]]


def _height(physics: State, body: str) -> Array:
    return physics.position[:, _INDEX[body], 2]


def _share(physics: State, body: str, axis: str) -> Array:
    """The share of the vertical of a body's axis (n,)."""
    return physics.rotation[:, _INDEX[body], 2, _AXES[axis]]


def _yaw(physics: State, body: str) -> Array:
    """Where a body's x axis, its left, points in the horizontal plane (n,), radians."""
    x, y = np.ascontiguousarray(physics.rotation[:, _INDEX[body], :2, 0].T)  # or bits may differ
    return np.arctan2(y, x)


def _wrapped(angle: Array) -> Array:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _linear(value: Array, low: float, high: float, margin: float, at_margin: float = 0) -> Array:
    return tolerance(value, (low, high), margin, "linear", at_margin)


def _mean(values: Iterable[Array]) -> Array:
    """Of arrays (n,), added up in their order."""
    arrays = list(values)
    return sum(arrays[1:], arrays[0]) / len(arrays)
