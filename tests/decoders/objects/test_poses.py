"""Keypoints of boxes: where they are learned, in which frame, and that names, not places, tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.arrays import object_array
from visionllm.core.boxes import xyxy_to_cxcywh
from visionllm.core.instances import Poses
from visionllm.core.poses import BODY, Pose, Skeleton
from visionllm.core.sample import Sample
from visionllm.core.skeletons import load_skeleton, skeleton_of
from visionllm.decoders.objects.detector import Encoded
from visionllm.decoders.objects.pixels import Fine
from visionllm.decoders.objects.poses import GRID, Heat, Points, PoseHead, PoseTruth, likeness, pose_losses, to_poses
from visionllm.metrics.pose import similarity
from visionllm.routing.render import Style

Make = Callable[..., Any]
SIZE = (80, 40)
SKELETON = Skeleton(name="stick", keypoints=("nose", "left paw", "tail"), sigmas=(0.05, 0.1, 0.02))
BOX = np.array([20, 10, 60, 34], np.float32)
POSE = Pose(
    points_xy=np.array([[30, 12], [44, 30], [58, 33]], np.float32), visibility=np.array([2, 1, 2], np.int8),
    skeleton=SKELETON,
)  # fmt: skip


NOTHING = {"points": 0, "oks": 0, "flags": 0, "heat": 0}


def truth_of(names: tuple[str, ...], pose: Pose = POSE, start: int = 0) -> PoseTruth:
    return PoseTruth.of(pose, names, start, np.array(SIZE, np.float32))


def points_of(truth: PoseTruth, shift_xy: tuple[float, float] = (0, 0)) -> Points:
    """A right answer, moved by pixels."""
    places = torch.from_numpy(truth.places_J2) + torch.tensor(shift_xy) / torch.tensor(SIZE)
    flags = torch.from_numpy(truth.flags_J)
    logits = torch.stack([flags > 0, flags == 2], -1).float() * 60 - 30
    return Points(places=places[None, None], flags=logits[None, None])


def heat_of(truth: PoseTruth, shift_xy: tuple[float, float] = (0, 0)) -> Heat:
    """The right heatmaps, moved by pixels: bells as wide as the similarity or as a cell, in pixels of the picture."""
    side = BOX[2:] - BOX[:2]
    along = (np.arange(GRID) + 0.5) / GRID
    cells = BOX[:2] + np.stack(np.meshgrid(along, along), -1).reshape(-1, 2) * side
    width = np.sqrt(BODY * side.prod()) * 2 * truth.spread_J
    width = np.maximum(width[:, None], (side / GRID)[None])
    apart = cells - (truth.places_J2 * SIZE + shift_xy)[:, None]
    logits = -(apart**2 / (2 * width[:, None] ** 2)).sum(-1)
    places = torch.from_numpy(cells / SIZE).float()
    return Heat(logits=torch.from_numpy(logits).float()[None, None], places=places[None, None])


def losses_of(points: Points, truth: PoseTruth, heat: Heat | None = None) -> dict[str, float]:
    box = xyxy_to_cxcywh(torch.from_numpy(BOX / np.tile(SIZE, 2)))[None]
    losses = pose_losses([points], heat or heat_of(truth), [box], [[truth]])
    return {name: float(value) for name, value in losses.items()}


def test_a_right_answer_costs_nothing() -> None:
    truth = truth_of(SKELETON.keypoints)
    assert losses_of(points_of(truth), truth) == pytest.approx(NOTHING, abs=1e-5)


@pytest.mark.parametrize("shift_xy", [(1.0, 0.0), (0.0, 1.0), (2.0, -1.5)])
def test_the_loss_is_the_metric(shift_xy: tuple[float, float]) -> None:
    """One minus the similarity that the evaluation measures, in pixels of the picture, whatever its shape."""
    truth = truth_of(SKELETON.keypoints)
    width, height = BOX[2:] - BOX[:2]
    moved = replace(POSE, points_xy=POSE.points_xy + np.array(shift_xy, np.float32))
    losses = losses_of(points_of(truth, shift_xy), truth)
    assert losses["oks"] == pytest.approx(1 - similarity(moved, POSE, BODY * float(width * height)), abs=1e-5)
    assert losses["points"] == pytest.approx(sum(map(abs, shift_xy)) / np.sqrt(width * height), rel=1e-4)


def test_a_heatmap_elsewhere_costs_more_the_further_it_is() -> None:
    truth = truth_of(SKELETON.keypoints)
    costs = [losses_of(points_of(truth), truth, heat_of(truth, (shift, 0)))["heat"] for shift in (0.0, 1.0, 2.0, 4.0)]
    assert costs == sorted(costs)
    assert costs[1] > 0.05
    # Two bells of one width s, d apart: d^2 / 2 s^2. In the middle of the box, so that no edge cuts them.
    middle = replace(POSE, points_xy=np.tile(BOX.reshape(2, 2).mean(0), (3, 1)))
    nose = replace(truth_of(("nose",), middle), spread_J=np.array([0.08], np.float32))
    variance = BODY * float((BOX[2:] - BOX[:2]).prod()) * 0.16**2
    cost = losses_of(points_of(nose), nose, heat_of(nose, (0, -2)))["heat"]
    assert cost == pytest.approx(2**2 / (2 * variance), rel=0.1)


def test_what_may_be_here_or_there_is_put_at_one_of_both() -> None:
    """Never half way: of two equal peaks one is taken, and its place is finer than a cell."""
    head = PoseHead(link_width=8, queries=1, width=16, heads=2, levels=1, map_width=8, layers=1)
    places = torch.tensor([[-0.31, 0.1], [0.29, 0.1]])
    bells = (-(head.crop.cells_P2 - places[:, None]).square().sum(-1) / (2 * 0.05**2)).exp()
    found = head._peak(torch.log(bells.sum(0) + 1e-9)[None, None, None])[0, 0, 0]
    assert float((found - places).norm(dim=-1).min()) < 0.01
    at_edge = head._peak(
        (-(head.crop.cells_P2 - head.crop.cells_P2[GRID - 1]).square().sum(-1) / 1e-4)[None, None, None]
    )
    torch.testing.assert_close(at_edge[0, 0, 0], head.crop.cells_P2[GRID - 1])


def test_a_name_it_does_not_have_is_told_and_not_placed() -> None:
    truth = truth_of(("wing", "nose"))
    assert truth.flags_J.tolist() == [0, 2]
    anywhere = points_of(truth)
    anywhere.places[..., 0, :] = 7.0
    assert losses_of(anywhere, truth) == pytest.approx(NOTHING, abs=1e-5)
    claimed = replace(anywhere, flags=torch.full_like(anywhere.flags, 30.0))
    assert losses_of(claimed, truth)["flags"] > 5


def test_flags_of_an_unknown_point_say_nothing_of_being_seen() -> None:
    pose = replace(POSE, visibility=np.array([0, 1, 2], np.int8))
    truth = truth_of(("nose",), pose)
    unseen, seen = points_of(truth), points_of(truth)
    seen.flags[..., 1] = 30.0
    assert losses_of(unseen, truth) == losses_of(seen, truth)


def test_objects_of_unlike_lists_share_a_pass() -> None:
    """The sum over objects is that of each alone, whatever padding the longest list makes."""
    long, short = truth_of(SKELETON.keypoints), truth_of(("tail",))
    box = xyxy_to_cxcywh(torch.from_numpy(BOX / np.tile(SIZE, 2)))[None]
    off = points_of(long, (2, 1))
    padded = Points(places=off.places.repeat(2, 1, 1, 1), flags=off.flags.repeat(2, 1, 1, 1))
    padded.places[1, :, 0] = points_of(short, (3, 0)).places[0, :, 0]
    padded.flags[1, :, 0] = points_of(short).flags[0, :, 0]
    warm, cold = heat_of(long, (1, 2)), heat_of(short, (4, 0))
    heat = Heat(logits=warm.logits.repeat(2, 1, 1, 1), places=warm.places.repeat(2, 1, 1, 1))
    heat.logits[1, :, 0] = cold.logits[0, :, 0]
    both = pose_losses([padded], heat, [box, box], [[long], [short]])
    alone = losses_of(off, long, warm), losses_of(points_of(short, (3, 0)), short, cold)
    for name, value in both.items():
        assert float(value) == pytest.approx(alone[0][name] + alone[1][name], rel=1e-4, abs=1e-6)


def test_results_are_in_pixels_with_the_flags_told() -> None:
    truth = truth_of(("tail", "nose"), replace(POSE, visibility=np.array([1, 1, 2], np.int8)))
    pose = to_poses(points_of(truth), skeleton_of("dog", ("tail", "nose")), SIZE)[0]
    assert pose.skeleton.keypoints == ("tail", "nose")
    np.testing.assert_allclose(pose.points_xy, [[58, 33], [30, 12]], atol=1e-4)
    assert pose.visibility.tolist() == [2, 1]


def test_likeness_is_what_the_heatmap_expects() -> None:
    """Cell by cell; best where the heatmap says the point is, and of those points alone that are there."""
    truth, skeleton = truth_of(("tail", "nose")), skeleton_of("dog", ("tail", "nose"))
    box = xyxy_to_cxcywh(torch.from_numpy(BOX / np.tile(SIZE, 2))).float()[None, None]
    heat, found = heat_of(truth, (0, 0)), points_of(truth)
    flags = torch.tensor([4.0, -4.0])[:, None].expand(2, 2)[None, None]
    (value,) = likeness(replace(found, flags=flags), heat, box, skeleton, SIZE)
    area = BODY * float(np.prod(BOX[2:] - BOX[:2]))
    apart = ((heat.places[0, 0] - found.places[0, 0, 0]) * torch.tensor(SIZE)).square().sum(-1)
    like = torch.exp(-apart / (2 * area * (2 * float(skeleton.spread[0])) ** 2))
    assert value == pytest.approx(float((heat.logits[0, 0, 0].softmax(-1) * like).sum()), rel=1e-3)
    away = replace(found, places=found.places + 0.2)
    assert likeness(away, heat, box, skeleton, SIZE)[0] < 0.5 * likeness(found, heat, box, skeleton, SIZE)[0]
    assert likeness(replace(found, flags=-torch.ones(1, 1, 2, 2)), heat, box, skeleton, SIZE)[0] == 0


def test_names_bring_their_edges() -> None:
    skeleton = skeleton_of("woman", ("left wrist", "left elbow", "nose"))
    assert skeleton.name == "woman"
    assert skeleton.edges == ((1, 0),)
    assert skeleton_of("robot", ("antenna",)).edges == ()
    whole = load_skeleton("coco_17")
    assert skeleton_of("person", whole.keypoints).sigmas == whole.sigmas


# -- in the model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def posing(make_model: Make) -> Any:
    return make_model(pose_layers=2)


@pytest.fixture
def sample(boxed: Make) -> Sample:
    """Two cars and a dog, keypoints of each."""
    made = boxed()
    turn = made.turns[0]
    poses = []
    for box in turn.target.boxes_xyxy:
        points = box[:2] + np.array([[0.2], [0.5], [0.8]], np.float32) * (box[2:] - box[:2])
        poses.append(replace(POSE, points_xy=points.astype(np.float32)))
    target = replace(turn.target, poses=object_array(poses))
    parts = (("nose", "tail"), ("left paw",))
    return made.with_turns(replace(turn, task="pose", parts=parts, target=target))


def test_keypoints_hang_on_their_object(posing: Any, sample: Sample) -> None:
    for style in (Style(), Style(tree=True), Style(rng=np.random.default_rng(3))):
        batch = posing.processor.encode([sample, sample], [style, style])
        own = [(m.sample, m.token, m.phrase, m.parent, m.group) for m in batch.links.meta]
        one = [("[POSE]", "car", -1, 0), ("[KPT]", "nose", 0, 0), ("[KPT]", "tail", 0, 0), ("[POSE]", "dog", -1, 1),
               ("[KPT]", "left paw", 3, 1)]  # fmt: skip
        again = [(token, phrase, parent if parent < 0 else parent + 5, group) for token, phrase, parent, group in one]
        assert own == [(0, *entry) for entry in one] + [(1, *entry) for entry in again]


def test_pose_losses_reach_every_link_and_the_pictures(posing: Any, sample: Sample) -> None:
    posing.train()
    batch = posing.processor.encode([sample])
    losses = posing(batch).sums
    counts = posing.counts(batch)
    assert counts["objects/points"] == counts["objects/oks"] == 3  # objects
    sum(losses[f"objects/{name}"] for name in NOTHING).backward()
    tables = posing.link_queries.tables
    for token in ("[POSE]", "[KPT]"):
        assert float(tables[token].grad.abs().min()) > 0
    reached = [name for name, p in posing.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)]
    own = ("backbone", "pose_head.names", "pose_head.query", "pose_head.crop", "pixel_map")
    for part in ("vision_tower", "multi_modal_projector", "language_model.layers.0", *own):
        assert any(part in name for name in reached), part
    posing.zero_grad()
    posing.eval()


def test_known_poses(posing: Any, picture: Make) -> None:
    names = {"car": ["nose", "tail"], "dog": ["left paw"], "cat": []}
    answer = posing.pose(picture(), names, options={"objects": {"threshold": 0.0, "max_boxes": 3}})
    poses = answer.poses
    assert isinstance(poses, Poses)
    assert poses.phrases == ("car", "dog", "cat")
    for phrase, asked in names.items():
        own = poses.of(phrase)
        assert len(own) > 0
        assert all(pose.skeleton.keypoints == tuple(asked) for pose in own.poses)
    assert len(answer.links) == 3  # keypoints are in the results of their objects
    assert "<ref>car</ref>[POSE]" in answer.text
    assert poses.draw().size == (80, 60)


def test_a_point_alone_equals_a_point_among_many_objects(posing: Any, sample: Sample, picture: Make) -> None:
    """Another object's keypoints change nothing: they share no query."""
    other = replace(sample, pictures=(picture(64, 90, seed=5),))
    options = {"objects": {"threshold": 0.0, "max_boxes": 4}}
    requests = [({"car": ["nose", "tail"]}, sample), ({"car": ["nose"], "dog": ["left paw", "tail"]}, other)]
    alone = [posing.pose(s.pictures[0], names, options=options).poses for names, s in requests]
    turns = [
        replace(s.turns[0], phrases=tuple(names), parts=tuple(map(tuple, names.values())), target=None)
        for names, s in requests
    ]
    samples = [s.with_turns(turn) for (_, s), turn in zip(requests, turns, strict=True)]
    batch = posing.processor.encode(samples, [Style(tree=True)] * 2)
    with torch.no_grad():
        found = posing._decode(posing.links(batch), batch, options)
    for one, links in zip(alone, found, strict=True):
        together = Poses.merge([link.result for link in links])
        for a, b in zip(one.poses, together.poses, strict=True):
            np.testing.assert_allclose(a.points_xy, b.points_xy, atol=2e-3)
            assert a.visibility.tolist() == b.visibility.tolist()


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        (["car"], r"expected each with the names of its parts, such as \{'car': \['nose'\]\}"),
        ({"car": "nose"}, r"phrases\.car: expected a list of names"),
        ({"car": ["nose", " "]}, r"phrases\.car: expected a list of names"),
        ({"car": [1, 2]}, r"phrases\.car: expected a list of names, none of them empty, got \[1, 2\]"),
        ({"car": None}, r"phrases\.car: expected a list of names"),
        ({"car": ["nose", "nose"]}, r"phrases\.car: 'nose' stands twice"),
        ({}, "expected at least one"),
    ],
)
def test_wrong_parts_are_one_line(posing: Any, picture: Make, phrases: Any, words: str) -> None:
    from visionllm.core.errors import PromptError

    with pytest.raises(PromptError, match=words):
        posing.pose(picture(), phrases)
    with pytest.raises(PromptError, match="detection has no parts; give a list of phrases"):
        posing.detect(picture(), {"car": ["nose"]})


