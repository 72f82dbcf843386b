"""How sure a figure is: what it would have been on other pictures like these (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 300


def drawn(groups: int, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(R, groups) int64: how often each group, such as a picture, comes when as many are drawn with replacement."""
    if not groups:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)


def bounds(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of (R,) resampled figures, those left out that are NaN; None where nothing is left."""
    values = values[~np.isnan(values)]
    return [float(np.quantile(values, q)) for q in (0.025, 0.975)] if len(values) else None


def ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Parts over wholes of one shape, NaN where there is no whole."""
    return np.divide(parts, wholes, out=np.full(np.shape(parts), np.nan), where=np.asarray(wholes) != 0)


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis), known.sum(axis))


def ratio_interval(
    parts: Sequence[float] | np.ndarray,
    wholes: Sequence[float] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[float] | None:
    """95 % interval of a sum over a sum, such as pixels of both over pixels of either; None where there is no whole.

    Args:
        parts: of each group, such as a picture.
        wholes: likewise.
    """
    weights = drawn(len(parts), resamples=resamples, seed=seed)
    return bounds(ratio(weights @ np.asarray(parts, np.float64), weights @ np.asarray(wholes, np.float64)))


def interval(groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    """95 % interval of the mean of all values; None without values.

    Args:
        groups: values that belong together, such as those of one picture: they are drawn together.
    """
    return ratio_interval([sum(own) for own in groups], [len(own) for own in groups], resamples=resamples, seed=seed)
