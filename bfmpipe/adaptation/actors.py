"""What adaptation moves: the latents of the frozen actor, or an actor's weights for every task.

All T tasks move as one batch; what a task's loss is does not reach the others.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.draws import Generators
from bfmpipe.agents import Model
from bfmpipe.networks import ParallelLinear, project_z
from bfmpipe.types import UserError


class Stacked:
    """A copy of a module for every task, called on (T, ...) inputs as one batch.

    Weights that the module's output does not depend on stay where they are.

    Args:
        modules: one a task, alike but for their tensors; they stay as they are.
        inputs: an example of one task's inputs.

    Raises:
        UserError: where the output depends on no weights at all.
    """

    def __init__(self, modules: Sequence[nn.Module], *inputs: Tensor) -> None:
        self.module = modules[0]
        parameters, self.buffers = stack_module_state(list(modules))
        self.parameters = {
            name: parameters[name].detach().requires_grad_() for name in _used(modules[0], *inputs)
        }

    def __call__(self, *inputs: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The module's output for every task, with its own parameters or those given."""
        given = self.parameters if parameters is None else parameters
        tensors = {**self.buffers, **given}
        return vmap(lambda t, *x: functional_call(self.module, t, x))(tensors, *inputs)

    def frozen(self) -> dict[str, Tensor]:
        """The parameters as they move, out of the gradient's reach."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def copied(self) -> dict[str, Tensor]:
        """The parameters as they are now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}


def _used(module: nn.Module, *inputs: Tensor) -> list[str]:
    """Names of the parameters that the module's output depends on."""
    parameters = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    output = functional_call(module, parameters, inputs)
    if not output.requires_grad:
        raise UserError("there is nothing to fine-tune: the model's output depends on no weights")
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, g in zip(parameters, gradients, strict=True) if g is not None]


def polyak_update(targets: Sequence[Tensor], online: Sequence[Tensor], tau: float) -> None:
    """Target <- (1 - tau) target + tau online, all tensors in one launch."""
    torch._foreach_lerp_(list(targets), [p.detach() for p in online], tau)


def step_down(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor) -> None:
    """One step of an optimiser of these parameters, down the loss."""
    gradients = torch.autograd.grad(loss, list(parameters))
    for p, gradient in zip(parameters, gradients, strict=True):
        # fused ones go through memory and ask for no strides; what vmap gives may be transposed
        alike = gradient.stride() == p.stride()
        p.grad = gradient if alike else torch.empty_like(p).copy_(gradient)
    optimiser.step()


class TaskAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980) of what has a row for every task, (T, d).

    torch's has one step count for all rows. Here each has its own, so that a task that begins anew
    makes a first step's length again, and one that stands still forgets nothing meanwhile.

    Args:
        like: of the shape, type and device of what moves.
        learning_rate: the length of a first step, in every coordinate.
    """

    betas = (0.9, 0.999)

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)
        self.steps = torch.zeros(len(like), 1, dtype=torch.float64, device=like.device)

    @torch.no_grad()
    def step(self, x: Tensor, gradient: Tensor, tasks: Tensor | None = None) -> None:
        """Move x down a gradient, both (T, d); of some tasks (a mask, (T,)), or of all."""
        rows = slice(None) if tasks is None else tasks
        first, second = self.betas
        g = gradient[rows]
        mean = self.mean[rows].lerp(g, 1 - first)
        square = (self.square[rows] * second).addcmul(g, g, value=1 - second)
        steps = self.steps[rows] + 1
        self.mean[rows], self.square[rows], self.steps[rows] = mean, square, steps
        size = (self.learning_rate / (1 - first**steps)).to(x.dtype)
        unbiased = (1 - second**steps).sqrt().to(x.dtype)
        x[rows] -= size * mean / (square.sqrt() / unbiased + 1e-8)

    def forget(self, tasks: Tensor) -> None:
        """Some tasks (a mask, (T,)) begin anew."""
        for held in (self.mean, self.square, self.steps):
            held[tasks] = 0


class _Policy(nn.Module):
    """pi(s, z), (n, action_dim), of one task."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Tensor, z: Tensor) -> Tensor:
        return self.model.actor(obs, z.expand(len(obs), -1))


def stacked_actor(problem: Problem) -> Stacked:
    """The frozen model's actor, copied for every task: (obs (T, n, obs_dim), z (T, d))."""
    obs = torch.zeros(1, problem.domain.obs_dim, device=problem.device)
    return Stacked(problem.each_task(_Policy), obs, problem.z[0])


class ParallelMLP(nn.Module):
    """MLPs side by side, two hidden layers each: (heads, n, inputs) -> (heads, n, outputs).

    With `zero`, the last layer starts at zero.
    """

    def __init__(
        self, heads: int, inputs: int, hidden: int, outputs: int, *, zero: bool = False
    ) -> None:
        super().__init__()
        last = ParallelLinear(heads, hidden, outputs)
        if zero:
            nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            ParallelLinear(heads, inputs, hidden),
            nn.ReLU(),
            ParallelLinear(heads, hidden, hidden),
            nn.ReLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """The networks' outputs."""
        return self.layers(x)


