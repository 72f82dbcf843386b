"""Pose figures: similarity by hand, COCO's precision from it, and distances."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.errors import DatasetError, ShapeError
from visionllm.core.instances import Poses
from visionllm.core.poses import Pose, Skeleton
from visionllm.core.sample import BoxTarget, Picture, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics.pose import PCK_REACH, PoseMetric, PoseScores, similarity
from visionllm.metrics.precision import weighted_ap

SIZE = (200, 160)
SKELETON = Skeleton(
    name="stick", keypoints=("head", "left hand", "right hand", "foot"), edges=((0, 3), (1, 3), (2, 3)),
    sigmas=(0.05, 0.1, 0.1, 0.02),
)  # fmt: skip
STICK = np.array([[50, 20], [30, 60], [70, 60], [50, 100]], np.float32)
BOX = np.array([[30, 20, 70, 100]], np.float32)


def pose(shift: float = 0.0, flags: tuple[int, ...] = (2, 2, 2, 2), at: float = 0.0) -> Pose:
    points = STICK + np.array([shift + at, 0], np.float32)
    return Pose(points_xy=points, visibility=np.array(flags, np.int8), skeleton=SKELETON)


def scored(found: list[Pose], truth: list[Pose | None], boxes: np.ndarray = BOX, areas: list[float] | None = None,
           scores: list[float] | None = None) -> dict:  # fmt: skip
    metric = PoseScores()
    metric.add(found, scores or [0.9] * len(found), truth, boxes, size=SIZE, key=0, areas=areas)
    return metric.compute()


def test_similarity_by_hand() -> None:
    area, shift = 2000.0, 6.0
    expected = np.mean([np.exp(-(shift**2) / (2 * s) ** 2 / area / 2) for s in SKELETON.sigmas or ()])
    assert similarity(pose(shift), pose(), area) == pytest.approx(expected)
    assert similarity(pose(), pose(), area) == 1.0
    # Only what is known of the truth counts.
    assert similarity(pose(shift), pose(flags=(0, 0, 0, 2)), area) == pytest.approx(
        np.exp(-(shift**2) / 0.04**2 / area / 2)
    )
    assert similarity(pose(), pose(flags=(0, 0, 0, 0)), area) == 0.0


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 4.0, 6.0, 9.0, 14.0, 25.0])
def test_precision_follows_from_similarity(shift: float) -> None:
    """One person and one answer: the protocol's thresholds that the similarity reaches, of ten."""
    report = scored([pose(shift)], [pose()], areas=[2000.0])
    reached = sum(similarity(pose(shift), pose(), 2000.0) >= t for t in np.arange(0.5, 1.0, 0.05))
    assert report["AP"] == pytest.approx(reached / 10, abs=1e-6)
    assert report["AP50"] == float(reached > 0)


def test_distances_are_of_the_nearest_pose() -> None:
    """Two people side by side, found in the other order; reach is a fifth of the longer side, 16 pixels."""
    boxes = np.concatenate([BOX, BOX + [60, 0, 60, 0]])
    report = scored([pose(4, at=60), pose(20)], [pose(), pose(at=60)], boxes, scores=[0.5, 0.9])
    assert PCK_REACH * 80 == 16
    assert report["PCK"] == pytest.approx(0.5)
    assert report["NME"] == pytest.approx((4 + 20) / 2 / np.sqrt(40 * 80))
    assert (report["poses"], report["pictures"]) == (2, 1)


def random_scores(seed: int, pictures: int = 12) -> tuple[PoseScores, list[tuple]]:
    """Poses near true ones, some of which are unknown, some points of which nobody knows; and what was added."""
    rng, metric, added = np.random.default_rng(seed), PoseScores(), []
    for key in range(pictures):
        people, answers = int(rng.integers(0, 5)), int(rng.integers(0, 26))
        at = rng.integers(0, 120, people)
        truth: list[Pose | None] = [
            None if rng.random() < 0.3 else pose(at=float(x), flags=tuple(rng.integers(0, 3, 4).tolist())) for x in at
        ]
        found = [
            pose(float(rng.normal(0, 6)), at=float(rng.choice(at) if people else 0),
                 flags=tuple((rng.random(4) > 0.1) * 2)) for _ in range(answers)
        ]  # fmt: skip
        # Half of the pictures have many equal scores.
        scores = rng.random(answers).round(1 if key % 2 else 6).tolist()
        boxes = BOX.repeat(people, 0) + at[:, None] * np.array([1, 0, 1, 0])
        metric.add(found, scores, truth, boxes, size=SIZE, key=key, areas=rng.uniform(800, 3000, people).tolist())
        added.append((found, scores, truth, boxes))
    return metric, added


