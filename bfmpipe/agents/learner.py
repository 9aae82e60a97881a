"""The updates of an agent: draws, losses, descent, target networks; one seed or several at once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from bfmpipe.agents.base import Agent, Batch, Loss, Phase, Tensors
from bfmpipe.agents.graphs import Graphs
from bfmpipe.agents.products import fast_float32
from bfmpipe.config import Config
from bfmpipe.data.tensors import load_training_state, training_state
from bfmpipe.kernels.extension import without_cuda
from bfmpipe.types import UserError


class LearnerConfig(Config):
    """Where and how the arithmetic is done."""

    device: Literal["cpu", "cuda"] = "cpu"
    """What trains; with cuda the data are held in its memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' products while training; weights, losses and optimisers are float32. On a
    CPU bfloat16 pays with hardware for it (AMX) and hidden layers of 256 or more."""
    compile: bool = False
    """Compile the losses by torch.compile, for GPUs: a minute before the first update, some 1.6
    times as many of them a second. On a CPU the compiled losses are the slower ones."""
    cuda_graphs: bool = True
    """On a GPU, record an update once and replay it by one launch: see `graphs`."""


def check_device(device: str, setting: str, *, kernels: bool = False) -> None:
    """Refuse a device that is unknown, or not there, naming the setting that asks for it.

    Args:
        device: "cpu" or "cuda".
        setting: what it is called.
        kernels: whether bfmpipe's own kernels run there.

    Raises:
        UserError: so.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"{setting} is {device!r}; valid: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{setting} is cuda, but torch finds no usable GPU on this machine; set it to cpu, or "
            "install a torch that is built for the GPU's driver"
        )
    if device == "cuda" and kernels and (problem := without_cuda()):
        reason, mend = problem
        raise UserError(f"{setting} is cuda, but {reason}; set it to cpu{mend and f', or {mend}'}")


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
        recorded = config.cuda_graphs and self.device.type == "cuda"
        self._graphs = Graphs(self._update, generators) if recorded else None
        beside = agents if recorded and len(agents) > 1 else []
        self._streams = [torch.cuda.Stream(self.device) for _ in beside]
        agent = agents[0]
        self.phases = agent.phases
        in_float32 = self.device.type == "cpu" and config.precision == "float32"
        # the compiler refuses a precision set for oneDNN alone
        self._products: Callable[[], AbstractContextManager[None]] = (
            fast_float32 if in_float32 and not config.compile else nullcontext
        )
        for one in agents:
            one.requires_grad_(False).to(self.device)
        states = [{**dict(a.named_parameters()), **dict(a.named_buffers())} for a in agents]
        self.tensors: dict[str, Tensor] = states[0]
        call: Callable[..., Loss] = agent
        if len(agents) > 1:
            self.tensors = _stack(states)
            call = self._all_seeds
        self._call: Callable[..., Loss] = torch.compile(call) if config.compile else call
        self._trained: dict[str, list[Tensor]] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        for phase in self.phases:
            groups: list[dict[str, Any]] = [
                {
                    "params": self._weights(modules),
                    # what is recorded reads its rate from memory
                    "lr": torch.tensor(rate, device=self.device) if recorded else rate,
                }
                for rate, modules in phase.rates.items()
            ]
            self._trained[phase.name] = [tensor for group in groups for tensor in group["params"]]
            self.optimisers[phase.name] = torch.optim.Adam(groups, fused=True, capturable=recorded)
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
        for phase in due:
            self._set_learning_rate(phase, learning_rate_scale)
        with self._products():
            metrics = (self._graphs or self._update)([phase.name for phase in due], batches)
        self.step += 1
        return metrics

    def _weights(self, modules: Sequence[str]) -> list[Tensor]:
        """Those of submodules, by their dotted names."""
        inside = tuple(f"{module}." for module in modules)
        return [tensor for name, tensor in self.tensors.items() if name.startswith(inside)]

    def _set_learning_rate(self, phase: Phase, scale: float) -> None:
        groups = self.optimisers[phase.name].param_groups
        for rate, group in zip(phase.rates, groups, strict=True):
            if self._graphs:
                group["lr"].fill_(rate * scale)
            else:
                group["lr"] = rate * scale

    def _update(self, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
        draws = self._draw(names, batches)
        batch, drawn = batches[0], draws[0]
        if len(self.agents) > 1:
            batch, drawn = _stack(batches), _stack(draws)
        shared: Tensors = {}
        metrics: dict[str, Tensor] = {}
        for name in names:
            trained, optimiser = self._trained[name], self.optimisers[name]
            for tensor in trained:
                tensor.requires_grad_(True)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
            ):
                loss: Loss = self._call(name, batch, drawn, shared)
            loss.value.sum().backward()
            for tensor in trained:
                tensor.requires_grad_(False)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            for buffer, value in loss.buffers.items():
                self.tensors[buffer].copy_(value)
            shared |= loss.shared
            metrics |= loss.metrics
        with torch.no_grad():
            for target, online, tau in self._targets:
                torch._foreach_lerp_(target, online, tau)
        return metrics

    def _draw(self, names: Sequence[str], batches: Sequence[Batch]) -> list[Tensors]:
        """What every seed draws; where updates are recorded, side by side: it is many kernels."""
        inputs = list(zip(self.agents, batches, self.generators, strict=True))
        if not self._streams:
            return [agent.draw(batch, generator, names) for agent, batch, generator in inputs]
        here, found = torch.cuda.current_stream(self.device), []
        for stream, (agent, batch, generator) in zip(self._streams, inputs, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                found.append(agent.draw(batch, generator, names))
        for stream in self._streams:
            here.wait_stream(stream)
        return found

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
        if self._graphs:
            self._graphs.forget()  # the optimisers' tensors are others now

    def _all_seeds(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """The loss of every seed: each output has the seeds as its first axis."""

        def one(tensors: dict[str, Tensor], *inputs: Any) -> Loss:
            return functional_call(self.agents[0], tensors, (phase, *inputs))

        return vmap(one)(self.tensors, batch, draws, shared)


def _stack(items: Sequence[Any]) -> Any:
    """Tensors in equal tuples and dicts, stacked."""
    return tree_map(lambda *tensors: torch.stack(tensors), *items)