@pytest.mark.parametrize(
    ("pieces", "points"),
    [
        (("<ref>", "dog", "</ref>", "[POSE]", ": ", "<ref>", "tail", "</ref>", "[KPT]"), [("tail",)]),
        # Of two points of one name the first stands.
        (("<ref>", "dog", "</ref>", "[POSE]", *("<ref>", "tail", "</ref>", "[KPT]") * 2), [("tail",)]),
        (("<ref>", "dog", "</ref>", "[POSE]", "<ref>", "a dog", "</ref>", "[POSE]", "[KPT]"), [(), ("",)]),
        # Nobody owns it.
        (("<ref>", "tail", "</ref>", "[KPT]", "<ref>", "dog", "</ref>", "[POSE]"), [()]),
        (("<ref>", "dog", "</ref>", "[DET]", "<ref>", "tail", "</ref>", "[KPT]"), [None]),
    ],
)
def test_what_a_reply_may_hold(
    posing: Any, picture: Make, dictate: Make, pieces: tuple[str, ...], points: list[tuple[str, ...] | None]
) -> None:
    vocabulary = posing.vocabulary
    controls = {"<ref>", "</ref>", "[POSE]", "[KPT]", "[DET]"}
    script = [i for p in pieces for i in ([vocabulary.control(p)] if p in controls else vocabulary.plain(p))]
    dictate(posing, script)
    answer = posing(picture(), "go", options={"objects": {"threshold": 0.0, "max_boxes": 1}})
    assert len(answer.trace.routed) == sum(p in ("[POSE]", "[KPT]", "[DET]") for p in pieces)
    assert answer.explain()
    found = [link.result.poses[0].skeleton.keypoints if link.meta.task == "pose" else None for link in answer.links]
    assert found == points


