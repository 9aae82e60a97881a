"""What every model here has beside its features: successor features, an actor, readers of states.

The agents differ in how the features phi are learnt, and in the loss of the successor features
psi(s, a, z), whose value psi^T w is that of the reward phi^T w under pi(., z).

With given features, universal successor features (Borsa et al. 2019; Touati, Rapin & Ollivier
2023) are learnt by temporal differences, for latents z that stand for the reward phi(s')^T z:

    vector   y = phi(s') + gamma psi'(s', a', z)         L = sum_p mean |psi_p(s, a, z) - y|^2
    scalar   y = phi(s')^T z + gamma psi'(s', a', z)^T z  L = sum_p mean (psi_p(s, a, z)^T z - y)^2
    actor    L = - mean reduce_p psi_p(s, pi(s, z), z)^T z

with a' = pi(s', z) + clipped noise, and of the two target heads the one of smaller value.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import base
from bfmpipe.agents.base import Batch, Loss, Phase, Tensors
from bfmpipe.agents.losses import solve_covariance
from bfmpipe.kernels import Network
from bfmpipe.networks import (
    Actor,
    Architecture,
    BackwardMap,
    ConditionedMap,
    clipped_noise,
    fourier_features,
    perturb,
    project_z,
    reduce_heads,
)
from bfmpipe.types import UserError

Entries = Annotated[tuple[int, ...], Field(min_length=1)]


class Config(base.AgentConfig):
    """Settings of psi and pi; the published ones on DMC."""

    architecture: Architecture = "two_embeddings"
    hidden_dim: int = Field(1024, ge=2, multiple_of=2)
    trunk_layers: int = Field(1, ge=0)
    """Hidden layers after the two embeddings; "concatenated" has none."""
    fourier_obs: tuple[int, ...] = ()
    """Entries of the observation whose sines and cosines the networks read beside it, at 1, 2, 4,
    ... times its normalised value. Without them a wall thinner than a network's natural smoothness
    is invisible, and value leaks through it."""
    forward_octaves: int = Field(0, ge=0)
    actor_octaves: int = Field(0, ge=0)
    heads: int = Field(2, ge=1, le=2)
    learning_rate: float = Field(1e-4, gt=0)
    actor_learning_rate: float = Field(1e-4, gt=0)
    actor_every: int = Field(1, ge=1)
    """Updates of psi to one of the actor."""
    target_tau: float = Field(0.01, gt=0, le=1)
    goal_fraction: float = Field(0.5, ge=0, le=1)
    """Share of training latents drawn from the features of states; the others are uniform."""
    actor_pessimism: float = Field(0.0, ge=0)
    noise_std: float = Field(0.2, ge=0)
    noise_clip: float = Field(0.3, ge=0)


def _columns(x: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Some columns of x; unlike a list of indices these are not sent to the device each time."""
    return torch.stack([x[..., column] for column in columns], dim=-1)


