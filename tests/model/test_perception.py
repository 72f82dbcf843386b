"""The preview with masks, regions and poses: it can be asked what the README shows, and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionllm import Box, Point, VisionLLM

SURE = {"objects": {"threshold": 0.0, "max_boxes": 1}}


@pytest.fixture(scope="module")
def perception(root: Path) -> VisionLLM:
    return VisionLLM.from_pretrained(root / "examples" / "perception")


@pytest.fixture(scope="module")
def street(root: Path) -> Path:
    return root / "examples" / "street.jpg"


def test_it_has_the_tasks_and_the_card_names_its_data(perception: VisionLLM, root: Path) -> None:
    assert {task.name for task in perception.tasks} == {"detection", "segmentation", "pose"}
    text = (root / "examples" / "perception" / "README.md").read_text(encoding="utf-8")
    for word in ("procedural scenes", "CARLA", "BCCD", "Apache-2.0", "NOTICE", perception.fingerprint):
        assert word in text


def test_segment_all_cars(perception: VisionLLM, street: Path) -> None:
    answer = perception(street, "segment all cars")
    assert list(answer.trace.routed) == [("[SEG]", "cars")]
    masks = answer.masks
    assert len(masks) >= 1
    for mask, (x1, y1, x2, y2) in zip(masks.masks, masks.boxes_xyxy, strict=True):
        inside = mask.dense()[round(float(y1)) : round(float(y2)), round(float(x1)) : round(float(x2))]
        # A car fills most of its box.
        assert inside.mean() > 0.5
        assert mask.area == pytest.approx(inside.sum(), rel=0.05)


def test_a_car_that_is_pointed_at(perception: VisionLLM, street: Path) -> None:
    """By its box, by a point on it and by its name it is the same car."""
    car = perception.segment(street, ["car"]).masks[0]
    x1, y1, x2, y2 = map(float, car.boxes_xyxy[0])
    named = car.masks[0].dense()
    for region in (Box(x1, y1, x2, y2), Point((x1 + x2) / 2, (y1 + y2) / 2)):
        answer = perception(street, "segment <region>", regions=[region])
        assert list(answer.trace.routed) == [("[SEG]", "region 1")]
        pointed = answer.masks.masks[0].dense()
        assert (pointed & named).sum() / (pointed | named).sum() > 0.7


def test_keypoints_come_with_their_person(perception: VisionLLM, street: Path) -> None:
    names = ["nose", "left wrist", "right ankle"]
    answer = perception(street, f"find the pose of person ({', '.join(names)})", options=SURE)
    assert list(answer.trace.routed) == [("[POSE]", "person"), *(("[KPT]", name) for name in names)]
    (pose,) = answer.poses.poses
    assert pose.skeleton.keypoints == tuple(names)
    nose, _, ankle = pose.points_xy
    assert ankle[1] > nose[1], "the ankle is below the nose"
