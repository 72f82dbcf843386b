"""Augmentation: pure, boxes follow the pixels, words of sides forbid the mirror."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from visionllm.core.arrays import object_array
from visionllm.core.geometry import Geometry
from visionllm.core.masks import Mask
from visionllm.core.sample import BoxTarget, Picture, Record, Sample, Source, Turn
from visionllm.datasets.asking import BoxAsker
from visionllm.datasets.plan import item_rng
from visionllm.datasets.transforms import Augment, _noisy, mosaic, shrunk, speaks_of_sides, transformed

QUIET = {"light": 0.0, "blur": 0.0, "noise": 0.0}
STILL = {"flip": 0.0, "crop": 0.0, "out": 0.0}


def square_sample(phrase: str = "square", size: tuple[int, int] = (160, 120)) -> Sample:
    """A white square on black, with its box."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[40:70, 20:60] = 255
    target = BoxTarget(boxes_xyxy=np.array([[20, 40, 60, 70]], np.float32), phrase=np.zeros(1, np.int64))
    turn = Turn(task="detection", phrases=(phrase,), target=target)
    return Sample(pictures=(Picture(pixels=pixels),), turns=(turn,))


def white_box(pixels: np.ndarray) -> np.ndarray:
    mask = pixels[..., 0] > 127
    # The padding is gray, below the limit.
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_boxes_follow_the_pixels() -> None:
    augment = Augment(**QUIET, sizes=((128, 96),))
    kept = 0
    for position in range(200):
        sample = augment(square_sample(), item_rng(0, position))
        assert sample.pictures[0].size == (128, 96)
        boxes_xyxy = sample.turns[0].target.boxes_xyxy
        if len(boxes_xyxy):
            kept += 1
            assert np.abs(boxes_xyxy[0] - white_box(sample.pictures[0].pixels)).max() <= 1.5
    assert kept > 100


def test_of_sizes_of_one_shape_the_nearest_is_taken() -> None:
    """A crop of a large picture stays large, one of a small picture small, and shape goes before size."""
    still = {**QUIET, "crop": 0.0, "out": 0.0, "flip": 0.0}
    augment = Augment(**still, sizes=((64, 48), (256, 192), (200, 100)))
    for size, made in (
        ((70, 50), (64, 48)),
        ((150, 112), (256, 192)),
        ((500, 380), (256, 192)),
        ((60, 30), (200, 100)),
    ):
        sample = Sample(pictures=(Picture(pixels=np.zeros((size[1], size[0], 3), np.uint8)),))
        assert augment(sample, item_rng(0, 0)).pictures[0].size == made


def test_a_draw_is_pure_and_leaves_its_input_alone() -> None:
    sample = square_sample()
    before = sample.pictures[0].pixels.copy()
    one, other = (Augment()(sample, item_rng(5, 9)) for _ in range(2))
    assert (one.pictures[0].pixels == other.pictures[0].pixels).all()
    assert (one.turns[0].target.boxes_xyxy == other.turns[0].target.boxes_xyxy).all()
    assert (sample.pictures[0].pixels == before).all()


def test_all_kinds_of_geometry_occur() -> None:
    augment, size = Augment(), (160, 120)
    geometries = [augment.draw_geometry(size, item_rng(0, position)) for position in range(300)]
    mirrored = [geometry.mirrors for geometry in geometries]
    areas = [g.output_size[0] * g.output_size[1] / (160 * 120) for g in geometries]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert min(areas) < 0.45
    assert max(areas) > 1.2
    assert 0.1 < np.mean(np.array(areas) == 1) < 0.4


@pytest.mark.parametrize("phrase", ["left dog", "dog on the RIGHT", "right-most cup", "left_hand"])
def test_words_of_sides_forbid_the_mirror(phrase: str) -> None:
    sample = square_sample(phrase)
    assert speaks_of_sides(sample)
    augment = Augment(**QUIET, **{**STILL, "flip": 1.0})
    assert (augment(sample, item_rng(0, 0)).pictures[0].pixels == sample.pictures[0].pixels).all()


@pytest.mark.parametrize("phrase", ["square", "bright cup", "cleft", "brighton"])
def test_other_words_do_not(phrase: str) -> None:
    sample = square_sample(phrase)
    assert not speaks_of_sides(sample)
    flipped = Augment(**QUIET, **{**STILL, "flip": 1.0})(sample, item_rng(0, 0))
    assert flipped.turns[0].target.boxes_xyxy.tolist() == [[100, 40, 140, 70]]
    assert (flipped.pictures[0].pixels == sample.pictures[0].pixels[:, ::-1]).all()


def test_a_question_or_reply_counts_too() -> None:
    assert speaks_of_sides(Sample(turns=(Turn(question="what is on the left?", reply="a cup"),)))
    assert speaks_of_sides(Sample(turns=(Turn(question="where is it?", reply="to the right"),)))


def test_a_forbidden_mirror_changes_nothing_else() -> None:
    augment = Augment()
    for position in range(50):
        free = augment.draw_geometry((160, 120), item_rng(0, position))
        bound = augment.draw_geometry((160, 120), item_rng(0, position), flip=False)
        assert not bound.mirrors
        if not free.mirrors:
            assert (free.matrix == bound.matrix).all()


def test_zero_strength_is_the_identity() -> None:
    sample = square_sample()
    still = Augment(**QUIET, **STILL)(sample, item_rng(0, 0))
    assert (still.pictures[0].pixels == sample.pictures[0].pixels).all()
    none = Augment(**STILL, brightness=0, contrast=0, saturation=0, hue=0, gamma=0, blur=0, noise=0, light=1)
    assert (none(sample, item_rng(0, 0)).pictures[0].pixels == sample.pictures[0].pixels).all()


