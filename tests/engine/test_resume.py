"""What a run goes on from, and what it refuses to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from visionllm.core.errors import CheckpointError
from visionllm.engine import train
from visionllm.runs import load_config, make_loader

Make = Callable[..., Any]


def test_resuming_nothing_starts_anew(write: Make) -> None:
    assert train(load_config(write(train__steps=1)), resume=True).is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__seed": 4}, "started with seed 3, not 4"),
        ({"train__batch_size": 2}, r"train\.batch_size was 4 and is 2 now"),  # step 1 would begin at another sample
        ({"optim__ema": 0.0}, r"optim\.ema was on"),  # the average would be taken for the weights
        ({"train__steps": 1}, r"step-0000002: is beyond train\.steps=1"),
    ],
)
def test_resuming_another_run_is_refused(write: Make, changes: dict[str, Any], words: str) -> None:
    train(load_config(write(train__steps=2)))
    with pytest.raises(CheckpointError, match=words) as caught:
        train(load_config(write(**{"train__steps": 3, **changes})), resume=True)
    assert "\n" not in str(caught.value)


def test_an_average_cannot_begin_on_the_way(write: Make) -> None:
    train(load_config(write(train__steps=1, optim__ema=0.0)))
    with pytest.raises(CheckpointError, match=r"optim\.ema was off"):
        train(load_config(write(train__steps=2)), resume=True)


def annotated(folder: Path, box_xywh: list[float]) -> str:
    """Path of a card of one picture with one box."""
    Image.new("RGB", (96, 72), "grey").save(folder / "0.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 96, "height": 72}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box_xywh}],
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "own.json").write_text(json.dumps(content))
    splits = {"train": {"images": ".", "annotations": "own.json"}}
    card = {"name": "own", "task": "detection", "format": "coco", "root": str(folder), "splits": splits}
    (folder / "own.yaml").write_text(yaml.safe_dump(card))
    return str(folder / "own.yaml")


def test_what_was_clipped_is_told(write: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"dataset": annotated(tmp_path, [-9, 10, 40, 30])}]
    train(load_config(write(train__steps=1, data=data)))
    assert "own: of 1 boxes 1 clipped\n" in capsys.readouterr().err


def test_resuming_on_annotations_that_changed_is_refused(write: Make, tmp_path: Path) -> None:
    """As many pictures as before, in the same order, and a box of them is another."""
    data = [{"dataset": annotated(tmp_path, [10, 10, 40, 30])}]
    train(load_config(write(train__steps=1, data=data)))
    annotated(tmp_path, [10, 10, 50, 30])
    with pytest.raises(CheckpointError, match="own/train: its digest was"):
        train(load_config(write(train__steps=2, data=data)), resume=True)


def test_a_run_of_an_older_version_goes_on(write: Make) -> None:
    """Its state held the order of the first samples alone."""
    first = train(load_config(write(train__steps=1)))
    config = load_config(write(train__steps=2))
    digest = make_loader(config).plan.digest(256)
    (first.parent / "state.json").write_text(json.dumps({"step": 1, "plan": digest}))
    assert train(config, resume=True).is_dir()
    (first.parent / "state.json").write_text(json.dumps({"step": 1, "plan": "0"}))
    shutil.rmtree(first.parents[1] / "step-0000002")
    with pytest.raises(CheckpointError, match="another mixture, seed or data"):
        train(config, resume=True)
