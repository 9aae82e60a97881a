"""FB with a conditional policy regulariser (FB-CPR; Tirinzoni et al. 2025, Meta Motivo).

FB's three networks, and two that tie its policies to a set of motions:

    F  forward_map (heads), B  backward_map, pi  actor                 as in FB
    D(s, z)        discriminator: whether s comes from a motion that z encodes, or from a rollout
    Q_D(s, a, z)   critic (heads): the value of log D - log(1 - D) under pi(., z)

It is trained online: (s, a, s') are its own, drawn from all that it did, with the
latent z_0 it played there. A motion is encoded as z_E = project(mean of B over L frames). With
reduce(x) = mean - pessimism |x_1 - x_2| over heads, and a' = pi(s', z) + clipped noise:

    L_D     = mean softplus(-D(s_E, z_E)) + mean softplus(D(s, z_0))          D here is the logit
              + gradient_penalty mean (|grad D(x)| - 1)^2,   x between (s_E, z_E) and (s, z_0)
    z       = z_0, or for relabel_fraction of the rows B of a next state (goal_fraction of them),
              some z_E (motion_fraction) or one uniform on the sphere
    L_FB    as in FB, with ortho_coef L_orth + q_coef L_Q
    L_Q_D   = 1/2 sum_p mean (Q_p(s, a, z) - D(s, z) - gamma reduce_p Q'_p(s', a', z))^2
    L_actor = - mean (Q_F + regulariser_coef mean |Q_F| reduce_p Q_p(s, pi, z)),
              Q_F = reduce_p F_p(s, pi, z)^T z

in this order, each on its own weights. Rollouts draw their latents as the updates do.

The value of a reward r under pi(., z) is F(s, a, z)^T E_rho[r B]: here phi is B, psi is F. F, the
critic and the actor are of one of three families: "simple", embeddings and trunk as in FB,
"residual", layers Mish(Linear(LayerNorm(x))) with skips, and for small models "concatenated".
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from bfmpipe import config
from bfmpipe.agents import base, online
from bfmpipe.agents.base import Loss, Phase, Tensors
from bfmpipe.agents.losses import implied_q_loss, measure_loss, orthonormality_loss
from bfmpipe.agents.online import OnlineBatch
from bfmpipe.kernels import Network
from bfmpipe.kernels.extension import SF_MAX_HEADS, SF_MAX_LAYERS
from bfmpipe.networks import (
    BackwardMap,
    ConditionedMap,
    ResidualMap,
    clipped_noise,
    perturb,
    project_z,
    reduce_heads,
)


class MapConfig(config.Config):
    """The architecture of the actor, and of each head of F and the critic."""

    model: Literal["simple", "residual", "concatenated"] = "simple"
    """The first two are Meta Motivo's; the last is one MLP, whose layers are always the same."""
    hidden_dim: int = Field(1024, ge=2, multiple_of=2)
    hidden_layers: int = Field(1, ge=0)
    """Of the trunk, after the two embeddings."""
    embedding_layers: int = Field(2, ge=2)


class EnsembleConfig(MapConfig):
    """The architecture of F and of the critic."""

    num_parallel: int = Field(2, ge=1)
    """Heads."""


class MLPConfig(config.Config):
    """Linear, LayerNorm, tanh, then hidden_layers - 1 layers with ReLU, Linear."""

    hidden_dim: int = Field(1024, ge=1)
    hidden_layers: int = Field(2, ge=1)


class BackwardConfig(MLPConfig):
    """The architecture of B."""

    hidden_dim: int = Field(256, ge=1)
    norm: bool = True
    """Whether features are projected on the sphere."""


_SMALL = {"model": "concatenated", "hidden_dim": 256}


