"""What exploration covers: python -m benchmarks.exploration [DOMAIN ...] [--pictures DIRECTORY].

RND (preset small), uniformly random actions and persistent-random ones with the same number of
environment steps, three seeds, by the measure of bfmpipe.metrics.coverage. The bar: RND visits more
cells than random actions on every domain with every seed; exits with 1 where it does not. Random
actions and RND start from the same distribution; all counts include the start states.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import table
from bfmpipe.config import parse
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.envs import make_domain
from bfmpipe.envs.axes import axes_of
from bfmpipe.report import coverage_map, style
from bfmpipe.stages.collect import Collect, collect
from bfmpipe.stages.coverage import Coverage, coverage, visits_of

SEEDS = (0, 1, 2)
# settings, and episodes: 100,000 steps in the maze, 50,000 in the others
DOMAINS = {
    "point_mass_maze": ({"physics_steps": 5, "episode_steps": 200}, 500),
    "walker": ({"episode_steps": 500}, 100),
    "cheetah": ({"episode_steps": 500}, 100),
    "quadruped": ({"episode_steps": 500}, 100),
}
EXPLORERS = {
    "random": ("persistent-random", {"redraw_probability": 1, "noise_std": 0}),
    "persistent-random": ("persistent-random", {}),
    "rnd": ("rnd", {"preset": "small"}),
}


def explored(domain: str, explorer: str, seed: int, path: Path) -> tuple[int, float]:
    """Cells visited, and the seconds that the collection took; the data are left in `path`."""
    settings, episodes = DOMAINS[domain]
    name, chosen = EXPLORERS[explorer]
    cfg = {
        "domain": {"name": domain, "settings": settings},
        "explorer": {"name": name, "settings": chosen},
        "episodes": episodes,
        "seed": seed,
    }
    start = time.perf_counter()
    collect(parse(Collect, cfg, "benchmark"), dataset=path)
    seconds = time.perf_counter() - start
    return visits_of(make_domain(domain, settings), transitions.read(path)).covered, seconds


def picture(domain: str, data: Path, path: Path) -> None:
    cells = data.with_name("cells.parquet")
    coverage(Coverage(), dataset=data, coverage=cells)
    figure = coverage_map.draw(read_table(cells, "coverage")[0], axes_of(domain))
    style.save(figure, path, kind="png", dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("domains", nargs="*", default=list(DOMAINS), metavar="DOMAIN")
    parser.add_argument("--pictures", type=Path, help="where to draw what seed 0 covered")
    given = parser.parse_args()
    if unknown := sorted(set(given.domains) - set(DOMAINS)):
        parser.error(f"no domain '{unknown[0]}'; there are {', '.join(DOMAINS)}")
    torch.set_num_threads(1)
    rows, held = [], True
    for domain in given.domains:
        settings, episodes = DOMAINS[domain]
        steps = episodes * settings["episode_steps"]
        total = int(np.prod([axis.bins for axis in axes_of(domain)]))
        found: dict[str, list[tuple[int, float]]] = {name: [] for name in EXPLORERS}
        with tempfile.TemporaryDirectory() as directory:
            for name, seed in ((name, seed) for name in EXPLORERS for seed in SEEDS):
                path = Path(directory) / "data.parquet"
                found[name].append(explored(domain, name, seed, path))
                if given.pictures and seed == SEEDS[0]:
                    given.pictures.mkdir(parents=True, exist_ok=True)
                    picture(domain, path, given.pictures / f"{domain}-{name}.png")
        better = [r[0] > u[0] for r, u in zip(found["rnd"], found["random"], strict=True)]
        held &= all(better)
        base = np.mean([cells for cells, _ in found["random"]])
        for name, runs in found.items():
            cells = [cells for cells, _ in runs]
            row = (domain, name, f"{steps:,}", ", ".join(f"{n:,}" for n in cells), f"{total:,}")
            ratio, seconds = np.mean(cells) / base, np.mean([seconds for _, seconds in runs])
            bar = ("held" if all(better) else "MISSED") if name == "rnd" else ""
            rows.append((*row, f"{ratio:.2f}", f"{seconds:.0f}", bar))
        print(*rows[-len(EXPLORERS) :], sep="\n", file=sys.stderr)
    head = ("domain", "explorer", "steps", "cells, each seed", "of", "x random", "s", "> random")
    print(table(head, rows))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
