"""Stage coverage: the cells of a data set, counted a second time, and those of random actions."""

import numpy as np
import pytest

from bfmpipe import plugins
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.envs import make_domain
from bfmpipe.envs.axes import axes_of, coordinates
from bfmpipe.report.rows import select
from bfmpipe.stages.coverage import Coverage, coverage


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("coverage") / "coverage.parquet"
    coverage(Coverage(seed=3), dataset=tiny.dataset, coverage=path)
    return read_table(path, "coverage")[0]


def test_the_cells_are_those_of_the_data(table, tiny):
    physics = np.asarray(transitions.read(tiny.dataset).physics)
    expected = {}
    for row, (x, y, vx, vy) in enumerate(physics):
        place = [(x + 0.29) / 0.029, (y + 0.29) / 0.029, (vx + 0.1) / 0.025, (vy + 0.1) / 0.025]
        last = (19, 19, 7, 7)
        cell = tuple(min(max(int(np.floor(p)), 0), n) for p, n in zip(place, last, strict=True))
        count, first = expected.get(cell, (0, row))
        expected[cell] = (count + 1, first)
    rows = select(table, source="data")
    cells = map(tuple, rows["cell"].tolist())
    counts = zip(rows["visits"].tolist(), rows["first"].tolist(), strict=True)
    found = dict(zip(cells, counts, strict=True))
    assert found == expected


def test_random_actions_have_the_same_budget(table, tiny):
    rows = (tiny.episode_steps + 1) * tiny.episodes
    for source in ("data", "random"):
        assert select(table, source=source)["visits"].sum() == rows


def test_a_seed_decides_every_byte(tiny, tmp_path):
    for name in ("a", "b", "c"):
        seed = int(name == "c")
        coverage(Coverage(seed=seed), dataset=tiny.dataset, coverage=tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert a == b
    assert a != c


@pytest.mark.parametrize("name", plugins.names("envs"))
def test_the_coordinates_of_every_domain_are_finite_and_mostly_within_their_range(name):
    domain = make_domain(name, {})
    axes = axes_of(name)
    states = domain.exploration_states(500, np.random.default_rng(0))
    values = coordinates(domain, states)
    assert values.shape == (500, len(axes))
    assert np.isfinite(values).all()
    for axis, column in zip(axes, values.T, strict=True):
        # of height, falling bodies start above the range that they come to rest in
        assert np.mean((axis.low <= column) & (column <= axis.high)) > 0.5, axis.name
