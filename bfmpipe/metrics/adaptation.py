"""What a curve of adaptation shows: its gain, its drop at the start, its steadiness, its area.

Curves are arrays (..., evaluation), all measured at the same ``env_steps`` (evaluation,), the last
of which is the budget. Percentages are of |zero-shot|, so that a fall is a fall where returns are
negative, and NaN where zero-shot is 0: there is nothing to compare with. A NaN in a curve makes
its metrics NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bfmpipe.types import UserError

Floats = NDArray[np.float64]


def improvement(final: ArrayLike, zero_shot: ArrayLike) -> Floats:
    """Gain over zero-shot in %: 100 (final - zero_shot) / |zero_shot|, element by element."""
    return _percent(np.subtract(final, zero_shot), zero_shot)


def initial_drop(
    returns: ArrayLike, env_steps: ArrayLike, zero_shot: ArrayLike, within: float = 0.25
) -> Floats:
    """Largest fall below zero-shot within the first share of the budget, in % of zero-shot.

    Args:
        returns: (..., evaluation).
        env_steps: (evaluation,), increasing, counted from 0.
        zero_shot: (...).
        within: the share; 1 for the largest fall of all.

    Returns:
        (...): 0 where the curve never falls below, but by rounding; NaN where zero-shot is 0, and
        where no evaluation after step 0 lies in the share, for then no drop could have been seen.
    """
    curve, steps = _curve(returns, env_steps)
    early = steps <= steps[-1] * within
    if not np.any(steps[early] > 0):
        return np.full(curve.shape[:-1], np.nan)[()]
    fall = np.subtract(zero_shot, curve[..., early].min(axis=-1))
    return _percent(np.where(fall <= 1e-9 * np.abs(zero_shot), 0, fall), zero_shot)


def monotonicity(means: ArrayLike, standard_errors: ArrayLike) -> Floats:
    """Share of the evaluations that are not below the one before by more than its standard error.

    mean over i of [m_i+1 >= m_i - e_i]; 1 for a curve that never clearly falls.

    Args:
        means: (..., evaluation).
        standard_errors: of the means, in their shape or any that broadcasts to it.

    Returns:
        (...).
    """
    curve = np.asarray(means, dtype=np.float64)
    if curve.ndim < 1 or curve.shape[-1] < 2:
        raise UserError(f"a curve needs two evaluations or more, not shape {curve.shape}")
    errors = np.broadcast_to(np.asarray(standard_errors, dtype=np.float64), curve.shape)
    floor = curve[..., :-1] - errors[..., :-1]
    steady = (curve[..., 1:] >= floor).mean(axis=-1)
    unknown = np.isnan(floor).any(axis=-1) | np.isnan(curve).any(axis=-1)
    return np.where(unknown, np.nan, steady)[()]


def area_under_curve(env_steps: ArrayLike, returns: ArrayLike) -> Floats:
    """Mean height of a curve over its budget, each evaluation held until the next one.

    A straight line between two evaluations would credit a method that updates once in between with
    half of what it gains before it has gained it.

    Args:
        env_steps: (evaluation,), increasing.
        returns: (..., evaluation); the last one has no width.

    Returns:
        (...): in the unit of the returns; a flat curve's area is its height.
    """
    curve, steps = _curve(returns, env_steps)
    return curve[..., :-1] @ np.diff(steps) / (steps[-1] - steps[0])


def _percent(difference: ArrayLike, zero_shot: ArrayLike) -> Floats:
    scale = np.abs(np.asarray(zero_shot, dtype=np.float64))
    return 100 * np.asarray(difference) / np.where(scale == 0, np.nan, scale)


def _curve(returns: ArrayLike, env_steps: ArrayLike) -> tuple[Floats, Floats]:
    """Check a curve and the steps it is measured at."""
    curve = np.asarray(returns, dtype=np.float64)
    steps = np.asarray(env_steps, dtype=np.float64)
    if steps.ndim != 1 or steps.size < 2 or not np.all(np.diff(steps) > 0):
        raise UserError("env_steps must be a list of two increasing numbers or more")
    if curve.shape[-1:] != steps.shape:
        raise UserError(f"returns {curve.shape} must end in the {steps.size} evaluations")
    return curve, steps
