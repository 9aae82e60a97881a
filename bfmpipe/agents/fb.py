"""Forward-backward representations (Touati & Ollivier 2021; Touati, Rapin & Ollivier 2023).

The successor measure of pi(., z) is factorised as M(s, a, ds'; z) = F(s, a, z)^T B(s') rho(ds'),
rho the data's distribution. With F, B online, F', B' targets, and n transitions (s, a, s'):

    L_FB = sum_p 1/2 mean_{i != j} (F_p(s_i, a_i, z_i)^T B(s'_j)
                                    - gamma F'(s'_i, pi(s'_i, z_i), z_i)^T B'(s'_j))^2
           - sum_p mean_i F_p(s_i, a_i, z_i)^T B(s'_i)
    L_orth = 1/2 mean_{i != j} (B(s'_i)^T B(s'_j))^2 - mean_i |B(s'_i)|^2
    L_actor = - mean_i reduce_p F_p(s_i, pi(s_i, z_i), z_i)^T z_i

    F  forward_map (heads p, target the mean of heads)      B  backward_map, on the sphere
    z  latent, |z| = sqrt(d)                                pi actor

The value of a reward r under pi(., z) is F(s, a, z)^T E_rho[r B]: here phi is B, psi is F.
"""

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import base
from bfmpipe.kernels import Network
from bfmpipe.networks import (
    Actor,
    Architecture,
    BackwardMap,
    ConditionedMap,
    add_noise,
    frozen,
    reduce_heads,
    update_target,
    waves,
)
from bfmpipe.types import UserError


class Config(base.AgentConfig):
    """The published settings on DMC; config.yaml states what differs."""

    z_dim: int = Field(50, ge=2)
    discount: float = Field(0.98, gt=0, lt=1)
    architecture: Architecture = "two_embeddings"
    hidden_dim: int = Field(1024, ge=2, multiple_of=2)
    trunk_layers: int = Field(1, ge=0)
    """Hidden layers after the two embeddings; "concatenated" has none."""
    backward_hidden_dim: int = Field(256, ge=1)
    backward_hidden_layers: int = Field(1, ge=0)
    backward_obs: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Entries of the observation that B reads; all of them by default."""
    wave_obs: tuple[int, ...] = ()
    """Entries of the observation whose sines and cosines the networks read beside it, at 1, 2, 4,
    ... times its normalised value. Without them a wall thinner than a network's natural smoothness
    is invisible, and value leaks through it."""
    forward_octaves: int = Field(0, ge=0)
    backward_octaves: int = Field(0, ge=0)
    actor_octaves: int = Field(0, ge=0)
    stride: int = Field(1, ge=1)
    """Control steps a training transition spans, under the mean of its actions. Where exploration
    holds its actions this is the same decision problem on a coarser clock: an action does more,
    a far goal is fewer steps away, and both are learnt sooner. The policy still acts every step.
    Values are counted a control step all the same: psi is scaled by (1 - gamma^stride) /
    (1 - gamma)."""
    heads: int = Field(2, ge=1, le=2)
    batch: int = Field(1024, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    actor_learning_rate: float = Field(1e-4, gt=0)
    actor_every: int = Field(1, ge=1)
    """Updates of F and B to one of the actor."""
    target_tau: float = Field(0.01, gt=0, le=1)
    ortho_coef: float = Field(1.0, ge=0)
    goal_fraction: float = Field(0.5, ge=0, le=1)
    """Share of training latents drawn as project_z(B(s)); the others are uniform."""
    actor_pessimism: float = Field(0.0, ge=0)
    noise_std: float = Field(0.2, ge=0)
    noise_clip: float = Field(0.3, ge=0)


class Model(base.Model):
    """F, B and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c = config
        for name in ("backward_obs", "wave_obs"):
            entries = getattr(c, name) or ()
            if entries and not 0 <= min(entries) <= max(entries) < obs_dim:
                raise UserError(
                    f"fb: {name} is {list(entries)}; an observation has {obs_dim} entries, "
                    f"numbered 0 to {obs_dim - 1}"
                )
        wide = {name: 2 * n * len(c.wave_obs) for name, n in self._octaves().items()}
        self.forward_map = ConditionedMap(
            c.heads,
            obs_dim + wide["forward"],
            c.z_dim,
            action_dim,
            c.hidden_dim,
            c.z_dim,
            architecture=c.architecture,
            trunk_layers=c.trunk_layers,
        )
        self.policy = Actor(
            obs_dim + wide["actor"],
            c.z_dim,
            c.hidden_dim,
            action_dim,
            architecture=c.architecture,
            trunk_layers=c.trunk_layers,
        )
        self.backward_obs = list(range(obs_dim)) if c.backward_obs is None else [*c.backward_obs]
        self.backward_map = BackwardMap(
            len(self.backward_obs) + wide["backward"],
            c.backward_hidden_dim,
            c.backward_hidden_layers,
            c.z_dim,
        )

    def _octaves(self) -> dict[str, int]:
        c = self.config
        return {
            "forward": c.forward_octaves,
            "backward": c.backward_octaves,
            "actor": c.actor_octaves,
        }

    def encode(self, obs: Tensor, reader: Literal["forward", "backward", "actor"]) -> Tensor:
        """What one of the networks reads of raw observations (..., obs_dim)."""
        obs = self.normalise(obs)
        read = obs[..., self.backward_obs] if reader == "backward" else obs
        octaves = self._octaves()[reader]
        if not octaves or not self.config.wave_obs:
            return read
        return torch.cat([read, waves(obs[..., list(self.config.wave_obs)], octaves)], dim=-1)

    def phi(self, obs: Tensor) -> Tensor:
        """B(s), (n, d)."""
        return self.backward_map(self.encode(obs, "backward"))

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """F(s, a, z), (heads, n, d), counted a control step."""
        return self.psi_scale * self.forward_map(self.psi_obs(obs), z, action)

    def psi_layers(self) -> Network:
        """Those of F."""
        return self.forward_map.layers()

    def psi_obs(self, obs: Tensor) -> Tensor:
        """What F reads of raw observations (..., obs_dim)."""
        return self.encode(obs, "forward")

    @property
    def psi_scale(self) -> float:
        """From a transition of `stride` steps to one control step."""
        return (1 - self.discount**self.config.stride) / (1 - self.discount)

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """pi(s, z), (n, action_dim)."""
        return self.policy(self.encode(obs, "actor"), z)


