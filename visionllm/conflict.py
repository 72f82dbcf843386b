"""Which data sets pull a shared part of the model apart: the gradients of each alone, compared.

Two data sets fight where the cosine of their gradients is negative: a step that helps one undoes the other
("conflicting gradients": Yu et al. 2020, "Gradient surgery for multi-task learning", section 2.1). The norms tell who
wins: in a sum the longer gradient decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor


def conflicts(
    groups: Mapping[str, Any], parameters: Sequence[Tensor], loss_of: Callable[[Any], Tensor]
) -> dict[str, float]:
    """``pull/A``, the norm of each group's gradient, and ``cos/A|B`` of every two.

    Nothing is written to ``.grad``, and no hook of a distributed wrapper runs. All gradients are held at once: that is
    the memory of the parameters times the number of groups.

    Args:
        groups: name -> what ``loss_of`` takes.
        parameters: the shared part.
        loss_of: the loss of a group as it is trained.
    """
    found = {}
    for name, group in groups.items():
        loss = loss_of(group)
        if not loss.requires_grad:
            found[name] = [torch.zeros_like(parameter) for parameter in parameters]
            continue
        found[name] = list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    norms = {name: _dot(own, own) ** 0.5 for name, own in found.items()}
    report = {f"pull/{name}": norm for name, norm in norms.items()}
    for one, other in combinations(found, 2):
        length = norms[one] * norms[other]
        report[f"cos/{one}|{other}"] = _dot(found[one], found[other]) / length if length else 0.0
    return report


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return float(sum(torch.dot(a.flatten().double(), b.flatten().double()) for a, b in zip(one, other, strict=True)))
