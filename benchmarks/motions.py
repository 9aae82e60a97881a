"""What agents trained online learnt of their motions: python -m benchmarks.motions RESULTS.

RESULTS is the directory of a finished run with such agents, e.g. results/walker-fb-cpr. For every
model: how it follows each motion for 200 control steps in its middle, by the latents of tracking,
beside a latent drawn at random: the mean difference of observations, in the motions' standard
deviations, and what the discriminator says, log D - log(1 - D), of the motion and of both. And its
values of the tasks over the discounted returns of the same episodes, with latents inferred from
the model's own episodes, and from the motions.
"""

from pathlib import Path

import numpy as np
import torch

import bfmpipe
from benchmarks.measuring import start, table, tables
from bfmpipe.api import Pretrained
from bfmpipe.data.tables import open_table
from bfmpipe.data.transitions import Transitions
from bfmpipe.envs.domain import Task
from bfmpipe.stages.sections import Families
from bfmpipe.types import UserError

STEPS = (10, 50, 200)
EPISODES = 32


def follows(pretrained: Pretrained, motions: Transitions, windows: int) -> list[str]:
    """Differences after STEPS, followed and at random; logits of the motion and of both."""
    model, generator = pretrained.model, torch.Generator().manual_seed(0)
    length, obs = STEPS[-1], np.asarray(motions.obs)
    scale = obs.std(0).clip(1e-6)
    differences: list[list[np.ndarray]] = [[], []]
    logits: list[list[float]] = [[], [], []]
    rows = motions.index_of(length + windows)
    for motion in np.unique(motions.episode[rows]):
        of_motion = rows[motions.episode[rows] == motion]
        first = of_motion[len(of_motion) // 2]
        target = obs[first + 1 : first + length + windows + 1]
        z = bfmpipe.infer_tracking(pretrained, target, window=windows)[:length]
        target = target[:length]
        logits[0].append(model.discriminator(torch.from_numpy(target), z).mean().item())
        for i, latents in enumerate((z, model.sample_z(1, generator).expand(length, -1))):
            played = bfmpipe.play(pretrained, latents, motions.physics[[first]]).obs[1:, 0]
            differences[i].append((np.abs(played - target) / scale).mean(1))
            logits[1 + i].append(
                model.discriminator(torch.from_numpy(played), latents).mean().item()
            )
    shown = []
    for step in STEPS:
        one, two = (np.mean([run[step - 1] for run in runs]) for runs in differences)
        shown.append(f"{one:.2f} / {two:.2f}")
    return [*shown, " / ".join(f"{np.mean(one):+.1f}" for one in logits)]


def valued(pretrained: Pretrained, tasks: list[Task], data: Transitions) -> str:
    """Mean return; and the smallest and largest ratio of value and discounted return."""
    model, domain = pretrained.model, pretrained.domain
    found = bfmpipe.infer(pretrained, tasks, data)
    starts = domain.start_states(EPISODES, np.random.default_rng(0))
    returns, ratios = [], []
    for task, w, z in zip(tasks, found.w, found.z, strict=True):
        played = bfmpipe.play(pretrained, z, starts)
        rows = (played.physics[1:], played.action)
        rewards = domain.relabel(task, *(x.reshape(-1, x.shape[-1]) for x in rows))
        rewards = rewards.reshape(len(played.action), EPISODES)
        obs, latents = torch.from_numpy(played.obs[0]), z.expand(EPISODES, -1)
        value = model.q(obs, torch.from_numpy(played.action[0]), latents, w.expand(EPISODES, -1))
        discounted = model.discount ** np.arange(len(rewards)) @ rewards
        returns.append(rewards.sum(0).mean())
        ratios.append(value.mean().item() / discounted.mean())
    return f"{np.mean(returns):.0f}, {min(ratios):.1f} to {max(ratios):.1f}"


@torch.no_grad()
def main(results: str) -> None:
    tables(results)
    following, values = [], []
    for experience in sorted(Path(results).glob("*/*/seed*/experience.parquet")):
        directory = experience.parent
        pretrained = bfmpipe.load(directory / "model")
        motions = bfmpipe.read_transitions(directory.parents[1] / "data.parquet")
        file, origin = open_table(directory / "latents.parquet", "latents")
        file.close()
        tasks = Families.model_validate(origin.settings["tasks"]).tasks(pretrained.domain)
        name = " ".join(directory.parts[-3:])
        windows = pretrained.model.config.motion_length
        following.append((name, *follows(pretrained, motions, windows)))
        own = bfmpipe.read_transitions(experience)
        values.append((name, *(valued(pretrained, tasks, data) for data in (own, motions))))
    if not following:
        raise UserError(
            f"{results}: no model here was trained online; run configs/walker-fb-cpr.yaml"
        )
    steps = [f"after {n} steps" for n in STEPS]
    print(table(("", *steps, "logits: motion / followed / random latent"), following))
    print("\nDifferences: followed / random latent.\n")
    print(
        table(("return, value / return", "latents by its own episodes", "by the motions"), values)
    )


if __name__ == "__main__":
    start(main)
