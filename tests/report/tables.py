"""Small tables as the stages before would write them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from bfmpipe.data.tables import Provenance, write_table

DOMAIN, AGENT = "point_mass_maze", "fb"
EPISODE_STEPS = 100
VERSIONS = {"numpy": "2.0"}


def write_adaptation(path: Path, method: str, seed: int, curves, *, every=200, **place) -> Path:
    """curves: (family, task) -> returns, one list of episodes an evaluation."""
    rows = [
        (family, task, i * every, returns)
        for (family, task), evaluations in curves.items()
        for i, returns in enumerate(evaluations)
    ]
    n = len(rows)
    env_steps = np.array([row[2] for row in rows])
    columns = {
        "domain": [place.get("domain", DOMAIN)] * n,
        "agent": [place.get("agent", AGENT)] * n,
        "method": [method] * n,
        "seed": [seed] * n,
        "family": [row[0] for row in rows],
        "task": [row[1] for row in rows],
        "env_steps": env_steps,
        "episodes": env_steps / EPISODE_STEPS,
        "returns": np.array([row[3] for row in rows], float),
        "cosine": 1 - env_steps / 10_000,
        "z": np.zeros((n, 2), np.float32),
    }
    kinds = {
        **dict.fromkeys(("domain", "agent", "method"), pa.string()),
        "seed": pa.int32(),
        **dict.fromkeys(("family", "task"), pa.string()),
        "env_steps": pa.int64(),
        "episodes": pa.float64(),
        "returns": pa.list_(pa.float64(), columns["returns"].shape[1]),
        "cosine": pa.float64(),
        "z": pa.list_(pa.float32(), 2),
    }
    write_table(path, pa.schema(list(kinds.items())), columns, origin("adaptation"))
    return path


def write_probe(path: Path, seed: int, scores) -> Path:
    """scores: (family, task) -> (random, latents, best)."""
    rows = []
    for (family, task), (random, latents, best) in scores.items():
        rows.append((family, task, "random", 0, random, 2))
        rows += [(family, task, "latent", i, value, 3) for i, value in enumerate(latents)]
        rows.append((family, task, "best", int(np.argmax(latents)), best, 2))
    names = ("family", "task", "policy", "index", "mean", "episodes")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns |= {"domain": [DOMAIN] * len(rows), "agent": [AGENT] * len(rows)}
    columns |= {"seed": [seed] * len(rows), "standard_error": [1.0] * len(rows)}
    kinds = {
        **dict.fromkeys(("domain", "agent"), pa.string()),
        "seed": pa.int32(),
        **dict.fromkeys(("family", "task", "policy"), pa.string()),
        "index": pa.int32(),
        **dict.fromkeys(("mean", "standard_error"), pa.float64()),
        "episodes": pa.int32(),
    }
    write_table(path, pa.schema(list(kinds.items())), columns, origin("probe"))
    return path


def write_losses(path: Path, seed: int, columns) -> Path:
    kinds = {name: pa.int64() if name == "update" else pa.float64() for name in columns}
    settings = {
        "domain": {"name": DOMAIN, "settings": {}},
        "agent": {"name": AGENT, "settings": {}},
        "seed": seed,
        "trainer": {"divergence_margin": 0.2},
    }
    write_table(path, pa.schema(list(kinds.items())), columns, origin("losses", settings))
    return path


def write_trajectories(path: Path, method: str, seed: int, tasks) -> Path:
    """Straight lines of three steps, two episodes a task and phase."""
    rows = [
        (family, task, phase, episode, step)
        for family, task in tasks
        for phase in ("before", "after")
        for episode in range(2)
        for step in range(3)
    ]
    columns = {
        name: [row[i] for row in rows]
        for i, name in enumerate(("family", "task", "phase", "episode", "step"))
    }
    columns["physics"] = np.array([(-0.2 + 0.01 * row[4], 0.2, 0, 0) for row in rows], float)
    kinds = {
        **dict.fromkeys(("family", "task", "phase"), pa.string()),
        **dict.fromkeys(("episode", "step"), pa.int32()),
        "physics": pa.list_(pa.float64(), 4),
    }
    settings = {"domain": DOMAIN, "agent": AGENT, "method": {"name": method}, "seed": seed}
    write_table(path, pa.schema(list(kinds.items())), columns, origin("trajectories", settings))
    return path


def origin(kind: str, settings=None) -> Provenance:
    return Provenance(kind, settings or {}, f"code-of-{kind}", VERSIONS)


def experiment(directory: Path) -> dict[str, list[Path]]:
    """Two families of two tasks and two, two seeds, zero-shot, LoLA and ReLA.

    Every mean is a number written below: the two paired episodes are one below and one above it.
    """
    adaptation, probe, losses, trajectories = [], [], [], []
    for seed in (1, 0):
        for method, shape in SHAPES.items():
            curves = {
                key: [[m - 1, m + 1] for m in start + seed + np.array(shape)]
                for key, start in STARTS.items()
            }
            stem = directory / f"{method}-{seed}"
            adaptation.append(write_adaptation(stem.with_suffix(".a"), method, seed, curves))
            trajectories.append(write_trajectories(stem.with_suffix(".t"), method, seed, STARTS))
        scores = {
            key: (1.0, [0.0, start, start + 20.0, 5.0], start + 15.0)
            for key, start in STARTS.items()
        }
        probe.append(write_probe(directory / f"probe-{seed}", seed, scores))
        update = np.arange(1, 9) * 100
        fb_loss = [0, -1, -2, -3, -4, -5, -5.5, -5.6 if seed == 0 else -3]
        columns = {"update": update, "fb_loss": fb_loss, "q": update / 100}
        losses.append(write_losses(directory / f"losses-{seed}", seed, columns))
    return {
        "adaptation": adaptation,
        "probe": probe,
        "losses": losses,
        "trajectories": trajectories,
    }


STARTS = {
    ("reach", "reach_top_left"): 60.0,
    ("reach", "reach_top_right"): 40.0,
    ("precise", "reach_top_left"): 10.0,
    ("precise", "reach_bottom_right"): 20.0,
}
SHAPES = {"zero-shot": [0], "lola": [0, 10, 20, 20, 30], "rela": [0, -5, 10, 0, 10]}
