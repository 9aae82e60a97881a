"""Tables with numbers that can be checked by hand: two families, two tasks each, two seeds.

A run's zero-shot return is its task's start plus its seed; methods add their shape to it. The two
paired episodes of an evaluation lie one below and one above its mean, so its standard error is 1.
"""

from functools import partial

import numpy as np
import pytest

from bfmpipe.metrics.aggregate import cluster_bootstrap
from bfmpipe.report import tabulation

STARTS = {
    ("reach", "reach_top_left"): 60.0,
    ("reach", "reach_top_right"): 40.0,
    ("precise", "reach_top_left"): 10.0,
    ("precise", "reach_bottom_right"): 20.0,
}
VALUES = (0.0, 3.0, 2.0, 1.0)  # what the model expects of the latents: it swaps the best two
SHAPES = {"zero-shot": [0], "lola": [0, 10, 20, 20, 30], "rela": [0, -5, 10, 0, 10]}


def columns(names, rows):
    """Columns as the stage reads them: text as objects."""
    found = {}
    for i, name in enumerate(names):
        values = np.array([row[i] for row in rows])
        found[name] = values.astype(object) if values.dtype.kind == "U" else values
    return found


@pytest.fixture
def make_adaptation():
    def make(shapes=SHAPES, starts=STARTS, seeds=(1, 0), every=200):
        names = ("domain", "agent", "method", "seed", "family", "task", "env_steps", "episodes")
        rows = [
            ("maze", "fb", m, seed, family, task, i * every, i * every / 100, 1 - i / 10, mean)
            for seed in seeds
            for m, shape in shapes.items()
            for (family, task), start in starts.items()
            for i, mean in enumerate(start + seed + np.array(shape))
        ]
        table = columns((*names, "cosine", "mean"), rows)
        mean = table.pop("mean")
        return table | {"returns": np.stack([mean - 1, mean + 1], axis=1)}

    return make


@pytest.fixture
def make_probe():
    def make(starts=STARTS, seeds=(1, 0)):
        rows = []
        for seed in seeds:
            for (family, task), start in starts.items():
                place = ("maze", "fb", seed, family, task)
                rows.append((*place, "random", 0, np.nan, 1.0, 2))
                for i, mean in enumerate((0.0, start, start + 20, 5.0)):
                    rows.append((*place, "latent", i, VALUES[i], mean, 3))
                rows.append((*place, "best", 2, VALUES[2], start + 15, 2))
                rows.append((*place, "predicted", 1, VALUES[1], start - 5, 2))
        names = ("domain", "agent", "seed", "family", "task", "policy", "index", "value", "mean")
        return columns((*names, "episodes"), rows)

    return make


@pytest.fixture
def read():
    """A table just made, as the stage reads it."""
    return lambda table: columns(tuple(table), list(zip(*table.values(), strict=True)))


@pytest.fixture
def tables(make_adaptation, make_probe, read):
    """All tables of results, as the stages after read them."""
    interval = partial(cluster_bootstrap, replicates=500)
    probe, curves = make_probe(), read(tabulation.curves(make_adaptation()))
    return {
        "probe": probe,
        "curves": curves,
        "aggregate": read(tabulation.aggregate(curves, interval)),
        "summary": read(tabulation.summary(curves, probe, interval, 0.95)),
        "best_of": read(tabulation.best_of(curves, probe)),
    }
