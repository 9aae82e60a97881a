"""The coordinates that the coverage of a domain is measured in (bfmpipe.metrics.coverage).

A few that its tasks are about, from the physics state alone. Where a body is in the world counts
only where the domain bounds it. Ranges are those that good policies of the tasks use; bins are so
fine that random actions visit a hundred or more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bfmpipe.envs.domain import Domain
from bfmpipe.envs.planar import Frame, PlanarDomain
from bfmpipe.types import Array

_BLOCK = 65536  # states at a time


@dataclass(frozen=True)
class Axis:
    """A coordinate: its range [low, high], cut into `bins`, and its values (n,).

    `value` takes a domain and the fields of n of its physics states.
    """

    name: str
    unit: str
    low: float
    high: float
    bins: int
    value: Callable[[Domain, Mapping[str, Array]], Array] = field(repr=False)


def axes_of(name: str) -> tuple[Axis, ...]:
    """The coordinates of a domain; none where none were chosen."""
    return _AXES.get(name, ())


def coordinates(domain: Domain, physics: Array) -> Array:
    """Values (n, axes) at physics states (n, physics_dim)."""
    axes = axes_of(domain.name)
    values = np.empty((len(physics), len(axes)))
    for start in range(0, len(physics), _BLOCK):
        rows = slice(start, start + _BLOCK)
        fields = domain.split(physics[rows])
        for i, axis in enumerate(axes):
            values[rows, i] = axis.value(domain, fields)
    return values


def _torso(domain: Domain, fields: Mapping[str, Array]) -> Frame:
    """Of a planar domain."""
    assert isinstance(domain, PlanarDomain)
    return domain.tree.frames(fields["qpos"], fields["qvel"], bodies=1)[0]


def _planar(
    height: tuple[float, int], pitch: int, speed: tuple[float, int], rate: tuple[float, int]
) -> tuple[Axis, ...]:
    """The torso's height and pitch, and how fast it moves forward and turns: limits and bins."""
    (top, up), (fast, forward), (quick, turning) = height, speed, rate
    return (
        Axis("height", "m", 0, top, up, lambda d, f: _torso(d, f).z),
        Axis("pitch", "rad", -np.pi, np.pi, pitch, _pitch),
        Axis("forward speed", "m/s", -fast, fast, forward, lambda d, f: _torso(d, f).vx),
        Axis("turning rate", "rad/s", -quick, quick, turning, lambda d, f: _torso(d, f).rate),
    )


def _pitch(domain: Domain, fields: Mapping[str, Array]) -> Array:
    torso = _torso(domain, fields)
    return np.arctan2(torso.sin, torso.cos)


def _upright(_: Domain, fields: Mapping[str, Array]) -> Array:
    """zz of the root's quaternion (w, x, y, z)."""
    x, y = fields["qpos"][:, 4], fields["qpos"][:, 5]
    return 1 - 2 * (x**2 + y**2)


def _upright_y(_: Domain, fields: Mapping[str, Array]) -> Array:
    """zy of the root's quaternion (w, x, y, z): its y axis's share of the vertical."""
    w, x, y, z = fields["qpos"][:, 3:7].T
    return 2 * (y * z + w * x)


def _pace(_: Domain, fields: Mapping[str, Array]) -> Array:
    """Horizontal speed of the root."""
    return np.linalg.norm(fields["qvel"][:, :2], axis=1)


def _spin(_: Domain, fields: Mapping[str, Array]) -> Array:
    """Angular speed of the root."""
    return np.linalg.norm(fields["qvel"][:, 3:6], axis=1)


_AXES = {
    "point_mass_maze": (
        Axis("x", "m", -0.29, 0.29, 20, lambda _, f: f["qpos"][:, 0]),
        Axis("y", "m", -0.29, 0.29, 20, lambda _, f: f["qpos"][:, 1]),
        Axis("x speed", "m/s", -0.1, 0.1, 8, lambda _, f: f["qvel"][:, 0]),
        Axis("y speed", "m/s", -0.1, 0.1, 8, lambda _, f: f["qvel"][:, 1]),
    ),
    "walker": _planar((1.6, 8), 16, (5, 10), (12, 8)),
    "cheetah": _planar((1.2, 12), 24, (10, 40), (12, 16)),
    "quadruped": (
        Axis("height", "m", 0, 1.2, 12, lambda _, f: f["qpos"][:, 2]),
        Axis("upright", "", -1, 1, 8, _upright),
        Axis("speed", "m/s", 0, 5, 20, _pace),
        Axis("turning rate", "rad/s", 0, 8, 16, _spin),
    ),
    "humanoid": (
        Axis("height", "m", 0, 1.2, 12, lambda _, f: f["qpos"][:, 2]),
        Axis("upright", "", -1, 1, 8, _upright_y),
        Axis("speed", "m/s", 0, 5, 20, _pace),
        Axis("turning rate", "rad/s", 0, 8, 16, _spin),
    ),
}
