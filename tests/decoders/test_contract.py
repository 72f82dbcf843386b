"""What every registered decoder owes: the contract of ``decoders/base.py``.

A plugin is tested because it is registered. Beside its class it puts ``contract_case()``, which gives an object with
the attributes of ``Case``; once installed, ``pytest tests/decoders/test_contract.py -k its_name`` runs the suite on it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from visionllm.core.arrays import object_array
from visionllm.core.config import validate
from visionllm.core.errors import ConfigError
from visionllm.core.images import Images
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose, Skeleton
from visionllm.core.sample import Picture, PictureTarget, Sample
from visionllm.core.superlink import SuperLinks
from visionllm.decoders import DECODERS, Context, Decoder
from visionllm.processor import Processor, Tiling
from visionllm.routing.render import Style
from visionllm.routing.vocabulary import Vocabulary

Make = Callable[..., Any]
WIDTH = 32
# Variants of our own decoders; a plugin has one, called after itself.
OWN = [
    "objects", "objects of grounding-dino", "objects with heads of their own", "objects with masks",
    "objects with poses", "objects with all", "generation", "generation of pixels", "editing",
    "restoration",
]  # fmt: skip
NAMES = ("nose", "left paw", "tail")


@dataclass(kw_only=True, frozen=True)
class Case:
    """A decoder made small, and samples it can learn from.

    Args:
        config: keys of its ``Config``; the whole suite runs in seconds on a CPU with it.
        sample: (phrases, size=(width, height), seed=int, empty=bool) -> a training sample; of an ``empty`` one nothing
            that is asked for is there.
        options: keys of its ``Options`` under which nothing found is dropped.
    """

    config: dict[str, Any]
    sample: Callable[..., Sample]
    options: dict[str, Any]


def case_ids() -> list[str]:
    return [*OWN, *(name for name in DECODERS if name not in {own.split()[0] for own in OWN})]


@pytest.fixture(params=case_ids())
def case(request: pytest.FixtureRequest, tiny_network: Make, tiny_diffusion: Make, boxed: Make) -> tuple[str, Case]:
    """Registered name and case."""
    if request.param not in OWN:
        return request.param, sys.modules[DECODERS[request.param].__module__].contract_case()
    name, _, kind = request.param.partition(" ")
    if name == "restoration":
        config = {"width": 8, "blocks": 2, "packing": 2, "condition": 4}
        return name, Case(config=config, sample=partial(drawn, "super_resolution", boxed, times=2), options={})
    if name != "objects":
        # Nothing is left out: a phrase that is has nothing to learn.
        config = {"network": tiny_diffusion(2 if name == "editing" else 1, vae=not kind), "size": 16, "outputs": 5,
                  "mapper_heads": 4, "drop": 0.0}  # fmt: skip
        return name, Case(config=config, sample=partial(drawn, name, boxed), options={"steps": 2})
    networks = {
        OWN[0]: tiny_network(),
        OWN[1]: tiny_network("grounding-dino"),
        OWN[2]: tiny_network(decoder_bbox_embed_share=False, decoder_cls_embed_share=False),
    }
    with_masks, with_poses = request.param in (OWN[3], OWN[5]), request.param in (OWN[4], OWN[5])

    def sample(
        phrases: tuple[str, ...], size: tuple[int, int] = (80, 60), seed: int = 0, empty: bool = False
    ) -> Sample:
        rng = np.random.default_rng(seed)
        low = rng.random((3, 2)) * np.array(size) * 0.5
        boxes = np.concatenate([low, low + np.array(size) * (0.2 + 0.25 * rng.random((3, 2)))], 1)
        named = rng.integers(len(phrases), size=3)
        table = () if empty else tuple((int(p), *box) for p, box in zip(named, boxes, strict=True))
        made = boxed(phrases=phrases, boxes=table, size=size, seed=seed)
        # Every other picture is asked for boxes only: all tasks meet in a batch.
        makers = [posed] * with_poses + [outlined] * with_masks
        return makers[seed // 2 % len(makers)](made) if makers and seed % 2 == 0 else made

    network = networks.get(request.param) or tiny_network()
    config = {"network": network, "longest": 96, "group_norm": 4, "denoising": 12}
    if with_masks:
        config |= {"mask_width": 16, "mask_cells": 8 if with_poses else None}
    if with_poses:
        config["pose_layers"] = 2
    return "objects", Case(config=config, sample=sample, options={"threshold": 0.0})


def drawn(
    task: str, boxed: Make, phrases: tuple[str, ...], size: tuple[int, int] = (80, 60), seed: int = 0,
    empty: bool = False, times: int = 1,
) -> Sample:  # fmt: skip
    """A sample asked for pictures: its own with every colour shifted, by another amount for each phrase, and so many
    times as large."""
    sample = boxed(phrases=phrases, boxes=(), size=size, seed=seed)
    pixels = sample.pictures[0].pixels.repeat(times, 0).repeat(times, 1)
    made = tuple(
        Picture(pixels=np.zeros_like(pixels) if empty else pixels + np.uint8(16 * i % 256)) for i in range(len(phrases))
    )
    return sample.with_turns(replace(sample.turns[0], task=task, target=PictureTarget(pictures=made)))


def outlined(sample: Sample) -> Sample:
    """The sample asked for masks: the ellipse in each box."""
    turn, size = sample.turns[0], sample.pictures[0].size
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    masks = [
        Mask.of(((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1)
        for x1, y1, x2, y2 in turn.target.boxes_xyxy
    ]
    target = replace(turn.target, masks=object_array(masks))
    return sample.with_turns(replace(turn, task="segmentation", target=target))


def posed(sample: Sample) -> Sample:
    """The sample asked for keypoints: three on the diagonal of each box, and one that its things do not have."""
    turn = sample.turns[0]
    skeleton = Skeleton(name="stick", keypoints=NAMES)
    share = np.array([0.2, 0.5, 0.9], np.float32)[:, None]
    poses = [
        Pose(
            points_xy=box[:2] + share * (box[2:] - box[:2]), visibility=np.array([2, 1, 0], np.int8), skeleton=skeleton
        )
        for box in turn.target.boxes_xyxy
    ]
    target = replace(turn.target, poses=object_array(poses))
    parts = tuple((*NAMES, "wing")[: 1 + i % 4] for i in range(len(turn.phrases)))
    return sample.with_turns(replace(turn, task="pose", parts=parts, target=target))


@dataclass(kw_only=True)
class Stage:
    """A decoder and a batch for it."""

    decoder: Decoder
    ctx: Context
    links: SuperLinks
    options: Any


@pytest.fixture
def stage(case: tuple[str, Case], root: Path) -> Make:
    """Build the decoder and everything it needs for some samples; links are numbers out of their phrases."""
    name, described = case
    cls = DECODERS[name]
    tokenizer = Tokenizer.from_file(str(root / "configs" / "models" / "nano" / "tokenizer.json"))
    vocabulary = Vocabulary(tokenizer, cls.tasks)

    def make(samples: Sequence[Sample], *, decoder: Decoder | None = None, noise: float = 0.1) -> Stage:
        if decoder is None:
            decoder = built(cls, described, noise=noise)
        tiling = Tiling(count=lambda size: 1, make=lambda pixels: torch.zeros(1, 3, 4, 4), tokens_per_tile=1)
        pixels = {f"{name}/{role}": spec for role, spec in decoder.pixels.items()}
        batch = Processor(vocabulary, tiling, pixels, 1 << 20).encode(samples, [Style(tree=True)] * len(samples))
        states = [
            states_of(meta.phrase, count) for meta, count in zip(batch.links.meta, batch.links.queries, strict=True)
        ]
        links = SuperLinks(
            states=torch.cat([*states, torch.zeros(0, WIDTH)]).requires_grad_(),
            queries=batch.links.queries, meta=batch.links.meta,
        )  # fmt: skip
        options = validate(cls.Options, described.options, source="options")
        return Stage(decoder=decoder, ctx=Context(batch=batch), links=links, options=options)

    return make


def built(cls: type[Decoder], described: Case, *, noise: float = 0.1, seed: int = 0) -> Decoder:
    """The decoder, its parameters stirred, so that no zero of the initialisation hides a path."""
    torch.manual_seed(seed)
    decoder = cls.from_config(validate(cls.Config, described.config, source="case"), WIDTH).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return decoder


def states_of(phrase: str, count: int) -> Tensor:
    seed = sum((i + 1) * ord(letter) for i, letter in enumerate(phrase))
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def crowd(case: tuple[str, Case]) -> list[Sample]:
    """Pictures of three shapes, one to six phrases each."""
    sample = case[1].sample
    sizes = [(96, 64), (64, 96), (96, 64), (90, 90)]
    return [sample(tuple("abcdef"[: 1 + 2 * i % 6]), size=size, seed=i) for i, size in enumerate(sizes)]


def weights_of(decoder: Decoder) -> set[str]:
    return {loss for task in decoder.tasks for loss in task.loss_weights}


def test_losses_are_finite_sums_and_reach_the_links(case: tuple[str, Case], stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    made.decoder.train()
    losses = made.decoder.loss(made.links, made.ctx)
    assert losses.keys() == made.decoder.counts(made.links, made.ctx).keys() == weights_of(made.decoder)
    assert all(value.shape == () and bool(torch.isfinite(value)) for value in losses.values())
    sum(losses.values()).backward()
    grad = made.links.states.grad
    assert grad is not None
    assert bool(torch.isfinite(grad).all())
    assert bool((grad.abs().amax(1) > 0)[rows_of_roots(made.links)].all()), "some link query learns nothing"


def roots(links: SuperLinks) -> list[int]:
    """The links that results are given for; parts of a thing that is not there have nothing to learn."""
    return [i for i, meta in enumerate(links.meta) if meta.parent < 0]


def rows_of_roots(links: SuperLinks) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(links)), torch.tensor(links.queries))
    return torch.isin(owner, torch.tensor(roots(links)))


def test_losses_reach_every_parameter(stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    made.decoder.train()
    sum(made.decoder.loss(made.links, made.ctx).values()).backward()
    missed = [n for n, p in made.decoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not missed
    assert all(bool(torch.isfinite(p.grad).all()) for p in made.decoder.parameters() if p.grad is not None)


def test_losses_of_a_batch_are_the_sum_of_its_samples(stage: Make, crowd: list[Sample]) -> None:
    """In evaluation mode, where no noise is drawn: the engine divides by counts, so losses must add up."""
    made = stage(crowd)
    with torch.no_grad():
        whole = made.decoder.loss(made.links, made.ctx)
        parts = [stage([sample], decoder=made.decoder) for sample in crowd]
        alone = [part.decoder.loss(part.links, part.ctx) for part in parts]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in alone), atol=1e-3, rtol=1e-4)
    counts = made.decoder.counts(made.links, made.ctx)
    for name, count in counts.items():
        assert count == pytest.approx(sum(part.decoder.counts(part.links, part.ctx)[name] for part in parts))


def result_values(result: Any) -> list[float]:
    """All numbers of a result, in order."""

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for key in sorted(value) for n in numbers(value[key])]
        if isinstance(value, list | tuple):
            return [n for item in value for n in numbers(item)]
        return [float(value)] if isinstance(value, int | float) else []

    # A pixel may be rounded the other way: a step of 255 is less than the tolerance.
    pixels = [one.pixels / 128 for one in result] if isinstance(result, Images) else []
    return numbers(json.loads(json.dumps(result.to_dict()))) + np.concatenate([[], *map(np.ravel, pixels)]).tolist()


def test_batched_equals_single(stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    together = made.decoder.predict(made.links, made.ctx, made.options)
    assert len(together) == len(roots(made.links))
    metas = [made.links.meta[i] for i in roots(made.links)]
    for i, sample in enumerate(crowd):
        part = stage([sample], decoder=made.decoder)
        alone = part.decoder.predict(part.links, part.ctx, part.options)
        own = [result for result, meta in zip(together, metas, strict=True) if meta.sample == i]
        assert len(alone) == len(own)
        for one, other in zip(alone, own, strict=True):
            np.testing.assert_allclose(result_values(one), result_values(other), atol=1e-2, rtol=1e-4)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_results_come_in_the_order_of_the_links(stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    order = list(reversed(range(len(made.links))))
    there = made.decoder.predict(made.links, made.ctx, made.options)
    back = made.decoder.predict(made.links.select(order), made.ctx, made.options)
    for one, other in zip(there, reversed(back), strict=True):
        np.testing.assert_allclose(result_values(one), result_values(other), atol=1e-2, rtol=1e-4)


def test_results_are_of_the_original_picture(stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    metas = [made.links.meta[i] for i in roots(made.links)]
    for meta, result in zip(metas, made.decoder.predict(made.links, made.ctx, made.options), strict=True):
        picture = crowd[meta.sample].pictures[0]
        # What marks a picture keeps its size; pictures that were made stand beside it.
        assert result.draw(picture).size == picture.size or isinstance(result, Images)
        assert result.scores.dtype == np.float32
        assert bool(((result.scores >= 0) & (result.scores <= 1)).all())
        assert result.statements()


def test_no_links(stage: Make, crowd: list[Sample]) -> None:
    made = stage(crowd)
    none = made.links.select([])
    assert made.decoder.predict(none, made.ctx, made.options) == []
    losses = made.decoder.loss(none, made.ctx)
    assert all(float(value) == 0 for value in losses.values())
    assert all(count == 0 for count in made.decoder.counts(none, made.ctx).values())


def test_nothing_is_there(case: tuple[str, Case], stage: Make) -> None:
    made = stage([case[1].sample(("a", "b"), empty=True), case[1].sample(("c",), seed=1, empty=True)])
    made.decoder.train()
    losses = made.decoder.loss(made.links, made.ctx)
    counts = made.decoder.counts(made.links, made.ctx)
    assert losses.keys() <= counts.keys()
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    sum(losses.values()).backward()
    assert bool(torch.isfinite(made.links.states.grad).all())


@pytest.mark.parametrize("count", [1, 200])
def test_one_phrase_and_many(case: tuple[str, Case], stage: Make, count: int) -> None:
    made = stage([case[1].sample(tuple(f"thing {i}" for i in range(count)), seed=2)])
    made.decoder.train()
    losses = made.decoder.loss(made.links, made.ctx)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    assert len(made.decoder.eval().predict(made.links, made.ctx, made.options)) == count


def test_save_and_load(case: tuple[str, Case], tmp_path: Path) -> None:
    cls, described = DECODERS[case[0]], case[1]
    one = built(cls, described, seed=1)
    save_file({name: value.clone() for name, value in one.state_dict().items()}, tmp_path / "x.safetensors")
    other = built(cls, described, seed=2)
    other.load_state_dict(load_file(tmp_path / "x.safetensors"))
    for kind in ("named_parameters", "named_buffers"):
        before = dict(getattr(one, kind)(remove_duplicate=False))
        after = dict(getattr(other, kind)(remove_duplicate=False))
        assert before.keys() == after.keys()
        assert not [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_idle_reaches_every_parameter(case: tuple[str, Case]) -> None:
    """A rank without links must take part in every gather of the others."""
    decoder = built(DECODERS[case[0]], case[1]).train()
    value = decoder.idle()
    assert value.shape == ()
    assert math.isfinite(float(value.detach()))
    (0.0 * value).backward()
    missed = [n for n, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not missed
    assert all(bool((p.grad == 0).all()) for p in decoder.parameters() if p.grad is not None)


def test_a_wrong_key_is_one_line(case: tuple[str, Case]) -> None:
    cls, described = DECODERS[case[0]], case[1]
    for source in (cls.Config, cls.Options):
        keys = described.config if source is cls.Config else {}
        with pytest.raises(ConfigError, match="no_such_key: unknown key") as caught:
            validate(source, {**keys, "no_such_key": 1}, source="x")
        assert "\n" not in str(caught.value)


def test_the_decoder_belongs_to_its_tasks(case: tuple[str, Case]) -> None:
    cls = DECODERS[case[0]]
    assert cls.name == case[0]
    assert cls.tasks
    assert all(task.decoder == case[0] and task.tokens for task in cls.tasks)


def test_training_does_not_hang_on_the_mode_of_a_neighbour(stage: Make, crowd: list[Sample]) -> None:
    """``predict`` in training mode must not draw noise or keep graphs."""
    made = stage(crowd[:1])
    quiet = made.decoder.predict(made.links, made.ctx, made.options)
    loud = made.decoder.train().predict(replace_states(made), made.ctx, made.options)
    np.testing.assert_allclose(result_values(quiet[0]), result_values(loud[0]), atol=1e-2)


def replace_states(made: Stage) -> SuperLinks:
    return replace(made.links, states=made.links.states.detach().clone())
