"""Masks of boxes: where they are learned, where they are cut, and that they can be learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionllm.core.arrays import object_array
from visionllm.core.detections import Detections
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.sample import Sample, Turn
from visionllm.decoders.base import Context
from visionllm.decoders.objects import masks as module
from visionllm.decoders.objects.masks import MARGIN, POINTS, Close, MaskHead, cut, mask_losses
from visionllm.decoders.objects.pixels import Fine

Make = Callable[..., Any]
SIZE = (80, 40)  # of the picture; its map is 20 x 10 cells, padded to 24 x 16
RATIO = torch.tensor([20 / 24, 10 / 16])
BOX = np.array([22.0, 9.0, 58.0, 33.0], np.float32)


def norm(box_xyxy: np.ndarray) -> Tensor:
    x1, y1, x2, y2 = box_xyxy / np.tile(SIZE, 2)
    return torch.tensor([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]], dtype=torch.float32)


def drawn(strength: float) -> tuple[Mask, Tensor]:
    """A rectangle of whole cells, and the (1, 16, 24) map that says where it is."""
    whole = np.zeros(SIZE[::-1], bool)
    whole[12:32, 24:56] = True
    table = torch.full((1, 16, 24), -strength)
    table[0, 3:8, 6:14] = strength
    return Mask.of(whole), table


def test_a_right_map_costs_nothing_and_a_wrong_one_much() -> None:
    mask, table = drawn(30.0)
    for sign, low, high in ((1.0, 0.0, 0.25), (-1.0, 5.0, 40.0)):
        # On a grid, because drawn points gather at the edge, where a map of cells is unsure.
        losses = mask_losses(table[None] * sign, RATIO[None], [torch.ones(1, 1)], [norm(BOX)], [[mask]], random=False)
        assert low <= float(losses["mask"]) <= high
    assert float(losses["dice"]) > 0.9


def test_points_lie_in_the_box_and_most_of_them_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, table = drawn(3.0)
    seen: list[Tensor] = []
    plain = module._logits
    monkeypatch.setattr(module, "_logits", lambda *given: (seen.append(given[3]), plain(*given))[1])
    torch.manual_seed(0)
    mask_losses(table[None], RATIO[None], [torch.ones(1, 1)], [norm(BOX)], [[mask]])
    candidates, points = (table[0] * torch.tensor(SIZE) for table in seen)
    assert points.shape == (POINTS, 2)
    margin = MARGIN * (BOX[2:] - BOX[:2])
    assert bool((points.numpy() >= BOX[:2] - margin - 1e-3).all())
    assert bool((points.numpy() <= BOX[2:] + margin + 1e-3).all())

    def doubt(places: Tensor) -> float:
        place = places / torch.tensor(SIZE)
        return float((plain(table, RATIO, torch.ones(1, 1), place[None], None).abs() < 2.9).float().mean())

    assert doubt(points) > 1.5 * doubt(candidates)


def test_no_mask_is_no_loss() -> None:
    _, table = drawn(1.0)
    table.requires_grad_()
    losses = mask_losses(table[None], RATIO[None], [torch.zeros(0, 1)], [torch.zeros(0, 4)], [[]])
    assert all(float(value.detach()) == 0 for value in losses.values())
    sum(losses.values()).backward()


def test_a_mask_is_cut_out_of_the_map_in_the_frame_of_the_picture() -> None:
    mask, table = drawn(10.0)
    boxes = np.stack([BOX, [40, 0, 80, 40], [60, 0, 70, 5], [30, 20, 30, 30]]).astype(np.float32)
    found = cut(table, RATIO, torch.ones(4, 1), boxes, SIZE)
    assert found[0].iou(mask) > 0.95
    right = mask.dense() & (np.arange(SIZE[0]) >= 40)[None]
    assert found[1].iou(Mask.of(right)) > 0.95  # nothing outside the box
    assert found[2].area == found[3].area == 0
    assert {one.size for one in found} == {SIZE}


def test_a_close_look_lies_over_its_box_and_margin() -> None:
    """A map that says nothing; the right half of the box seen close, margin and all, is the mask."""
    look = torch.full((1, 8, 8), -5.0)
    look[..., 4:] = 5.0
    close = Close(logits_KSS=look, boxes_K4=norm(BOX))
    (mask,) = cut(torch.zeros(1, 16, 24), RATIO, torch.ones(1, 1), BOX[None], SIZE, close)
    np.testing.assert_array_equal(mask.box_xyxy, [40, 9, 58, 33])
    assert mask.area == 18 * 24
    # One cell left of the middle, of eight along a box of 36 and its margins, is 5.4 pixels wide.
    look = torch.full((1, 8, 8), -5.0)
    look[..., 3] = 5.0
    places = (torch.tensor([[[34.0, 20], [35.5, 20], [39.5, 20], [41.0, 20]]]) / torch.tensor(SIZE)).float()
    assert (Close(logits_KSS=look, boxes_K4=norm(BOX)).at(places)[0] > 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("cells", [None, 12])
def test_masks_are_learned(make_model: Make, boxed: Make, cells: int | None) -> None:
    """Two things of one picture, by heart: a mask turned or shifted could not reach this."""
    model = make_model(mask_width=16, denoising=0, mask_cells=cells)
    if cells is not None:  # by the close look alone: the map says nothing
        torch.nn.init.zeros_(model.decoders["objects"].mask_head.pixel.requires_grad_(False).weight)
        torch.nn.init.zeros_(model.decoders["objects"].mask_head.pixel.bias)
    sample = boxed(phrases=("car", "dog"), boxes=((0, 4, 4, 44, 30), (1, 46, 20, 76, 56)), size=(80, 60))
    rows, columns = np.mgrid[:60, :80]
    first = (columns >= 4) & (columns < 44) & (rows >= 4) & (rows < 30) & (rows - 4 < 26 * (columns - 4) / 40)
    second = (columns >= 46) & (columns < 76) & (rows >= 20) & (rows < 56) & ((columns < 56) | (rows > 44))
    turn = sample.turns[0]
    target = replace(turn.target, masks=object_array([Mask.of(first), Mask.of(second)]))
    sample = sample.with_turns(replace(turn, task="segmentation", target=target))
    optimizer = torch.optim.AdamW(model.decoders.parameters(), lr=3e-3)
    weights = model.loss_weights()
    torch.manual_seed(0)
    batch = model.processor.encode([sample])
    options = model.decoders["objects"].Options(threshold=0.0)
    for _ in range(3):  # how many steps it takes hangs on the processor
        model.train()
        for _ in range(140):
            losses, counts = model(batch), model.counts(batch)
            total = sum(weights[n] * v / max(1.0, counts[n]) for n, v in losses.sums.items() if "/" in n)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            found = model.decoders["objects"].predict(model.links(batch), Context(batch=batch), options)
        shared = [result.masks[0].iou(mask) for result, mask in zip(found, target.masks, strict=True)]
        if min(shared) > 0.7:
            return
    raise AssertionError(shared)


def test_a_close_look_joins_a_trained_model_and_changes_nothing_at_first() -> None:
    fine = Fine(pixels_B3HW=torch.randn(1, 3, 64, 96), map_BMHW=torch.randn(1, 16, 16, 24), ratios_B2=RATIO[None])
    close = MaskHead(32, 16, cells=8).close_all(fine, torch.randn(70, 32), norm(BOX).expand(70, 4))
    assert close is not None
    assert close.logits_KSS.shape == (70, 8, 8)  # in two turns
    assert not bool(close.logits_KSS.any())
    assert MaskHead(32, 16).close_all(fine, torch.randn(1, 32), norm(BOX)) is None


def test_the_area_of_a_phrase_is_by_all_that_speaks_for_it(make_model: Make, boxed: Make) -> None:
    """A threshold that drops every box leaves the area as it is."""
    model = make_model(mask_width=16)
    sample = boxed(phrases=("car",))
    batch = model.processor.encode([sample.with_turns(replace(sample.turns[0], task="segmentation"))])
    decoder = model.decoders["objects"]
    with torch.no_grad():
        for bias in decoder.detector.class_biases:
            bias += 4.6  # scores of a fresh model are about .01
    every, none = (
        decoder.predict(model.links(batch), Context(batch=batch), decoder.Options(threshold=threshold))[0]
        for threshold in (0.0, 1.0)
    )
    assert len(every) > len(none) == 0
    assert every.areas[0].patch.any()
    np.testing.assert_array_equal(every.areas[0].patch, none.areas[0].patch)
    likely = every.likeliest()[1] / 255
    for mask, score in zip(every.masks, every.scores, strict=True):
        if score >= 0.1:
            assert (likely[mask.dense()] >= score - 0.01).all()


def test_one_reply_holds_boxes_and_masks_each_as_alone(make_model: Make, picture: Make, dictate: Make) -> None:
    """The same words routed to boxes and to masks in one reply: typed apart, and as when asked one by one."""
    model = make_model(mask_width=16, phrases_per_pass=1)
    options = {"objects": {"threshold": 0.0}}
    turns = (Turn(task="detection", phrases=("car",)), Turn(task="segmentation", phrases=("dog",), joined=True))
    labels = model.processor.encode([Sample(turns=turns)]).labels[0].tolist()
    dictate(model, [token for token in labels if token != -100])
    both = model.ask(picture(), "detect the car; segment the dog", options=options)
    assert both.text == "<ref>car</ref>[DET]; <ref>dog</ref>[SEG]"
    assert both.detections.phrases == ("car",)
    assert both.masks.phrases == ("dog",)
    assert len(both.detections) > 0
    assert len(both.masks) > 0
    # A link of boxes has the same result whether or not masks are made beside it.
    batch = model.processor.encode([Sample(pictures=(picture(),), turns=turns)])
    links, decoder = model.links(batch), model.decoders["objects"]
    chosen = decoder.Options(threshold=0.0)
    together = decoder.predict(links, Context(batch=batch), chosen)
    for i, kind in enumerate((Detections, Masks)):
        (alone,) = decoder.predict(links.select([i]), Context(batch=batch), chosen)
        assert type(together[i]) is type(alone) is kind
        np.testing.assert_allclose(together[i].scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(together[i].boxes_xyxy, alone.boxes_xyxy, atol=1e-2)
    assert together[1].masks[0].iou(alone.masks[0]) > 0.99
