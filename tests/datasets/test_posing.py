"""Questions about poses: which points are asked for, how they are said, and that the truth follows them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from visionllm.core.arrays import object_array
from visionllm.core.errors import AnnotationError
from visionllm.core.geometry import Geometry
from visionllm.core.poses import Pose, Skeleton
from visionllm.core.sample import Picture, Record, Source, Turn
from visionllm.core.skeletons import load_skeleton
from visionllm.datasets.asking import ASKERS, FOREIGN, USUAL
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.formats import Wording
from visionllm.datasets.plan import item_rng
from visionllm.routing.render import render_question

STICK = Skeleton(name="stick", keypoints=("nose", "left paw", "right paw", "tail"))
NAMES = ("dog", "cat", "car")
WORDING = Wording(skeletons={"dog": STICK, "cat": STICK})


def record(labels: tuple[int, ...] = (0, 2, 0)) -> Record:
    boxes = np.array([[4 * i, 0, 4 * i + 10, 20] for i in range(len(labels))], np.float32).reshape(-1, 4)
    poses = [
        Pose(points_xy=box[:2] + np.array([[1, 1], [2, 9], [8, 9], [9, 2]], np.float32),
             visibility=np.array([2, 1, 2, 0], np.int8), skeleton=STICK) if label < 2 else None
        for box, label in zip(boxes, labels, strict=True)
    ]  # fmt: skip
    return Record(
        picture=Picture(pixels=np.zeros((30, 40, 3), np.uint8)), names=NAMES, boxes_xyxy=boxes,
        labels=np.array(labels, np.int64), crowd=np.zeros(len(labels), bool), source=Source(dataset="tiny", index=0),
        poses=object_array(poses),
    )  # fmt: skip


def test_what_has_keypoints_is_asked_for() -> None:
    shown, seen = record(), Counter[str]()
    for position in range(300):
        sample = ASKERS["pose"].draw(shown, WORDING, item_rng(0, position))
        (turn,) = sample.turns
        assert turn.task == "pose"
        assert len(turn.parts) == len(turn.phrases) >= 1
        for phrase, names in zip(turn.phrases, turn.parts, strict=True):
            word = phrase.casefold().removesuffix("s")
            assert word in ("dog", "cat")
            seen[word] += 1
            assert len(set(names)) == len(names) > 0
        seen["usual"] += turn.usual
        seen["foreign"] += any(name not in STICK.keypoints for names in turn.parts for name in names)
        if turn.usual:
            assert all(names == STICK.keypoints for names in turn.parts)
        own = [i for i, phrase in enumerate(turn.phrases) if phrase.casefold().startswith("dog")]
        boxes = turn.target.boxes_xyxy[np.isin(turn.target.phrase, own)]
        assert boxes.tolist() == (shown.boxes_xyxy[[0, 2]].tolist() if own else [])
        assert all(pose.skeleton is STICK for pose in turn.target.poses)
    assert abs(seen["usual"] / 300 - USUAL) < 0.1
    assert abs(seen["foreign"] / (300 - seen["usual"]) - FOREIGN) < 0.12
    assert seen["dog"] > seen["cat"] > 20  # one is there, the other is asked for all the same


def test_without_negatives_or_keypoints_there_is_nothing_to_ask() -> None:
    strict = Wording(skeletons=WORDING.skeletons, negatives=False)
    for position in range(40):
        assert ASKERS["pose"].draw(record(), strict, item_rng(0, position)).turns[0].phrases[0].lower()[:3] == "dog"
    with pytest.raises(AnnotationError, match=r"tiny\[0\]: holds nothing with keypoints to ask for"):
        ASKERS["pose"].draw(record((2,)), strict, item_rng(0, 0))


def test_a_mirror_changes_names_not_questions() -> None:
    """Points asked for by side still mean the side of the animal."""
    sample = ASKERS["pose"].draw(record(), WORDING, item_rng(0, 1))
    target = sample.turns[0].target.transform(Geometry.hflip((40, 30)))
    for before, after in zip(sample.turns[0].target.poses, target.poses, strict=True):
        np.testing.assert_allclose(after.points_xy[1], [40 - before.points_xy[2][0], before.points_xy[2][1]])
        assert after.named(["left paw"]).visibility[0] == before.named(["right paw"]).visibility[0]


@pytest.mark.parametrize("seed", range(12))
def test_questions_say_the_points_unless_they_are_usual(seed: int) -> None:
    sample = ASKERS["pose"].draw(record(), WORDING, item_rng(1, seed))
    turn = sample.turns[0]
    for rng in (None, item_rng(2, seed)):
        question = render_question(turn, rng=rng)
        for names in turn.parts:
            assert all((name in question) != turn.usual for name in names)
    if not turn.usual and len(turn.phrases) == 1:
        assert render_question(turn) == f"find the pose of {turn.phrases[0]} ({', '.join(turn.parts[0])})"


def test_evaluation_asks_for_every_kind_on_its_own() -> None:
    samples = ASKERS["pose"].every(record(), WORDING)
    assert [sample.turns[0].phrases for sample in samples] == [("dog",), ("cat",)]
    assert all(sample.turns[0].parts == (STICK.keypoints,) and sample.turns[0].usual for sample in samples)
    (both,) = ASKERS["pose"].every(record(), WORDING, chunk=9)
    assert both.turns[0].phrases == ("dog", "cat")
    strict = Wording(skeletons=WORDING.skeletons, negatives=False)
    assert [s.turns[0].phrases for s in ASKERS["pose"].every(record(), strict)] == [("dog",)]


def test_scenes_bring_their_people() -> None:
    dataset = open_dataset("scenes", "val", task="pose")
    assert dict(dataset.wording.skeletons) == {"person": load_skeleton("coco_17")}
    assert not open_dataset("scenes", "val").wording.skeletons
    turns = [sample.turns[0] for index in range(6) for sample in dataset.ask_all(index)]
    assert len(turns) == 6  # people are asked for where there are none, too
    assert any(pose is not None for turn in turns for pose in turn.target.poses)


def test_names_are_looked_up_in_any_order() -> None:
    pose = record().poses[0]  # type: ignore[index]
    own = pose.named(["tail", "wing", "nose"])
    assert own.visibility.tolist() == [0, 0, 2]
    assert own.points_xy[2].tolist() == pose.points_xy[0].tolist()
    assert own.skeleton.keypoints == ("tail", "wing", "nose")
    whole = load_skeleton("coco_17")
    part = whole.named(["left elbow", "antenna", "left wrist"])
    assert part.edges == ((0, 2),)
    assert part.sigmas == (0.072, 0.05, 0.062)


@pytest.mark.parametrize("seed", range(12))
def test_lists_in_a_list_have_two_marks(seed: int) -> None:
    """What belongs to whom can be read: no mark between two points stands between two things."""
    turn = Turn(task="pose", phrases=("dog", "red cat"), parts=(("nose", "tail"), ("left ear", "right ear")))
    words = render_question(turn, rng=item_rng(4, seed))
    first, second = words.split("; ", 1)
    assert "dog" in first
    assert "nose" in first
    assert "tail" in first
    assert "red cat" in second
    between = re.search("nose(.+)tail", first)
    assert between is not None
    assert ";" not in between.group(1)
    assert render_question(turn) == "find the pose of dog (nose, tail); red cat (left ear, right ear)"
