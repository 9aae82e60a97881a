"""Which of many latents is best for a task, by the model's own values: no environment step.

V[t, k] = mean_b psi(s_b, pi(s_b, z_k), z_k)^T w_t: what the model expects of playing z_k.
"""

import torch
from torch import Tensor

from bfmpipe.agents import Model


@torch.no_grad()
def latent_values(model: Model, obs: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """V (T, K) of the module's equation, in the rewards' units, discounted.

    Args:
        model: the model.
        obs: (B, obs_dim), states to play from.
        z: (K, d), the latents.
        w: (T, d), each task's weights.
    """
    B, K, T = len(obs), len(z), len(w)
    rows = obs.expand(K, -1, -1)
    action = model.actor(rows.flatten(0, 1), z.repeat_interleave(B, dim=0)).view(K, B, -1)
    values = model.q_pairs(rows, action, z[:, None].expand(-1, T, -1), w.expand(K, -1, -1))
    return values.mean(1).T
