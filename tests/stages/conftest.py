"""Files as the stages before tabulate would write them, small and with round numbers."""

import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bfmpipe.adaptation.diagnosis import Diagnosis
from bfmpipe.agents.trainer import Trainer
from bfmpipe.data import checkpoints
from bfmpipe.data.tables import Provenance, write_table
from bfmpipe.stages.pretrain import EVALUATION_KINDS

DOMAIN, AGENT = "point_mass_maze", "fb"
VERSIONS = {"numpy": "2.0"}
STARTS = {("reach", "reach_top_left"): 60.0, ("precise", "reach_bottom_right"): 20.0}
CLAIMS = {
    "gain": {"kind": "gain", "statement": "LoLA doubles <returns>.", "method": "lola", "bar": 100},
    "safe": {"kind": "no_drop", "statement": "TD3 does not drop.", "method": "td3", "bar": 20},
}
SHAPES = {"zero-shot": [0], "lola": [0, 10, 20, 20, 30], "td3": [0, -10, -5, 0, 5]}


@pytest.fixture
def killed_at_each_checkpoint(monkeypatch):
    """A function: a training of which a checkpoint is due at every row, killed after each.

    It is given what trains, calls it until it comes to its end, and returns the updates after
    which it was killed.
    """

    def run(train):
        save, killed = Trainer._save, []

        def save_and_end(self, path):
            save(self, path)
            killed.append(self.done)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "SECONDS", 0.0)
            patch.setattr(checkpoints, "SHARE", math.inf)
            patch.setattr(Trainer, "_save", save_and_end)
            for _ in range(9):
                with suppress(KeyboardInterrupt):
                    train()
                    return killed
        raise AssertionError(killed)

    return run


@pytest.fixture
def runs(tmp_path):
    """Files by kind, of two seeds; an episode has 100 steps."""
    files: dict[str, list[Path]] = {
        "adaptation": [],
        "probe": [],
        "losses": [],
        "evaluations": [],
        "spectrum": [],
        "diagnosis": [],
        "trajectories": [],
        "coverage": [_coverage(tmp_path)],
    }
    for seed in (0, 1):
        for method in SHAPES:
            files["adaptation"].append(_adaptation(tmp_path, method, seed))
            files["trajectories"].append(_trajectories(tmp_path, method, seed))
        files["probe"].append(_probe(tmp_path, seed))
        files["losses"].append(_losses(tmp_path, seed))
        files["evaluations"].append(_evaluations(tmp_path, seed))
        files["spectrum"].append(_spectrum(tmp_path, seed))
        files["diagnosis"].append(_diagnosis(tmp_path, seed))
    return files


def _write(path, kind, columns, types, settings):
    schema = pa.schema([pa.field(name, types[name], nullable=False) for name in columns])
    write_table(path, schema, columns, Provenance(kind, settings, f"code-of-{kind}", VERSIONS))
    return path


def _table(names, rows):
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


_TYPES = {
    **dict.fromkeys(
        ("domain", "agent", "method", "family", "task", "policy", "phase"), pa.string()
    ),
    **dict.fromkeys(("seed", "index", "episode", "step"), pa.int32()),
    **dict.fromkeys(("env_steps", "update"), pa.int64()),
    "alarm": pa.bool_(),
    **dict.fromkeys(
        ("cosine", "value", "mean", "standard_error", "fb_loss", "ortho_loss", "q"), pa.float64()
    ),
}


def _adaptation(directory, method, seed):
    names = ("domain", "agent", "method", "seed", "family", "task", "env_steps", "episodes")
    rows = [
        (DOMAIN, AGENT, method, seed, family, task, 200 * i, 2.0 * i, 1 - i / 10, start + seed + up)
        for i, up in enumerate(SHAPES[method])
        for (family, task), start in STARTS.items()
    ]
    columns = _table((*names, "cosine", "mean"), rows)
    mean = np.array(columns.pop("mean"))
    columns["returns"] = np.stack([mean - 1, mean + 1], axis=1)
    columns["z"] = np.zeros((len(rows), 2), np.float32)
    types = {
        **_TYPES,
        "episodes": pa.float64(),
        "returns": pa.list_(pa.float64(), 2),
        "z": pa.list_(pa.float32(), 2),
    }
    path = directory / "adapt" / f"{method}-{seed}.parquet"
    return _write(path, "adaptation", columns, types, {"seed": seed})


def _probe(directory, seed):
    rows = []
    for (family, task), start in STARTS.items():
        place = (DOMAIN, AGENT, seed, family, task)
        rows.append((*place, "random", 0, np.nan, 1.0, 0.5, 2))
        for i, (value, mean) in enumerate(((0, 0.0), (3, start), (2, start + 20), (1, 5.0))):
            rows.append((*place, "latent", i, float(value), mean, 0.5, 3))
        rows.append((*place, "best", 2, 2.0, start + 15, 0.5, 2))
        rows.append((*place, "predicted", 1, 3.0, start - 5, 0.5, 2))
    names = ("domain", "agent", "seed", "family", "task", "policy", "index", "value", "mean")
    columns = _table((*names, "standard_error", "episodes"), rows)
    types = {**_TYPES, "episodes": pa.int32()}
    return _write(directory / f"probe-{seed}.parquet", "probe", columns, types, {"seed": seed})


