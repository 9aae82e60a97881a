"""The updates of an agent: draws, losses, descent, target networks; one seed or several at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from bfmpipe.agents.base import Agent, Batch, Draws, Loss
from bfmpipe.config import Config
from bfmpipe.data.tensors import load_training_state, training_state


class LearnerConfig(Config):
    """Where and how the arithmetic is done."""

    device: Literal["cpu", "cuda"] = "cpu"
    """What trains; with cuda the data are held in its memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' products while training; weights, losses and optimisers are float32. On a
    CPU bfloat16 pays with hardware for it (AMX) and hidden layers of 256 or more."""
    compile: bool = False
    """Compile the losses by torch.compile, for GPUs: a minute before the first update, less in
    each. On a CPU the compiled losses are the slower ones."""


class Learner:
    """Trains an agent, or several of one kind as one batched model.

    Several seeds are a leading axis through every weight, batch and draw: each has the generator,
    the data and, but for rounding, the results that it would have alone.

    Args:
        agents: one a seed; they are where the results end up, see `sync`.
        generators: one a seed, on the device that trains.
        config: see LearnerConfig.
    """

    def __init__(
        self, agents: Sequence[Agent], generators: Sequence[torch.Generator], config: LearnerConfig
    ) -> None:
        self.agents = agents
        self.generators = generators
        self.config = config
        self.step = 0
        self.device = generators[0].device
        agent = agents[0]
        self.phases = agent.phases
        for one in agents:
            one.requires_grad_(False).to(self.device)
        states = [{**dict(a.named_parameters()), **dict(a.named_buffers())} for a in agents]
        self.tensors: dict[str, Tensor] = states[0]
        call: Callable[..., Loss] = agent
        if len(agents) > 1:
            self.tensors = _stack(states)
            call = self._all_seeds
        self._call: Callable[..., Loss] = torch.compile(call) if config.compile else call
        self._trained = {
            phase.name: [
                tensor
                for name, tensor in self.tensors.items()
                if name.startswith(tuple(f"{module}." for module in phase.trains))
            ]
            for phase in self.phases
        }
        self.optimisers = {
            phase.name: torch.optim.Adam(
                self._trained[phase.name], lr=phase.learning_rate, fused=True
            )
            for phase in self.phases
        }
        self._targets: list[tuple[list[Tensor], list[Tensor], float]] = []
        for target, (online, tau) in agent.targets.items():
            names = [n for n, _ in agent.get_submodule(target).named_parameters()]
            follower, followed = (
                [self.tensors[f"{module}.{name}"] for name in names] for module in (target, online)
            )
            self._targets.append((follower, followed, tau))

    def update(
        self, batches: Sequence[Batch], *, learning_rate_scale: float = 1.0
    ) -> dict[str, Tensor]:
        """One training step on a batch of each seed; the metrics, detached, (seeds,) or scalars.

        Args:
            batches: one a seed.
            learning_rate_scale: factor on every learning rate, in [0, 1].
        """
        due = [phase for phase in self.phases if self.step % phase.every == 0]
        names = [phase.name for phase in due]
        draws = [
            agent.draw(batch, generator, names)
            for agent, batch, generator in zip(self.agents, batches, self.generators, strict=True)
        ]
        batch, drawn = batches[0], draws[0]
        if len(self.agents) > 1:
            batch, drawn = _stack(batches), _stack(draws)
        shared: Draws = {}
        metrics: dict[str, Tensor] = {}
        for phase in due:
            trained, optimiser = self._trained[phase.name], self.optimisers[phase.name]
            for tensor in trained:
                tensor.requires_grad_(True)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
            ):
                loss: Loss = self._call(phase.name, batch, drawn, shared)
            loss.value.sum().backward()
            for tensor in trained:
                tensor.requires_grad_(False)
            optimiser.param_groups[0]["lr"] = phase.learning_rate * learning_rate_scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            for name, value in loss.buffers.items():
                self.tensors[name].copy_(value)
            shared |= loss.shared
            metrics |= loss.metrics
        with torch.no_grad():
            for target, online, tau in self._targets:
                torch._foreach_lerp_(target, online, tau)
        self.step += 1
        return metrics

    def sync(self) -> None:
        """Write the weights of several seeds back into their agents; one alone has them already."""
        if len(self.agents) == 1:
            return
        for i, agent in enumerate(self.agents):
            for name, tensor in [*agent.named_parameters(), *agent.named_buffers()]:
                tensor.copy_(self.tensors[name][i])

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what comes next, but for the step."""
        return {
            **{f"agent/{name}": tensor for name, tensor in self.tensors.items()},
            **training_state({}, self.optimisers),
            **{f"generator/{i}": g.get_state() for i, g in enumerate(self.generators)},
        }

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go on where `state` was taken, after `step` updates."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[f"agent/{name}"])
        load_training_state(tensors, {}, self.optimisers)
        for i, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator/{i}"])
        self.step = step

    def _all_seeds(self, phase: str, batch: Batch, draws: Draws, shared: Draws) -> Loss:
        """The loss of every seed: each output has the seeds as its first axis."""

        def one(tensors: dict[str, Tensor], *inputs: Any) -> Loss:
            return functional_call(self.agents[0], tensors, (phase, *inputs))

        return vmap(one)(self.tensors, batch, draws, shared)


def _stack(items: Sequence[Any]) -> Any:
    """Tensors in equal tuples and dicts, stacked."""
    return tree_map(lambda *tensors: torch.stack(tensors), *items)