class Config(online.AgentConfig):
    """The published settings of the smaller model.

    The preset "small" is for a CPU.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "humanoid": {},
        "small": {
            "z_dim": 50,
            "batch": 256,
            "forward_map": _SMALL,
            "actor": _SMALL,
            "critic": _SMALL,
            "discriminator": {"hidden_dim": 256},
            "learning_rate": 1e-3,
            "backward_learning_rate": 1e-4,
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "discriminator_learning_rate": 1e-4,
            "online": {"rounds": 40, "experience": 200},
        },
    }

    z_dim: int = Field(256, ge=2)
    norm_z: Literal[True] = True
    """Latents are on the sphere; inference and adaptation know no others."""
    stride: Literal[1] = 1
    forward_map: EnsembleConfig = EnsembleConfig()
    backward_map: BackwardConfig = BackwardConfig()
    actor: MapConfig = MapConfig()
    critic: EnsembleConfig = EnsembleConfig()
    discriminator: MLPConfig = MLPConfig()
    learning_rate: float = Field(1e-4, gt=0)
    """Of F."""
    backward_learning_rate: float = Field(1e-5, gt=0)
    actor_learning_rate: float = Field(1e-4, gt=0)
    critic_learning_rate: float = Field(1e-4, gt=0)
    discriminator_learning_rate: float = Field(1e-5, gt=0)
    target_tau: float = Field(0.01, gt=0, le=1)
    """Of F and B."""
    critic_target_tau: float = Field(0.005, gt=0, le=1)
    ortho_coef: float = Field(100.0, ge=0)
    q_coef: float = Field(0.1, ge=0)
    gradient_penalty: float = Field(10.0, ge=0)
    regulariser_coef: float = Field(0.01, ge=0)
    """Weight of the critic's value in the actor's, beside the mean |Q_F|."""
    goal_fraction: float = Field(0.2, ge=0, le=1)
    motion_fraction: float = Field(0.6, ge=0, le=1)
    relabel_fraction: float = Field(0.8, ge=0, le=1)
    actor_pessimism: float = Field(0.5, ge=0)
    critic_pessimism: float = Field(0.5, ge=0)
    """In the critic's targets; .5 is the smaller head."""
    noise_std: float = Field(0.2, ge=0)
    noise_clip: float = Field(0.3, ge=0)
    obs_momentum: float = Field(0.01, ge=0, le=1)
    """What a batch counts in the mean and variance that observations are normalised by."""

    @model_validator(mode="after")
    def _are_shares(self) -> Self:
        if self.goal_fraction + self.motion_fraction > 1:
            raise ValueError("goal_fraction and motion_fraction are shares of one whole, at most 1")
        return self


class Model(base.Model):
    """F, B, pi, the critic and the discriminator. All read normalised observations."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c, d = config, config.z_dim
        F, critic = c.forward_map, c.critic
        self.forward_map = _map(F, F.num_parallel, obs_dim, d, action_dim, d)
        self.backward_map = _mlp(c.backward_map, obs_dim, d, project=c.backward_map.norm)
        self.policy = _map(c.actor, 1, obs_dim, d, 0, action_dim)
        self.critic_map = _map(critic, critic.num_parallel, obs_dim, d, action_dim, 1)
        self.discriminator_map = _mlp(c.discriminator, d + obs_dim, 1, project=False)

    def phi(self, obs: Tensor) -> Tensor:
        """B(s), (n, d)."""
        return self.backward_map(self.normalise(obs))

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """F(s, a, z), (heads, n, d)."""
        return self.forward_map(self.normalise(obs), z, action)

    def psi_layers(self) -> Network | None:
        """Those of F where the kernels take them: simple, two layers an embedding, not too deep."""
        if isinstance(self.forward_map, ResidualMap):
            return None
        F = self.config.forward_map
        fits = F.embedding_layers == 2 and F.hidden_layers < SF_MAX_LAYERS
        return self.forward_map.layers() if fits and F.num_parallel <= SF_MAX_HEADS else None

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """pi(s, z), (n, action_dim): the mean of the policy."""
        return torch.tanh(self.policy(self.normalise(obs), z)[0])

    def critic(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Q_D(s, a, z), (heads, n, 1)."""
        return self.critic_map(self.normalise(obs), z, action)

    def discriminator(self, obs: Tensor, z: Tensor) -> Tensor:
        """The logit of D(s, z), (n, 1): log D - log(1 - D)."""
        return self.discriminator_map(torch.cat([z, self.normalise(obs)], dim=-1))


