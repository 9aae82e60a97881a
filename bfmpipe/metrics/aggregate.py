"""Aggregates over seeds and tasks (Agarwal et al., NeurIPS 2021), and their intervals.

Scores are arrays (seed, task, ...); whatever follows, such as the time of a curve, is carried
through. Like numpy's reductions, each aggregate takes the ``axis`` pair of seeds and tasks, so
`cluster_bootstrap` computes all replicates at once, and also takes `numpy.mean` and the like.
A NaN among the scores makes the aggregate NaN.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from bfmpipe.types import UserError

Floats = NDArray[np.float64]
Axes = tuple[int, int]

_CHUNK = 2**18  # scores resampled at a time; bounds the memory and changes no result


class Statistic(Protocol):
    """What reduces the axes of seeds and tasks."""

    def __call__(self, scores: Any, axis: Axes) -> Any:
        """Reduce ``axis`` and keep the other axes in their order."""


def iqm(scores: ArrayLike, axis: Axes = (0, 1)) -> Floats:
    """Interquartile mean: the mean without the lowest and the highest quarter of the entries.

    Of n entries, floor(n / 4) are dropped at either end, as by ``scipy.stats.trim_mean(., .25)``.

    Returns:
        The scores' shape without ``axis``.
    """
    pooled = _pool(_scores(scores), axis)
    n = pooled.shape[-1]
    cut = n // 4
    ordered = np.partition(pooled, (cut, n - cut - 1, n - 1), axis=-1)
    middle = ordered[..., cut : n - cut].mean(axis=-1)
    # NaN is ordered last: without this it would be trimmed away unseen.
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)[()]


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, axis: Axes = (0, 1)) -> Floats:
    """Share of the entries above each threshold.

    Args:
        scores: (seed, task, ...).
        thresholds: (threshold,).
        axis: the axes of seeds and tasks.

    Returns:
        (..., threshold).
    """
    pooled = _pool(_scores(scores), axis)[..., np.newaxis, :]
    above = (pooled > np.asarray(thresholds)[:, np.newaxis]).mean(axis=-1)
    return np.where(np.isnan(pooled).any(axis=-1), np.nan, above)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, axis: Axes = (0, 1)) -> Floats:
    """Probability that a run of X scores above a run of Y on a task, averaged over the tasks.

    P = 1/tasks sum_t P(X_t > Y_t) + P(X_t = Y_t) / 2, over all pairs of their seeds.

    Args:
        x: (seed, task, ...).
        y: (seed, task, ...): the same tasks; the number of seeds may differ.
        axis: the axes of seeds and tasks.

    Returns:
        The scores' shape without ``axis``; `.5` where neither is better.
    """
    xs, ys = (np.moveaxis(_scores(a), axis, (-2, -1)) for a in (x, y))
    if xs.shape[:-2] != ys.shape[:-2] or xs.shape[-1] != ys.shape[-1]:
        raise UserError(f"scores of shape {np.shape(x)} and {np.shape(y)} differ in their tasks")
    sign = np.sign(xs[..., :, np.newaxis, :] - ys[..., np.newaxis, :, :])
    return 0.5 + 0.5 * sign.mean(axis=(-3, -2, -1))


def cluster_bootstrap(
    scores: ArrayLike,
    statistic: Statistic,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Percentile interval of a statistic over resampled seeds, each with all its tasks.

    A seed is one pretrained model, which all tasks share: their scores rise and fall together.
    Seeds drawn anew for each task, as rliable's stratified bootstrap has it for runs that share
    nothing, would average that away, and the interval would be too narrow. Whatever is compared
    stands side by side behind (seed, task), and is drawn together. With a single seed the interval
    has no width.

    Args:
        scores: (seed, task, ...).
        statistic: called as ``statistic(samples, axis=(1, 2))`` on (replicate, seed, task, ...);
            returns (replicate, ...).
        replicates: number of bootstrap samples.
        confidence: probability mass between the ends.
        seed: of the random draws; the same seed gives the same interval.

    Returns:
        The low and the high end, each of the statistic's shape.
    """
    runs = _scores(scores)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // runs.size)
    values = []
    for start in range(0, replicates, chunk):
        drawn = rng.integers(len(runs), size=(min(chunk, replicates - start), len(runs)))
        values.append(np.asarray(statistic(runs[drawn], axis=(1, 2))))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), (tail, 1 - tail), axis=0)
    return low, high


def students_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean: mean -+ t s / sqrt(n), t with n - 1 degrees of freedom.

    A bootstrap of three seeds cannot lie beyond the worst and the best of them, and 95 % of it hold
    the truth three times in four; this one holds it as often as it says.

    Args:
        values: (n,), one a seed. One alone says nothing of others: the ends are NaN.
        confidence: probability mass between the ends.

    Returns:
        The low and the high end.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return np.nan, np.nan
    reach = stdtrit(len(x) - 1, (1 + confidence) / 2) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean() - reach), float(x.mean() + reach)


def _scores(scores: ArrayLike) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim < 2 or array.size == 0:
        raise UserError(f"scores must be a filled array (seed, task, ...), not {array.shape}")
    return array


def _pool(scores: Floats, axis: Axes) -> Floats:
    """Gather seeds and tasks into one last axis."""
    moved = np.moveaxis(scores, axis, (-2, -1))
    return moved.reshape(*moved.shape[:-2], -1)
