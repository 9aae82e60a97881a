"""What the inferred latent is worth as a start of the search: python -m benchmarks.starts CONFIG.

CONFIG is the experiment file of a finished run. LoLA as the run has it, with the run's budget, from

    inferred   z_0 as the run inferred it
    softmax    inferred with rewards weighted by softmax(10 r), as published for the humanoid
    random     a latent uniform on the sphere, a new one a task, model and repetition

with the inferred w for the bootstrap in all three. Three repetitions of all seeds of the first
domain and agent, as one batch; mean returns over tasks before and after, and each seed's after.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import start, table
from benchmarks.runs import Run
from bfmpipe import api
from bfmpipe.adaptation.protocol import adapt, start_states
from bfmpipe.inference.reward import Inference
from bfmpipe.networks import project_z

REPETITIONS = 3


def softmax(run: Run) -> Tensor:
    """The latents of all models, (models * tasks, d)."""
    latents = []
    for seed, pretrained in zip(run.seeds, run.pretrained, strict=True):
        experience = run.results / run.agent / f"seed{seed}" / "experience.parquet"
        data = api.read_transitions(experience) if experience.exists() else run.data
        how = Inference(**{**dict(run.experiment.infer), "reward_weighting": "softmax"})
        latents.append(api.infer(pretrained, run.tasks, data, inference=how).z)
    return torch.cat(latents)


def main(config: str) -> None:
    torch.set_num_threads(1)
    run = Run(config)
    every = range(len(run.seeds))
    inferred = run.problem(every, budget=run.budget)
    evaluated_from = start_states(run.domain, run.experiment.evaluate)
    weighted, rows = softmax(run), []
    for name in ("inferred", "softmax", "random"):
        found = []
        for repetition in range(REPETITIONS):
            generator = torch.Generator().manual_seed(repetition)
            drawn = project_z(torch.randn(inferred.z.shape, generator=generator))
            z = {"inferred": inferred.z, "softmax": weighted, "random": drawn}[name]
            seeds = [100 * repetition + seed for seed in run.seeds]
            method = run.make("lola", replace(inferred, z=z), seeds, run.settings("lola"))
            points = list(adapt(method, evaluated_from, run.budget))
            of_seeds = [[x.returns.mean() for x in p.split(len(every))] for p in points]
            found.append([of_seeds[0], of_seeds[-1]])
        before, after = np.moveaxis(found, 1, 0)  # (repetitions, seeds)
        each = ", ".join(f"{x:.0f}" for x in after.mean(0))
        rows.append((name, f"{before.mean():.0f}", f"{after.mean():.0f}", each))
        print(table(("LoLA from", "before", "after", "each seed's"), rows[-1:]), flush=True)
    episodes = run.experiment.adapt.episodes
    print(f"{run.domain_name}, {run.agent}: {len(run.tasks)} tasks, {episodes} episodes")
    print(table(("LoLA from", "before", "after", "each seed's"), rows))


if __name__ == "__main__":
    start(main)
