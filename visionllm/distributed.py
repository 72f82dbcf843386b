"""What ranks must agree on: the divisors of the losses, which decoders run, and how they part."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import distributed


def global_counts(accelerator: Any, model: Any, batches: Sequence[Any]) -> dict[str, float]:
    """Divisors of every loss, summed over ranks and the accumulation window: any layout gives one gradient."""
    total: dict[str, float] = {}
    for batch in batches:
        for name, value in model.counts(batch).items():
            total[name] = total.get(name, 0.0) + value
    return summed(accelerator, model, total)


def summed(accelerator: Any, model: Any, values: dict[str, float]) -> dict[str, float]:
    """Values named as losses are, or ``loss`` itself, added up over the ranks; absent ones count as 0."""
    if accelerator.num_processes == 1:
        return values
    # Every rank must bring the same names in the same order.
    names = ["loss", *sorted(model.loss_weights())]
    table = torch.tensor([values.get(name, 0.0) for name in names], device=accelerator.device, dtype=torch.float64)
    return dict(zip(names, accelerator.reduce(table, "sum").tolist(), strict=True))


def agree_on_idle(accelerator: Any, model: Any, batch: Any) -> tuple[str, ...]:
    """Decoders that another rank uses in this step and this rank does not: they run once on nothing."""
    if accelerator.num_processes == 1:
        return ()
    names = list(model.decoders)
    used = torch.tensor([float(name in model.used(batch)) for name in names], device=accelerator.device)
    anyone = accelerator.reduce(used.clone(), "sum")
    return tuple(name for name, own, all_ in zip(names, used, anyone, strict=True) if own == 0 and all_ > 0)


@cache
def leave_at_exit() -> None:
    """Have the process group destroyed when the process ends, while there is a Python for its threads to ask.

    A group's thread drops what it has sent under Python's lock. A group that dies with the interpreter, or with the
    wrapper of a model that was the last to hold it, waits for that thread under the same lock, and neither ends
    (pytorch/pytorch#56297): a wrapper must be let go of before.
    """
    atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)
