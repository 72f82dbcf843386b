"""The loader: the plan's order under any layout, bad samples counted and replaced, bugs never hidden."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.core.sample import Sample
from visionllm.datasets.catalog import Dataset, load_card, open_dataset
from visionllm.datasets.loader import Fault, Loader, LoadReport
from visionllm.datasets.transforms import Augment

CARD = """
name: tiny
task: detection
format: coco
root: coco
splits: {train: {images: images, annotations: train.json}}
"""


@pytest.fixture
def datasets(coco_root: Callable[..., Path], tmp_path: Path) -> list[Dataset]:
    coco_root(count=40)
    (tmp_path / "tiny.yaml").write_text(CARD)
    return [open_dataset(tmp_path / "tiny.yaml", "train", tmp_path), open_dataset("phrases", "train")]


def words_and_pixels(samples: list[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.source} {[turn.phrases for turn in sample.turns]}".encode())
        for picture in sample.pictures:
            digest.update(picture.pixels.tobytes())
        for turn in sample.turns:
            if turn.target is not None:
                digest.update(turn.target.boxes_xyxy.tobytes() + turn.target.phrase.tobytes())
    return digest.hexdigest()


def make(datasets: list[Dataset], **values: object) -> Loader:
    settings = {"batch_size": 6, "seed": 3, "augment": Augment(mosaic=0.3), **values}
    return Loader(datasets, [0.75, 0.25], **settings)  # type: ignore[arg-type]


def test_a_batch_is_a_pure_function_of_its_step(datasets: list[Dataset]) -> None:
    loader = make(datasets)
    batches = [words_and_pixels(batch) for batch in loader.steps(0, 6)]
    assert len(set(batches)) == 6
    assert words_and_pixels(make(datasets).batch(4)) == batches[4]
    assert [words_and_pixels(batch) for batch in make(datasets).steps(3, 6)] == batches[3:]
    assert words_and_pixels(make(datasets, seed=4).batch(4)) != batches[4]
    assert str(loader.report) == "skipped 0 of 36"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_a_step_and_nothing_is_lost(datasets: list[Dataset], world: int) -> None:
    whole = make(datasets).batch(2)
    parts = [make(datasets, rank=rank, world_size=world).batch(2) for rank in range(world)]
    assert words_and_pixels([sample for part in parts for sample in part]) == words_and_pixels(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_keep_the_order_and_the_counts(datasets: list[Dataset], workers: int) -> None:
    alone, helped = make(datasets), make(datasets)
    expected = [words_and_pixels(batch) for batch in alone.steps(1, 6)]
    assert [words_and_pixels(batch) for batch in helped.steps(1, 6, workers=workers)] == expected
    assert helped.report.read == alone.report.read


def test_the_cache_changes_nothing_but_the_reading(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [words_and_pixels(batch) for batch in make(datasets, max_side=30).steps(0, 20)]
    reads = []
    reader = datasets[0].reader
    read = type(reader).read
    monkeypatch.setattr(type(reader), "read", lambda self, index: reads.append(index) or read(self, index))
    cached = make(datasets, max_side=30, cache_bytes=10**6)
    assert [words_and_pixels(batch) for batch in cached.steps(0, 20)] == plain
    assert len(reads) == len(set(reads)) <= 40


def test_pictures_are_shrunk_as_they_are_read(datasets: list[Dataset]) -> None:
    batch = make(datasets, max_side=20, augment=None).batch(0)
    assert {sample.pictures[0].size for sample in batch if sample.pictures} == {(20, 15)}


def spoil(root: Path, indices: list[int]) -> None:
    for index in indices:
        (root / "coco" / "images" / f"{index}.png").write_bytes(b"")


def test_a_bad_sample_is_replaced_named_and_counted(datasets: list[Dataset], tmp_path: Path) -> None:
    spoil(tmp_path, [3])
    loader, again = make(datasets), make(datasets)
    batches = [words_and_pixels(batch) for batch in loader.steps(0, 20)]
    assert [len(batch) for batch in again.steps(0, 20)] == [6] * 20
    assert words_and_pixels(make(datasets).batch(19)) == batches[19]
    assert list(loader.report.faults) == [("tiny/train", 3)]
    assert "0 bytes" in loader.report.faults["tiny/train", 3]
    (line,) = loader.report.reasons()
    assert line.startswith("tiny/train[3]: ")
    assert "0 bytes" in line
    assert loader.report.reasons(most=0) == ["... and 1 more"]
    bad = loader.report.bad["tiny/train"]
    assert bad >= 2
    assert str(loader.report) == f"skipped {bad} of {120 + bad} (tiny/train: {bad})"


def test_each_data_set_may_be_changed_in_its_own_way(coco_root: Callable[..., Path], tmp_path: Path) -> None:
    coco_root(count=8)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(CARD.replace("tiny", name))
    read = [open_dataset(tmp_path / f"{name}.yaml", "train", tmp_path) for name in ("one", "two")]
    still = {"flip": 0, "crop": 0, "out": 0, "light": 0, "blur": 0, "noise": 0}
    small, smaller = Augment(**still, sizes=((32, 24),)), Augment(**still, sizes=((16, 12),))
    for augment, sizes in ((None, None), (small, (32, 24)), ([None, smaller], (16, 12)), ([small, smaller], (16, 12))):
        loader = Loader(read, [1, 1], batch_size=8, seed=0, augment=augment)
        for place, sample in enumerate(loader.batch(0)):
            if loader.owner(place) == read[1].key:
                assert sizes is None or sample.pictures[0].size == sizes
            elif augment in (small, [small, smaller]):
                assert sample.pictures[0].size == (32, 24)
            else:
                assert sample.pictures[0].size not in ((32, 24), (16, 12))


def test_too_many_bad_samples_stop_the_run(datasets: list[Dataset], tmp_path: Path) -> None:
    spoil(tmp_path, list(range(0, 40, 2)))
    loader = make(datasets, augment=None)
    with pytest.raises(
        DatasetError, match=r"tiny/train: \d+ of \d+ samples are bad, more than 5%; mend it. The last: "
    ):
        list(loader.steps(0, 100))


def test_a_data_set_without_a_sound_sample_stops_at_once(datasets: list[Dataset], tmp_path: Path) -> None:
    spoil(tmp_path, list(range(40)))
    with pytest.raises(DatasetError, match=r"tiny/train: 40 samples in a row are bad; mend it. The last: "):
        make(datasets).batch(0)


def test_an_error_of_a_worker_is_one_line(datasets: list[Dataset], tmp_path: Path) -> None:
    spoil(tmp_path, list(range(40)))
    with pytest.raises(DatasetError, match="40 samples in a row are bad") as caught:
        list(make(datasets).steps(0, 2, workers=1))
    assert "\n" not in str(caught.value)


def test_workers_report_bad_samples_too(datasets: list[Dataset], tmp_path: Path) -> None:
    spoil(tmp_path, [3, 4])
    alone, helped = make(datasets), make(datasets)
    list(alone.steps(0, 12))
    list(helped.steps(0, 12, workers=2))
    assert helped.report.bad == alone.report.bad
    assert helped.report.faults == alone.report.faults


def test_a_question_that_cannot_be_asked_is_not_held_against_the_picture(
    coco_root: Callable[..., Path], tmp_path: Path
) -> None:
    """Without negatives an empty picture is bad by itself and good in a mosaic: every layout must agree on which."""
    coco_root(count=3)
    (tmp_path / "tiny.yaml").write_text(CARD + "negatives: false\n")
    dataset = open_dataset(tmp_path / "tiny.yaml", "train", tmp_path)

    def loader() -> Loader:
        return Loader([dataset], [1], batch_size=2, seed=0, augment=Augment(mosaic=0.5), bad_limit=1)

    whole = loader()
    batches = [words_and_pixels(batch) for batch in whole.steps(0, 30)]
    assert [words_and_pixels(loader().batch(step)) for step in range(30)] == batches
    assert set(whole.report.faults) == {("tiny/train", 2)}
    assert "forbids negatives" in whole.report.faults["tiny/train", 2]


@pytest.mark.parametrize("bug", [KeyError, ValueError, AssertionError, ZeroDivisionError])
def test_a_bug_is_never_a_bad_sample(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch, bug: type[Exception]
) -> None:
    def broken(*_: object) -> None:
        raise bug("ours")

    monkeypatch.setattr(type(datasets[0].reader), "read", broken)
    with pytest.raises(bug, match="ours"):
        make(datasets).batch(0)


def test_the_rate_counts_only_after_some_patience() -> None:
    fault = Fault(dataset="a", index=0, reason="broken")
    report = LoadReport(limit=0.05, patience=3)
    report.add(Counter(a=1), [fault, fault])
    with pytest.raises(DatasetError, match="a: 3 of 4 samples are bad"):
        report.add(Counter(), [fault])
    calm = LoadReport(limit=0.05, patience=3)
    calm.add(Counter(a=97), [fault, fault, fault])
    assert calm.bad["a"] == 3


def test_positions_tile_the_plan(datasets: list[Dataset]) -> None:
    positions = [
        position
        for step in range(4)
        for rank in range(4)
        for position in make(datasets, rank=rank, world_size=4, batch_size=10).positions(step)
    ]
    assert positions == list(range(40))


def test_one_position_can_be_looked_at(datasets: list[Dataset]) -> None:
    loader = make(datasets)
    assert words_and_pixels([loader.sample(8)]) == words_and_pixels([loader.batch(1)[2]])


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
@pytest.mark.parametrize(
    ("name", "split", "count", "boxes", "said"),
    [
        ("carla_streets", "train", 595, 2041, ""),
        ("carla_streets", "val", 184, 515, ""),
        ("bccd", "train", 205, 2805, "bccd: of 2805 boxes 1 dropped (no area)"),
        ("bccd", "val", 87, 1138, "bccd: of 1138 boxes 1 dropped (no area)"),
    ],
)
def test_real_data(name: str, split: str, count: int, boxes: int, said: str) -> None:
    dataset = open_dataset(name, split)
    assert len(dataset) == count
    assert len(dataset.reader.boxes.kept) == boxes  # type: ignore[attr-defined]
    assert dataset.report() == said
    for index in range(0, count, 17):
        record = dataset.read(index)
        assert not isinstance(record, Sample)
        width, height = record.picture.size
        assert (record.boxes_xyxy[:, 2:] > record.boxes_xyxy[:, :2]).all()
        assert (record.boxes_xyxy >= 0).all()
        assert (record.boxes_xyxy <= np.array([width, height, width, height])).all()


def test_cards_of_data_that_is_not_there_still_load() -> None:
    assert load_card("bccd").root == "bccd"
    with pytest.raises((DatasetError, AnnotationError)):
        open_dataset("bccd", "train", "/nonexistent")
