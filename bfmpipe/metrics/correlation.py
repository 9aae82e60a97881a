"""How well one score orders what another one measures."""

import numpy as np

from bfmpipe.types import Array


def ranks(x: Array) -> Array:
    """Ranks from 0 of a vector (n,), ties averaged."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's correlation of two vectors (n,): Pearson's, of their ranks.

    1 where both give the same order, NaN where one of them is constant.
    """
    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")