@pytest.mark.parametrize("seed", range(12))
def test_own_precision_is_cocos(seed: int) -> None:
    metric, _ = random_scores(seed)
    values = weighted_ap(metric.ranked({key: key for key in range(12)}), np.ones((1, 12)))[:, 0]
    report = metric.compute()
    assert [values.mean(), values[0], values[5]] == pytest.approx([report[n] for n in ("AP", "AP50", "AP75")], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_precision_against_the_code_of_the_pose_toolboxes(seed: int) -> None:
    cocoeval = pytest.importorskip("xtcocotools.cocoeval")
    from xtcocotools.coco import COCO

    metric, _ = random_scores(100 + seed)
    truth = [{**own, "keypoints": own["keypoints"] if own["num_keypoints"] else [0.0] * 12, "id": i}
             for i, own in enumerate(metric._truth, 1)]  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(12)], "annotations": truth,
        "categories": [{"id": 1, "name": "stick", "keypoints": list(SKELETON.keypoints), "skeleton": []}],
    }  # fmt: skip
    coco.createIndex()
    theirs = cocoeval.COCOeval(coco, coco.loadRes(metric._found), "keypoints", np.array(SKELETON.sigmas))
    theirs.params.useSegm = None
    theirs.evaluate()
    theirs.accumulate()
    precision = theirs.eval["precision"][:, :, 0, 0, -1].mean(1)
    ours = metric.compute()
    expected = [precision.mean(), precision[0], precision[5]]
    assert [ours["AP"], ours["AP50"], ours["AP75"]] == pytest.approx(expected, abs=1e-6)


def test_intervals_hold_what_they_are_of() -> None:
    metric, _ = random_scores(3, pictures=40)
    report = metric.compute()
    for name in ("AP", "AP50", "PCK", "NME", "flags"):
        low, high = report[f"{name}_interval"]
        assert low < report[name] < high, name
    assert PoseScores(resamples=0).compute()["AP_interval"] is None
    whole = PoseMetric(["stick"])
    for key in range(20):
        whole.add(asked([pose()]), answered([pose(60 if key % 2 else 0)], [0.9]), key=key)
    told = whole.compute()
    assert told["OKS_AP50_interval"] == told["poses"]["stick"]["AP50_interval"]
    assert told["OKS_AP_interval"][0] < told["OKS_AP"] < told["OKS_AP_interval"][1]
    assert PoseMetric(["stick"]).compute()["OKS_AP_interval"] is None


def test_flags_by_hand() -> None:
    """Of three known points two are told as they are; what is not known is not asked."""
    report = scored([pose(flags=(2, 2, 1, 2))], [pose(flags=(2, 1, 1, 0))])
    assert report["flags"] == pytest.approx(2 / 3)
    assert scored([], [pose()])["flags"] is None


def test_nobody_found_nobody_there_nothing_known() -> None:
    missed = scored([], [pose()])
    assert (missed["AP"], missed["PCK"], missed["NME"]) == (0.0, 0.0, None)
    empty = scored([pose()], [], np.zeros((0, 4)))
    assert (empty["AP"], empty["PCK"], empty["poses"]) == (None, None, 0)
    # A person of whom no point is known takes an answer without blame.
    boxes = np.concatenate([BOX, BOX + [60, 0, 60, 0]])
    ignored = scored([pose(), pose(at=60)], [pose(), None], boxes, scores=[0.5, 0.9])
    assert ignored["AP50"] == 1.0
    json.dumps(ignored)


def test_skeletons_do_not_mix() -> None:
    other = Skeleton(name="dot", keypoints=("a",), sigmas=(0.1,))
    dot = Pose(points_xy=np.ones((1, 2), np.float32), visibility=np.full(1, 2, np.int8), skeleton=other)
    metric = PoseScores()
    metric.add([pose()], [1.0], [pose()], BOX, size=SIZE, key=0)
    with pytest.raises(DatasetError, match="sample 1: poses of dot among others"):
        metric.add([dot], [1.0], [], np.zeros((0, 4)), size=SIZE, key=1)


# --- the result -------------------------------------------------------------------------------------------------------


def poses(*found: Pose) -> Poses:
    return Poses(
        boxes_xyxy=BOX.repeat(len(found), 0), scores=np.full(len(found), 0.5, np.float32),
        labels=np.zeros(len(found), np.int64), phrases=("person",), presence=np.ones(1, np.float32), size=SIZE,
        picture=Picture(pixels=np.zeros((SIZE[1], SIZE[0], 3), np.uint8)), poses=object_array(found),
    )  # fmt: skip


