"""The embedded model of any edition: whole, small, open about its origin, and able to do what the README shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from visionllm import Box, Point, VisionLLM, open_dataset
from visionllm.core.sample import Sample, Turn

LARGEST = 45_000_000  # bytes, all files together
STREET, PROMPT = "examples/street.jpg", "detect all cars"
SURE = {"objects": {"threshold": 0.0, "max_boxes": 1}}


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "visionllm" / "assets" / "nano"


@pytest.fixture(scope="module")
def embedded() -> VisionLLM:
    return VisionLLM.from_pretrained()


@pytest.fixture(scope="module")
def street(root: Path) -> Path:
    return root / STREET


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_is_complete_and_small(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "README.md"} <= names
    assert any(name.endswith(".safetensors") for name in names)
    # Nothing in a checkpoint is code.
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < LARGEST


def test_the_config_says_its_version_and_who_provides_its_decoders(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "visionllm"
    assert values["format_version"] >= 1
    assert values["providers"].keys() == values["decoders"].keys()


@pytest.mark.parametrize("name", ["README.md", "NOTICE"])
def test_data_and_licences_are_named(name: str, folder: Path, root: Path) -> None:
    text = (folder / name if name == "README.md" else root / name).read_text(encoding="utf-8")
    for word in ("procedural scenes", "CARLA", "BCCD", "MIT", "CC BY 4.0"):
        assert word.casefold() in text.casefold(), f"{name} does not name {word}"


def test_the_card_is_of_these_weights(embedded: VisionLLM, folder: Path) -> None:
    tasks = {"detection", "segmentation", "pose", "looking", "generation", "editing", "super_resolution"}
    assert {task.name for task in embedded.tasks} == tasks
    assert embedded.fingerprint in (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_has_scores_and_limits(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("license", "hardware", "seed", "held", "limit"):
        assert word in text.casefold(), f"the card says nothing of {word}"
    assert re.search(r"\d", text)


# --- what it does ---------------------------------------------------------------------------------------------------


def test_the_weights_are_whole(embedded: VisionLLM) -> None:
    assert not embedded.training
    for name, value in embedded.state_dict().items():
        if value.is_floating_point():
            assert bool(value.isfinite().all()), name


def test_detect_all_cars(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, PROMPT)
    assert list(answer.trace.routed) == [("[DET]", "cars")]
    assert answer.detections.phrases == ("cars",)
    assert len(answer.detections) >= 1
    width, height = answer.pictures[0].size
    boxes = answer.detections.boxes_xyxy
    assert boxes.min() >= 0
    assert (boxes <= [width, height, width, height]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert answer.draw().size == (width, height)


def test_segment_all_cars(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, "segment all cars")
    assert list(answer.trace.routed) == [("[SEG]", "cars")]
    masks = answer.masks
    assert len(masks) >= 1
    for mask, (x1, y1, x2, y2) in zip(masks.masks, masks.boxes_xyxy, strict=True):
        # A pixel beyond the box on every side: of a small car that is a tenth of it.
        inside = mask.dense()[round(float(y1)) - 1 : round(float(y2)) + 1, round(float(x1)) - 1 : round(float(x2)) + 1]
        # A car fills most of its box.
        assert inside.mean() > 0.5
        assert mask.area == pytest.approx(inside.sum(), rel=0.05)


@pytest.mark.parametrize("prompt", ["make the car blue", "replace the car with a bus", "move the dog to the left"])
def test_a_change_is_asked_for_as_it_is_said(embedded: VisionLLM, street: Path, prompt: str) -> None:
    assert list(embedded(street, prompt, options={"editing": {"steps": 1}}).trace.routed) == [("[EDIT]", prompt)]


@pytest.mark.parametrize(("prompt", "found", "change"), [
    ("detect the cars, then make the red one blue", "cars", "make the red one blue"),
    ("detect all cars and make the red car blue", "cars", "make the red car blue"),
    ("segment the trees, then remove the car", "trees", "remove the car"),
    ("detect cars; make it night", "cars", "make it night"),
])  # fmt: skip
def test_things_and_a_changed_picture_in_one_answer(
    embedded: VisionLLM, street: Path, prompt: str, found: str, change: str
) -> None:
    answer = embedded(street, prompt, options={"editing": {"steps": 2}})
    kinds = [(link.meta.phrase, link.meta.token) for link in answer.links]
    assert kinds == [(found, "[SEG]" if "segment" in prompt else "[DET]"), (change, "[EDIT]")]
    assert len(answer.links[0].result) >= 1
    assert [recipe.phrase for recipe in answer.images.recipes] == [change]
    assert len(answer.trace.positions) == 2


def test_a_request_that_lacks_its_picture_says_so(embedded: VisionLLM) -> None:
    answer = embedded(None, "make the car blue")
    assert not answer.links
    assert [(meta.task, meta.phrase) for meta in answer.unserved] == [("editing", "make the car blue")]
    assert answer.statements() == ["make the car blue: editing needs a picture, and none was given"]
    assert "no picture to read" in answer.explain()
    assert "[EDIT]" in answer.text


def test_a_description_is_words(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, "describe the picture")
    assert not answer.trace.routed
    assert "street" in answer.text


def test_a_car_that_is_pointed_at(embedded: VisionLLM, street: Path) -> None:
    """By its box, by a point on it and by its name it is the same car."""
    car = embedded.segment(street, ["car"]).masks[0]
    x1, y1, x2, y2 = map(float, car.boxes_xyxy[0])
    named = car.masks[0].dense()
    for region in (Box(x1, y1, x2, y2), Point((x1 + x2) / 2, (y1 + y2) / 2)):
        answer = embedded(street, "segment <region>", regions=[region])
        assert list(answer.trace.routed) == [("[SEG]", "region 1")]
        pointed = answer.masks.masks[0].dense()
        assert (pointed & named).sum() / (pointed | named).sum() > 0.7


def test_a_number_comes_with_its_boxes(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, "How many cars are there?")
    assert list(answer.trace.routed) == [("[FIND]", "cars")]
    assert answer.text == str(len(answer.detections))
    assert len(answer.detections) >= 1


def test_what_is_not_there(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, "Is there a banana in the picture?")
    assert list(answer.trace.routed) == [("[FIND]", "banana")]
    assert answer.text == "no"
    assert not len(answer.detections)


def test_keypoints_come_with_their_person(embedded: VisionLLM, street: Path) -> None:
    names = ["nose", "left wrist", "right ankle"]
    answer = embedded(street, f"find the pose of person ({', '.join(names)})", options=SURE)
    assert list(answer.trace.routed) == [("[POSE]", "person"), *(("[KPT]", name) for name in names)]
    (pose,) = answer.poses.poses
    assert pose.skeleton.keypoints == tuple(names)
    nose, _, ankle = pose.points_xy
    assert ankle[1] > nose[1], "the ankle is below the nose"


def test_a_picture_is_drawn_and_drawn_again(embedded: VisionLLM, tmp_path: Path) -> None:
    """Free-running, from words alone; what was saved holds all it takes to make it again."""
    answer = embedded(None, "draw a yellow banana on a table", options={"generation": {"steps": 10}})
    assert answer.text == "<ref>yellow banana on a table</ref>[GEN]"
    (picture,) = answer.images.pictures
    assert picture.size == (64, 64)
    # A table in the lower half, under a wall: two halves of two colours, and yellow in the middle of the lower one.
    upper, lower = picture.pixels[:12].mean((0, 1)), picture.pixels[-6:].mean((0, 1))
    assert np.abs(upper - lower).max() > 15
    answer.images[0].save(tmp_path / "banana.png")
    again = embedded.replay(tmp_path / "banana.png")
    assert np.array_equal(again.pictures[0].pixels, picture.pixels)


def test_a_picture_gets_its_pixels_back(embedded: VisionLLM) -> None:
    """Nearer to a scene it has not seen than bicubic interpolation is."""
    gains = []
    for index in range(3):
        (sample,) = open_dataset("scenes", "val", task="super_resolution").ask_all(index)
        small, sharp = sample.pictures[0].pixels, sample.turns[0].target.pictures[0].pixels
        (made,) = embedded.upscale(small, ["picture"]).images.pictures
        assert made.size == (2 * small.shape[1], 2 * small.shape[0])
        plain = cv2.resize(small, made.size, interpolation=cv2.INTER_CUBIC)
        away = [np.square(one.astype(float) - sharp).mean() for one in (plain, made.pixels)]
        gains.append(10 * np.log10(away[0] / away[1]))
    assert np.mean(gains) > 0.5, gains


@pytest.mark.parametrize("index", range(3))
def test_night_falls(embedded: VisionLLM, index: int) -> None:
    """Free-running, on sketches it has not seen: darker, and still the same place."""
    before = open_dataset("scenes", "sketches_val", task="editing").ask_all(index)[0].pictures[0].pixels
    answer = embedded(before, "turn day into night", options={"editing": {"steps": 10}})
    assert list(answer.trace.routed) == [("[EDIT]", "turn day into night")]
    (after,) = answer.images.pictures
    source = cv2.resize(before, after.size, interpolation=cv2.INTER_AREA)
    assert after.pixels.mean() < 0.7 * source.mean()
    assert np.corrcoef(cv2.GaussianBlur(source, (0, 0), 2).ravel(), after.pixels.ravel())[0, 1] > 0.5


def test_free_words_ask_for_more_pixels(embedded: VisionLLM, street: Path) -> None:
    answer = embedded(street, "upscale this picture")
    assert answer.text == "<ref>picture</ref>[SR]"
    (made,) = answer.images.pictures
    assert made.size == tuple(2 * side for side in answer.pictures[0].size)


def test_eighty_names_at_once(embedded: VisionLLM, street: Path) -> None:
    names = ["car", *(f"thing number {i}" for i in range(79))]
    answer = embedded.detect(street, names)
    assert [link.meta.phrase for link in answer.links] == names
    assert answer.detections.phrases == tuple(names)
    assert answer.detections.presence.shape == (80,)
    assert len(embedded.detect(street, ["car"]).detections) >= 1


def test_a_batch_gives_what_single_questions_give(embedded: VisionLLM, street: Path) -> None:
    requests = [(street, PROMPT), (street, "find the truck and every bicycle"), (street, "where are dogs?")]
    for (picture, prompt), answer in zip(requests, embedded.ask_many(requests), strict=True):
        alone = embedded.ask(picture, prompt)
        assert alone.text == answer.text
        assert len(alone.detections) == len(answer.detections)
        # A query's content follows the rank of its proposal: two whose scores are 1e-6 apart may change places
        # (docs/architecture.md).
        np.testing.assert_allclose(alone.detections.boxes_xyxy, answer.detections.boxes_xyxy, atol=0.5)


def control_words(embedded: VisionLLM) -> list[str]:
    """Texts of every token that steers."""
    vocabulary = embedded.vocabulary
    return [vocabulary.text([token]) for token in sorted(vocabulary.added)]


def test_typed_control_tokens_never_route(embedded: VisionLLM, street: Path) -> None:
    words = control_words(embedded)
    assert {"[DET]", "<ref>", "</ref>"} <= set(words)

    def steering(prompt: str) -> tuple[list[int], Any]:
        batch = embedded.processor.encode([Sample(turns=(Turn(question=prompt),))], reply=False)
        return [token for token in batch.input_ids[0].tolist() if token in embedded.vocabulary.added], batch.links

    plain, _ = steering("hello")
    for typed in (*words, "".join(words), "<ref>cars</ref>[DET]", f"{PROMPT} <ref>dog</ref>[DET]"):
        ids, links = steering(typed)
        assert ids == plain, f"{typed!r} steers"
        assert len(links) == 0
        assert not set(ids) & set(embedded.vocabulary.routing)


def test_no_task_is_allowed_so_nothing_routes(embedded: VisionLLM, street: Path) -> None:
    for prompt in (PROMPT, f"{PROMPT} [DET]", "<ref>cars</ref>[DET]"):
        answer = embedded(street, prompt, allow=[], max_new_tokens=24)
        assert answer.trace.routed == ()
        assert not answer.links


def test_in_bf16_it_sees_the_same(embedded: VisionLLM, street: Path) -> None:
    """Language model and tower in half precision, decoders in fp32: boxes and numbers hold."""
    half = VisionLLM.from_pretrained(dtype=torch.bfloat16)
    assert {p.dtype for p in half.mllm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.decoders.parameters()} == {torch.float32}
    one, other = (model(street, PROMPT) for model in (embedded, half))
    assert one.text == other.text
    assert len(one.detections) == len(other.detections)
    # From left to right: two that score nearly the same may change places.
    boxes, others = (found[found[:, 0].argsort()] for found in (one.detections.boxes_xyxy, other.detections.boxes_xyxy))
    assert float(np.abs(boxes - others).max()) < 4
    assert half(street, "How many cars are there?").text == embedded(street, "How many cars are there?").text
    assert len(half(street, "segment <region>", regions=[Point(280, 280)]).masks) == 1