def test_light_changes_pixels_within_bounds_and_never_boxes() -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (120, 160, 3), dtype=np.uint8)
    augment = Augment(**STILL, light=1, blur=0.5, noise=0.5)
    changes = []
    for position in range(60):
        changed = augment.relight(pixels, item_rng(0, position))
        assert changed.shape == pixels.shape
        assert changed.dtype == np.uint8
        changes.append(np.abs(changed.astype(int) - pixels).mean())
    assert min(changes) > 0
    assert max(changes) < 90
    assert np.std(changes) > 3


def test_noise_has_no_bias_and_the_strength_asked_for() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    noise = _noisy(gray, 8.0, item_rng(0, 0)).astype(float) - 128
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 8) < 0.5


@pytest.mark.parametrize("values", [{"scale": (1.0, 0.5)}, {"scale": (0.5, 2.0)}, {"flip": 2}, {"hues": 3}])
def test_settings_without_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Augment.model_validate(values)


def test_samples_without_pictures_pass() -> None:
    sample = Sample(turns=(Turn(task="detection", phrases=("cup",)),))
    assert Augment()(sample, item_rng(0, 0)).turns == sample.turns


def test_samples_of_several_pictures_keep_their_geometry() -> None:
    one = square_sample()
    pair = Sample(pictures=one.pictures * 2, turns=one.turns)
    assert [p.size for p in Augment(sizes=((50, 50),))(pair, item_rng(0, 0)).pictures] == [(160, 120)] * 2


def test_a_target_of_another_kind_is_carried_by_its_own_method() -> None:
    class Marked:
        def transform(self, geometry: Geometry) -> tuple[str, Geometry]:
            return "moved", geometry

    sample = Sample(pictures=square_sample().pictures, turns=(Turn(target=Marked()), Turn()))
    geometry = Geometry.hflip((160, 120))
    assert transformed(sample, geometry).turns[0].target == ("moved", geometry)


def record(seed: int = 0, size: tuple[int, int] = (160, 120)) -> Record:
    sample = square_sample(size=size)
    return Record(
        picture=Picture(pixels=sample.pictures[0].pixels, name=str(seed)),
        names=("square",),
        boxes_xyxy=sample.turns[0].target.boxes_xyxy,
        labels=np.zeros(1, np.int64),
        crowd=np.zeros(1, bool),
        source=Source(dataset="tiny", index=seed),
        extra={"mask": 1},
    )


def test_shrinking_carries_the_boxes() -> None:
    small = shrunk(record(), 80)
    assert small.picture.size == (80, 60)
    assert small.boxes_xyxy.tolist() == [[10, 20, 30, 35]]
    assert small.extra == {}
    same = record()
    assert shrunk(same, 160) is same


def test_a_mosaic_shows_every_box_it_lists() -> None:
    for position in range(40):
        combined = mosaic([record(i) for i in range(4)], item_rng(0, position))
        assert combined.picture.size == (160, 120)
        assert len(combined.labels) == len(combined.boxes_xyxy) == len(combined.crowd)
        for x1, y1, x2, y2 in combined.boxes_xyxy.round().astype(int):
            assert 0 <= x1 < x2 <= 160
            assert 0 <= y1 < y2 <= 120
            inside = combined.picture.pixels[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert inside.size == 0 or inside.mean() > 200


def test_a_mosaic_of_tiny_pictures_holds() -> None:
    tiny = replace(
        record(),
        picture=Picture(pixels=np.zeros((1, 1, 3), np.uint8)),
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
    )
    assert mosaic([record(), tiny, tiny, tiny], item_rng(0, 0)).picture.size == (160, 120)


# --- masks ------------------------------------------------------------------------------------------------------------


def masked(seed: int = 0) -> Record:
    """The white square, its mask, and something without a mask."""
    plain = record(seed)
    whole = np.zeros((120, 160), bool)
    x1, y1, x2, y2 = plain.boxes_xyxy[0].astype(int)
    whole[y1:y2, x1:x2] = True
    return replace(
        plain, boxes_xyxy=plain.boxes_xyxy.repeat(2, 0), labels=np.zeros(2, np.int64), crowd=np.zeros(2, bool),
        masks=object_array([Mask.of(whole), None]),
    )  # fmt: skip


def covers(mask: Mask, pixels: np.ndarray) -> float:
    """Overlap of a mask and the white pixels."""
    return mask.iou(Mask.of(pixels.min(2) > 200))


def test_masks_follow_the_pixels() -> None:
    seen = 0
    for position in range(40):
        target = BoxAsker().of(masked(), [0], ["square"]).turns[0].target
        sample = replace(square_sample(), turns=(Turn(target=target),))
        sample = Augment(sizes=((96, 72),), out=0.5, light=0)(sample, item_rng(0, position))
        moved = sample.turns[0].target
        assert len(moved.masks) == len(moved.boxes_xyxy)
        if len(moved.masks):
            assert moved.masks[1] is None
            assert covers(moved.masks[0], sample.pictures[0].pixels) > 0.8
            assert np.abs(moved.masks[0].box_xyxy - moved.boxes_xyxy[0]).max() <= 1
            seen += 1
    assert seen > 20


def test_shrinking_and_mosaics_carry_masks() -> None:
    small = shrunk(masked(), 80)
    assert small.masks[0].box_xyxy.tolist() == small.boxes_xyxy[0].tolist()
    assert small.masks[1] is None
    for position in range(20):
        combined = mosaic([masked(i) for i in range(4)], item_rng(0, position))
        assert len(combined.masks) == len(combined.labels)
        for mask, box in zip(combined.masks, combined.boxes_xyxy, strict=True):
            if mask is not None:
                assert mask.size == combined.picture.size
                assert np.abs(mask.box_xyxy - box).max() <= 1