def test_poses_are_sliced_joined_and_written_with_their_points() -> None:
    both = poses(pose(), pose(5, flags=(2, 1, 0, 2)))
    assert both[1].poses[0] is both.poses[1]
    assert len(Poses.merge([both, both]).poses) == 4
    assert len(Poses.merge([]).poses) == 0
    row = json.loads(json.dumps(both.to_dict()))["boxes"][1]
    assert row["keypoints"] == {"head": [55, 20, 2], "left hand": [35, 60, 1], "foot": [55, 100, 2]}
    flat = both.to_coco()[1]["keypoints"]
    assert flat == [55, 20, 2, 35, 60, 1, 0, 0, 0, 55, 100, 2]
    assert repr(both) == "Poses(2 poses: person 2)"
    unsure = replace(both, likeness=np.array([1, 0.5], np.float32))
    assert unsure.pose_scores.tolist() == [0.5, 0.125]
    assert [entry["score"] for entry in unsure.to_coco()] == [0.5, 0.125]
    assert [row["likeness"] for row in unsure[::-1].to_dict()["boxes"]] == [0.5, 1.0]
    with pytest.raises(ShapeError, match=r"likeness must lie in \[0, 1\]"):
        replace(both, likeness=np.array([1, 1.5], np.float32))
    with pytest.raises(ShapeError, match=r"poses must be \(1,\) of Pose"):
        replace(both[:1], poses=object_array([]))
    with pytest.raises(ShapeError, match=r"poses\[0\] must be a Pose, got int"):
        replace(both[:1], poses=object_array([3]))


def test_a_drawing_shows_points_where_they_are() -> None:
    drawn = np.asarray(poses(pose(flags=(2, 1, 0, 2))).draw())
    assert drawn[100, 50].any()  # the foot
    assert drawn[60, 50].any()  # the line from head to foot
    hidden, unknown = drawn[60, 30], drawn[58:63, 68:73]
    assert not unknown.any()
    assert hidden.any() or drawn[60, 32].any()


def answered(found: list[Pose], scores: list[float], phrase: str = "stick") -> Answer:
    boxes = np.array([[30, 20, 70, 100]] * len(found), np.float32).reshape(-1, 4)
    result = Poses(
        boxes_xyxy=boxes, scores=np.array(scores, np.float32), labels=np.zeros(len(found), np.int64), phrases=(phrase,),
        presence=np.array([1.0], np.float32), size=SIZE, poses=object_array(found),
    )  # fmt: skip
    meta = LinkMeta(sample=0, turn=0, task="pose", token="[POSE]", phrase=phrase)
    return Answer(text="", links=(LinkResult(meta=meta, decoder="objects", result=result),))


def asked(truth: list[Pose], names: tuple[str, ...] = SKELETON.keypoints) -> Turn:
    boxes = np.array([[30, 20, 70, 100]] * len(truth), np.float32).reshape(-1, 4)
    target = BoxTarget(boxes_xyxy=boxes, phrase=np.zeros(len(truth), np.int64), poses=object_array(truth))
    return Turn(task="pose", phrases=("stick",), parts=(names,), target=target)


def test_answers_are_scored_by_the_names_they_give() -> None:
    """A reply in another order is as right; a point it left out is one it did not find."""
    turned = tuple(reversed(SKELETON.keypoints))
    for found, perfect in ((pose(), True), (pose().named(turned), True), (pose().named(("head", "foot")), False)):
        metric = PoseMetric(["stick"])
        metric.add(asked([pose()]), answered([found], [0.9]), key=0)
        metric.add(asked([]), answered([], []), key=1)
        report = metric.compute()
        assert report["AP50"] == 1.0  # of the boxes
        assert (report["OKS_AP"] == 1.0) == perfect
        assert report["poses"]["stick"]["poses"] == 1
        assert (report["poses"]["stick"]["PCK"] == 1.0) == perfect


def test_poses_are_ranked_by_their_own_scores() -> None:
    """The wrong pose has the surer box; by what it expects of its points it comes last, and costs nothing."""
    for likeness, precision in ((1.0, 0.5), (0.4, 1.0)):
        metric, answer = PoseMetric(["stick"]), answered([pose(60), pose()], [0.9, 0.6])
        (link,) = answer.links
        sure = replace(link.result, likeness=np.array([likeness, 1], np.float32))
        metric.add(asked([pose()]), replace(answer, links=(replace(link, result=sure),)), key=0)
        assert metric.compute()["OKS_AP50"] == pytest.approx(precision)


def test_a_false_person_costs_precision() -> None:
    metric = PoseMetric(["stick"])
    metric.add(asked([pose()]), answered([pose()], [0.6]), key=0)
    metric.add(asked([]), answered([pose()], [0.9]), key=1)
    assert metric.compute()["OKS_AP50"] == pytest.approx(0.5, abs=0.01)


def test_nobody_routed_is_nobody_found() -> None:
    metric = PoseMetric(["stick"])
    picture = Picture(pixels=np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    metric.add(asked([pose()]), Answer(text="", pictures=(picture,)), key=0)
    assert metric.compute()["OKS_AP50"] == 0.0