class Mover(ABC):
    """A policy for every task, and how it moves."""

    @abstractmethod
    def act(self, obs: Tensor) -> Tensor:
        """Actions (T, n, action_dim) of obs (T, n, obs_dim), differentiable in what moves."""

    def target_act(self, obs: Tensor) -> Tensor:
        """Actions that the critic's targets are worked out with."""
        return self.act(obs)

    @property
    @abstractmethod
    def latent(self) -> Tensor:
        """The latents that the policies go by, (T, d)."""

    @abstractmethod
    def descend(self, loss: Tensor) -> None:
        """One step down a loss summed over tasks."""

    def update_targets(self, tau: float) -> None:
        """Move the targets; a latent has none."""
        return


class LatentMover(Mover):
    """z moves on the sphere, from z_0; the actor pi(s, z) is frozen.

    Args:
        problem: has z_0.
        learning_rate: Adam's.
        least_cosine: of z to z_0; a step that leads further away ends on the edge of that cap.
    """

    def __init__(self, problem: Problem, learning_rate: float, least_cosine: float = -1.0) -> None:
        self.model = problem.model
        self.initial = problem.z
        self.least_cosine = least_cosine
        self.z = nn.Parameter(problem.z.clone())
        self.optimiser = TaskAdam(problem.z, learning_rate)

    def act(self, obs: Tensor) -> Tensor:
        """pi(s, z)."""
        return act_by_latent(self.model, obs, self.z)

    @property
    def latent(self) -> Tensor:
        """z as it moves."""
        return self.z

    def descend(self, loss: Tensor) -> None:
        """One step, and the projection to the sphere."""
        (gradient,) = torch.autograd.grad(loss, [self.z])
        with torch.no_grad():
            self.optimiser.step(self.z, gradient)
            z = project_z(self.z)
            self.z.copy_(put_within(z, self.initial, self.least_cosine))

    @torch.no_grad()
    def put(self, z: Tensor, tasks: Tensor) -> None:
        """Set the latents of some tasks (a mask, (T,)), whose optimiser begins anew."""
        self.z[tasks] = z[tasks]
        self.optimiser.forget(tasks)


def put_within(z: Tensor, centre: Tensor, least_cosine: float) -> Tensor:
    """The nearest latents to z that have at least that cosine to a centre, (T, d).

    Args:
        z: (T, d), on the sphere |z| = sqrt(d).
        centre: (T, d), on the same sphere.
        least_cosine: -1 leaves every z where it is.
    """
    cosine = torch.nn.functional.cosine_similarity(z, centre, dim=-1)[:, None]
    across = project_z(z - cosine * centre)
    edge = least_cosine * centre + (1 - least_cosine**2) ** 0.5 * across
    return torch.where(cosine < least_cosine, edge, z)


class ActorMover(Mover):
    """An actor's weights move, and their targets after them; the latent stays z_0."""

    parameters: Sequence[Tensor]
    targets: Sequence[Tensor]
    optimiser: torch.optim.Optimizer

    def __init__(self, problem: Problem) -> None:
        self.model = problem.model
        self._latent = problem.z

    @property
    def latent(self) -> Tensor:
        """z_0."""
        return self._latent

    def descend(self, loss: Tensor) -> None:
        """One step of the weights."""
        step_down(self.optimiser, self.parameters, loss)

    def update_targets(self, tau: float) -> None:
        """Move the target weights."""
        polyak_update(self.targets, self.parameters, tau)


class WeightsMover(ActorMover):
    """All weights of the actor move, from the frozen model's."""

    def __init__(self, problem: Problem, learning_rate: float) -> None:
        super().__init__(problem)
        self.policy = stacked_actor(problem)
        self.target = self.policy.copied()
        self.parameters = list(self.policy.parameters.values())
        self.targets = list(self.target.values())
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True)

    def act(self, obs: Tensor) -> Tensor:
        """pi(s, z_0) with the weights as they move."""
        return self.policy(obs, self._latent)

    def target_act(self, obs: Tensor) -> Tensor:
        """pi(s, z_0) with the target weights."""
        return self.policy(obs, self._latent, parameters=self.target)


class FreshMover(ActorMover):
    """A new actor for every task, tanh(MLP(s)), that knows nothing of the model's, nor reads z."""

    def __init__(
        self, problem: Problem, hidden: int, learning_rate: float, draws: Generators
    ) -> None:
        super().__init__(problem)
        domain = problem.domain
        self.policy = draws.network(
            len(problem.tasks),
            lambda n: ParallelMLP(n, domain.obs_dim, hidden, domain.action_dim),
        )
        self.target = copy.deepcopy(self.policy).requires_grad_(False)
        self.parameters = list(self.policy.parameters())
        self.targets = list(self.target.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate)

    def act(self, obs: Tensor) -> Tensor:
        """The actors' actions."""
        return self.policy(self.model.normalise(obs)).tanh()

    def target_act(self, obs: Tensor) -> Tensor:
        """The target actors' actions."""
        return self.target(self.model.normalise(obs)).tanh()
