"""Networks the models share: parallel heads, embeddings, forward map, backward map, actor.

Shapes: n rows, `heads` networks side by side, inputs (n, features), outputs of a map with heads
(heads, n, features). Initialisation is orthogonal with zero bias.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from bfmpipe.kernels import Embedding, Linear, Network

Architecture = Literal["concatenated", "two_embeddings"]


def project_z(x: Tensor) -> Tensor:
    """sqrt(d) x / |x| along the last axis: the sphere that latents live on."""
    return math.sqrt(x.shape[-1]) * torch.nn.functional.normalize(widen(x), dim=-1)


def widen(x: Tensor) -> Tensor:
    """What a product in 16 bits gives, in float32; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.half) else x


def fourier_features(x: Tensor, octaves: int) -> Tensor:
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
        """The normalised input, (heads, n, features), in float32 or wider."""
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # the faster form on a CPU; in float32 it would round otherwise than the published runs
            heads = [
                layer_norm(y, y.shape[-1:], weight[0], bias[0])
                for y, weight, bias in zip(x.float(), self.weight, self.bias, strict=True)
            ]
            return torch.stack(heads) if len(heads) > 1 else heads[0][None]
        normalised = layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias, normalised, self.weight)


class Tanh(nn.Module):
    """tanh; of float32 on a CPU through the logistic function, which torch computes five times as
    fast there, to an absolute error of 2e-7."""

    def forward(self, x: Tensor) -> Tensor:
        """tanh(x)."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return 2 * torch.sigmoid(2 * x) - 1
        return torch.tanh(x)


def _embedding(
    heads: int, in_features: int, hidden: int, out_features: int, depth: int = 2
) -> nn.Sequential:
    layers: list[nn.Module] = [
        ParallelLinear(heads, in_features, hidden),
        ParallelLayerNorm(heads, hidden),
        Tanh(),
    ]
    for _ in range(depth - 2):
        layers += [ParallelLinear(heads, hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, ParallelLinear(heads, hidden, out_features), nn.ReLU())


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
        embedding_layers: layers of an embedding of "two_embeddings"; `layers` needs two.
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
        embedding_layers: int = 2,
    ) -> None:
        super().__init__()
        self.concatenated = architecture == "concatenated"
        if self.concatenated:
            self.trunk = _embedding(heads, obs_dim + left_dim + right_dim, hidden, hidden)
        else:
            half = hidden // 2
            self.left = _embedding(heads, obs_dim + left_dim, hidden, half, embedding_layers)
            self.right = _embedding(heads, obs_dim + right_dim, hidden, half, embedding_layers)
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
        return widen(self.out(self.trunk(hidden)))

    def layers(self) -> Network:
        """The map as sf_evaluate takes it: of obs, z (here left) and action (right)."""
        if self.concatenated:
            return Network(_layers_of_embedding(self.trunk), None, (), self.out.layer())
        trunk = tuple(layer.layer() for layer in self.trunk if isinstance(layer, ParallelLinear))
        left, right = (_layers_of_embedding(e) for e in (self.left, self.right))
        return Network(left, right, trunk, self.out.layer())


class ResidualLayer(nn.Module):
    """Mish(Linear(LayerNorm(x))), (heads, n, out): added to x with `skip`; Mish can be left out."""

    def __init__(
        self,
        heads: int,
        in_features: int,
        out_features: int,
        *,
        skip: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.activation = activation
        self.norm = ParallelLayerNorm(heads, in_features)
        self.linear = ParallelLinear(heads, in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, of x (n, in) or (heads, n, in)."""
        y = self.linear(self.norm(x))
        y = torch.nn.functional.mish(y) if self.activation else y
        return x + y if self.skip else y


class ResidualMap(nn.Module):
    """The map of a ConditionedMap with two embeddings, of residual layers.

    An embedding is an input layer, embedding_layers - 2 layers with a skip, and a layer down to
    half the width; the trunk is trunk_layers layers with a skip on [right, left], in this order.
    The arguments are those of ConditionedMap.
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
        trunk_layers: int,
        embedding_layers: int = 2,
    ) -> None:
        super().__init__()

        def skips(n: int) -> list[nn.Module]:
            return [ResidualLayer(heads, hidden, hidden, skip=True) for _ in range(n)]

        def embedding(in_features: int) -> nn.Sequential:
            return nn.Sequential(
                ResidualLayer(heads, in_features, hidden),
                *skips(embedding_layers - 2),
                ResidualLayer(heads, hidden, hidden // 2),
            )

        self.left = embedding(obs_dim + left_dim)
        self.right = embedding(obs_dim + right_dim)
        self.trunk = nn.Sequential(*skips(trunk_layers))
        self.out = ResidualLayer(heads, hidden, out_dim, activation=False)

    def forward(self, obs: Tensor, left: Tensor, right: Tensor | None = None) -> Tensor:
        """Features (heads, n, out_dim) of obs (n, obs_dim), left (n, left_dim), right."""
        left_half = self.left(torch.cat([obs, left], dim=-1))
        right_half = self.right(obs if right is None else torch.cat([obs, right], dim=-1))
        return self.out(self.trunk(torch.cat([right_half, left_half], dim=-1)))


class BackwardMap(nn.Module):
    """State features (n, out_dim): Linear, LayerNorm, tanh, hidden layers, Linear.

    With `project` they lie on the sphere.
    """

    def __init__(
        self, obs_dim: int, hidden: int, hidden_layers: int, out_dim: int, *, project: bool = True
    ) -> None:
        super().__init__()
        self.project = project
        layers: list[nn.Module] = [nn.Linear(obs_dim, hidden), nn.LayerNorm(hidden), Tanh()]
        for _ in range(hidden_layers):
            layers += [nn.Linear(hidden, hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, out_dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight.data)
                nn.init.zeros_(layer.bias.data)

    def forward(self, obs: Tensor) -> Tensor:
        """Features (n, out_dim) of obs (n, obs_dim)."""
        features = widen(self.layers(obs))
        return project_z(features) if self.project else features


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


def clipped_noise(like: Tensor, std: float, clip: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of `std`, clipped at +-`clip`, of the shape of these actions.

    It is on the generator's device.
    """
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return (noise * std).clamp(-clip, clip)


def perturb(action: Tensor, noise: Tensor) -> Tensor:
    """Actions plus noise, kept in [-1, 1].

    The clamp at the ends passes the gradient through, so that an actor can leave them.
    """
    return action + ((action + noise).clamp(-1, 1) - action).detach()


def reduce_heads(x: Tensor, pessimism: float) -> Tensor:
    """mean - pessimism mean_{i != j} |x_i - x_j| over the first axis, the heads.

    Of two heads, 0 is the mean and .5 the minimum.
    """
    n = len(x)
    if pessimism == 0 or n == 1:
        return x.mean(0)
    if n == 2:
        return x.mean(0) - pessimism * (x[0] - x[1]).abs()
    return x.mean(0) - pessimism * (x[:, None] - x).abs().sum((0, 1)) / (n * n - n)
