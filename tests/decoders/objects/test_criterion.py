"""The losses of the detector on cases worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionllm.core.masks import Mask
from visionllm.core.sample import BoxTarget, Sample, Turn
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.decoders.base import Context
from visionllm.decoders.objects import criterion
from visionllm.decoders.objects.criterion import GAMMA, QUALITY, Truth
from visionllm.decoders.objects.decoder import ObjectsDecoder
from visionllm.decoders.objects.detector import Encoded, LayerOutput, LinkDetector
from visionllm.decoders.objects.layout import Group, LinkTarget, owners, things_of
from visionllm.decoders.objects.layout import truth_of as truth_of_links
from visionllm.decoders.objects.poses import PoseTruth

Make = Callable[..., Any]
OPEN = torch.zeros(1, 2, dtype=torch.bool)


def truth_of(boxes: list[list[float]], phrases: list[int], count: int = 2) -> Truth:
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    present = torch.tensor([[float(p in phrases) for p in range(count)]])
    labels = torch.tensor([[phrase == p for p in range(count)] for phrase in phrases], dtype=torch.bool)
    return Truth(boxes=[table], labels=[labels.reshape(-1, count)], masks=[[None] * len(table)],
                     poses=[[None] * len(table)],
                 present_BP=present)  # fmt: skip


def layer_of(logits: Tensor, boxes: Tensor) -> LayerOutput:
    return LayerOutput(logits_BNP=logits, boxes_BN4=boxes, hidden_BNC=torch.zeros(*boxes.shape[:2], 4))


def set_loss(layer: LayerOutput, truth: Truth, padding: Tensor) -> dict[str, Tensor]:
    return criterion.paired_loss(layer, truth, criterion.match(layer, truth), padding)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# --- set matching ---------------------------------------------------------------------------------------------------

FIRST, SECOND = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.4]


def test_each_target_gets_its_own_query() -> None:
    """Query 1 is best for both boxes; the best sum leaves it the one nobody else comes near to."""
    truth = truth_of([FIRST, SECOND], [0, 0])
    boxes = torch.tensor([[[0.32, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.68, 0.7, 0.2, 0.4], [0.1, 0.9, 0.1, 0.1]]])
    logits = torch.full((1, 4, 2), -2.0)
    rows, cols = criterion._match(logits[0], boxes[0], truth.boxes[0], truth.labels[0])
    assert dict(zip(cols.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 2}


def test_the_phrase_decides_between_equal_boxes() -> None:
    truth = truth_of([FIRST, FIRST], [0, 1])
    boxes = torch.tensor([FIRST, FIRST])
    logits = torch.tensor([[-3.0, 3.0], [3.0, -3.0]])
    rows, cols = criterion._match(logits, boxes, truth.boxes[0], truth.labels[0])
    assert dict(zip(cols.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 0}


def test_one_query_is_right_for_all_that_is_true_of_its_thing() -> None:
    """ "the cars" and "the red car" of one car: one target, one query, and neither phrase stands against the other."""
    both = Truth(boxes=[torch.tensor([FIRST])], labels=[torch.tensor([[True, True, False]])], masks=[[None]],
                 poses=[[None]], present_BP=torch.tensor([[1.0, 1.0, 0.0]]))  # fmt: skip
    logits = torch.tensor([[[0.5, -0.3, 0.1], [2.0, -4.0, 0.0]]], requires_grad=True)
    layer = layer_of(logits, torch.tensor([[FIRST, FIRST]]))
    open_ = torch.zeros(1, 3, dtype=torch.bool)
    ((rows, cols),) = criterion.match(layer, both)
    # Of two boxes in the same place the one that both phrases fit: 2.0 and -4.0 cost more than 0.5 and -0.3.
    assert (rows.tolist(), cols.tolist()) == ([0], [0])
    losses = set_loss(layer, both, open_)
    assert {float(losses[name].detach()) for name in ("l1", "giou")} == {0.0}

    def bce(p: float, target: float) -> float:
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    def p(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    right = bce(p(0.5), 1) + bce(p(-0.3), 1)
    wrong = [p(x) ** GAMMA * bce(p(x), 0) for x in (0.1, 2.0, -4.0, 0.0)]
    assert float(losses["class"].detach()) == pytest.approx(right + sum(wrong), abs=1e-4)
    apart = [-math.log(math.exp(x) / (math.exp(x) + math.exp(0.1))) for x in (0.5, -0.3)]
    assert float(losses["contrast"].detach()) == pytest.approx(sum(apart) / 2, abs=1e-5)
    # Nothing is gained by one of them at the cost of the other.
    losses["contrast"].backward()
    assert bool((logits.grad[0, 0, :2] < 0).all())


def test_set_loss_by_hand() -> None:
    """One box, found with a shift of a quarter of its width; IoU = .6, union and hull are the same."""
    truth = truth_of([FIRST], [1])
    layer = layer_of(
        torch.tensor([[[logit(0.2), logit(0.7)], [logit(0.1), logit(0.4)]]]),
        torch.tensor([[[0.35, 0.3, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]]),
    )
    losses = set_loss(layer, truth, OPEN)
    assert float(losses["l1"]) == pytest.approx(0.05, abs=1e-6)
    assert float(losses["giou"]) == pytest.approx(1 - 0.6, abs=1e-5)
    target = 0.6**QUALITY
    found = -target * math.log(0.7) - (1 - target) * math.log(0.3)
    others = [-(p**GAMMA) * math.log(1 - p) for p in (0.2, 0.1, 0.4)]
    assert float(losses["class"]) == pytest.approx(found + sum(others), abs=1e-5)
    right, wrong = 0.7 / 0.3, 0.2 / 0.8  # odds are the exponentials of logits
    assert float(losses["contrast"]) == pytest.approx(-math.log(right / (right + wrong)), abs=1e-5)


def test_a_picture_without_boxes_only_says_no() -> None:
    layer = layer_of(torch.zeros(1, 3, 2), torch.full((1, 3, 4), 0.5))
    losses = set_loss(layer, truth_of([], []), OPEN)
    assert float(losses["l1"]) == float(losses["giou"]) == 0
    assert float(losses["class"]) == pytest.approx(6 * 0.5**GAMMA * math.log(2), abs=1e-5)


def test_more_targets_than_queries() -> None:
    layer = layer_of(torch.zeros(1, 1, 2), torch.tensor([[FIRST]]))
    losses = set_loss(layer, truth_of([SECOND, FIRST, SECOND], [0, 1, 1]), OPEN)
    assert float(losses["l1"]) == pytest.approx(0, abs=1e-6)


def test_padded_phrases_do_not_count() -> None:
    truth = truth_of([FIRST], [0])
    padding = torch.tensor([[False, True]])
    values = []
    for padded in (float("-inf"), 0.0, 40.0):
        logits = torch.tensor([[[0.3, padded], [-1.0, padded]]], requires_grad=True)
        layer = layer_of(logits, torch.tensor([[FIRST, SECOND]]))
        losses = set_loss(layer, truth, padding)
        assert float(losses["contrast"].detach()) == 0  # one phrase was asked: there is no choice
        loss = losses["class"]
        loss.backward()
        assert bool((logits.grad[..., 1] == 0).all())
        assert bool(torch.isfinite(logits.grad).all())
        values.append(float(loss.detach()))
    assert values[0] == values[1] == values[2] > 0
    presence = torch.tensor([[0.5, 9.0]])
    assert float(criterion.presence_loss(presence, truth, padding)) == pytest.approx(
        -math.log(1 / (1 + math.exp(-0.5)))
    )


# --- dense assignment -----------------------------------------------------------------------------------------------

SHAPES = [(16, 16), (8, 8), (4, 4)]


def grid(ratio: tuple[float, float] = (1.0, 1.0), phrases: int = 2) -> Encoded:
    """Three maps over one picture that fills ``ratio`` of its padded frame."""
    size = sum(h * w for h, w in SHAPES)
    centre, _ = criterion._token_grid(Encoded(
        memory_BSC=torch.zeros(1, size, 4), padding_BS=torch.zeros(1, size, dtype=torch.bool),
        phrases_BPC=torch.zeros(1, phrases, 4), phrase_padding_BP=torch.zeros(1, phrases, dtype=torch.bool),
        logits_BSP=torch.zeros(1, size, phrases), box_logits_BS4=torch.zeros(1, size, 4),
        valid_BS=torch.ones(1, size, dtype=torch.bool), shapes=SHAPES, ratios_BL2=torch.tensor([[ratio] * 3]),
    ))  # fmt: skip
    valid = (centre < torch.tensor(ratio)).all(-1)[None]
    return Encoded(
        memory_BSC=torch.zeros(1, size, 4), padding_BS=~valid, phrases_BPC=torch.zeros(1, phrases, 4),
        phrase_padding_BP=torch.zeros(1, phrases, dtype=torch.bool), logits_BSP=torch.zeros(1, size, phrases),
        box_logits_BS4=torch.zeros(1, size, 4), valid_BS=valid, shapes=SHAPES, ratios_BL2=torch.tensor([[ratio] * 3]),
    )  # fmt: skip


def assigned(encoded: Encoded, boxes: list[list[float]]) -> dict[tuple[int, int, int], int]:
    """(level, row, column) of every positive token -> its box."""
    centre, level = criterion._token_grid(encoded)
    tokens, index = criterion._assign(
        centre, level, encoded, 0, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    )
    found = {}
    for token, box in zip(tokens.tolist(), index.tolist(), strict=True):
        start = 0
        for number, (height, width) in enumerate(SHAPES):
            if token < start + height * width:
                found[number, (token - start) // width, (token - start) % width] = box
                break
            start += height * width
    return found


@pytest.mark.parametrize(
    ("box", "level", "rows", "columns"),
    [
        ([0.5, 0.5, 0.1, 0.1], 0, (7, 8), (7, 8)),  # 1.6 cells: the four tokens around its centre lie in it
        ([0.5, 0.5, 0.01, 0.01], 0, (7, 8), (7, 8)),  # smaller than a cell: within half a stride
        ([0.53, 0.47, 0.01, 0.01], 0, (7,), (8,)),  # the one token at hand
        ([0.5, 0.5, 0.5, 0.5], 0, (6, 7, 8, 9), (6, 7, 8, 9)),  # 8 cells, the last of this level: 1.5 strides
        ([0.5, 0.5, 0.5, 0.1], 0, (7, 8), (6, 7, 8, 9)),  # flat: never outside the box
        ([0.5, 0.5, 0.6, 0.6], 1, (2, 3, 4, 5), (2, 3, 4, 5)),  # 9.6 cells
        ([0.5, 0.5, 0.5, 0.6], 1, (2, 3, 4, 5), (2, 3, 4, 5)),  # the longer side decides
        ([0.5, 0.5, 1.0, 1.0], 1, (2, 3, 4, 5), (2, 3, 4, 5)),  # 16 cells
        ([0.25, 0.75, 0.1, 0.1], 0, (11, 12), (3, 4)),  # x is a column, y a row
    ],
)
def test_dense_assignment_on_a_grid(
    box: list[float], level: int, rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    expected = {(level, row, column): 0 for row in rows for column in columns}
    assert assigned(grid(), [box]) == expected


def test_the_smaller_of_two_boxes_takes_a_token() -> None:
    found = assigned(grid(), [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1]])
    assert {place for place, box in found.items() if box == 1} == {(0, r, c) for r in (7, 8) for c in (7, 8)}
    assert len(found) == 16


def test_assignment_in_a_padded_frame() -> None:
    """A picture in the left half of the frame: its middle is a quarter of the way, no token of the rest is taken."""
    encoded = grid(ratio=(0.5, 1.0))
    found = assigned(encoded, [[0.5, 0.5, 0.2, 0.1]])
    assert set(found) == {(0, r, c) for r in (7, 8) for c in (3, 4)}
    edge = assigned(encoded, [[0.98, 0.5, 0.04, 0.1]])
    assert edge
    assert max(column for _, _, column in edge) == 7


def test_dense_loss_is_of_the_assigned_tokens() -> None:
    encoded = grid()
    losses = criterion.dense_loss(encoded, truth_of([[0.5, 0.5, 0.1, 0.1]], [1]))
    # Every token says (.5, .5, .5, .5): the four positives are 0.4 off in width and in height.
    assert float(losses["l1"]) == pytest.approx(4 * 0.8, abs=1e-5)
    assert float(losses["giou"]) == pytest.approx(4 * (1 - 0.04), abs=1e-4)
    target = 0.04**QUALITY
    negatives = encoded.logits_BSP.numel() - 4
    assert float(losses["class"]) == pytest.approx((4 + negatives * 0.5**GAMMA) * math.log(2), rel=1e-5)
    assert target == pytest.approx(0.2)
    assert float(losses["contrast"]) == pytest.approx(4 * math.log(2), rel=1e-5)
    assert all(float(v) == 0 for k, v in criterion.dense_loss(encoded, truth_of([], [])).items() if k != "class")


# --- denoising ------------------------------------------------------------------------------------------------------


def noised(label_noise: float = 0.0, box_noise: float = 0.0, groups_of: int = 12) -> tuple[Encoded, Truth, Any]:
    encoded = grid(phrases=3)
    encoded = Encoded(**{name: getattr(encoded, name) for name in Encoded.__dataclass_fields__} | {
        "phrases_BPC": torch.arange(12.0).view(1, 3, 4).repeat(2, 1, 1),
        "phrase_padding_BP": torch.tensor([[False] * 3, [False, False, True]]),
    })  # fmt: skip
    truth = Truth(
        boxes=[torch.tensor([FIRST, SECOND]), torch.tensor([SECOND])],
        labels=[F.one_hot(torch.tensor([2, 0]), 3).bool(), F.one_hot(torch.tensor([1]), 3).bool()],
        masks=[[None] * 2, [None]], poses=[[None] * 2, [None]], present_BP=torch.ones(2, 3),
    )  # fmt: skip
    made = criterion.denoise(
        encoded, truth, groups_of=groups_of, label_noise=label_noise, box_noise=box_noise, queries=5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return encoded, truth, made


def test_quiet_denoising_queries_are_the_targets() -> None:
    encoded, truth, made = noised()
    assert (made.groups, made.count) == (3, 20)  # 12 rows, rounded up to few distinct shapes
    for b, (rows, cols) in enumerate(made.positive):
        assert sorted(cols.tolist()) == sorted(list(range(len(truth.boxes[b]))) * 3)
        assert len(set(rows.tolist())) == len(rows)
        torch.testing.assert_close(made.reference_BN4[b, rows].sigmoid(), truth.boxes[b][cols], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            made.content_BNC[b, rows], encoded.phrases_BPC[b, truth.labels[b][cols].int().argmax(-1)]
        )


def test_negatives_are_moved_further_than_positives() -> None:
    _, truth, made = noised(box_noise=1.0, groups_of=400)
    for b, (rows, cols) in enumerate(made.positive):
        boxes = truth.boxes[b][cols]
        half = max(len(boxes) for boxes in truth.boxes)
        size = boxes[:, 2:].repeat(1, 2)
        near_queries = made.reference_BN4[b, rows].sigmoid()
        far_queries = made.reference_BN4[b, rows + half].sigmoid()
        corners = [
            torch.cat([x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2], 1) for x in (boxes, near_queries, far_queries)
        ]
        near, far = ((other - corners[0]).abs() / size for other in corners[1:])
        assert float(near.max()) <= 0.5 + 1e-3
        assert float(far.max()) <= 1.0 + 1e-3
        assert float(far.mean()) > float(near.mean()) + 0.2


def test_swapped_labels_are_phrases_of_the_picture() -> None:
    encoded, truth, made = noised(label_noise=1.0, groups_of=400)
    for b, (rows, cols) in enumerate(made.positive):
        own = encoded.phrases_BPC[b, truth.labels[b][cols].int().argmax(-1)]
        swapped = (made.content_BNC[b, rows] != own).any(1).float().mean()
        assert 0.1 < float(swapped) < 0.5
        known = encoded.phrases_BPC[b, ~encoded.phrase_padding_BP[b]]
        assert bool((made.content_BNC[b, rows][:, None] == known[None]).all(-1).any(-1).all())


def test_nothing_to_denoise() -> None:
    encoded, _, _ = noised()
    empty = Truth(
        boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0, 2, dtype=torch.bool)] * 2, masks=[[], []],
        poses=[[], []], present_BP=torch.zeros(2, 3),
    )  # fmt: skip
    assert criterion.denoise(encoded, empty, groups_of=9, label_noise=0, box_noise=0, queries=5) is None


@torch.no_grad()
def test_ordinary_queries_do_not_see_the_truth(tiny_network: Make) -> None:
    """Noised queries carry it. Whatever stands in them, the others say what they say without them."""
    torch.manual_seed(0)
    detector = LinkDetector(tiny_network(), 4).eval()
    for parameter in detector.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    features = detector.features(torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool))
    encoded = detector.encode(features, torch.randn(1, 2, 32), OPEN)
    content, reference = detector.select(encoded)
    truth = truth_of([FIRST, SECOND], [0, 1])
    made = criterion.denoise(encoded, truth, groups_of=12, label_noise=0.5, box_noise=1.0, queries=content.shape[1])
    assert made is not None

    def run(extra: Tensor, places: Tensor) -> list[LayerOutput]:
        return detector.decode(
            encoded, torch.cat([extra, content], 1), torch.cat([places, reference], 1), made.closed_NN
        )

    plain = detector.decode(encoded, content, reference, None)
    one = run(made.content_BNC, made.reference_BN4)
    group = 2 * len(truth.boxes[0])
    changed = made.content_BNC.clone()
    changed[:, :group] += 5
    other = run(changed, made.reference_BN4)
    for a, b, c in zip(plain, one, other, strict=True):
        torch.testing.assert_close(b.logits_BNP[:, made.count :], a.logits_BNP, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b.boxes_BN4[:, made.count :], a.boxes_BN4, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(c.boxes_BN4[:, group:], b.boxes_BN4[:, group:], atol=1e-5, rtol=1e-5)
        assert float((c.logits_BNP[:, :group] - b.logits_BNP[:, :group]).abs().max()) > 1e-2


# --- truth ----------------------------------------------------------------------------------------------------------


def test_truth_of_links(picture: Make) -> None:
    """Links may be some of the phrases, in any order; a crowd is neither a box nor a presence."""
    target = BoxTarget(
        boxes_xyxy=np.array([[0, 0, 40, 30], [40, 30, 80, 60], [10, 10, 20, 20]], np.float32),
        phrase=np.array([0, 2, 1]), ignore=np.array([False, False, True]),
    )  # fmt: skip
    turn = Turn(task="detection", phrases=("a", "b", "c", "d"), target=target)
    ctx = Context(batch=type("B", (), {"samples": (Sample(pictures=(picture(80, 60),), turns=(turn,)),)})())
    metas = tuple(
        LinkMeta(sample=0, turn=0, task="detection", token="[DET]", phrase=phrase, group=turn.phrases.index(phrase))
        for phrase in "cbad"
    )
    links = SuperLinks(states=torch.zeros(16, 4), queries=(4,) * 4, meta=metas)
    groups = [Group(owner=(0, 0), links=[0, 1, 2, 3])]
    truth = truth_of_links(groups, *owners(links), ctx, torch.zeros(1, 5, dtype=torch.bool))
    assert truth.present_BP.tolist() == [[1, 0, 1, 0, 0]]
    assert truth.labels[0].int().argmax(-1).tolist() == [0, 2]
    torch.testing.assert_close(truth.boxes[0], torch.tensor([[0.75, 0.75, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]))


def test_a_thing_that_several_phrases_mean_is_one(boxed: Make, model: Any) -> None:
    """Same box, other phrase: the same thing, and what is known of it from any of them is known of it. Two of one
    phrase are two, and so are two of different masks or with two sets of keypoints."""
    box = np.array([0.5, 0.5, 0.2, 0.2], np.float32)
    other = np.array([0.2, 0.2, 0.1, 0.1], np.float32)
    mask = Mask.of(np.eye(8, dtype=bool))
    again, less = Mask.of(np.eye(8, dtype=bool)), Mask.of(np.eye(8, dtype=bool) & (np.arange(8) < 7))
    pose = PoseTruth(places_J2=np.zeros((1, 2)), flags_J=np.ones(1), spread_J=np.ones(1), aspect=1.0, start=0)

    def target(*rows: tuple[np.ndarray, Mask | None, PoseTruth | None]) -> LinkTarget:
        boxes = np.stack([row[0] for row in rows]) if rows else np.zeros((0, 4), np.float32)
        return LinkTarget(boxes=boxes, masks=[row[1] for row in rows], poses=[row[2] for row in rows])

    things, labels = things_of([target((box, None, None), (other, None, None)), target((box, mask, None)), target()])
    assert things.boxes.tolist() == [box.tolist(), other.tolist()]
    assert labels.tolist() == [[True, True, False], [True, False, False]]
    assert things.masks == [mask, None]
    assert things_of([target((box, mask, None)), target((box, again, pose))])[1].tolist() == [[True, True]]
    for first, second in (((box, mask, None), (box, less, None)), ((box, None, pose), (box, None, pose))):
        assert things_of([target(first), target(second)])[1].tolist() == [[True, False], [False, True]]
    assert things_of([target((box, None, None), (box, None, None))])[1].tolist() == [[True], [True]]
    assert things_of([])[0].boxes.shape == (0, 4)
    # As many boxes are counted as there are targets.
    twice = boxed(phrases=("cars", "red car"), boxes=((0, 4, 4, 44, 30), (1, 4, 4, 44, 30), (0, 50, 4, 70, 30)))
    batch = model.processor.encode([twice])
    links = SuperLinks(states=torch.zeros(8, 32), queries=batch.links.queries, meta=batch.links.meta)
    assert model.decoders["objects"].counts(links, Context(batch=batch))["l1"] == 2 * 2


def test_counts_are_of_targets_alone(tiny_network: Make, model: Any, boxed: Make) -> None:
    decoder: ObjectsDecoder = model.decoders["objects"]
    batch = model.processor.encode([boxed(), boxed(seed=1, boxes=())])
    links = SuperLinks(states=torch.zeros(16, 32), queries=batch.links.queries, meta=batch.links.meta)
    counts = decoder.counts(links, Context(batch=batch))
    assert counts["presence"] == 4
    assert counts["l1"] == (3 + 1) * 2  # boxes and the picture without any, x layers
    assert counts == model_counts(model, batch)
    parts = [model.counts(model.processor.encode([sample])) for sample in batch.samples]
    assert counts["l1"] == sum(part["objects/l1"] for part in parts)


def model_counts(model: Any, batch: Any) -> dict[str, float]:
    """The same through the model, which knows nothing of links yet."""
    return {n.removeprefix("objects/"): v for n, v in model.counts(batch).items() if n.startswith("objects/")}
