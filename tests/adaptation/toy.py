"""A domain and a model whose returns are explicit functions of the latent.

The joints' damping stops them at once: after a step every joint's velocity is the action, to one in
a million, whatever the state was. The observation is these velocities.
"""

from collections.abc import Callable

import mujoco
import numpy as np
import torch
from torch import Tensor, nn

from bfmpipe import plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.agents import AgentConfig
from bfmpipe.agents import Model as BaseModel
from bfmpipe.config import Config, parse
from bfmpipe.envs.domain import Domain as BaseDomain
from bfmpipe.envs.domain import DomainConfig, Task
from bfmpipe.networks import project_z

Reward = Callable[[np.ndarray], np.ndarray]
"""Of actions (n, d), (n,)."""

_BODY = """<body><joint name="j{0}" type="slide" axis="1 0 0" damping="1e6"/>
<geom size=".1" mass="1" contype="0" conaffinity="0"/></body>"""
_MOTOR = '<motor joint="j{0}" gear="1e6"/>'
_MODEL = """<mujoco><option timestep="1" gravity="0 0 0" integrator="implicitfast"/>
<worldbody>{bodies}</worldbody><actuator>{motors}</actuator></mujoco>"""


class Domain(BaseDomain):
    """d actions; the rewards are functions of them, and the state's value is added to all."""

    fields = ("qpos", "qvel")

    def __init__(self, d: int, rewards: dict[str, Reward], episode_steps: int = 10) -> None:
        super().__init__("toy", DomainConfig(physics_steps=1, episode_steps=episode_steps))
        bodies, motors = ("".join(part.format(i) for i in range(d)) for part in (_BODY, _MOTOR))
        self.model = mujoco.MjModel.from_xml_string(_MODEL.format(bodies=bodies, motors=motors))
        self.obs_dim = d
        self.rewards = rewards
        self.offset = 0.0
        """Weight in every reward of where the first joint started, 1 to 99."""

    def observe(self, fields):
        return fields["qvel"].astype(np.float32)

    def reward(self, task, physics, action):
        start = physics.qpos[:, 0].round(-3) / 1000  # the way since then is shorter
        return self.rewards[task.name](action.astype(np.float64)) + self.offset * start

    def start_states(self, n, rng):
        physics = np.zeros((n, self.physics_dim))
        physics[:, 0] = 1000.0 * rng.integers(1, 100, size=n)
        return physics

    exploration_states = start_states


class Model(BaseModel):
    """Plays gain * z / sqrt(d) in every state; psi is exact: the action for ever."""

    inference_weights = "least-squares"

    def __init__(self, d: int, discount: float = 0.9) -> None:
        config = AgentConfig(z_dim=d, discount=discount, stride=1, batch=2)
        super().__init__(config, obs_dim=d, action_dim=d)
        self.gain = nn.Parameter(torch.ones(d), requires_grad=False)

    def phi(self, obs: Tensor) -> Tensor:
        return obs

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        return (action / (1 - self.discount))[None].expand(2, -1, -1)

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        return self.gain * z / z.shape[-1] ** 0.5


def problem(
    rewards: dict[str, Reward],
    w: Tensor,
    *,
    budget: int = 10_000,
    episode_steps: int = 10,
    observed: np.ndarray | None = None,
) -> Problem:
    """A problem of one task a reward, from weights w (T, d); `observed` (50, d) are the data."""
    d = w.shape[1]
    domain = Domain(d, rewards, episode_steps)
    tasks = [Task("toy", name, Config()) for name in rewards]
    visited = np.random.default_rng(0).normal(size=(50, domain.physics_dim))
    visited[:, d:] -= visited[:, d:].mean(0)  # as features that least squares fits are
    if observed is not None:
        visited[:, d:] = observed
    seen = domain.observe(domain.split(visited))
    return Problem(domain, Model(d), tasks, w, project_z(w), budget, visited, 1, seen)


def make(name: str, problem: Problem, seed: int = 0, **settings):
    """A method by its name in configurations."""
    module = plugins.load("adaptation", name)
    return module.Method(parse(module.Config, settings, name), problem, [seed])


def rotated_quadratic(d: int, condition: float, seed: int) -> tuple[Reward, np.ndarray]:
    """-(a - a*)^T H (a - a*) with H's eigenvalues from 1 to `condition`, and a* of length 1."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    H = Q @ np.diag(condition ** (np.arange(d) / (d - 1))) @ Q.T
    best = rng.normal(size=d)
    best /= np.linalg.norm(best)
    return lambda a: -np.einsum("ni,ij,nj->n", a - best, H, a - best), best
