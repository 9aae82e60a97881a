"""Data at ExORL's scale: python -m benchmarks.data [MILLION_ROWS].

On synthetic episodes in ExORL's format (random numbers, so they hardly compress), one thread:

- importing: episodes and megabytes of arrays a second, from a directory, and the peak of memory
  for 50 and for 200 episodes;
- training on a data set of the quadruped's shape with MILLION_ROWS (by default .6 and 2.4; 5 need
  4.1 GB of disk): the peak of memory, in all and without the pages of the mapped file, which the
  system takes back where memory is short, and the same for 5 million rows by the line through both;
- sampling: its share of an update of FB, 256 wide, batch 256, from the file and from memory.

Peaks are VmHWM of a process of its own, reset once the libraries are loaded.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import start, table, time_alternately
from bfmpipe.agents import fb
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig
from bfmpipe.data import exorl, transitions
from bfmpipe.data.tables import Provenance
from tests.data import exorl_files as files

EPISODES = (50, 200)
MILLIONS = (0.6, 2.4)
PUBLISHED_MILLIONS = 5.0
UPDATES = 200
AGENT = fb.Config(architecture="concatenated", hidden_dim=256, backward_hidden_dim=256, batch=256)


def origin(name: str) -> Provenance:
    return Provenance("transitions", {"domain": {"name": name, "settings": {}}}, "benchmark")


def status(name: str) -> float:
    """MB of a line of /proc/self/status."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1e3


def import_set(name: str, source: Path, dataset: Path, most: int) -> None:
    domain = files.domain(name, {"walker": 10, "quadruped": 4}[name])
    explorer = exorl.Explorer(exorl.Config(path=str(source), max_episodes=most), domain)
    shape = transitions.schema(*files.DIMS[name])
    transitions.write_pieces(dataset, shape, explorer.episodes(), lambda: origin(name))


def measure_import(name: str, source: str, dataset: str, most: str) -> dict[str, float]:
    import_set(name, Path(source), Path(dataset), 20)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    import_set(name, Path(source), Path(dataset), int(most))
    return {"seconds": time.perf_counter() - start, "peak": status("VmHWM")}


def load(dataset: Path) -> tuple[Learner, Data, torch.Generator]:
    """As the stage pretrain does it."""
    data = transitions.read(dataset, ("obs", "action"))
    generator = torch.Generator().manual_seed(0)
    agent = fb.Agent(AGENT, data.obs.shape[1], data.action.shape[1])
    obs = torch.from_numpy(np.asarray(data.obs))
    agent.model.obs_mean.copy_(obs.mean(0))
    agent.model.obs_std.copy_(obs.std(0).clamp_min(1e-6))
    del obs
    learner = Learner([agent], [generator], LearnerConfig())
    return learner, Data(data.obs, data.action, torch.from_numpy(data.index)), generator


def measure_training(dataset: str) -> dict[str, float]:
    trained = [0.0]

    def watch() -> None:
        while trained[0] >= 0:
            trained[0] = max(trained[0], status("RssAnon"))
            time.sleep(0.005)

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    learner, data, _ = load(Path(dataset))
    loaded = time.perf_counter() - start
    config = TrainerConfig(updates=UPDATES)
    trainer = Trainer(learner, data, config, {})
    trainer.run(Path(dataset).with_name("none.safetensors"))
    anonymous, trained[0] = trained[0], -1.0
    watcher.join()
    return {
        "peak": status("VmHWM"),
        "anonymous": anonymous,
        "libraries": before,
        "loading": loaded,
    }


def measure_sampling(dataset: str) -> dict[str, float]:
    learner, data, generator = load(Path(dataset))
    rows = 600_000
    inside = Data(
        torch.from_numpy(np.asarray(data.obs[:rows])),
        torch.from_numpy(np.asarray(data.action[:rows])),
        data.index[data.index < rows - 1],
    )
    batch = data.sample(AGENT.batch, generator)
    calls = {
        "file": lambda: data.sample(AGENT.batch, generator),
        "memory": lambda: inside.sample(AGENT.batch, generator),
        "update": lambda: learner.update([batch]),
    }
    return {name: 1e3 * t.wall for name, t in time_alternately(calls, rounds=15).items()}


def in_process(measure: str, *arguments: object) -> dict[str, float]:
    """Run one of the functions above in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.data", measure, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.check_output(argv, text=True, env=environment)
    return json.loads(output.splitlines()[-1])


def synthetic(path: Path, million: float) -> None:
    """A data set of the quadruped's shape, in 1001-row episodes."""
    rng = np.random.default_rng(0)
    obs_dim, action_dim, physics_dim = files.DIMS["quadruped"]
    step = np.arange(1001, dtype=np.int32)
    pieces = (
        {
            "episode": np.full(1001, i, np.int32),
            "step": step,
            "obs": rng.standard_normal((1001, obs_dim), np.float32),
            "action": rng.random((1001, action_dim), np.float32),
            "physics": rng.standard_normal((1001, physics_dim)),
        }
        for i in range(round(million * 1e6 / 1001))
    )
    shape = transitions.schema(*files.DIMS["quadruped"])
    transitions.write_pieces(path, shape, pieces, lambda: origin("quadruped"))


def show_imports(directory: Path) -> None:
    rows = []
    for name, dims in files.DIMS.items():
        if name == "toy":
            continue
        source = files.write(directory / name, max(EPISODES), name)
        megabytes = 1001e-6 * (4 * dims[0] + 4 * dims[1] + 8 * dims[2])
        for most in EPISODES:
            found = in_process("measure_import", name, source, directory / "data.parquet", most)
            rate = most / found["seconds"]
            figures = (f"{rate:.0f}", f"{rate * megabytes:.0f}", f"{found['peak']:.1f}")
            rows.append((name, str(most), *figures))
        for file in source.iterdir():
            file.unlink()
    print(table(("import", "episodes", "episodes/s", "MB/s", "peak, MB"), rows), "\n")


def show_training(directory: Path, millions: tuple[float, ...]) -> None:
    rows, peaks = [], []
    dataset = directory / "data.parquet"
    for million in millions:
        synthetic(dataset, million)
        found = in_process("measure_training", dataset)
        peaks.append((found["peak"], found["anonymous"]))
        shown = (f"{value / 1e3:.2f}" for value in peaks[-1])
        size = f"{dataset.stat().st_size / 1e9:.2f}"
        rows.append((f"{million} M", size, *shown, f"{found['loading']:.1f}"))
    if len(millions) > 1:
        shown = []
        for few, many in zip(peaks[0], peaks[-1], strict=True):
            slope = (many - few) / (millions[-1] - millions[0])
            shown.append(f"{(many + slope * (PUBLISHED_MILLIONS - millions[-1])) / 1e3:.2f}")
        rows.append((f"{PUBLISHED_MILLIONS} M, extrapolated", "", *shown, ""))
    head = ("training, rows", "file, GB", "peak, GB", "without mapped pages, GB", "loading, s")
    print(table(head, rows), "\n")
    found = in_process("measure_sampling", dataset)
    rows = [
        (name, f"{found[name]:.3f}", f"{found[name] / (found[name] + found['update']):.1%}")
        for name in ("file", "memory")
    ]
    update = f"share of sampling and an update of {found['update']:.2f} ms"
    print(table(("a sample from", "ms", update), rows))


def main(*millions: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        show_imports(Path(directory))
        show_training(Path(directory), millions or MILLIONS)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("measure_"):
        torch.set_num_threads(1)
        print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    else:
        start(main)
