"""Panoptic segmentations: every pixel one owner, and COCO's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionllm.core.arrays import object_array
from visionllm.core.errors import AnnotationError, ShapeError, UnknownNameError, VisionLLMError
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.panoptic import Panoptic, Segment, merge, read_ids
from visionllm.metrics.panoptic import PanopticQuality

SIZE = (40, 30)


def block(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    whole = np.zeros(SIZE[::-1], bool)
    whole[y1:y2, x1:x2] = True
    return whole


def found(*rows: tuple[str, float, np.ndarray]) -> Masks:
    phrases = tuple(dict.fromkeys(phrase for phrase, _, _ in rows))
    masks = [Mask.of(mask) for _, _, mask in rows]
    return Masks(
        boxes_xyxy=np.array([mask.box_xyxy for mask in masks], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], np.float32),
        labels=np.array([phrases.index(phrase) for phrase, _, _ in rows], np.int64),
        phrases=phrases, presence=np.ones(len(phrases), np.float32), size=SIZE, masks=object_array(masks),
    )  # fmt: skip


SCENE = found(
    ("road", 0.7, block(0, 15, 20, 30)),
    ("road", 0.6, block(20, 15, 40, 30)),
    ("car", 0.9, block(5, 10, 15, 20)),
    ("car", 0.8, block(6, 10, 16, 20)),  # the same car again: a tenth of it is left
    ("car", 0.5, block(14, 12, 24, 22)),  # another one, partly behind the first
    ("sky", 0.9, block(0, 0, 1, 1)),  # a speck
)


def test_things_come_by_score_and_stuff_takes_the_rest() -> None:
    merged = merge(SCENE, stuff={"road", "sky"})
    assert [(s.phrase, s.thing, round(s.score, 2)) for s in merged.segments] == [
        ("car", True, 0.9), ("car", True, 0.5), ("road", False, 0.7)
    ]  # fmt: skip
    first, second, road = (merged.mask(segment).dense() for segment in merged.segments)
    assert (first == block(5, 10, 15, 20)).all()
    assert (second == (block(14, 12, 24, 22) & ~first)).all()
    assert (road == (block(0, 15, 40, 30) & ~first & ~second)).all()
    assert [segment.area for segment in merged.segments] == [int(m.sum()) for m in (first, second, road)]


def test_nothing_found_is_a_map_of_nothing() -> None:
    empty = merge(found())
    assert empty.segments == ()
    assert not empty.ids.any()


def test_a_map_and_its_segments_agree() -> None:
    with pytest.raises(ShapeError, match="different ids"):
        Panoptic(ids=np.ones((3, 3), np.int32), segments=())
    with pytest.raises(ShapeError, match="int32"):
        Panoptic(ids=np.zeros((3, 3)), segments=())


def test_coco_files_hold_it_all(tmp_path: Path) -> None:
    merged = merge(SCENE, stuff={"road"})
    merged.save(tmp_path / "a" / "1.png", {"car": 3, "road": 149, "sky": 187}, image_id=7)
    entry = json.loads((tmp_path / "a" / "1.json").read_text())
    assert (entry["image_id"], entry["file_name"]) == (7, "1.png")
    with Image.open(tmp_path / "a" / "1.png") as picture:
        ids = read_ids(picture, [info["id"] for info in entry["segments_info"]])
    assert (ids == merged.ids).all()
    for info in entry["segments_info"]:
        rows, columns = np.nonzero(ids == info["id"])
        assert info["area"] == len(rows)
        assert info["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    with pytest.raises(VisionLLMError, match=r"1\.jpg: a panoptic segmentation is a \.png"):
        merged.save(tmp_path / "1.jpg", {"car": 3, "road": 149, "sky": 187})
    with pytest.raises(VisionLLMError, match=r"b\.png: cannot be written \(.*\)"):
        merged.save(tmp_path / "a" / "1.png" / "b.png", {"car": 3, "road": 149, "sky": 187})
    with pytest.raises(UnknownNameError, match="no category 'sky'"):
        merged.to_coco({"car": 3})


def test_ids_above_a_byte_survive() -> None:
    ids = np.zeros((2, 3), np.int32)
    ids[0] = [1, 300, 70000]
    segments = tuple(Segment(id=i, phrase="a", thing=True, score=1.0, area=1) for i in (1, 300, 70000))
    assert (read_ids(Panoptic(ids=ids, segments=segments).png(), [1, 300, 70000]) == ids).all()


def test_a_bad_png_is_one_line() -> None:
    picture = Image.fromarray(np.full((2, 2, 3), [1, 0, 0], np.uint8))
    for image, ids, words in (
        (picture.convert("L"), [1], "must be RGB, this is L"),
        (picture, [], "segment 1 is not in segments_info"),
        (picture, [1, 2], "segment 2 has no pixel"),
    ):
        with pytest.raises(AnnotationError, match=words):
            read_ids(image, ids, source="x.png")


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_photographs_are_read_and_equal_themselves() -> None:
    root = Path(os.environ["VISIONLLM_DATA"], "coco_tiny", "annotations")
    content = json.loads((root / "panoptic_train.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    stuff = {c["name"] for c in content["categories"] if not c["isthing"]}
    quality = PanopticQuality(stuff)
    for entry in content["annotations"]:
        infos = entry["segments_info"]
        with Image.open(root / "panoptic_train" / entry["file_name"]) as picture:
            ids = read_ids(picture, [info["id"] for info in infos], source=entry["file_name"])
        for info in infos:
            assert info["area"] == (ids == info["id"]).sum()
        whole = Panoptic(ids=ids, segments=tuple(
            Segment(id=i["id"], phrase=names[i["category_id"]], thing=True, score=1.0, area=i["area"]) for i in infos
        ))  # fmt: skip
        quality.add(whole, whole)
    report = quality.compute()
    assert report["PQ"] == report["PQ_things"] == report["PQ_stuff"] == 1.0


# --- quality ----------------------------------------------------------------------------------------------------------


def of(**segments: tuple[str, np.ndarray]) -> Panoptic:
    ids = np.zeros(SIZE[::-1], np.int32)
    entries = []
    for number, (_, mask) in enumerate(segments.values(), 1):
        ids[mask] = number
    for number, (phrase, _) in enumerate(segments.values(), 1):
        area = int((ids == number).sum())
        entries.append(Segment(id=number, phrase=phrase, thing=True, score=1.0, area=area))
    return Panoptic(ids=ids, segments=tuple(entries))


def test_quality_by_hand() -> None:
    """One car found with IoU .8, one missed, one invented; most of the road found; a bus on nobody's pixels."""
    truth = of(a=("car", block(0, 0, 10, 10)), b=("car", block(20, 0, 30, 5)), c=("road", block(0, 20, 40, 30)))
    guess = of(
        a=("car", block(0, 0, 10, 8)), b=("car", block(0, 20, 5, 25)), c=("road", block(5, 20, 40, 30)),
        d=("bus", block(32, 0, 40, 10)),
    )  # fmt: skip
    quality = PanopticQuality({"road"})
    quality.add(guess, truth)
    report = quality.compute()
    assert report["categories"]["car"] == {"PQ": pytest.approx(0.8 * 0.5), "SQ": pytest.approx(0.8), "RQ": 0.5,
                                           "segments": 2}  # fmt: skip
    assert "bus" not in report["categories"]
    assert report["categories"]["road"]["SQ"] == pytest.approx(350 / 400)
    assert report["PQ_things"] == pytest.approx(0.4)
    assert report["PQ_stuff"] == pytest.approx(350 / 400)
    assert report["PQ"] == pytest.approx((0.4 + 350 / 400) / 2)


