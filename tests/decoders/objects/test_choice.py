"""What a phrase means is chosen among all that was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionllm.decoders.objects import criterion
from visionllm.decoders.objects.choice import CANDIDATES, ChoiceHead
from visionllm.decoders.objects.criterion import Truth
from visionllm.decoders.objects.detector import LayerOutput

Make = Callable[..., Any]
WIDTH, LINK, QUERIES = 16, 8, 2


def head_of(*, zeros: bool = False) -> ChoiceHead:
    torch.manual_seed(0)
    head = ChoiceHead(queries=QUERIES, link_width=LINK, width=WIDTH, common=8).eval()
    if not zeros:
        for weight in (
            head.more[2].weight,
            head.kind.asked.weight,
            head.state.asked.weight,
            head.coloured.asked.weight,
        ):
            torch.nn.init.normal_(weight)
    return head


def layer_of(pictures: int, queries: int, phrases: int, seed: int = 0) -> LayerOutput:
    rng = torch.Generator().manual_seed(seed)
    places = torch.rand(pictures, queries, 2, generator=rng)
    sides = 0.05 + 0.2 * torch.rand(pictures, queries, 2, generator=rng)
    return LayerOutput(
        logits_BNP=torch.randn(pictures, queries, phrases, generator=rng),
        boxes_BN4=torch.cat([places, sides], -1),
        hidden_BNC=torch.randn(pictures, queries, WIDTH, generator=rng),
    )


def phrases_of(pictures: int, phrases: int, seed: int = 1) -> Tensor:
    return torch.randn(pictures, phrases, WIDTH, generator=torch.Generator().manual_seed(seed))


def pixels_of(pictures: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Pictures, padded on the right, and what of them is in use."""
    pixels = torch.randn(pictures, 3, 32, 40, generator=torch.Generator().manual_seed(seed))
    return pixels, torch.tensor([[0.8, 1.0]]).expand(pictures, -1)


def test_a_new_comparison_changes_nothing() -> None:
    layer, asked = layer_of(2, 40, 3), phrases_of(2, 3)
    told = head_of(zeros=True)(layer, *pixels_of(len(asked)), asked, torch.zeros(2, 3, dtype=torch.bool), 0)
    assert torch.equal(told.logits_BNP, layer.logits_BNP)


def test_phrases_and_pictures_do_not_see_each_other() -> None:
    head, layer, asked = head_of(), layer_of(2, 40, 3), phrases_of(2, 3)
    none = torch.zeros(2, 3, dtype=torch.bool)
    together = head(layer, *pixels_of(len(asked)), asked, none, 0).logits_BNP
    assert (together - layer.logits_BNP).abs().max() > 0.1
    for b in range(2):
        for p in range(3):
            alone = LayerOutput(
                logits_BNP=layer.logits_BNP[b : b + 1, :, p : p + 1], boxes_BN4=layer.boxes_BN4[b : b + 1],
                hidden_BNC=layer.hidden_BNC[b : b + 1],
            )  # fmt: skip
            row = (slice(b, b + 1), slice(p, p + 1))
            own = head(alone, *(own[b : b + 1] for own in pixels_of(2)), asked[row], none[:1, :1], 0).logits_BNP
            torch.testing.assert_close(own[0, :, 0], together[b, :, p], atol=1e-5, rtol=1e-5)


def test_a_candidate_is_scored_beside_the_others_and_only_the_best_are_candidates() -> None:
    head, layer, asked = head_of(), layer_of(1, 40, 1), phrases_of(1, 1)
    none = torch.zeros(1, 1, dtype=torch.bool)
    before = head(layer, *pixels_of(len(asked)), asked, none, 0).logits_BNP[0, :, 0]
    order = layer.logits_BNP[0, :, 0].argsort(descending=True)
    assert torch.equal(before[order[CANDIDATES:]], layer.logits_BNP[0, order[CANDIDATES:], 0])
    boxes = layer.boxes_BN4.clone()
    boxes[0, order[0], 0] = 0.99  # where the best one lies is something to all of them
    moved = LayerOutput(logits_BNP=layer.logits_BNP, boxes_BN4=boxes, hidden_BNC=layer.hidden_BNC)
    after = head(moved, *pixels_of(1), asked, none, 0).logits_BNP[0, :, 0]
    assert ((after - before)[order[:CANDIDATES]].abs() > 1e-6).all()


