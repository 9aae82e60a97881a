"""TD3 fine-tuning: all weights of the actor move, from the BFM's actor and the BFM's Q.

Fujimoto et al. 2018, started from the frozen model: the critics are copies of
psi(s, a, z_0)^T w_0, one a head, fine-tuned in full; the actor is a copy of pi(s, z_0).
The baseline that the adaptation paper shows to unlearn first.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.off_policy import Batch, OffPolicyConfig, OffPolicyMethod
from bfmpipe.agents import Model
from bfmpipe.networks import add_noise


class Config(OffPolicyConfig):
    """Settings of TD3."""

    critic_learning_rate: float = Field(1e-4, gt=0)
    actor_learning_rate: float = Field(1e-4, gt=0)
    actor_every: int = Field(2, ge=1)
    """Updates of the critics to one of the actor."""


class _Critic(nn.Module):
    """psi_p(s, a, z)^T w for every head p, (heads, n)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return self.model.psi(obs, action, z.expand(len(obs), -1)) @ w


class _Policy(nn.Module):
    """pi(s, z), (n, action_dim)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Tensor, z: Tensor) -> Tensor:
        return self.model.actor(obs, z.expand(len(obs), -1))


class _Stacked:
    """A copy of a module for every task, called on (T, ...) inputs as one batch.

    Weights that the module's output does not depend on stay where they are.
    """

    def __init__(self, module: nn.Module, tasks: int, used: list[str]) -> None:
        self.module = module
        parameters, _ = stack_module_state([module] * tasks)
        self.parameters = {name: parameters[name].detach().requires_grad_() for name in used}

    def __call__(self, parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return vmap(lambda p, *x: functional_call(self.module, p, x))(parameters, *inputs)


class Method(OffPolicyMethod):
    """TD3 on all tasks at once; the latent stays z_0."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seed: int) -> None:
        super().__init__(config, problem, seed)
        tasks = len(problem.tasks)
        obs = torch.zeros(1, problem.domain.obs_dim)
        action = torch.zeros(1, problem.domain.action_dim)
        z, w = problem.z[0], problem.w[0]
        critic, policy = _Critic(problem.model), _Policy(problem.model)
        self.critic = _Stacked(critic, tasks, _used(critic, obs, action, z, w))
        self.policy = _Stacked(policy, tasks, _used(policy, obs, z))
        self.target_critic = _copy(self.critic.parameters)
        self.target_policy = _copy(self.policy.parameters)
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters.values(), lr=config.critic_learning_rate, fused=True
        )
        self.policy_optimiser = torch.optim.Adam(
            self.policy.parameters.values(), lr=config.actor_learning_rate, fused=True
        )
        self.updates = 0

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The fine-tuned actor's actions (T, n, action_dim)."""
        return self.policy(self.policy.parameters, obs, self.z)

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Both critics' values (T, 2, n)."""
        return self.critic(self.critic.parameters, obs, action, self.z, self.problem.w)

    def update(self, batch: Batch) -> None:
        """One step of the critics, every `actor_every` of them one of actor and targets."""
        c = self.config
        with torch.no_grad():
            next_action = self.policy(self.target_policy, batch.next_obs, self.z)
            next_action = add_noise(
                next_action, c.target_noise_std, c.target_noise_clip, self.generator
            )
            next_q = self.critic(
                self.target_critic, batch.next_obs, next_action, self.z, self.problem.w
            ).amin(1)
            y = batch.reward + self.problem.model.discount * next_q
        loss = (self.q(batch.obs, batch.action) - y[:, None]).square().mean(-1).sum()
        _descend(loss, self.critic, self.critic_optimiser)
        self.updates += 1
        if self.updates % c.actor_every == 0:
            action = self.policy(self.policy.parameters, batch.obs, self.z)
            frozen = _detached(self.critic.parameters)
            q = self.critic(frozen, batch.obs, action, self.z, self.problem.w)[:, 0]
            _descend(-q.mean(-1).sum(), self.policy, self.policy_optimiser)
            for target, online in (
                (self.target_critic, self.critic),
                (self.target_policy, self.policy),
            ):
                torch._foreach_lerp_(
                    list(target.values()), list(_detached(online.parameters).values()), c.target_tau
                )


def _used(module: nn.Module, *inputs: Tensor) -> list[str]:
    """Names of the parameters that the module's output depends on."""
    parameters = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    output = functional_call(module, parameters, inputs)
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, g in zip(parameters, gradients, strict=True) if g is not None]


def _detached(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in parameters.items()}


def _copy(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _descend(loss: Tensor, stacked: _Stacked, optimiser: torch.optim.Optimizer) -> None:
    parameters = stacked.parameters.values()
    for p, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters)), strict=True):
        p.grad = gradient
    optimiser.step()
