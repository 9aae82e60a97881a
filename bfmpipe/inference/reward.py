"""Zero-shot inference from rewards on a sample of states.

With features B of the sampled states and their rewards r:

    expectation     w = E[r B]               the value of r is F^T w, for FB by its definition
    least-squares   w = E[B B^T]^-1 E[r B]   B^T w is the best linear fit of r

and z = project_z(w) = sqrt(d) w / |w|. The two agree where the features are orthonormal.
Touati & Ollivier 2021, section 4; Touati, Rapin & Ollivier 2023, section 3.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import Model
from bfmpipe.config import Config
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


class Inference(Config):
    """Settings of zero-shot inference."""

    samples: int = Field(50_000, ge=1)
    """States drawn from the data set; all of it if it is smaller."""
    weights: Literal["expectation", "least-squares"] = "expectation"


class Latent(NamedTuple):
    """Weights w (..., d), in reward units, and the latent z (..., d), on the sphere."""

    w: Tensor
    z: Tensor


@torch.no_grad()
def infer(model: Model, obs: Tensor, reward: Tensor, config: Inference) -> Latent:
    """Infer w and z of one task.

    Args:
        model: a frozen BFM.
        obs: (n, obs_dim), states that were reached.
        reward: (n,), the task's reward on reaching them.
        config: how.

    Raises:
        UserError: where every reward is zero, which says nothing about the task.
    """
    if not bool(reward.any()):
        raise UserError(
            f"all {len(reward)} rewards in the inference data are zero, so the task cannot be "
            "inferred; raise infer.samples, collect data that covers the task, or widen its reward"
        )
    features = model.phi(obs)
    w = features.mT @ reward.to(features) / len(features)
    if config.weights == "least-squares":
        w = torch.linalg.lstsq(features.mT @ features / len(features), w[:, None]).solution[:, 0]
    return Latent(w, project_z(w))
