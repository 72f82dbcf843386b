"""What every decoder owes: the conformance kit on our own in all their variants, and on installed plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.arrays import object_array
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose, Skeleton
from visionllm.core.sample import Picture, PictureTarget, Sample
from visionllm.decoders import DECODERS
from visionllm.testing import CHECKS, Bench, Case
from visionllm.testing.bench import case_of
from visionllm.testing.report import run

Make = Callable[..., Any]
# Variants of our own decoders; a plugin has one, called after itself.
OWN = [
    "objects", "objects of grounding-dino", "objects with heads of their own", "objects with masks",
    "objects with poses", "objects with all", "generation", "generation of pixels", "editing",
    "restoration",
]  # fmt: skip
NAMES = ("nose", "left paw", "tail")


def case_ids() -> list[str]:
    return [*OWN, *(name for name in DECODERS if name not in {own.split()[0] for own in OWN})]


@pytest.fixture(params=case_ids(), scope="module")
def bench(request: pytest.FixtureRequest, tiny_network: Make, tiny_diffusion: Make, boxed: Make) -> Bench:
    variant = request.param
    name = variant.partition(" ")[0]
    case = own_case(variant, tiny_network, tiny_diffusion, boxed) if variant in OWN else case_of(name)
    return Bench(name, case)


def own_case(variant: str, tiny_network: Make, tiny_diffusion: Make, boxed: Make) -> Case:
    """One of ``OWN``."""
    name, _, kind = variant.partition(" ")
    if name == "restoration":
        config = {"width": 8, "blocks": 2, "packing": 2, "condition": 4}
        return Case(config=config, sample=partial(drawn, "super_resolution", boxed, times=2), options={})
    if name != "objects":
        # Nothing is left out: a phrase that is has nothing to learn.
        config = {"network": tiny_diffusion(2 if name == "editing" else 1, vae=not kind), "size": 16, "outputs": 5,
                  "mapper_heads": 4, "drop": 0.0}  # fmt: skip
        return Case(config=config, sample=partial(drawn, name, boxed), options={"steps": 2})
    networks = {
        OWN[0]: tiny_network(),
        OWN[1]: tiny_network("grounding-dino"),
        OWN[2]: tiny_network(decoder_bbox_embed_share=False, decoder_cls_embed_share=False),
    }
    with_masks, with_poses = variant in (OWN[3], OWN[5]), variant in (OWN[4], OWN[5])

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

    network = networks.get(variant) or tiny_network()
    config = {"network": network, "longest": 96, "group_norm": 4, "denoising": 12}
    if with_masks:
        config |= {"mask_width": 16, "mask_cells": 8 if with_poses else None}
    if with_poses:
        config["pose_layers"] = 2
    return Case(config=config, sample=sample, options={"threshold": 0.0})


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


@pytest.mark.parametrize("check", CHECKS)
def test_contract(bench: Bench, check: str) -> None:
    outcome = run(check, bench)
    assert outcome.error is None, f"{outcome.what}: {outcome.error}"


def test_two_hundred_phrases(bench: Bench) -> None:
    made = bench.stage([bench.case.sample(tuple(f"thing {i}" for i in range(200)), seed=2)])
    made.decoder.train()
    assert all(bool(torch.isfinite(value)) for value in made.loss().values())
    made.decoder.eval()
    assert len(made.predict()) == 200


def test_normalised_boxes_are_seen(
    tiny_network: Make, tiny_diffusion: Make, boxed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that the kit must find; those of a decoder without boxes are planted in tests/testing."""
    bench = Bench("objects", own_case("objects", tiny_network, tiny_diffusion, boxed))
    assert run("original-pixels", bench).error is None
    whole = DECODERS["objects"].predict

    def normalised(self: Any, *arguments: Any) -> list[Any]:
        return [
            replace(found, boxes_xyxy=(found.boxes_xyxy / (*found.size, *found.size)).astype(np.float32))
            for found in whole(self, *arguments)
        ]

    monkeypatch.setattr(DECODERS["objects"], "predict", normalised)
    assert "normalised" in (run("original-pixels", bench).error or "")
