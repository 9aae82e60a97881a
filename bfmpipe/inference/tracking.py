"""Zero-shot inference of tracking a motion: a latent a step.

    z_t = project_z(mean of w(g) over g = frame t, ..., frame t + L - 1)

with w(g) as in `inference.goal`: phi(g) for FB. Frame t is where step t should end, so the state
that the motion starts from is not among the frames. At the end the windows shrink to the frames
that are left. Tirinzoni et al. 2025, L = 8.
"""

import torch
from torch import Tensor

from bfmpipe.agents import Model
from bfmpipe.inference.goal import goal_weights
from bfmpipe.inference.reward import Inference
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


@torch.no_grad()
def infer_tracking(
    model: Model,
    frames: Tensor,
    config: Inference,
    sample: Tensor | None = None,
    *,
    window: int = 8,
) -> Tensor:
    """z_t (T, d) of the module's equation.

    Args:
        model: a frozen BFM.
        frames: (T, obs_dim), the motion's observations, one a control step, without its start.
        config: see `infer_goal`.
        sample: see `infer_goal`.
        window: L, frames ahead that a latent is the mean of.

    Raises:
        UserError: for a window of no frames; or where a sample is needed and there is none.
    """
    if window < 1:
        raise UserError(f"a tracking window of {window} frames; at least 1 is needed")
    w = goal_weights(model, frames, config, sample)
    ahead = w.clone()
    for k in range(1, min(window, len(w))):
        ahead[:-k] += w[k:]
    return project_z(ahead)  # of a sum as of a mean
