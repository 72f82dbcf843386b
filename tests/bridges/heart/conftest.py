"""A network learns eight scenes by heart through its links, with its own losses."""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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

PICTURES, LONGEST, WIDTH = 8, 192, 32
ENOUGH, COURSES = 0.9, 3


def scenes(task: str, least: float = 14.0, *, single: bool = False) -> list[Sample]:
    """Scenes, asked for up to four kinds of thing that are there, largest first; what is smaller than ``least`` is
    left out, with ``single`` kinds of which there are several too."""
    data, found = open_dataset("scenes", "train", task=task), []
    for index in range(200):
        for sample in data.ask_all(index):
            turn = sample.turns[0]
            target = turn.target
            sides = target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]
            keep = (sides.min(1) >= least) & ~target.ignored
            if target.poses is not None:
                keep &= np.array([pose is not None and pose.known.sum() > 8 for pose in target.poses], bool)
            areas = sides.prod(1)
            names: list[int] = []
            for name in sorted(
                set(target.phrase[keep].tolist()), key=lambda n: -areas[keep & (target.phrase == n)].max()
            ):
                if single and (target.phrase == name).sum() > 1:
                    continue
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


def learn(bench: Bench, samples: list[Sample], kind: Kind) -> tuple[float, float]:
    """How well the decoder found its samples once it had learned them, and how large the gradient of its words was at
    the start.

    How many steps it takes hangs on how products are rounded, so on the processor; that they are learned does not:
    what is not there after one course of steps gets another.
    """
    torch.manual_seed(0)
    decoder, words = bench.built(stirred=0.0).train(), Words(bench, samples)
    if kind.settled:
        settle(decoder, words)
    groups = [*decoder.parameters(), words.table]
    learns = torch.optim.AdamW([p for p in groups if p.requires_grad], lr=kind.lr, weight_decay=1e-4)
    first = found = 0.0
    for course in range(COURSES):
        plan = torch.optim.lr_scheduler.OneCycleLR(learns, kind.lr, total_steps=kind.steps, pct_start=0.1)
        for step in range(kind.steps):
            start = step * kind.batch % len(samples)
            made = words.stage(samples[start : start + kind.batch], decoder)
            counts = decoder.counts(made.links, made.ctx)
            loss = sum((value / counts[name] for name, value in made.loss().items()), torch.zeros(()))
            learns.zero_grad()
            loss.backward()
            if not course and not step:
                first = float(gradient(words.table))
            nn.utils.clip_grad_norm_([p for p in groups if p.grad is not None], 1.0)
            learns.step()
            plan.step()
        report = score(decoder.eval(), words)
        found = float((report["poses"]["person"] if kind.finder else report)["AP50"])
        print(f"AP50 {found:.3f} after {(course + 1) * kind.steps} steps")
        if found > ENOUGH:
            break
        decoder.train()
    return found, first


@torch.no_grad()
def settle(decoder: Decoder, words: Words) -> None:
    """Give batch normalisation the statistics of these pictures, layer by layer. A bridge keeps them as it finds them,
    as they come with published weights; a network from scratch has none."""
    seen: dict[nn.Module, int] = defaultdict(int)

    def take(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] += 1
        values = inputs[0].movedim(1, 0).flatten(1)
        spread = values.var(1, unbiased=False)
        layer.running_mean.lerp_(values.mean(1), 1 / seen[layer])
        # Of a channel that is dead there is nothing to enlarge.
        layer.running_var.lerp_(spread.clamp(min=0.1 * float(spread.mean())), 1 / seen[layer])

    taking = [layer.register_forward_pre_hook(take) for layer in decoder.modules() if hasattr(layer, "running_mean")]
    words.stage(words.samples, decoder).predict()
    for one in taking:
        one.remove()


def gradient(table: Tensor) -> Tensor:
    assert table.grad is not None, "no gradient reaches the words"
    return table.grad.abs().sum()


@torch.no_grad()
def score(decoder: Decoder, words: Words) -> dict[str, Any]:
    """The metric of the task that was learned, on what it was learned from."""
    asked = words.samples[0].turns[0].task
    metric = METRICS[next(task.metric for task in decoder.tasks if task.name == asked)]((), threshold=None)
    for key, sample in enumerate(words.samples):
        made = words.stage([sample], decoder)
        roots = [meta for meta in made.links.meta if meta.parent < 0]
        links = [
            LinkResult(meta=meta, decoder=decoder.name, result=result)
            for meta, result in zip(roots, made.predict(), strict=True)
        ]
        metric.add(sample.turns[0], Answer(text="", links=tuple(links), pictures=sample.pictures), key=key)
    return metric.compute()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A network, the package it needs, and what it takes to learn.

    Args:
        steps: of one course (``learn``).
        batch: scenes a step.
        settled: whether its batch normalisation has to be (``settle``).
        group_norm: groups of what takes its place, if anything does.
        single: whether it is asked only for what there is one of (``scenes``): one mask shows all that a phrase means.
        finder: of an estimator of poses, the network that finds the things.
        settings: more of its configuration.
    """

    decoder: str
    network: Callable[[], dict[str, Any]]
    package: str = "transformers"
    steps: int = 200
    lr: float = 2e-3
    batch: int = PICTURES
    task: str = "detection"
    settled: bool = False
    group_norm: int | None = None
    single: bool = False
    finder: dict[str, Callable[[], dict[str, Any]]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        shared: dict[str, Any] = {"network": self.network(), "width": WIDTH, **self.settings}
        if self.group_norm is not None:
            shared["group_norm"] = self.group_norm
        if self.finder is None:
            return {**shared, "longest": LONGEST}
        ((name, network),) = self.finder.items()
        return {**shared, "threshold": 0.0, "boxes": {name: {"network": network(), "longest": LONGEST, "width": WIDTH}}}


@pytest.fixture(scope="session")
def check_by_heart() -> Callable[..., None]:
    """Boxes, masks or poses of what was learned come back, and the words have a gradient from the first step on; takes
    what ``Kind`` does."""
    return lambda **keys: _check(Kind(**keys))


def _check(kind: Kind) -> None:
    if importlib.util.find_spec(kind.package) is None:
        pytest.skip(f"{kind.package} is not installed")
    importlib.import_module(kind.package)  # it registers what it has
    samples = scenes(kind.task, single=kind.single)
    case = Case(config=kind.config, sample=lambda *_, **__: samples[0], options={"threshold": 0.0})
    bench = Bench(kind.decoder, case)
    found, first = learn(bench, samples, kind)
    assert first > 0, "the words have no gradient"
    assert found > ENOUGH
