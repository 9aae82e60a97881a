"""Losses that several agents share, each a function of features already computed.

Products of features are taken in float32 (or better) even where the networks run in bfloat16.
"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

from bfmpipe.networks import reduce_heads, widen

C = TypeVar("C", bound=Callable[..., Tensor])


def full_precision(function: C) -> C:
    """The function without autocast, on tensors of float32 or wider."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> Tensor:
        device = next(x.device.type for x in args if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*map(_widen, args), **{k: _widen(x) for k, x in kwargs.items()})

    return call  # type: ignore[return-value]


def _widen(x: object) -> object:
    return widen(x) if isinstance(x, Tensor) else x


@full_precision
def measure_loss(
    F: Tensor, B: Tensor, target_F: Tensor, target_B: Tensor, discount: float
) -> Tensor:
    """Contrastive temporal difference of a successor measure, without any n x n matrix.

        sum_p 1/2 mean_{i != j} (F_p,i . B_j - gamma F'_i . B'_j)^2 - sum_p mean_i F_p,i . B_i

    With G = [F_p, -gamma F'] and H = [B, B'] (n x 2d), the sum over all pairs of the squared
    difference is <G^T G, H^T H>; the n diagonal terms are taken off again.

    Args:
        F: (heads, n, d), online, of state, action and latent i.
        B: (n, d), online, of next state j.
        target_F: (n, d), heads reduced.
        target_B: (n, d).
        discount: gamma.
    """
    heads, n, _ = F.shape
    G = torch.cat([F, (-discount * target_F).expand(heads, -1, -1)], dim=-1)
    H = torch.cat([B, target_B], dim=-1)
    everything = ((G.mT @ G) * (H.mT @ H)).sum()
    on_diagonal = (G * H).sum(-1).square().sum()
    return (everything - on_diagonal) / (2 * n * (n - 1)) - (F * B).sum() / n


@full_precision
def pessimistic_measure_loss(
    F: Tensor, B: Tensor, target_F: Tensor, target_B: Tensor, discount: float, pessimism: float
) -> Tensor:
    """`measure_loss` with the target reduce_p F'_p,i . B'_j, by `networks.reduce_heads`.

    The reduction is of each entry, so the n x n matrices are needed; target_F is (heads, n, d).
    """
    _, n, _ = F.shape
    target = discount * reduce_heads(target_F @ target_B.mT, pessimism)
    difference = F @ B.mT - target
    on_diagonal = difference.diagonal(dim1=-2, dim2=-1).square().sum()
    return (difference.square().sum() - on_diagonal) / (2 * n * (n - 1)) - (F * B).sum() / n


@full_precision
def orthonormality_loss(B: Tensor) -> Tensor:
    """1/2 mean_{i != j} (B_i . B_j)^2 - mean_i |B_i|^2, by |B B^T|^2 = |B^T B|^2; B is (n, d)."""
    n = len(B)
    norm = B.square().sum(-1)
    off_diagonal = (B.mT @ B).square().sum() - norm.square().sum()
    return off_diagonal / (2 * n * (n - 1)) - norm.mean()


@full_precision
def covariance(features: Tensor) -> Tensor:
    """E[phi phi^T], not centred, (d, d), of features (n, d)."""
    return features.mT @ features / len(features)


@full_precision
def solve_covariance(features: Tensor, x: Tensor) -> Tensor:
    """C^-1 x_i for each row of x (m, d), C = `covariance` of features (n, d).

    A millionth of the mean variance is added to C, for batches shorter than d.
    """
    C = covariance(features)
    ridge = 1e-6 * C.diagonal().mean().clamp_min(1e-30)
    C = C + ridge * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    # unchecked: a check would wait for the device, and what is no number stops the training
    return torch.linalg.solve_ex(C, x.mT).result.mT


@full_precision
def implied_q_loss(
    F: Tensor, B: Tensor, target_F: Tensor, z: Tensor, discount: float, pessimism: float
) -> Tensor:
    """The Bellman error of F^T z for the reward that z stands for, r_i = B(s'_i)^T C^-1 z_i.

        1/2 sum_p mean_i (F_p,i . z_i - r_i - gamma reduce_p F'_p,i . z_i)^2,   C = E[B B^T]

    Args:
        F: (heads, n, d), online.
        B: (n, d), of the next states; no gradient passes.
        target_F: (heads, n, d).
        z: (n, d).
        discount: gamma.
        pessimism: of the target.
    """
    B = B.detach()
    reward = (B * solve_covariance(B, z)).sum(-1)
    next_q = reduce_heads((target_F * z).sum(-1), pessimism)
    return 0.5 * ((F * z).sum(-1) - (reward + discount * next_q)).square().mean(-1).sum()
