"""ReLA without the initial drop: warm-up on zero-shot data, calibrated base, acceptance test.

ReLA (`rela`) moves the latent that it plays, so that what its critic does not know yet is paid for
in return. Here the latent that ascends is a candidate:

    Q_i(s, a) = scale psi(s, a, z)^T w_0 + shift + residual_i(s, a)

with scale and shift of every task from the returns of zero-shot episodes, a residual that has
learnt from those before z moves, and an incumbent, the one that is evaluated, whose place the
candidate takes only if it does better in the same episodes; see `safe`. The candidate learns from
its tests, so it need not play anything else.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from bfmpipe.adaptation.critics import MAZE
from bfmpipe.adaptation.safe import Rollout, SafeConfig, SafeMethod
from bfmpipe.networks import project_z


class Config(SafeConfig):
    """Settings of the safe ReLA.

    What is not played until it has won may learn faster and, as only every second episode has
    noise, under more of it: so does the preset "small-point_mass_maze". It does not calibrate: on
    rewards as sparse as the maze's eight episodes give a scale anywhere between 0 and 57.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **SafeConfig.presets,
        "small-point_mass_maze": {
            **MAZE,
            "least_cosine": 0.99,
            "updates_per_step": 0.25,
            "noise_std": 0.4,
            "calibrate": False,
        },
    }

    train_episodes: int = Field(0, ge=0)
    """Further episodes of the candidate, with noise, between two tests."""


class Method(SafeMethod):
    """The safe ReLA on all tasks at once."""

    config: Config

    @staticmethod
    def smallest_proposal(config: Config) -> int:
        """The critic can learn from what was played."""
        return 0

    @property
    def proposal(self) -> int:
        """`train_episodes` of them."""
        return self.config.train_episodes * self.problem.domain.config.episode_steps

    def propose(self, steps: int) -> None:
        """Episodes of the candidate, side by side, or at once the updates that are due."""
        c, problem = self.config, self.problem
        tasks, episode = len(problem.tasks), problem.domain.config.episode_steps
        n = steps // episode
        if n == 0:
            self.learn()
            return
        z = self.mover.z.detach()[:, None]
        noise = self.draws.normal(tasks, n, z.shape[-1])
        starts = self.draws.start_states(problem.domain, tasks * n)
        z = project_z(z + c.latent_noise_std * noise)
        self.play(z, starts, episode, torch.full((1, 1, 1), c.noise_std, device=z.device))

    def proposed(self, seen: Rollout) -> None:
        """The updates that are due."""
        self.learn()
