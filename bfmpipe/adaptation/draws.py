"""The random numbers of a method: every seed has its own, and draws what it would draw alone."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bfmpipe.envs.domain import Domain
from bfmpipe.networks import clipped_noise
from bfmpipe.types import Array

Network = TypeVar("Network", bound=nn.Module)


class Generators:
    """S seeds' generators; the first axis of what is drawn goes by seed, in S equal blocks.

    They are drawn on the CPU, so that another device has the same.

    Args:
        seeds: one each, of one generator of torch and one of NumPy.
        device: where tensors and networks go.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.numpy = [np.random.default_rng(seed) for seed in seeds]
        self.torch = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard Gaussian numbers (rows, *shape)."""
        return self._each(rows, lambda n, g: torch.randn(n, *shape, generator=g, dtype=dtype))

    def uniform(self, rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers (rows, *shape), uniform in [0, 1)."""
        return self._each(rows, lambda n, g: torch.rand(n, *shape, generator=g, dtype=dtype))

    def integers(self, high: int, rows: int, *shape: int) -> Tensor:
        """Integers (rows, *shape), uniform in [0, high)."""
        return self._each(rows, lambda n, g: torch.randint(high, (n, *shape), generator=g))

    def noise(self, like: Tensor, std: float, clip: float = float("inf")) -> Tensor:
        """`clipped_noise` of the shape of these actions (rows, ...)."""
        blocks = zip(like.chunk(len(self.torch)), self.torch, strict=True)
        drawn = torch.cat([clipped_noise(block, std, clip, g) for block, g in blocks])
        return drawn.to(self.device)

    def start_states(self, domain: Domain, n: int) -> Array:
        """n states that the domain's episodes begin with, (n, physics_dim)."""
        return self.by_seed(n, domain.start_states)

    def by_seed(self, n: int, draw: Callable[[int, np.random.Generator], Array]) -> Array:
        """n rows of `draw`, which every seed is asked for its share of."""
        return np.concatenate([draw(n // len(self.numpy), rng) for rng in self.numpy])

    def network(self, rows: int, make: Callable[[int], Network]) -> Network:
        """A module of `rows` networks side by side, each seed's with the weights it has alone.

        Args:
            rows: of all seeds together.
            make: a module of n of them, with n as a factor of every parameter's first axis.
        """
        with torch.random.fork_rng(devices=[]):
            parts = []
            for seed in self.seeds:
                torch.default_generator.manual_seed(seed)
                parts.append(make(rows // len(self.seeds)))
            whole = make(rows)
        with torch.no_grad():
            for p, *own in zip(whole.parameters(), *(m.parameters() for m in parts), strict=True):
                p.copy_(torch.cat(own))
        return whole.to(self.device)

    def _each(self, rows: int, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        drawn = [draw(rows // len(self.torch), generator) for generator in self.torch]
        return (torch.cat(drawn) if len(drawn) > 1 else drawn[0]).to(self.device)
