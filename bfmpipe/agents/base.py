"""What every BFM is to the rest of the pipeline: a frozen model, and an agent that trains it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bfmpipe.config import PresetConfig
from bfmpipe.kernels import Network, sf_evaluate, sf_evaluate_rows
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


class AgentConfig(PresetConfig):
    """Settings every agent has."""

    z_dim: int = Field(50, ge=2)
    discount: float = Field(0.98, gt=0, lt=1)
    """Of one control step."""
    stride: int = Field(1, ge=1)
    """Control steps a training transition spans, under the mean of its actions. Where exploration
    holds its actions this is the same decision problem on a coarser clock: an action does more,
    a far goal is fewer steps away, and both are learnt sooner. The policy still acts every step.
    Values are counted a control step all the same: psi is scaled by (1 - gamma^stride) /
    (1 - gamma)."""
    batch: int = Field(1024, ge=2)


class Model(nn.Module, ABC):
    """A behavioural foundation model as its users see it: features, successor features, policy.

    psi(s, a, z)^T w is the value of the reward that w stands for under the policy pi(., z). The
    weights w (reward units) and the latent z = project_z(w) are two vectors, never one.
    Observations are raw; the model normalises them itself.
    """

    obs_mean: Tensor
    obs_std: Tensor
    inference_weights: ClassVar[Literal["expectation", "least-squares"]] = "expectation"
    """How the method gets w from rewards: see `inference.reward`."""

    def __init__(self, config: AgentConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))

    @property
    def z_dim(self) -> int:
        """Length d of a latent."""
        return self.config.z_dim

    @property
    def discount(self) -> float:
        """The discount the successor features were trained with."""
        return self.config.discount

    def normalise(self, obs: Tensor) -> Tensor:
        """Observations with zero mean and unit variance over the training data."""
        return (obs - self.obs_mean) / self.obs_std

    def encode(self, obs: Tensor, octaves: int) -> Tensor:
        """What networks beside the model's may read of raw observations (..., obs_dim).

        They are normalised; a model that reads Fourier features of some entries adds
        `octaves` of these.
        """
        return self.normalise(obs)

    @abstractmethod
    def phi(self, obs: Tensor) -> Tensor:
        """State features (n, d) of obs (n, obs_dim)."""

    @abstractmethod
    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Successor features (heads, n, d)."""

    def psi_layers(self) -> Network | None:
        """The layers of psi(s, a, z) = psi_scale * layers(psi_obs(s), z, a), for the kernels.

        None where psi is not made of such layers: then values go through psi itself.
        """
        return None

    def psi_obs(self, obs: Tensor) -> Tensor:
        """What psi's layers read of raw observations (..., obs_dim)."""
        return self.normalise(obs)

    @property
    def psi_scale(self) -> float:
        """See psi_layers."""
        return 1.0

    @abstractmethod
    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """The deterministic policy's actions (n, action_dim)."""

    def q(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values psi(s, a, z)^T w, the mean over heads, (n,); w is (n, d) or (d,)."""
        layers = self.psi_layers()
        if layers is None:
            return (self.psi(obs, action, z).mean(0) * w).sum(-1)
        w = self.psi_scale * w.expand_as(z)
        return sf_evaluate_rows(layers, self.psi_obs(obs), action, z, w)

    def q_pairs(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values (..., B, K) of all pairs of a state and action with a latent.

        obs (..., B, obs_dim), action (..., B, action_dim), z and w (..., K, d), with the same
        leading axes. What depends on the state or the latent alone is computed once.
        """
        layers = self.psi_layers()
        if layers is None:
            B, K = obs.shape[-2], z.shape[-2]
            rows = [x.unsqueeze(-2).expand(*x.shape[:-1], K, -1) for x in (obs, action)]
            rows += [x.unsqueeze(-3).expand(*x.shape[:-2], B, -1, -1) for x in (z, w)]
            flat = (x.reshape(-1, x.shape[-1]) for x in rows)
            return self.q(*flat).view(rows[0].shape[:-1])
        return sf_evaluate(layers, self.psi_obs(obs), action, z, self.psi_scale * w)

    def sample_z(self, n: int, generator: torch.Generator) -> Tensor:
        """n latents (n, d), uniform on the sphere."""
        noise = torch.randn(n, self.z_dim, generator=generator, device=generator.device)
        return project_z(noise)


@torch.no_grad()
def check_outputs(model: Model) -> None:
    """Refuse a model whose functions give other shapes than the interface has.

    Most of these would be broadcast, and give values that are numbers but wrong.

    Raises:
        UserError: for the first function that does.
    """
    n, d = 2, model.z_dim
    obs = torch.zeros(n, model.obs_dim).to(model.obs_mean)
    action = torch.zeros(n, model.action_dim).to(obs)
    z = torch.ones(n, d).to(obs)
    for name, wanted, found in (
        ("phi", (n, d), model.phi(obs)),
        ("psi", ("heads", n, d), model.psi(obs, action, z)),
        ("actor", (n, model.action_dim), model.actor(obs, z)),
    ):
        shape = tuple(found.shape)
        free = name == "psi"  # the number of heads
        if len(shape) != len(wanted) or shape[free:] != wanted[free:]:
            raise UserError(
                f"{type(model).__module__}.{type(model).__qualname__}: {name} gives the shape "
                f"{shape} for {n} rows; valid: ({', '.join(map(str, wanted))})"
            )


class Batch(NamedTuple):
    """n transitions, sampled uniformly; observations are raw.

    obs (n, obs_dim); action (n, action_dim), the mean over the transition's steps; next_obs
    (n, obs_dim), `stride` steps later; future (n, obs_dim), a later state of the same episode, or
    next_obs where the agent asks for none.
    """

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    future: Tensor


class Phase(NamedTuple):
    """One loss of an agent, and what it trains."""

    name: str
    trains: tuple[str, ...]
    """Submodules of the agent whose weights it moves, by their dotted names."""
    learning_rate: float | tuple[float, ...]
    """Of all of them, or one each."""
    every: int = 1
    """Updates to one of this phase."""

    @property
    def rates(self) -> dict[float, tuple[str, ...]]:
        """Each learning rate, and the submodules that it is of."""
        rate = self.learning_rate
        each = rate if isinstance(rate, tuple) else (rate,) * len(self.trains)
        found: dict[float, tuple[str, ...]] = {}
        for module, one in zip(self.trains, each, strict=True):
            found[one] = (*found.get(one, ()), module)
        return found


Tensors = dict[str, Tensor]
_NOTHING: Tensors = {}


class Loss(NamedTuple):
    """What a phase computes; everything but `value` is detached."""

    value: Tensor
    """The scalar to descend."""
    metrics: dict[str, Tensor]
    """Scalars for the table of losses."""
    shared: Tensors = _NOTHING
    """What later phases of the same update read."""
    buffers: Tensors = _NOTHING
    """New values of the agent's buffers, by their dotted names."""


class Agent(nn.Module, ABC):
    """The losses that train a model, phase by phase; `learner.Learner` descends them.

    A loss is a function of weights, batch and draws alone: it has no randomness of its own and
    changes nothing, so that it can be compiled, and run for several seeds at once.
    """

    model: Model
    phases: tuple[Phase, ...]
    """In the order in which an update goes through them."""
    targets: Mapping[str, tuple[str, float]]
    """Target networks: name of the submodule -> name of the one it follows, and tau."""
    watched_loss: ClassVar[str]
    """The metric whose turn, while `q` climbs, rings the divergence alarm."""
    future_discount: float | None = None
    """Where the agent reads Batch.future: the discount of the geometric number of transitions."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.config = config

    def draw(self, batch: Any, generator: torch.Generator, due: Collection[str]) -> Tensors:
        """The random numbers of one update, and what is worked out of the batch beforehand.

        On a GPU this and `forward` run in Python for the first updates only, whose operations on
        the device are then replayed (`graphs`): they must not wait for it, nor change anything in
        Python. Metrics are scalars of one type.

        Args:
            batch: the transitions, a `Batch`, or what else an agent learns from.
            generator: where from.
            due: names of the phases of this update.
        """
        return {}

    @abstractmethod
    def forward(self, phase: str, batch: Any, draws: Tensors, shared: Tensors) -> Loss:
        """The loss of a phase; `shared` is what the earlier ones of the update left."""

    def target_copy(self, module: nn.Module) -> nn.Module:
        """A target network: a frozen copy."""
        return copy.deepcopy(module).requires_grad_(False)
