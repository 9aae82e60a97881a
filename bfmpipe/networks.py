"""Networks the models share: parallel heads, embeddings, forward map, backward map, actor.

Shapes: n rows, `heads` networks side by side, inputs (n, features), outputs of a map with heads
(heads, n, features). Initialisation is orthogonal with zero bias.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from bfmpipe.kernels import Embedding, Linear, Network

Architecture = Literal["concatenated", "two_embeddings"]


def project_z(x: Tensor) -> Tensor:
    """sqrt(d) x / |x| along the last axis: the sphere that latents live on."""
    return math.sqrt(x.shape[-1]) * torch.nn.functional.normalize(x, dim=-1)


def waves(x: Tensor, octaves: int) -> Tensor:
    """sin(2^j x) and cos(2^j x) for j < octaves: (..., features) -> (..., 2 octaves features).

    A network that reads them can follow edges finer than its natural smoothness
    (Tancik et al. 2020).
    """
    angles = torch.cat([x * 2.0**j for j in range(octaves)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ParallelLinear(nn.Module):
    """`heads` linear layers as one product: (n, in) or (heads, n, in) -> (heads, n, out)."""

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(heads, 1, out_features))
        for head in self.weight:
            nn.init.orthogonal_(head.data.t())

    def layer(self) -> Linear:
        """The layer as the kernels take it."""
        return Linear(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, (heads, n, out)."""
        return torch.baddbmm(self.bias, x.expand(len(self.weight), -1, -1), self.weight)


class ParallelLayerNorm(nn.Module):
    """LayerNorm over the last axis of (heads, n, features), with its own scale in every head."""

    def __init__(self, heads: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, features))
        self.bias = nn.Parameter(torch.zeros(heads, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input, (heads, n, features)."""
        normalised = torch.nn.functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias, normalised, self.weight)


def _embedding(heads: int, in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        ParallelLinear(heads, in_features, hidden),
        ParallelLayerNorm(heads, hidden),
        nn.Tanh(),
        ParallelLinear(heads, hidden, out_features),
        nn.ReLU(),
    )


def _layers_of_embedding(embedding: nn.Sequential) -> Embedding:
    first, norm, _, second, _ = embedding
    assert isinstance(first, ParallelLinear)
    assert isinstance(norm, ParallelLayerNorm)
    assert isinstance(second, ParallelLinear)
    return Embedding(first.layer(), norm.weight, norm.bias, second.layer())


class ConditionedMap(nn.Module):
    """A map of two inputs that share the observation: (obs, left) and (obs, right) -> features.

    With architecture "two_embeddings", each pair has an embedding of half the width and their
    concatenation passes a trunk; with "concatenated", one MLP reads (obs, left, right) at once,
    three to four times cheaper.

    Args:
        heads: number of networks side by side.
        obs_dim: width of the observation.
        left_dim: width of what conditions the first embedding.
        right_dim: width of what conditions the second one; 0 for the observation alone.
        hidden: width of the hidden layers.
        out_dim: width of the output.
        architecture: see above.
        trunk_layers: hidden layers of the trunk of "two_embeddings".
    """

    def __init__(
        self,
        heads: int,
        obs_dim: int,
        left_dim: int,
        right_dim: int,
        hidden: int,
        out_dim: int,
        *,
        architecture: Architecture,
        trunk_layers: int,
    ) -> None:
        super().__init__()
        self.concatenated = architecture == "concatenated"
        if self.concatenated:
            self.trunk = _embedding(heads, obs_dim + left_dim + right_dim, hidden, hidden)
        else:
            half = hidden // 2
            self.left = _embedding(heads, obs_dim + left_dim, hidden, half)
            self.right = _embedding(heads, obs_dim + right_dim, hidden, half)
            layers: list[nn.Module] = []
            for _ in range(trunk_layers):
                layers += [ParallelLinear(heads, hidden, hidden), nn.ReLU()]
            self.trunk = nn.Sequential(*layers)
        self.out = ParallelLinear(heads, hidden, out_dim)

    def forward(self, obs: Tensor, left: Tensor, right: Tensor | None = None) -> Tensor:
        """Features (heads, n, out_dim) of obs (n, obs_dim), left (n, left_dim), right."""
        rest = [] if right is None else [right]
        if self.concatenated:
            hidden = torch.cat([obs, left, *rest], dim=-1)
        else:
            left_half = self.left(torch.cat([obs, left], dim=-1))
            right_half = self.right(torch.cat([obs, *rest], dim=-1))
            hidden = torch.cat([left_half, right_half], dim=-1)
        return self.out(self.trunk(hidden))

    def layers(self) -> Network:
        """The map as sf_evaluate takes it: of obs, z (here left) and action (right)."""
        if self.concatenated:
            return Network(_layers_of_embedding(self.trunk), None, (), self.out.layer())
        trunk = tuple(layer.layer() for layer in self.trunk if isinstance(layer, ParallelLinear))
        left, right = (_layers_of_embedding(e) for e in (self.left, self.right))
        return Network(left, right, trunk, self.out.layer())


class BackwardMap(nn.Module):
    """State features (n, out_dim) on the sphere: Linear, LayerNorm, tanh, hidden layers, Linear."""

    def __init__(self, obs_dim: int, hidden: int, hidden_layers: int, out_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(obs_dim, hidden), nn.LayerNorm(hidden), nn.Tanh()]
        for _ in range(hidden_layers):
            layers += [nn.Linear(hidden, hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, out_dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight.data)
                nn.init.zeros_(layer.bias.data)

    def forward(self, obs: Tensor) -> Tensor:
        """Features (n, out_dim) of obs (n, obs_dim)."""
        return project_z(self.layers(obs))


class Actor(nn.Module):
    """Deterministic actions tanh(MLP(obs, z)), (n, action_dim), in [-1, 1]."""

    def __init__(
        self,
        obs_dim: int,
        z_dim: int,
        hidden: int,
        action_dim: int,
        *,
        architecture: Architecture,
        trunk_layers: int,
    ) -> None:
        super().__init__()
        self.map = ConditionedMap(
            1,
            obs_dim,
            z_dim,
            0,
            hidden,
            action_dim,
            architecture=architecture,
            trunk_layers=trunk_layers,
        )

    def forward(self, obs: Tensor, z: Tensor) -> Tensor:
        """Actions (n, action_dim) of obs (n, obs_dim) and z (n, z_dim)."""
        return torch.tanh(self.map(obs, z)[0])


def add_noise(action: Tensor, std: float, clip: float, generator: torch.Generator) -> Tensor:
    """Actions plus Gaussian noise of `std`, clipped at +-`clip`, kept in [-1, 1].

    The clamp at the ends passes the gradient through, so that an actor can leave them.
    """
    noise = torch.randn(action.shape, generator=generator, device=action.device) * std
    noisy = action + noise.clamp(-clip, clip)
    return action + (noisy.clamp(-1, 1) - action).detach()


def reduce_heads(x: Tensor, pessimism: float) -> Tensor:
    """mean - pessimism |x_1 - x_2| over the first axis of two heads: 0 the mean, .5 the minimum."""
    if pessimism == 0 or len(x) == 1:
        return x.mean(0)
    first, second = x
    return x.mean(0) - pessimism * (first - second).abs()


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau online, all parameters in one launch."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block no gradient of the modules' weights is built."""
    parameters = [p for module in modules for p in module.parameters()]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