def _coverage(directory):
    columns = {
        "source": ["data", "data", "random"],
        "cell": np.array([[0, 0, 4, 4], [19, 1, 7, 4], [0, 0, 4, 4]], np.int16),
        "visits": [3, 1, 4],
        "first": [0, 2, 0],
    }
    types = {
        "source": pa.string(),
        "cell": pa.list_(pa.int16(), 4),
        **dict.fromkeys(("visits", "first"), pa.int64()),
    }
    return _write(directory / "coverage.parquet", "coverage", columns, types, {"seed": 0})


def _losses(directory, seed):
    columns = {
        "update": np.arange(1, 6) * 1000,
        "alarm": [False, False, False, False, seed != 0],
        "fb_loss": [0.0, -5.0, -10.0, -10.5, -11.0 if seed == 0 else -6.0],
        "ortho_loss": [5.0, 4.0, 3.0, 2.0, 1.0],
        "q": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    path = directory / f"losses-{seed}.parquet"
    return _write(path, "losses", columns, _TYPES, _trained(seed))


def _trained(seed):
    return {
        "domain": {"name": DOMAIN, "settings": {}},
        "agent": {"name": AGENT, "settings": {}},
        "trainer": {"divergence_margin": 0.2},
        "seeds": [seed],
    }


def _evaluations(directory, seed):
    rows = [
        (update, family, task, start + seed - (5000 - update) / 200, 1.0, 8.0, 7.0, 0.5, 2)
        for update in (2000, 5000)
        for (family, task), start in STARTS.items()
    ]
    columns = _table(tuple(EVALUATION_KINDS), rows)
    path = directory / f"evaluations-{seed}.parquet"
    return _write(path, "evaluations", columns, EVALUATION_KINDS, _trained(seed))


def _spectrum(directory, seed):
    columns = {
        "update": [2000, 5000],
        "eigenvalues": np.array([[3.0, 0.1, 0.01], [2.0, 1.0, 0.5]]),
        "effective_rank": [1.2, 2.6],
    }
    types = {**_TYPES, "eigenvalues": pa.list_(pa.float64(), 3), "effective_rank": pa.float64()}
    path = directory / f"spectrum-{seed}.parquet"
    return _write(path, "spectrum", columns, types, _trained(seed))


def _diagnosis(directory, seed):
    rows = [
        (DOMAIN, AGENT, seed, family, task, 2.6, 0.3, 0.6, 0.1 * i + seed, 0.5, 0.9 + i)
        for i, (family, task) in enumerate(STARTS)
    ]
    columns = _table(("domain", "agent", "seed", "family", "task", *Diagnosis._fields), rows)
    types = {**_TYPES, **dict.fromkeys(Diagnosis._fields, pa.float64())}
    path = directory / f"diagnosis-{seed}.parquet"
    return _write(path, "diagnosis", columns, types, {"seed": seed})


def _trajectories(directory, method, seed, label=""):
    rows = [
        (family, task, phase, episode, step, (-0.2 + 0.01 * step, 0.2, 0.0, 0.0))
        for family, task in STARTS
        for phase in ("before", "after")
        for episode in range(2)
        for step in range(3)
    ]
    columns = _table(("family", "task", "phase", "episode", "step", "physics"), rows)
    columns["physics"] = np.array(columns["physics"])
    types = {**_TYPES, "physics": pa.list_(pa.float64(), 4)}
    settings = {
        "domain": DOMAIN,
        "agent": AGENT,
        "method": {"name": method, "settings": {}},
        "label": label,
        "seeds": [seed],
    }
    path = directory / "adapt" / f"{label or method}-{seed}.trajectories.parquet"
    return _write(path, "trajectories", columns, types, settings)


@pytest.fixture
def variant(tmp_path):
    """A table of trajectories of LoLA under another name."""
    return _trajectories(tmp_path, "lola", 0, label="lola-short")


@pytest.fixture
def results(runs, tmp_path):
    """The files of `runs`, and the tables that stages tabulate and judge make of them."""
    from bfmpipe.stages.judge import Judge, judge
    from bfmpipe.stages.tabulate import Tabulate, tabulate

    names = ("curves", "aggregate", "summary", "best_of")
    tables = {name: tmp_path / "tables" / f"{name}.parquet" for name in names}
    tabulate(Tabulate(replicates=200), adaptation=runs["adaptation"], probe=runs["probe"], **tables)
    verdicts = tmp_path / "tables" / "verdicts.parquet"
    judge(
        Judge(claims=CLAIMS),
        curves=tables["curves"],
        best_of=tables["best_of"],
        benchmarks=tmp_path / "missing",
        verdicts=verdicts,
    )
    return {**runs, **tables, "verdicts": verdicts}