def test_keypoints_are_learned_by_name() -> None:
    """The head alone learns three poses by heart; asked in another order, it gives them in that order."""
    torch.manual_seed(0)
    shapes, width = [(12, 16), (6, 8)], 32
    tokens = sum(height * across for height, across in shapes)
    nothing: Any = None
    encoded = Encoded(
        memory_BSC=torch.randn(1, tokens, width), padding_BS=torch.zeros(1, tokens, dtype=torch.bool),
        phrases_BPC=nothing, phrase_padding_BP=nothing, logits_BSP=nothing, box_logits_BS4=nothing, valid_BS=nothing,
        shapes=shapes, ratios_BL2=torch.ones(1, 2, 2),
    )  # fmt: skip
    head = PoseHead(link_width=32, queries=4, width=width, heads=2, levels=2, map_width=8, layers=2)
    fine = Fine(pixels_B3HW=torch.randn(1, 3, 96, 128), map_BMHW=torch.randn(1, 8, 24, 32), ratios_B2=torch.ones(1, 2))
    hidden, names = torch.randn(1, 3, width), torch.randn(1, 3, 3, width)
    boxes = torch.tensor([[[0.3, 0.4, 0.4, 0.5], [0.6, 0.6, 0.5, 0.6], [0.25, 0.6, 0.2, 0.4]]])
    open_ = torch.ones(1, 3, 3, dtype=torch.bool)
    inside = np.random.default_rng(0).random((3, 3, 2)).astype(np.float32) - 0.5
    places = boxes[0, :, None, :2].numpy() + inside * boxes[0, :, None, 2:].numpy()
    flags, spread = np.array([2, 1, 2]), np.full(3, 0.05, np.float32)
    truth = [[PoseTruth(places_J2=p, flags_J=flags, spread_J=spread, aspect=1.3, start=0) for p in places]]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(200):
        losses = pose_losses(*head(encoded, fine, hidden, boxes, names, open_), [boxes[0]], truth)
        optimizer.zero_grad()
        (2 * losses["points"] + 4 * losses["oks"] + losses["flags"] + losses["heat"]).backward()
        optimizer.step()
    with torch.no_grad():
        found = head(encoded, fine, hidden, boxes, names, open_)[0][-1]
        turned = head(encoded, fine, hidden, boxes, names.flip(2), open_)[0][-1]
    assert np.abs(found.places[0].numpy() - places).mean() < 0.01
    torch.testing.assert_close(turned.places.flip(2), found.places, atol=1e-4, rtol=1e-4)
    assert bool((found.flags[0, :, 0] > 0).all())
    assert bool((found.flags[0, :, 1, 1] < 0).all())
