"""Several models of one architecture, called as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bfmpipe.agents.base import Model
from bfmpipe.types import UserError


class Stack(Model):
    """S models side by side: the rows of every input belong to them in S equal blocks.

    Row by row it gives, to the last bit, what the row's own model gives: the models are called one
    after the other. On a CPU that takes half the time of one batched call by `torch.func.vmap`.

    Args:
        models: frozen, of equal settings but for their weights; they stay as they are.

    Raises:
        UserError: where the models differ in more than weights.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        first = models[0]
        super().__init__(first.config, first.obs_dim, first.action_dim)
        for model in models:
            same = type(model) is type(first) and model.config == first.config
            if not same or (model.obs_dim, model.action_dim) != (self.obs_dim, self.action_dim):
                raise UserError(
                    "models of different agents, settings or domains cannot be adapted as one; "
                    "give models that differ in their seed alone"
                )
        self.models = tuple(models)
        self.inference_weights = first.inference_weights  # type: ignore[misc]

    def _each(self, name: str, *inputs: Tensor, rows: int = 0, **settings: int) -> Tensor:
        """A function of every model, on its block of the inputs' first axis.

        `rows` is the axis of the output that goes by rows.
        """
        blocks = zip(*(x.chunk(len(self.models)) for x in inputs), strict=True)
        outputs = [
            getattr(model, name)(*block, **settings)
            for model, block in zip(self.models, blocks, strict=True)
        ]
        return torch.cat(outputs, rows)

    def normalise(self, obs: Tensor) -> Tensor:
        """Observations, each block normalised by its own model."""
        return self._each("normalise", obs)

    def encode(self, obs: Tensor, octaves: int) -> Tensor:
        """Observations, each block encoded by its own model."""
        return self._each("encode", obs, octaves=octaves)

    def psi_obs(self, obs: Tensor) -> Tensor:
        """What the layers of psi read, each block by its own model."""
        return self._each("psi_obs", obs)

    def phi(self, obs: Tensor) -> Tensor:
        """State features (n, d)."""
        return self._each("phi", obs)

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Successor features (heads, n, d)."""
        return self._each("psi", obs, action, z, rows=1)

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """The deterministic policies' actions (n, action_dim)."""
        return self._each("actor", obs, z)

    def q(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values psi(s, a, z)^T w, (n,)."""
        return self._each("q", obs, action, z, w.expand_as(z))

    def q_pairs(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values (rows, B, K) of all pairs; the first axis of every input goes by rows."""
        return self._each("q_pairs", obs, action, z, w)
