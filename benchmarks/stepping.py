"""Simulation, in turns with what it is held against: python -m benchmarks.stepping [THREADS].

THREADS, all cores by default, go to the simulator and to torch. All figures are medians; a step is
one control step of one environment with its observation and its reward.

- stepping: 256 environments as one batch, against a loop over one environment of dm_control (its
  suite's; for the maze dm_control's Environment around our model file, with a task of NumPy calls);
- with an actor of two hidden layers, 1024 wide: the same two, one forward for all 256 environments
  against a forward for the one;
- the share of the physics rate: against the batch's `mj_step` alone, nothing observed;
- relabelling: 5 million rows of the walker, by its cheapest and its two dearest tasks.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# as the command line sets it, before dm_control is imported
os.environ.setdefault("MUJOCO_GL", "disabled")

import numpy as np
import torch
from dm_control.rl import control
from dm_control.suite import base, cheetah, quadruped, walker
from dm_control.suite.point_mass import Physics
from dm_control.utils.rewards import tolerance
from mujoco.batch import Batch
from torch import nn

from benchmarks.measuring import Seconds, start, table, time_alternately
from bfmpipe.envs import make_domain, point_mass_maze
from bfmpipe.envs.batched import BatchedEnv

NENV, ROWS, ROUNDS, BLOCK, WIDTH = 256, 5_000_000, 9, 0.25, 1024
LOOP = 64  # steps of dm_control's one environment a call
# domain: task, and the least of the ratios above (stepping, with an actor, share of physics)
BARS = {
    "point_mass_maze": ("reach_top_right", 25.0, None, None),
    "walker": ("run", 3.0, 5.0, 0.85),
    "cheetah": ("run", 5.0, None, 0.65),
    "quadruped": ("run", 3.5, 5.0, 0.85),
}
RELABELLED, RELABELLING_BAR = ("stand", "run", "flip"), 30.0


class Maze(base.Task):
    """The maze as dm_control would have it, in the manner of its point mass, names and all."""

    def initialize_episode(self, physics: Any) -> None:
        start = self.random.uniform(0.15, point_mass_maze.REACH, 2)
        physics.data.qpos[:] = start * (-1, 1)
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict:
        return OrderedDict(position=physics.position(), velocity=physics.velocity())

    def get_reward(self, physics: Any) -> float:
        target = point_mass_maze.TARGETS["reach_top_right"]
        distance = np.linalg.norm(physics.named.data.geom_xpos["ball", :2] - target)
        near = tolerance(distance, bounds=(0, 0.015), margin=0.015)
        small_control = tolerance(
            physics.control(), margin=1, value_at_margin=0, sigmoid="quadratic"
        ).mean()
        return near * (small_control + 4) / 5


def dm_environment(name: str) -> control.Environment:
    if name == "point_mass_maze":
        xml = Path(point_mass_maze.__file__).with_suffix(".xml").read_text()
        return control.Environment(Physics.from_xml_string(xml), Maze(random=0))
    make = {"walker": walker.run, "cheetah": cheetah.run, "quadruped": quadruped.run}[name]
    return make(time_limit=float("inf"), random=0)


def flat(observation: OrderedDict) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()])


def actor(obs_dim: int, action_dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(obs_dim, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, action_dim),
        nn.Tanh(),
    )


def calls_of(name: str, task_name: str, threads: int) -> dict[str, Callable[[], object]]:
    """What is timed of a domain: a batch call makes NENV steps, a loop LOOP."""
    domain, rng = make_domain(name, {}), np.random.default_rng(0)
    (task,) = domain.tasks("timed", [task_name], {})
    starts = domain.start_states(NENV, rng)
    actions = rng.uniform(-1, 1, (32, NENV, domain.action_dim)).astype(np.float32)
    policy = actor(domain.obs_dim, domain.action_dim)
    envs = [BatchedEnv(domain, NENV, threads) for _ in range(2)]
    latest = [env.reset(starts) for env in envs]
    raw = Batch(domain.model, NENV, threads, persistent=True)
    raw.state[:, 1 : 1 + domain.physics_dim] = starts
    controls = raw.bind("ctrl")
    loops = [dm_environment(name) for _ in range(2)]
    newest = [flat(loop.reset().observation) for loop in loops]
    turn = 0

    def next_actions() -> np.ndarray:
        nonlocal turn
        turn = (turn + 1) % len(actions)
        return actions[turn]

    def batch() -> None:
        action = next_actions()
        envs[0].step(action)
        task.reward(domain, envs[0].reached(), action)

    def physics() -> None:
        controls[:] = next_actions()
        raw.step(nstep=domain.config.physics_steps)

    def loop() -> None:
        for action in next_actions()[:LOOP]:
            flat(loops[0].step(action).observation)

    def batch_acting() -> None:
        action = policy(torch.from_numpy(latest[1])).numpy()
        latest[1] = envs[1].step(action)
        task.reward(domain, envs[1].reached(), action)

    def loop_acting() -> None:
        for _ in range(LOOP):
            action = policy(torch.from_numpy(newest[1][None].astype(np.float32))).numpy()
            newest[1] = flat(loops[1].step(action[0]).observation)

    return {
        "batch": batch,
        "physics": physics,
        "loop": loop,
        "batch_acting": batch_acting,
        "loop_acting": loop_acting,
    }


def per_step(name: str, seconds: Seconds) -> Seconds:
    steps = LOOP if name.startswith("loop") else NENV
    return Seconds(seconds.wall / steps, seconds.cpu / steps)


def verdict(figure: float, bar: float | None, unit: str = "x") -> str:
    text = f"{100 * figure:.0f} %" if unit == "%" else f"{figure:.1f} x"
    if bar is None:
        return text
    least = f"{100 * bar:.0f} %" if unit == "%" else f"{bar:g} x"
    return f"{text} (>= {least}: {'held' if figure >= bar else 'MISSED'})"


def stepping(threads: int) -> str:
    rows = []
    for name, (task, least, least_acting, least_share) in BARS.items():
        calls = calls_of(name, task, threads)
        times = time_alternately(calls, rounds=ROUNDS, block=BLOCK)
        t = {call: per_step(call, seconds) for call, seconds in times.items()}
        pairs = (("loop", "batch", least), ("loop_acting", "batch_acting", least_acting))
        for one, many, bar in pairs:
            rows.append(
                [
                    name,
                    "with an actor" if "acting" in many else "stepping",
                    *(f"{1 / t[call].wall:,.0f}" for call in (one, many)),
                    *(f"{1e6 * t[call].cpu:.1f}" for call in (one, many)),
                    verdict(t[one].wall / t[many].wall, bar),
                ]
            )
        rows.append(
            [
                name,
                "of the physics rate",
                *(f"{1 / t[call].wall:,.0f}" for call in ("physics", "batch")),
                *(f"{1e6 * t[call].cpu:.1f}" for call in ("physics", "batch")),
                verdict(t["physics"].wall / t["batch"].wall, least_share, "%"),
            ]
        )
    head = ["domain", "what", "against, steps/s", "ours, steps/s", "CPU us/step", "ours", "ratio"]
    return table(head, rows)


def relabelling() -> str:
    domain, rng = make_domain("walker", {}), np.random.default_rng(0)
    physics = np.empty((ROWS, domain.physics_dim))
    for first in range(0, ROWS, 500_000):
        physics[first : first + 500_000] = rng.uniform(-2, 2, (500_000, domain.physics_dim))
    action = np.zeros((ROWS, domain.action_dim), np.float32)
    rows = []
    for task in domain.tasks("timed", RELABELLED, {}):
        wall, cpu = time.perf_counter(), time.process_time()
        domain.relabel(task, physics, action)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        held = "held" if wall <= RELABELLING_BAR else "MISSED"
        rate = f"{ROWS / wall / 1e6:.1f}"
        rows.append(
            [task.name, f"{wall:.1f}", f"{cpu:.1f}", rate, f"<= {RELABELLING_BAR:g}: {held}"]
        )
    return table(["walker", "s, 5M rows", "CPU s", "million rows/s", "bar"], rows)


@torch.no_grad()
def main(threads: int = 0) -> None:
    cores = len(os.sched_getaffinity(0))
    threads = threads or cores
    torch.set_num_threads(threads)
    began = time.perf_counter()
    print(f"{NENV} environments, {threads} threads on {cores} cores\n")
    print(stepping(threads), "\n", relabelling(), sep="\n")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    start(main)
