"""The preview that answers questions after a look: it can be asked what its card shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionllm import VisionLLM


@pytest.fixture(scope="module")
def looks(root: Path) -> VisionLLM:
    return VisionLLM.from_pretrained(root / "examples" / "looks")


@pytest.fixture(scope="module")
def street(root: Path) -> Path:
    return root / "examples" / "street.jpg"


def test_it_has_the_tasks_and_the_card_names_its_data(looks: VisionLLM, root: Path) -> None:
    assert {task.name for task in looks.tasks} == {"detection", "segmentation", "pose", "looking"}
    text = (root / "examples" / "looks" / "README.md").read_text(encoding="utf-8")
    for word in ("procedural scenes", "CARLA", "BCCD", "Apache-2.0", "NOTICE", looks.fingerprint):
        assert word in text


def test_a_number_comes_with_its_boxes(looks: VisionLLM, street: Path) -> None:
    answer = looks(street, "How many cars are there?")
    assert answer.trace.routed == (("[FIND]", "cars"),)
    assert answer.text == str(len(answer.detections))
    assert len(answer.detections) >= 1


def test_what_is_not_there(looks: VisionLLM, street: Path) -> None:
    answer = looks(street, "Is there a zebra in the picture?")
    assert answer.trace.routed == (("[FIND]", "zebra"),)
    assert answer.text == "no"
    assert not len(answer.detections)


def test_a_request_for_boxes_is_no_question(looks: VisionLLM, street: Path) -> None:
    answer = looks(street, "detect all cars")
    assert list(answer.trace.routed) == [("[DET]", "cars")]
    assert answer.text == "<ref>cars</ref>[DET]"