def test_regions_padding_and_no_phrases_are_left_alone() -> None:
    head, layer, asked = head_of(), layer_of(1, 40, 2), phrases_of(1, 2)
    padding = torch.tensor([[False, True]])
    layer.logits_BNP[..., 1] = float("-inf")
    told = head(layer, *pixels_of(len(asked)), asked, padding, 10).logits_BNP
    assert torch.equal(told[:, :10], layer.logits_BNP[:, :10])
    assert torch.equal(told[..., 1], layer.logits_BNP[..., 1])
    assert not torch.equal(told[:, 10:, 0], layer.logits_BNP[:, 10:, 0])
    assert head(layer, *pixels_of(len(asked)), asked, torch.ones(1, 2, dtype=torch.bool), 0) is layer


def test_it_learns_which_is_leftmost_and_rightmost() -> None:
    """All candidates look alike and are as likely: only their places, compared, tell which one is meant."""
    torch.manual_seed(0)
    head, asked = head_of(zeros=True).train(), phrases_of(1, 2)
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    none = torch.zeros(1, 2, dtype=torch.bool)

    def scores(seed: int) -> tuple[Tensor, Tensor]:
        layer = layer_of(64, 5, 2, seed)
        same = LayerOutput(logits_BNP=torch.zeros(64, 5, 2), boxes_BN4=layer.boxes_BN4,
                           hidden_BNC=torch.zeros(64, 5, WIDTH))  # fmt: skip
        told = head(same, *pixels_of(64), asked.expand(64, -1, -1), none.expand(64, -1), 0).logits_BNP
        x = layer.boxes_BN4[..., 0]
        return told, torch.stack([x.argmin(1), x.argmax(1)], 1)

    for step in range(200):
        told, right = scores(step)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(told, right).backward()
        optimiser.step()
    told, right = scores(10_000)
    assert float((told.argmax(1) == right).float().mean()) > 0.85


def test_a_gate_that_leans_to_silence_is_silent_in_answers() -> None:
    """It is read off the phrase, one half at the threshold, and steeper than in training."""
    head = ChoiceHead(queries=QUERIES, link_width=LINK, width=WIDTH, common=8, threshold=0.6)
    torch.nn.init.zeros_(head.open.weight)
    head.open.weight.data[0, 0] = 1.0
    asked = torch.zeros(3, WIDTH)
    asked[:, 0] = torch.tensor([-0.5, np.log(0.6 / 0.4), 1.5]) - head.open.bias.item()
    soft, sure = (head._gate(asked, answering=mode)[:, 0].tolist() for mode in (False, True))
    assert soft == pytest.approx([1 / (1 + np.exp(0.5)), 0.6, 1 / (1 + np.exp(-1.5))])
    assert sure[1] == pytest.approx(0.5)
    assert sure[0] < 0.05 < 0.95 < sure[2]


def test_a_candidate_is_seen_by_the_colours_in_its_box() -> None:
    head, layer, asked = head_of(), layer_of(1, 5, 1), phrases_of(1, 1)
    none, (pixels, ratios) = torch.zeros(1, 1, dtype=torch.bool), pixels_of(1)
    layer.boxes_BN4[0] = torch.tensor([[0.25, 0.5, 0.2, 0.2]] * 4 + [[0.75, 0.5, 0.2, 0.2]])
    before = head(layer, pixels, ratios, asked, none, 0).logits_BNP
    other = pixels.clone()
    other[..., 20:30] += 1.0  # 0.62 to 0.94 of the 32 pixels in use: where the last box lies
    after = head(layer, other, ratios, asked, none, 0).logits_BNP
    assert torch.equal(before[0, :4], after[0, :4])
    assert (before[0, 4] - after[0, 4]).abs() > 1e-3