class Model(base.Model, ABC):
    """psi and pi; a subclass adds phi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c = config
        self._check_entries("fourier_obs", c.fourier_obs)
        self.forward_map = ConditionedMap(
            c.heads,
            obs_dim + self._fourier_features(c.forward_octaves),
            c.z_dim,
            action_dim,
            c.hidden_dim,
            c.z_dim,
            architecture=c.architecture,
            trunk_layers=c.trunk_layers,
        )
        self.policy = Actor(
            obs_dim + self._fourier_features(c.actor_octaves),
            c.z_dim,
            c.hidden_dim,
            action_dim,
            architecture=c.architecture,
            trunk_layers=c.trunk_layers,
        )

    def _check_entries(self, name: str, entries: tuple[int, ...]) -> None:
        if entries and not 0 <= min(entries) <= max(entries) < self.obs_dim:
            raise UserError(
                f"{name} is {list(entries)}; an observation has {self.obs_dim} entries, "
                f"numbered 0 to {self.obs_dim - 1}"
            )

    def _fourier_features(self, octaves: int) -> int:
        return 2 * octaves * len(self.config.fourier_obs)

    def encode(self, obs: Tensor, octaves: int, entries: tuple[int, ...] | None = None) -> Tensor:
        """A network's input of raw observations (..., obs_dim): entries, and Fourier features."""
        obs = self.normalise(obs)
        read = obs if entries is None else _columns(obs, entries)
        if not octaves or not self.config.fourier_obs:
            return read
        of = _columns(obs, self.config.fourier_obs)
        return torch.cat([read, fourier_features(of, octaves)], dim=-1)

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Successor features (heads, n, d), counted a control step."""
        return self.psi_scale * self.forward_map(self.psi_obs(obs), z, action)

    def psi_layers(self) -> Network | None:
        """Those of the forward map."""
        return self.forward_map.layers()

    def psi_obs(self, obs: Tensor) -> Tensor:
        """What the forward map reads of raw observations (..., obs_dim)."""
        return self.encode(obs, self.config.forward_octaves)

    @property
    def psi_scale(self) -> float:
        """From a transition of `stride` steps to one control step."""
        return (1 - self.discount**self.config.stride) / (1 - self.discount)

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """pi(s, z), (n, action_dim)."""
        return self.policy(self.encode(obs, self.config.actor_octaves), z)


class Agent(base.Agent, ABC):
    """What training psi and pi takes, whatever phi is."""

    config: Config
    model: Model

    def __init__(self, config: Config, model: Model) -> None:
        super().__init__(config)
        self.model = model
        self.target_forward_map = self.target_copy(model.forward_map)
        self.targets = {"target_forward_map": ("model.forward_map", config.target_tau)}

    @property
    def actor_phase(self) -> Phase:
        """The actor's turn."""
        c = self.config
        return Phase("actor", ("model.policy",), c.actor_learning_rate, c.actor_every)

    @property
    def discount(self) -> float:
        """Of one transition."""
        return self.config.discount**self.config.stride

    def draw(self, batch: Batch, generator: torch.Generator, due: Collection[str]) -> Tensors:
        """Latents, which of them are goals, whose, and the noise on actions."""
        n, c = len(batch.obs), self.config
        device = batch.obs.device
        draws = {
            "z": self.model.sample_z(n, generator),
            "goal": torch.randperm(n, generator=generator, device=device),
            "is_goal": torch.rand(n, 1, generator=generator, device=device) < c.goal_fraction,
        }
        for name in ("next_noise", *(["actor_noise"] if "actor" in due else [])):
            draws[name] = clipped_noise(batch.action, c.noise_std, c.noise_clip, generator)
        return draws

    def latents(self, goals: Tensor, draws: Tensors) -> Tensor:
        """Latents for a batch (n, d): some of them shuffled goals (n, d), the others uniform."""
        return torch.where(draws["is_goal"], goals[draws["goal"]], draws["z"])

    def next_action(self, batch: Batch, z: Tensor, draws: Tensors) -> Tensor:
        """The noisy actor's actions in the next states."""
        return perturb(self.model.actor(batch.next_obs, z), draws["next_noise"])

    def target_psi(self, batch: Batch, z: Tensor, action: Tensor) -> Tensor:
        """psi'(s', a', z), (heads, n, d), in transitions."""
        return self.target_forward_map(self.model.psi_obs(batch.next_obs), z, action)

    def actor_loss(self, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """The module's actor loss at the latents of this update, shared["z"]."""
        model, z = self.model, shared["z"]
        action = perturb(model.actor(batch.obs, z), draws["actor_noise"])
        q = (model.forward_map(model.psi_obs(batch.obs), z, action) * z).sum(-1)
        q = reduce_heads(q, self.config.actor_pessimism).mean()
        return Loss(-q, {"q": q.detach()})


SMALL: Mapping[str, Any] = {
    "architecture": "concatenated",
    "hidden_dim": 256,
    "batch": 256,
    "learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
    "actor_every": 2,
}
"""What all agents' CPU variants have in common."""

SMALL_MAZE: Mapping[str, Any] = {
    **SMALL,
    "z_dim": 32,
    "discount": 0.99,
    "stride": 10,
    "hidden_dim": 128,
    "fourier_obs": (0, 1),  # the walls are thin
    "forward_octaves": 2,
}
"""The same of those for the point-mass maze."""

_STEADY: Mapping[str, Any] = {
    "temporal_difference": "vector",
    "target_heads": "mean",
    "target_tau": 0.005,
    "actor_pessimism": 0.0,
}


class FeatureConfig(Config):
    """Settings of an agent whose phi is a network of its own, and psi the module's.

    The small presets have what is steadier in few updates: vectors, and means of heads.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "walker": {},
        "cheetah": {},
        "quadruped": {},
        "point_mass_maze": {"discount": 0.99},
        "small": {**SMALL, **_STEADY, "feature_hidden_dim": 256},
        "small-point_mass_maze": {
            **SMALL_MAZE,
            **_STEADY,
            "feature_hidden_dim": 128,
            "feature_obs": (0, 1),
            "feature_octaves": 3,
        },
    }

    feature_hidden_dim: int = Field(512, ge=1)
    feature_hidden_layers: int = Field(1, ge=0)
    feature_obs: Entries | None = None
    """Entries of the observation that phi reads; all of them by default."""
    feature_octaves: int = Field(0, ge=0)
    temporal_difference: Literal["vector", "scalar"] = "vector"
    target_heads: Literal["minimum", "mean"] = "minimum"
    """Which of the target's heads are followed: the one of smaller value, or their mean."""
    mean_momentum: float = Field(0.01, ge=0, le=1)
    """What a batch counts in the running mean of the features, but at first all count the same;
    0 leaves it at that, which is for features that stand still."""


class FeatureModel(Model, ABC):
    """psi, pi, and a feature network; phi is centred over the data.

    Latents stand for rewards by least squares: r ~ phi^T w.
    """

    config: FeatureConfig
    feature_mean: Tensor
    inference_weights = "least-squares"

    def __init__(self, config: FeatureConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self._check_entries("feature_obs", config.feature_obs or ())
        self.register_buffer("feature_mean", torch.zeros(config.z_dim))

    def feature_network(self, *, project: bool) -> BackwardMap:
        """A network to be a feature map of what `feature_input` gives."""
        c = self.config
        read = self.obs_dim if c.feature_obs is None else len(c.feature_obs)
        return BackwardMap(
            read + self._fourier_features(c.feature_octaves),
            c.feature_hidden_dim,
            c.feature_hidden_layers,
            c.z_dim,
            project=project,
        )

    def feature_input(self, obs: Tensor) -> Tensor:
        """What feature networks read of raw observations."""
        return self.encode(obs, self.config.feature_octaves, self.config.feature_obs)

    @abstractmethod
    def features(self, obs: Tensor) -> Tensor:
        """The features before they are centred, (n, d)."""

    def phi(self, obs: Tensor) -> Tensor:
        """Centred features (n, d)."""
        return self.features(obs) - self.feature_mean


class FeatureAgent(Agent, ABC):
    """Training of psi and pi on features that are not theirs to move.

    A subclass adds the phases of its features in front, and their `forward`.
    """

    config: FeatureConfig
    model: FeatureModel
    watched_loss = "successor_error"
    feature_batches: Tensor

    def __init__(self, config: FeatureConfig, model: FeatureModel) -> None:
        super().__init__(config, model)
        self.register_buffer("feature_batches", torch.zeros(()))  # that the mean has seen

    @property
    def successor_phase(self) -> Phase:
        """psi's turn."""
        return Phase("successor", ("model.forward_map",), self.config.learning_rate)

    def forward(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """The successor features' loss, or the actor's."""
        if phase == "actor":
            return self.actor_loss(batch, draws, shared)
        return self.successor_loss(batch, draws)

    def running_mean(self, features: Tensor) -> Tensors:
        """The buffers of the features' mean after this batch (n, d).

        It moves to the batch's by max(mean_momentum, 1 / number of batches): at first it is exact.
        """
        batches = self.feature_batches + 1
        rate = batches.reciprocal().clamp_min(self.config.mean_momentum)
        mean = torch.lerp(self.model.feature_mean, features.mean(0, dtype=rate.dtype), rate)
        return {"model.feature_mean": mean, "feature_batches": batches}

    def reward_features(self, batch: Batch, phi: Tensor) -> Tensor:
        """What z weighs in the reward of a transition: here phi of the next state, (n, d)."""
        return phi

    def successor_loss(self, batch: Batch, draws: Tensors) -> Loss:
        """The temporal difference of the module's docstring; leaves the latents to the actor.

        The loss grows with psi; successor_error, its ratio to the loss of psi = 0, does not.
        """
        c, model = self.config, self.model
        with torch.no_grad():
            features = model.features(batch.next_obs)
            buffers = self.running_mean(features)
            phi = features - buffers["model.feature_mean"]
            reward = self.reward_features(batch, phi)
            z = self.latents(reward_latents(phi), draws)
            target = self.target_psi(batch, z, self.next_action(batch, z, draws))
            target = choose_heads(target, z, c.target_heads)
        psi = model.forward_map(model.psi_obs(batch.obs), z, batch.action)
        inputs = (reward, target, z, self.discount, c.temporal_difference)
        loss = successor_loss(psi, *inputs)
        without = successor_loss(torch.zeros_like(psi), *inputs)
        metrics = {
            "successor_loss": loss.detach(),
            "successor_error": loss.detach() / without,
            "psi_norm": psi.detach().norm(dim=-1).mean(),
        }
        return Loss(loss, metrics, {"z": z}, buffers)


def successor_loss(
    psi: Tensor,
    phi: Tensor,
    target: Tensor,
    z: Tensor,
    discount: float,
    temporal_difference: str,
) -> Tensor:
    """L of the module's docstring, divided by d where it is of vectors.

    Args:
        psi: (heads, n, d), online.
        phi: (n, d), of the transition.
        target: psi' (n, d), heads reduced.
        z: (n, d).
        discount: of one transition.
        temporal_difference: "vector" or "scalar".
    """
    difference = psi - (phi + discount * target)
    if temporal_difference == "scalar":
        return (difference * z).sum(-1).square().mean(-1).sum()
    return difference.square().mean((-1, -2)).sum()


def choose_heads(psi: Tensor, z: Tensor, which: str) -> Tensor:
    """psi (heads, n, d) -> (n, d): the mean of heads, or in each row that of smaller psi^T z."""
    if which == "mean" or len(psi) == 1:
        return psi.mean(0)
    first, second = (psi * z).sum(-1)
    return torch.where((first <= second)[:, None], psi[0], psi[1])


def reward_latents(features: Tensor) -> Tensor:
    """Latents project(cov^-1 phi) for the goals whose features (n, d) these are.

    The reward of being at the goal, and zero elsewhere, has these least-squares weights.
    """
    return project_z(solve_covariance(features, features))
