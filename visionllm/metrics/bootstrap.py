"""How sure a mean is: what it would have been on other pictures like these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 300


def interval(groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    """95 % interval of the mean of all values: groups drawn with replacement (Efron 1979); None without values.

    Args:
        groups: values that belong together, such as those of one picture: they are drawn together.
    """
    sums, counts = np.array([[sum(own), len(own)] for own in groups], np.float64).reshape(-1, 2).T
    if not counts.sum():
        return None
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    drawn = weights @ counts
    means = (weights @ sums)[drawn > 0] / drawn[drawn > 0]
    return [float(np.quantile(means, q)) for q in (0.025, 0.975)]