def test_the_loss_of_a_choice_is_that_of_picking_the_right_ones() -> None:
    layer = LayerOutput(
        logits_BNP=torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]]]), boxes_BN4=torch.full((1, 3, 4), 0.5),
        hidden_BNC=torch.zeros(1, 3, WIDTH),
    )  # fmt: skip
    truth = Truth(
        boxes=[torch.full((1, 4), 0.5)], labels=[torch.tensor([[True, False]])], masks=[[None]], poses=[[None]],
        present_BP=torch.tensor([[1.0, 0.0]]),
    )  # fmt: skip
    loss = criterion.choice_loss(layer, truth, [(torch.tensor([1]), torch.tensor([0]))])
    e = np.exp([2.0, 1.0, 0.0])
    assert float(loss) == pytest.approx(-np.log(e[1] / e.sum()), abs=1e-5)  # nothing is chosen for what is absent


def test_the_answer_takes_the_chosen(make_model: Make, picture: Make) -> None:
    """Scores of an answer are those of the comparison, and the boxes stay."""
    model = make_model(phrases_per_pass=1, choice_width=8)
    decoder, phrases, everything = model.decoders["objects"], ["car", "dog", "tree"], {"objects": {"threshold": 0.0}}
    head = decoder.choice_head
    for layer in (head.more[2], head.state.asked, head.coloured.asked):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    same = model.detect(picture(), phrases, options=everything)
    decoder.choice_head = None
    before = model.detect(picture(), phrases, options=everything)
    decoder.choice_head = head
    for one, other in zip(before.links, same.links, strict=True):
        np.testing.assert_allclose(one.result.scores, other.result.scores, atol=1e-6)
    torch.nn.init.normal_(decoder.choice_head.more[2].weight)
    after = model.detect(picture(), phrases, options=everything)
    assert any(
        np.abs(np.sort(one.result.scores) - np.sort(other.result.scores)).max() > 1e-3
        for one, other in zip(before.links, after.links, strict=True)
    )
    for one, other in zip(before.links, after.links, strict=True):
        assert {tuple(box) for box in one.result.boxes_xyxy.round(2).tolist()} == {
            tuple(box) for box in other.result.boxes_xyxy.round(2).tolist()
        }


def test_gradient_reaches_the_link(make_model: Make) -> None:
    decoder = make_model(choice_width=8).decoders["objects"]
    torch.nn.init.normal_(decoder.choice_head.more[2].weight)
    states = torch.randn(decoder.phrase_head.queries, decoder.link_width, requires_grad=True)
    decoder.choice_head.asked(states, observe=False).sum().backward()
    assert float(states.grad.abs().max()) > 0


def test_silence_is_asked_for_where_the_first_scores_told_it() -> None:
    """What is added costs its square times the share of the right ones before; all of it of a phrase that is absent."""
    first = torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]]])
    added = torch.tensor([[[0.5, 0.0], [-1.0, 0.0], [0.0, 2.0]]])
    rest = {"boxes_BN4": torch.full((1, 3, 4), 0.5), "hidden_BNC": torch.zeros(1, 3, WIDTH)}
    found, chosen = (LayerOutput(logits_BNP=logits, **rest) for logits in (first, first + added))
    truth = Truth(
        boxes=[torch.full((1, 4), 0.5)], labels=[torch.tensor([[True, False]])], masks=[[None]], poses=[[None]],
        present_BP=torch.tensor([[1.0, 0.0]]),
    )  # fmt: skip
    pairs, e = [(torch.tensor([0]), torch.tensor([0]))], np.exp([2.0, 1.0, 0.0])
    none = torch.zeros(1, 2, dtype=torch.bool)
    loss = criterion.silence_loss(found, chosen, truth, pairs, none)
    assert float(loss) == pytest.approx(e[0] / e.sum() * 1.25 + 4.0, abs=1e-5)
    padded = criterion.silence_loss(found, chosen, truth, pairs, torch.tensor([[False, True]]))
    assert float(padded) == pytest.approx(e[0] / e.sum() * 1.25, abs=1e-5)
    assert float(criterion.silence_loss(found, found, truth, pairs, none)) == 0
