"""LoLA against a plain loop: python -m benchmarks.lola CONFIG [EPISODES] [SEED].

CONFIG is the experiment file of a finished run; on its first domain and agent, all tasks, with the
settings of its `lola`. The plain loop is the same update as one would first write it: one
environment, one task after the other, forwards of batch 1, returns and gradient by loops. Both make
the same updates from the same random numbers, in turns, on the threads of OMP_NUM_THREADS (torch's
and the simulator's); the budget's wall time is that of one update times their number.
"""

import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import table
from bfmpipe import api, experiment
from bfmpipe.adaptation import lola
from bfmpipe.adaptation.base import Problem
from bfmpipe.config import parse
from bfmpipe.envs.batched import threads
from bfmpipe.networks import project_z
from bfmpipe.stages.infer import read_latents
from bfmpipe.stages.sections import Families

ROUNDS = 5


class PlainLoop(lola.Method):
    """The same estimate, one rollout at a time."""

    @torch.no_grad()
    def gradient(self, states: int) -> torch.Tensor:
        c, d = self.config, self.mu.shape[-1]
        tasks = len(self.problem.tasks)
        noise = torch.randn(tasks, states, c.latents, d, generator=self.generator)
        starts = self.start_states(tasks * states).reshape(tasks, states, -1)
        gradients = []
        for t, task in enumerate(self.problem.tasks):
            env = replace(self.problem, tasks=[task], threads=1).env(1)
            gradient, advantages = torch.zeros(d), []
            for s in range(states):
                z = [project_z(self.mu[t] + c.sigma * noise[t, s, i]) for i in range(c.latents)]
                returns = [self._return(env, task, starts[t, s], z_i, t) for z_i in z]
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

    def _return(self, env, task, start, z, t) -> float:
        model, domain = self.problem.model, self.problem.domain
        obs = torch.from_numpy(env.reset(start[None]))
        total = 0.0
        for step in range(self.config.horizon):
            action = model.actor(obs, z[None]).numpy()
            obs = torch.from_numpy(env.step(action))
            reward = float(task.reward(domain, env.fields(), action)[0])
            total += model.discount**step * reward
        w = self.problem.w[t]
        value = model.psi(obs, model.actor(obs, z[None]), z[None]).mean(0)[0] @ w
        return total + model.discount**self.config.horizon * float(value)


def main(config: str, episodes: str = "50", seed: str = "0") -> None:
    exp = experiment.read(config)
    name, agent = next(iter(exp.domains)), next(iter(exp.agents))
    directory = Path(exp.results) / name / agent / f"seed{seed}"
    pretrained = api.load(directory / "model")
    tasks = Families(families=exp.domains[name].tasks).tasks(pretrained.domain)
    data = api.read_transitions(Path(exp.results) / name / "data.parquet", ("physics",))
    latent = read_latents(directory / "latents.parquet", tasks, pretrained.model.z_dim)
    settings = parse(lola.Config, exp.methods["lola"], "lola")
    problem = Problem(
        domain=pretrained.domain,
        model=pretrained.model,
        tasks=tasks,
        w=latent.w,
        z=latent.z,
        budget=10**9,
        visited=data.physics[data.index],
        threads=threads(),
    )
    forms = {"batched": lola.Method, "plain loop": PlainLoop}
    seconds = {form: ([], []) for form in forms}
    gradients = {}
    for repeat in range(ROUNDS):
        for form, method in forms.items():
            made = method(settings, problem, repeat)
            wall, cpu = time.perf_counter(), time.process_time()
            gradients[form] = made.gradient(settings.states)
            seconds[form][0].append(time.perf_counter() - wall)
            seconds[form][1].append(time.process_time() - cpu)
        alike = torch.nn.functional.cosine_similarity(*gradients.values(), dim=-1)
        assert alike.min() > 0.99, f"the two do not estimate the same: cosines {alike.tolist()}"
    one = settings.states * settings.latents * settings.horizon
    updates = math.ceil(int(episodes) * pretrained.domain.config.episode_steps / one)
    medians = {form: [statistics.median(column) for column in s] for form, s in seconds.items()}
    rows = [
        (form, f"{1e3 * wall:.0f}", f"{1e3 * cpu:.0f}", f"{updates * wall:.1f}")
        for form, (wall, cpu) in medians.items()
    ]
    print(
        f"{name}, {agent}: {len(tasks)} tasks, {threads()} threads, an update of "
        f"{settings.states} x {settings.latents} lookaheads of {settings.horizon} steps"
    )
    head = (
        "LoLA",
        "an update, ms",
        "CPU, ms",
        f"{episodes} episodes a task ({updates} updates), s",
    )
    print(table(head, rows))
    plain, batched = medians["plain loop"][0], medians["batched"][0]
    ratios = [p / b for p, b in zip(seconds["plain loop"][0], seconds["batched"][0], strict=True)]
    print(f"{plain / batched:.1f} x ({min(ratios):.1f} to {max(ratios):.1f} over {ROUNDS} rounds)")


if __name__ == "__main__":
    main(*sys.argv[1:])