class Agent(online.Agent):
    """FB-CPR in training, on batches of its own transitions and motions."""

    config: Config
    model: Model
    watched_loss = "fb_loss"

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config)
        c = config
        self.model = Model(config, obs_dim, action_dim)
        self.target_forward_map = self.target_copy(self.model.forward_map)
        self.target_backward_map = self.target_copy(self.model.backward_map)
        self.target_critic_map = self.target_copy(self.model.critic_map)
        self.targets = {
            "target_forward_map": ("model.forward_map", c.target_tau),
            "target_backward_map": ("model.backward_map", c.target_tau),
            "target_critic_map": ("model.critic_map", c.critic_target_tau),
        }
        fb = ("model.forward_map", "model.backward_map")
        self.phases = (
            Phase("discriminator", ("model.discriminator_map",), c.discriminator_learning_rate),
            Phase("fb", fb, (c.learning_rate, c.backward_learning_rate)),
            Phase("critic", ("model.critic_map",), c.critic_learning_rate),
            Phase("actor", ("model.policy",), c.actor_learning_rate),
        )

    def draw(self, batch: OnlineBatch, generator: torch.Generator, due: Collection[str]) -> Tensors:
        """What latents are made of, the place between two inputs of D, the noise on actions."""
        n, c = len(batch.obs), self.config
        device = batch.obs.device

        def uniform() -> Tensor:
            return torch.rand(n, 1, generator=generator, device=device)

        noise = (batch.action, c.noise_std, c.noise_clip, generator)
        return {
            **self._draw_latents(n, generator),
            "relabelled": uniform() < c.relabel_fraction,
            "between": uniform().to(batch.obs.dtype),
            "next_noise": clipped_noise(*noise),
            "actor_noise": clipped_noise(*noise),
        }

    def _draw_latents(self, n: int, generator: torch.Generator) -> Tensors:
        device = generator.device
        return {
            "z": self.model.sample_z(n, generator),
            "kind": torch.rand(n, 1, generator=generator, device=device),
            "goal": torch.randperm(n, generator=generator, device=device),
            "motion": torch.randperm(n, generator=generator, device=device),
        }

    def latents(self, goals: Tensor, motions: Tensor, draws: Tensors) -> Tensor:
        """n latents (n, d): shuffled features of n goals, n encoded motions, or uniform."""
        c, kind = self.config, draws["kind"]
        goals = project_z(goals)  # B's own features need not be on the sphere
        z = torch.where(kind < c.goal_fraction, goals[draws["goal"]], draws["z"])
        is_motion = (kind >= c.goal_fraction) & (kind < c.goal_fraction + c.motion_fraction)
        return torch.where(is_motion, motions[draws["motion"]], z)

    def encode_motions(self, frames: Tensor) -> Tensor:
        """z_E (n, d) of n stretches of L frames (n L, obs_dim)."""
        features = self.model.phi(frames).unflatten(0, (-1, self.config.motion_length))
        return project_z(features.mean(1))

    @torch.no_grad()
    def rollout_latents(self, goals: Tensor, frames: Tensor, generator: torch.Generator) -> Tensor:
        """As the updates' are drawn."""
        draws = self._draw_latents(len(goals), generator)
        return self.latents(self.model.phi(goals), self.encode_motions(frames), draws)

    @torch.no_grad()
    def explore(self, obs: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """The actor's, with noise."""
        action = self.model.actor(obs, z)
        return perturb(action, clipped_noise(action, self.config.noise_std, 1.0, generator))

    def forward(self, phase: str, batch: OnlineBatch, draws: Tensors, shared: Tensors) -> Loss:
        """The loss of a phase."""
        if phase == "discriminator":
            return self.discriminator_loss(batch, draws)
        if phase == "fb":
            return self.fb_loss(batch, draws, shared)
        if phase == "critic":
            return self.critic_loss(batch, shared)
        return self.actor_loss(batch, draws, shared)

    def discriminator_loss(self, batch: OnlineBatch, draws: Tensors) -> Loss:
        """L_D; leaves the latents to the others, and the normaliser one batch further on."""
        c, model = self.config, self.model
        with torch.no_grad():
            z_E = self.encode_motions(batch.next_motion)
            z_E = z_E.repeat_interleave(c.motion_length, 0)
            z = self.latents(model.phi(batch.next_obs), z_E, draws)
            z = torch.where(draws["relabelled"], z, batch.z)
            motion = torch.cat([z_E, model.normalise(batch.motion)], dim=-1)
            own = torch.cat([batch.z, model.normalise(batch.obs)], dim=-1)
        D = model.discriminator_map
        on_motion, on_online = D(motion), D(own)
        loss = softplus(-on_motion).mean() + softplus(on_online).mean()
        penalty = gradient_penalty(D, torch.lerp(motion, own, draws["between"]))
        metrics = {
            "discriminator_loss": loss.detach(),
            "gradient_penalty": penalty.detach(),
            "logit_motion": on_motion.detach().mean(),
            "logit_online": on_online.detach().mean(),
        }
        loss = loss + c.gradient_penalty * penalty
        return Loss(loss, metrics, {"z": z}, self._renormalised(batch.obs))

    def _renormalised(self, obs: Tensor) -> Tensors:
        """The normaliser after a batch of observations."""
        model, momentum = self.model, self.config.obs_momentum
        variance, mean = torch.var_mean(obs, 0)
        variance = torch.lerp(model.obs_std.square(), variance, momentum)
        return {
            "model.obs_mean": torch.lerp(model.obs_mean, mean, momentum),
            "model.obs_std": variance.sqrt().clamp_min(1e-6),
        }

    def fb_loss(self, batch: OnlineBatch, draws: Tensors, shared: Tensors) -> Loss:
        """L_FB + ortho_coef L_orth + q_coef L_Q; leaves the next actions to the critic."""
        c, model, z = self.config, self.model, shared["z"]
        goal = model.normalise(batch.next_obs)
        B = model.backward_map(goal)
        with torch.no_grad():
            next_action = perturb(model.actor(batch.next_obs, z), draws["next_noise"])
            target_F = self.target_forward_map(goal, z, next_action)
            target_B = self.target_backward_map(goal)
        F = model.forward_map(model.normalise(batch.obs), z, batch.action)
        fb_loss = measure_loss(F, B, target_F.mean(0), target_B, c.discount)
        ortho_loss = orthonormality_loss(B)
        q_loss = implied_q_loss(F, B, target_F, z, c.discount, 0.0)
        metrics = {
            "fb_loss": fb_loss.detach(),
            "ortho_loss": ortho_loss.detach(),
            "q_loss": q_loss.detach(),
            "forward_norm": F.detach().norm(dim=-1).mean(),
        }
        loss = fb_loss + c.ortho_coef * ortho_loss + c.q_coef * q_loss
        return Loss(loss, metrics, {"next_action": next_action})

    def critic_loss(self, batch: OnlineBatch, shared: Tensors) -> Loss:
        """L_Q_D."""
        c, model, z = self.config, self.model, shared["z"]
        with torch.no_grad():
            reward = model.discriminator(batch.obs, z)
            next_obs = model.normalise(batch.next_obs)
            next_q = self.target_critic_map(next_obs, z, shared["next_action"])
            target = reward + c.discount * reduce_heads(next_q, c.critic_pessimism)
        q = model.critic(batch.obs, batch.action, z)
        loss = 0.5 * (q - target).square().mean((-2, -1)).sum()
        return Loss(loss, {"critic_loss": loss.detach(), "discriminator_reward": reward.mean()})

    def actor_loss(self, batch: OnlineBatch, draws: Tensors, shared: Tensors) -> Loss:
        """L_actor."""
        c, model, z = self.config, self.model, shared["z"]
        obs = model.normalise(batch.obs)
        action = perturb(model.actor(batch.obs, z), draws["actor_noise"])
        q = reduce_heads((model.forward_map(obs, z, action) * z).sum(-1), c.actor_pessimism)
        critic = reduce_heads(model.critic_map(obs, z, action), c.actor_pessimism).mean()
        weight = c.regulariser_coef * q.detach().abs().mean()
        metrics = {"q": q.detach().mean(), "critic_q": critic.detach()}
        return Loss(-(q.mean() + weight * critic), metrics)


def gradient_penalty(D: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """mean (|grad D(x)| - 1)^2 over rows x (n, features) (Gulrajani et al. 2017)."""
    gradient = torch.func.grad(lambda x: D(x).sum())(x)
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1).square().mean()


def _map(
    c: MapConfig, heads: int, obs_dim: int, z_dim: int, action_dim: int, out_dim: int
) -> ConditionedMap | ResidualMap:
    """A network of (s, z) and (s, a), or of (s, z) and s where action_dim is 0."""
    dims = (heads, obs_dim, z_dim, action_dim, c.hidden_dim, out_dim)
    if c.model == "residual":
        return ResidualMap(*dims, trunk_layers=c.hidden_layers, embedding_layers=c.embedding_layers)
    return ConditionedMap(
        *dims,
        architecture="concatenated" if c.model == "concatenated" else "two_embeddings",
        trunk_layers=c.hidden_layers,
        embedding_layers=c.embedding_layers,
    )


def _mlp(c: MLPConfig, in_dim: int, out_dim: int, *, project: bool) -> BackwardMap:
    return BackwardMap(in_dim, c.hidden_dim, c.hidden_layers - 1, out_dim, project=project)
