"""Detectors of a toolbox learn eight scenes by heart through their links, with its own losses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionllm import open_dataset
from visionllm.core.answer import Answer, LinkResult
from visionllm.core.sample import BoxTarget, Sample
from visionllm.decoders import Decoder
from visionllm.metrics import METRICS
from visionllm.testing import Case
from visionllm.testing.bench import Bench, Stage
from visionllm.testing.toolboxes import mmdet_dino, mmdet_retinanet

PICTURES = 8


def scenes(task: str, least: float = 14.0) -> list[Sample]:
    """Scenes, asked for up to four kinds of thing that are there, largest first; what is smaller than ``least`` is
    left out."""
    data, found = open_dataset("scenes", "train", task=task), []
    for index in range(200):
        for sample in data.ask_all(index):
            turn = sample.turns[0]
            target = turn.target
            sides = target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]
            keep = (sides.min(1) >= least) & ~target.ignored
            if target.poses is not None:
                keep &= np.array([pose is not None and pose.known.sum() > 8 for pose in target.poses])
            areas = sides.prod(1)
            names: list[int] = []
            for name in sorted(
                set(target.phrase[keep].tolist()), key=lambda n: -areas[keep & (target.phrase == n)].max()
            ):
                if len(names) < 4 and (keep & np.isin(target.phrase, [*names, name])).sum() <= 6:
                    names.append(name)
            keep &= np.isin(target.phrase, names)
            if not keep.any():
                continue
            place = {old: new for new, old in enumerate(names)}
            kept = {key: None if value is None else value[keep]
                    for key, value in (("masks", target.masks), ("poses", target.poses))}  # fmt: skip
            own = BoxTarget(
                boxes_xyxy=target.boxes_xyxy[keep],
                phrase=np.array([place[old] for old in target.phrase[keep].tolist()], np.int64), **kept,
            )  # fmt: skip
            phrases = tuple(turn.phrases[old] for old in names)
            parts = tuple(turn.parts[old] for old in names) if turn.parts else ()
            found.append(sample.with_turns(replace(turn, phrases=phrases, parts=parts, target=own, question=None)))
            break
        if len(found) == PICTURES:
            return found
    raise AssertionError("not enough scenes")


class Words(nn.Module):
    """Links of phrases, learned: a table in place of a language model."""

    def __init__(self, bench: Bench, samples: list[Sample]) -> None:
        super().__init__()
        self.bench, self.samples = bench, samples
        stage = bench.stage(samples)
        names = sorted({(meta.token, meta.phrase) for meta in stage.links.meta})
        self.rows = {name: i for i, name in enumerate(names)}
        count = stage.links.queries[0]
        self.table = nn.Parameter(torch.randn(len(names), count, stage.links.states.shape[1]))

    def stage(self, samples: list[Sample], decoder: Decoder) -> Stage:
        made = self.bench.stage(samples, decoder)
        index = torch.tensor([self.rows[(meta.token, meta.phrase)] for meta in made.links.meta])
        made.links = replace(made.links, states=self.table[index].flatten(0, 1))
        return made


def learn(bench: Bench, samples: list[Sample], *, steps: int, lr: float = 1e-3) -> tuple[Decoder, Words, float]:
    """The decoder, its words, and how large the gradient of the words was at the start."""
    torch.manual_seed(0)
    decoder, words = bench.built(stirred=0.0).train(), Words(bench, samples)
    groups = [*decoder.parameters(), words.table]
    learns = torch.optim.AdamW([p for p in groups if p.requires_grad], lr=lr, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(learns, lr, total_steps=steps, pct_start=0.1)
    first = 0.0
    for step in range(steps):
        made = words.stage(samples, decoder)
        counts = decoder.counts(made.links, made.ctx)
        loss = sum((value / counts[name] for name, value in made.loss().items()), torch.zeros(()))
        learns.zero_grad()
        loss.backward()
        if not step:
            first = float(gradient(words.table))
        nn.utils.clip_grad_norm_([p for p in groups if p.grad is not None], 1.0 if step else 1e9)
        learns.step()
        plan.step()
    return decoder.eval(), words, first


def gradient(table: Tensor) -> Tensor:
    assert table.grad is not None, "no gradient reaches the words"
    return table.grad.abs().sum()


@torch.no_grad()
def score(decoder: Decoder, words: Words) -> dict[str, Any]:
    """The metric of the decoder's task on what was learned."""
    metric = METRICS[decoder.tasks[0].metric]((), threshold=None)
    for key, sample in enumerate(words.samples):
        made = words.stage([sample], decoder)
        roots = [meta for meta in made.links.meta if meta.parent < 0]
        links = [
            LinkResult(meta=meta, decoder=decoder.name, result=result)
            for meta, result in zip(roots, made.predict(), strict=True)
        ]
        metric.add(sample.turns[0], Answer(text="", links=tuple(links), pictures=sample.pictures), key=key)
    return metric.compute()


LONGEST = 192

# Keys of the network, steps.
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "retinanet": (mmdet_retinanet, 150),
    "dino": (mmdet_dino, 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_eight_scenes_by_heart(kind: str) -> None:
    if importlib.util.find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed")
    network, steps = KINDS[kind]
    samples = scenes("detection")
    config = {"network": network(), "longest": LONGEST, "width": 32}
    bench = Bench("mmdet", Case(config=config, sample=lambda *_, **__: samples[0], options={"threshold": 0.0}))
    decoder, words, first = learn(bench, samples, steps=steps)
    assert first > 0, "the words have no gradient"
    assert score(decoder, words)["AP50"] > 0.9