class Agent(base.Agent):
    """FB in training."""

    model: Model

    def __init__(
        self, config: Config, obs_dim: int, action_dim: int, generator: torch.Generator
    ) -> None:
        self.config = config
        self.generator = generator
        self.model = Model(config, obs_dim, action_dim)
        model = self.model
        self.targets = {
            "forward_map": copy.deepcopy(model.forward_map).requires_grad_(False),
            "backward_map": copy.deepcopy(model.backward_map).requires_grad_(False),
        }
        fb_parameters = [*model.forward_map.parameters(), *model.backward_map.parameters()]
        self.optimisers = {
            "fb": torch.optim.Adam(fb_parameters, lr=config.learning_rate, fused=True),
            "actor": torch.optim.Adam(
                model.policy.parameters(), lr=config.actor_learning_rate, fused=True
            ),
        }
        self.step = 0

    def sample_training_z(self, goal_features: Tensor) -> Tensor:
        """Latents for a batch (n, d): some of them shuffled goals, the others uniform."""
        n = len(goal_features)
        z = self.model.sample_z(n, self.generator)
        goal = goal_features[torch.randperm(n, generator=self.generator)]
        is_goal = torch.rand(n, 1, generator=self.generator) < self.config.goal_fraction
        return torch.where(is_goal, goal, z)

    def update(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, *, learning_rate_scale: float
    ) -> dict[str, Tensor]:
        """One step on F and B, every `actor_every` updates one on pi, then the targets."""
        c, model = self.config, self.model
        for name, rate in (("fb", c.learning_rate), ("actor", c.actor_learning_rate)):
            self.optimisers[name].param_groups[0]["lr"] = rate * learning_rate_scale
        goal = model.encode(next_obs, "backward")

        B = model.backward_map(goal)
        with torch.no_grad():
            z = self.sample_training_z(B)
            next_action = self._noisy(model.actor(next_obs, z))
            target_F = self.targets["forward_map"](
                model.encode(next_obs, "forward"), z, next_action
            ).mean(0)
            target_B = self.targets["backward_map"](goal)
        forward_obs = model.encode(obs, "forward")
        F = model.forward_map(forward_obs, z, action)
        measure_loss = fb_loss(F, B, target_F, target_B, c.discount**c.stride)
        ortho_loss = orthonormality_loss(B)
        self.optimisers["fb"].zero_grad(set_to_none=True)
        (measure_loss + c.ortho_coef * ortho_loss).backward()
        self.optimisers["fb"].step()
        metrics = {
            "fb_loss": measure_loss.detach(),
            "ortho_loss": ortho_loss.detach(),
            "forward_norm": F.detach().norm(dim=-1).mean(),
        }

        if self.step % c.actor_every == 0:
            with frozen([model.forward_map]):
                policy_action = self._noisy(model.actor(obs, z))
                q = (model.forward_map(forward_obs, z, policy_action) * z).sum(-1)
                q = reduce_heads(q, c.actor_pessimism)
                actor_loss = -q.mean()
                self.optimisers["actor"].zero_grad(set_to_none=True)
                actor_loss.backward()
            self.optimisers["actor"].step()
            metrics["q"] = q.detach().mean()

        update_target(self.targets["forward_map"], model.forward_map, c.target_tau)
        update_target(self.targets["backward_map"], model.backward_map, c.target_tau)
        self.step += 1
        return metrics

    def _noisy(self, action: Tensor) -> Tensor:
        return add_noise(action, self.config.noise_std, self.config.noise_clip, self.generator)


def fb_loss(F: Tensor, B: Tensor, target_F: Tensor, target_B: Tensor, discount: float) -> Tensor:
    """L_FB of the module's docstring, without any n x n matrix.

    With G = [F_p, -gamma F'] and H = [B, B'] (n x 2d), the sum over all pairs of the squared
    difference is <G^T G, H^T H>; the n diagonal terms are taken off again.

    Args:
        F: (heads, n, d), online.
        B: (n, d), online.
        target_F: (n, d), heads reduced.
        target_B: (n, d).
        discount: gamma.
    """
    heads, n, _ = F.shape
    G = torch.cat([F, (-discount * target_F).expand(heads, -1, -1)], dim=-1)
    H = torch.cat([B, target_B], dim=-1)
    everything = ((G.mT @ G) * (H.mT @ H)).sum()
    on_diagonal = (G * H).sum(-1).square().sum()
    return (everything - on_diagonal) / (2 * n * (n - 1)) - (F * B).sum() / n


def orthonormality_loss(B: Tensor) -> Tensor:
    """L_orth of the module's docstring, by |B B^T|^2 = |B^T B|^2; B is (n, d)."""
    n = len(B)
    norm = B.square().sum(-1)
    off_diagonal = (B.mT @ B).square().sum() - norm.square().sum()
    return off_diagonal / (2 * n * (n - 1)) - norm.mean()
