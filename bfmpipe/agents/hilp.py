"""Hilbert representations as features (Park, Kreiman & Levine 2024, HILP).

The distance of features is the number of steps from a state s to a goal g, discounted by gamma_h:

    V_k(s, g) = -|phi_k(s) - phi_k(g)|        k = 1, 2

is the value of paying 1 a transition until s is g, learnt by temporal differences on n transitions
(s, s') and goals g, some of them later states of the same episode, the others any states:

    y_k = ([s = g] - 1) + gamma_h [s != g] V'_k(s', g)
    A = ([s = g] - 1) + gamma_h [s != g] min_k V'_k(s', g) - mean_k V'_k(s, g)
    L_V = sum_k mean |tau - [A < 0]| (y_k - V_k(s, g))^2

psi and pi are those of `successor`, for the rewards phi(s')^T z of the features phi = phi_1 - m:

    phi_1    model.feature_map      phi_2  twin       V'  of their targets
    m        model.feature_mean, the running mean of phi_1
    gamma_h  goal_discount
    tau      expectile: .5 is the value of the data's own policy, near 1 of its best transitions

With `reward_features` "difference" the reward is (phi(s') - phi(s))^T z instead. As the sum
telescopes, its successor features D are those of phi itself but for what no action changes:

    D(s, a, z) = E sum_t gamma^t (phi(s_{t+1}) - phi(s_t)) = (1 - gamma) psi(s, a, z) - phi(s)

so the best policies are the same, and the network, which then is D, need only tell how far phi is
moved. The model still is one of phi: its psi is (D + phi(s)) / (1 - gamma), inference is from
states that were reached and their rewards, and latents are drawn as with "state". (The published
variant fits rewards by phi(s') - phi(s), for which a state and its reward are not enough.)
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bfmpipe.agents import successor
from bfmpipe.agents.base import Batch, Loss, Phase, Tensors
from bfmpipe.agents.losses import full_precision
from bfmpipe.kernels import Network

_GIVEN = successor.FeatureConfig.presets


class Config(successor.FeatureConfig):
    """The published settings on DMC; those that differ by domain are presets.

    The paper has no maze: its preset is the settings of the other domain of goals, Jaco, and the
    discount that others use there.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_GIVEN,
        "walker": {**_GIVEN["walker"], "goal_discount": 0.96},
        "quadruped": {**_GIVEN["quadruped"], "temporal_difference": "scalar"},
        "point_mass_maze": {**_GIVEN["point_mass_maze"], "temporal_difference": "scalar"},
        "small": {**_GIVEN["small"], "feature_learning_rate": 1e-3},
        "small-point_mass_maze": {
            **_GIVEN["small-point_mass_maze"],
            "feature_learning_rate": 1e-3,
            # a short horizon: phi then tells near states apart as well as far ones, and its
            # covariance, which latents are divided by, has no small eigenvalues; the long way is
            # left to psi
            "goal_discount": 0.95,
        },
    }

    actor_pessimism: float = Field(0.5, ge=0)
    mean_momentum: float = Field(0.005, ge=0, le=1)
    feature_heads: int = Field(2, ge=1, le=2)
    """Networks phi_k; the model's is the first."""
    feature_learning_rate: float = Field(5e-4, gt=0)
    feature_target_tau: float = Field(0.005, gt=0, le=1)
    expectile: float = Field(0.5, gt=0, lt=1)
    goal_discount: float = Field(0.98, gt=0, le=1)
    """gamma_h, of one control step. Distances are counted in transitions."""
    future_discount: float = Field(0.99, gt=0, lt=1)
    """Goals of the same episode are a geometric number of control steps ahead, 1 / (1 - this) on
    average."""
    random_goal_fraction: float = Field(0.375, ge=0, le=1)
    """Share of goals that are any state; the others are of the same episode."""
    reward_features: Literal["state", "difference"] = "state"


class Model(successor.FeatureModel):
    """phi, psi and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self.feature_map = self.feature_network(project=False)

    def features(self, obs: Tensor) -> Tensor:
        """phi_1(s), (n, d)."""
        return self.feature_map(self.feature_input(obs))

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Successor features (heads, n, d), counted a control step; see the module's docstring."""
        psi = super().psi(obs, action, z)
        return psi if self._learns_psi else psi + self.phi(obs) / (1 - self.discount)

    def psi_layers(self) -> Network | None:
        """Those of the forward map, where that is all there is to psi."""
        return super().psi_layers() if self._learns_psi else None

    @property
    def psi_scale(self) -> float:
        """From a transition to one control step and, with differences, from D to psi."""
        return super().psi_scale if self._learns_psi else 1 / (1 - self.discount)

    @property
    def _learns_psi(self) -> bool:
        return self.config.reward_features == "state"


