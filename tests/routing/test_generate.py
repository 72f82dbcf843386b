"""Replies of a batch: short ones do not go along with long ones, and all are what each is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from visionllm.core.sample import Sample, Turn
from visionllm.routing.generate import Step, generate
from visionllm.routing.readout import Text, run_text

Make = Callable[..., Any]
PROMPTS = ("detect the cars", "a", "what is on the left of the very old house?", "two", "find dogs, cats")


def written(model: Any, prompts: Sequence[str], limits: Sequence[int]) -> tuple[Step, int]:
    """The last step, and where the replies start."""
    samples = [Sample(turns=(Turn(question=prompt),)) for prompt in prompts]
    batch = model.processor.encode(samples, reply=False)
    steps = generate(model.mllm, Text.of(batch), None, end=model.vocabulary.end, banned=(), limits=limits)
    return list(steps)[-1], batch.input_ids.shape[1]


@pytest.mark.parametrize("limits", [(1, 2, 14, 3, 9), (14, 1, 1, 1, 1), (3, 3, 3, 3, 3), (1, 9, 2, 9, 9)])
def test_rows_that_are_done_are_set_aside_and_lose_nothing(model: Any, limits: tuple[int, ...]) -> None:
    ran: list[int] = []
    text = model.mllm.text
    model.mllm.text = lambda embeds, *rest, **more: (ran.append(len(embeds)), text(embeds, *rest, **more))[1]
    try:
        step, start = written(model, PROMPTS, limits)
    finally:
        del model.mllm.text
    assert ran == sorted(ran, reverse=True)
    alive = [sum(limit >= count for limit in limits) for count in range(1, max(limits))]
    assert all(rows < 2 * max(1, own) for rows, own in zip(ran[1:], alive, strict=True))
    whole = run_text(model.mllm, step.text, None).cache
    for row, limit in enumerate(limits):
        alone, first = written(model, PROMPTS[row : row + 1], limits[row : row + 1])
        own = step.text.owner[row, start:] >= 0
        assert step.text.ids[row, start:][own].tolist() == alone.text.ids[0, first:].tolist()
        assert int(own.sum()) == limit
        # What the links read: all that stands there but the column of the last step.
        columns = torch.nonzero(step.text.owner[row] >= 0)[:, 0]
        columns = columns[columns < step.cache.get_seq_length()]
        for ours, theirs in zip(step.cache.layers, whole.layers, strict=True):
            torch.testing.assert_close(ours.keys[row][:, columns], theirs.keys[row][:, columns], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                ours.values[row][:, columns], theirs.values[row][:, columns], atol=1e-5, rtol=1e-4
            )