def test_intervals_are_those_of_the_pictures_drawn() -> None:
    """Half of the pictures have their car found, half have not; the road is in one of them alone."""
    quality = PanopticQuality({"road"})
    car, road = ("car", block(0, 0, 10, 10)), ("road", block(0, 20, 40, 30))
    for number in range(20):
        truth = of(a=car, b=road) if number == 0 else of(a=car)
        quality.add(truth if number % 2 == 0 else of(), truth)
    report = quality.compute()
    assert report["PQ_things"] == report["categories"]["car"]["PQ"] == pytest.approx(10 / 15)
    assert report["PQ_stuff_interval"] == [1, 1]  # where it is drawn it is found
    for name in ("PQ", "RQ", "PQ_things"):
        low, high = report[f"{name}_interval"]
        assert low < report[name] < high
    assert report["SQ_interval"] == [1, 1]
    assert quality.compute(resamples=0)["PQ_interval"] is PanopticQuality().compute()["PQ_interval"] is None


def test_another_category_is_no_partner() -> None:
    quality = PanopticQuality()
    quality.add(of(a=("bus", block(0, 0, 9, 9))), of(a=("car", block(0, 0, 9, 9))))
    assert quality.compute()["PQ"] == 0.0
    assert PanopticQuality().compute()["PQ"] is None
    with pytest.raises(ShapeError, match="cannot be compared"):
        quality.add(of(), Panoptic(ids=np.zeros((3, 3), np.int32), segments=()))


@pytest.mark.parametrize("seed", range(3))
def test_quality_against_a_public_implementation(seed: int) -> None:
    public = pytest.importorskip("torchmetrics.detection")
    import torch

    rng = np.random.default_rng(seed)
    names = ("car", "bus", "road", "sky")

    def random_map(near: np.ndarray | None) -> np.ndarray:
        """(H, W, 2) category and number; of stuff the number is nothing."""
        whole = np.zeros((*SIZE[::-1], 2), np.int64) if near is None else near.copy()
        whole[..., 0] += 2 if near is None else 0
        for number in range(1, 9 if near is None else 4):
            x, y = rng.integers(0, 30), rng.integers(0, 20)
            whole[y : y + rng.integers(2, 14), x : x + rng.integers(2, 14)] = (
                rng.integers(4),
                number + 10 * (near is not None),
            )
        whole[whole[..., 0] >= 2, 1] = 0
        return whole

    def segmented(whole: np.ndarray) -> Panoptic:
        ids, segments = np.zeros(whole.shape[:2], np.int32), []
        for number, (category, instance) in enumerate(np.unique(whole.reshape(-1, 2), axis=0).tolist(), 1):
            place = (whole == (category, instance)).all(-1)
            ids[place] = number
            segments.append(
                Segment(id=number, phrase=names[category], thing=category < 2, score=1, area=int(place.sum()))
            )
        return Panoptic(ids=ids, segments=tuple(segments))

    ours, theirs = PanopticQuality({"road", "sky"}), public.PanopticQuality({0, 1}, {2, 3}, return_per_class=True)
    for _ in range(4):
        truth = random_map(None)
        found = random_map(truth)
        ours.add(segmented(found), segmented(truth))
        theirs.update(torch.from_numpy(found)[None], torch.from_numpy(truth)[None])
    report = ours.compute()["categories"]
    expected = dict(zip(names, theirs.compute()[0].tolist(), strict=True))
    assert {name: one["PQ"] for name, one in report.items()} == pytest.approx({name: expected[name] for name in report})