class Agent(successor.FeatureAgent):
    """HILP in training."""

    config: Config
    model: Model

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        c = config
        super().__init__(c, Model(c, obs_dim, action_dim))
        more = [self.model.feature_network(project=False) for _ in range(c.feature_heads - 1)]
        self.twin = nn.ModuleList(more)
        self.target_feature_map = self.target_copy(self.model.feature_map)
        self.target_twin = nn.ModuleList(self.target_copy(network) for network in more)
        followed = {"target_feature_map": "model.feature_map"}
        if more:
            followed["target_twin"] = "twin"
        tau = c.feature_target_tau
        self.targets = {**self.targets, **{k: (name, tau) for k, name in followed.items()}}
        trained = ("model.feature_map", "twin")
        features = Phase("features", trained, c.feature_learning_rate)
        self.phases = (features, self.successor_phase, self.actor_phase)
        self.future_discount = c.future_discount**c.stride

    def draw(self, batch: Batch, generator: torch.Generator, due: Collection[str]) -> Tensors:
        """The successor features' draws; which goals are any states, and whose."""
        draws = super().draw(batch, generator, due)
        n, device = len(batch.obs), batch.obs.device
        fraction = self.config.random_goal_fraction
        draws["other_state"] = torch.randperm(n, generator=generator, device=device)
        draws["is_other"] = torch.rand(n, 1, generator=generator, device=device) < fraction
        return draws

    def forward(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """L_V, or a loss of psi or pi."""
        if phase == "features":
            return self.feature_loss(batch, draws)
        return super().forward(phase, batch, draws, shared)

    def feature_loss(self, batch: Batch, draws: Tensors) -> Loss:
        """L_V of the module's docstring."""
        c, model = self.config, self.model
        goals = torch.where(draws["is_other"], batch.obs[draws["other_state"]], batch.future)
        states = [model.feature_input(x) for x in (batch.obs, goals, batch.next_obs)]
        phi = _of_all([model.feature_map, *self.twin], states[:2])
        with torch.no_grad():
            target_phi = _of_all([self.target_feature_map, *self.target_twin], states)
        reached = (batch.obs == goals).all(-1)
        discount = c.goal_discount**c.stride
        loss = distance_loss(phi, target_phi, reached, discount, c.expectile)
        distance = (phi[:, 0] - phi[:, 1]).detach().norm(dim=-1).mean()
        return Loss(loss, {"feature_loss": loss.detach(), "distance": distance})

    def reward_features(self, batch: Batch, phi: Tensor) -> Tensor:
        """phi(s'), or phi(s') - phi(s), (n, d)."""
        if self.config.reward_features == "state":
            return phi
        return self.model.features(batch.next_obs) - self.model.features(batch.obs)


def _of_all(networks: list[nn.Module], states: list[Tensor]) -> Tensor:
    """Features (heads, kinds, n, d) of several kinds of states (n, obs_dim) by all networks."""
    rows = torch.cat(states)
    shape = (len(states), len(states[0]), -1)
    return torch.stack([network(rows).view(shape) for network in networks])


@full_precision
def distance_loss(
    phi: Tensor, target_phi: Tensor, reached: Tensor, discount: float, expectile: float
) -> Tensor:
    """L_V of the module's docstring.

    Args:
        phi: (heads, 2, n, d), online, of the states and the goals.
        target_phi: (heads, 3, n, d), of the states, the goals and the next states.
        reached: (n,), bool, where the state is the goal.
        discount: gamma_h of one transition.
        expectile: tau.
    """
    value = -(phi[:, 0] - phi[:, 1]).norm(dim=-1)
    target_value = -(target_phi[:, 0] - target_phi[:, 1]).norm(dim=-1)
    next_value = -(target_phi[:, 2] - target_phi[:, 1]).norm(dim=-1)
    going = (~reached).to(value)
    advantage = going * (discount * next_value.amin(0) - 1) - target_value.mean(0)
    weight = (expectile - (advantage < 0).to(value)).abs()
    target = going * (discount * next_value - 1)
    return (weight * (target - value).square()).mean(-1).sum()
