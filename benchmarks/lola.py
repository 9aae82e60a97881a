"""LoLA against a plain loop: python -m benchmarks.lola CONFIG [EPISODES].

CONFIG is the experiment file of a run that has reached `infer`; on its first domain and agent, all
tasks, with the settings of its `lola`. The plain loop is the same update as one would first write
it: one environment, one seed and task after the other, forwards of batch 1, returns and gradient by
loops. Both make the same updates from the same random numbers, in turns, on the threads of
OMP_NUM_THREADS (torch's and the simulator's); the budget's wall time is that of one update times
their number. Once for the first seed, and once for all of them, which LoLA takes as one batch.
"""

import math
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.measuring import start, table
from benchmarks.runs import Run
from bfmpipe.adaptation import lola
from bfmpipe.config import parse
from bfmpipe.envs.batched import threads
from bfmpipe.networks import project_z

ROUNDS = 5


class PlainLoop(lola.Method):
    """The same estimate, one rollout at a time; `normalise_advantages` and leave-one-out only."""

    @torch.no_grad()
    def gradient(self, states: int) -> Tensor:
        c, d = self.config, self.mu.shape[-1]
        tasks = len(self.problem.tasks)
        noise = self.draws.normal(tasks, states, c.latents, d)
        starts = self.start_states(tasks * states).reshape(tasks, states, -1)
        models = self.problem.each_task(lambda model: model)
        gradients = []
        for t, (task, model) in enumerate(zip(self.problem.tasks, models, strict=True)):
            env = replace(self.problem, model=model, tasks=[task], threads=1).env(1)
            gradient, advantages = torch.zeros(d), []
            for s in range(states):
                z = [project_z(self.mu[t] + c.sigma * noise[t, s, i]) for i in range(c.latents)]
                returns = [self._return(env, model, t, starts[t, s], z_i) for z_i in z]
                for i, z_i in enumerate(z):
                    others = (sum(returns) - returns[i]) / (c.latents - 1)
                    advantages.append(returns[i] - others)
                    gradient += advantages[-1] * (z_i - self.mu[t]) / c.sigma**2
            gradient /= states * c.latents
            if c.normalise_advantages:
                gradient /= max(statistics.pstdev(advantages), 1e-8)
            gradients.append(gradient)
        self.env_steps += states * c.latents * c.horizon
        return torch.stack(gradients)

    def _return(self, env, model, t, start, z) -> float:
        domain, task = self.problem.domain, self.problem.tasks[t]
        obs = torch.from_numpy(env.reset(start[None]))
        total = 0.0
        for step in range(self.config.horizon):
            action = model.actor(obs, z[None]).numpy()
            obs = torch.from_numpy(env.step(action))
            reward = float(task.reward(domain, env.reached(), action)[0])
            total += model.discount**step * reward
        value = model.psi(obs, model.actor(obs, z[None]), z[None]).mean(0)[0] @ self.problem.w[t]
        return total + model.discount**self.config.horizon * float(value)


def compare(run: Run, rows: list[int], episodes: int) -> tuple[list[tuple[str, ...]], str]:
    """Time both for these seeds; the table's rows, and a line on their ratio."""
    settings = parse(lola.Config, run.settings("lola"), "lola")
    problem = run.problem(rows, threads=threads())
    forms = {"batched": lola.Method, "plain loop": PlainLoop}
    seconds = {form: ([], []) for form in forms}
    gradients = {}
    for repeat in range(ROUNDS):
        for form, method in forms.items():
            made = method(settings, problem, [repeat + 100 * i for i in rows])
            wall, cpu = time.perf_counter(), time.process_time()
            gradients[form] = made.gradient(settings.states)
            seconds[form][0].append(time.perf_counter() - wall)
            seconds[form][1].append(time.process_time() - cpu)
        alike = torch.nn.functional.cosine_similarity(*gradients.values(), dim=-1)
        assert alike.min() > 0.99, f"the two do not estimate the same: cosines {alike.tolist()}"
    one = settings.states * settings.latents * settings.horizon
    updates = math.ceil(episodes * run.domain.config.episode_steps / one)
    lines = []
    for form, (walls, cpus) in seconds.items():
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        lines.append(
            (
                str(len(rows)),
                form,
                f"{1e3 * wall:.0f}",
                f"{1e3 * cpu:.0f}",
                f"{updates * wall:.1f}",
            )
        )
    ratios = [p / b for p, b in zip(seconds["plain loop"][0], seconds["batched"][0], strict=True)]
    told = (
        f"{len(rows)} seeds: {statistics.median(ratios):.1f} x "
        f"({min(ratios):.1f} to {max(ratios):.1f} over {ROUNDS} rounds); {updates} updates, the "
        f"gradients' least cosine in the last round {alike.min():.6f}"
    )
    return lines, told


def main(config: str, episodes: int = 50) -> None:
    run = Run(config)
    settings = parse(lola.Config, run.settings("lola"), "lola")
    print(
        f"{run.domain_name}, {run.agent}: {len(run.tasks)} tasks, {threads()} threads, an update "
        f"of {settings.states} x {settings.latents} lookaheads of {settings.horizon} steps"
    )
    every = list(range(len(run.seeds)))
    found = [compare(run, rows, episodes) for rows in ([0], every)]
    head = ("seeds", "LoLA", "an update, ms", "CPU, ms", f"{episodes} episodes a task, s")
    print(table(head, [line for lines, _ in found for line in lines]))
    for _, told in found:
        print(told)


if __name__ == "__main__":
    start(main)
