"""Arrays of objects: what belongs to the rows of other arrays, an entry None where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def object_array(items: Sequence[Any]) -> np.ndarray:
    """(N,) objects; numpy left alone would look into them."""
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array


def move_all(items: np.ndarray, geometry: Any) -> np.ndarray:
    """(N,) masks or poses, or None, through a geometry."""
    return object_array([None if item is None else item.moved(geometry) for item in items.tolist()])
