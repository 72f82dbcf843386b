"""Cards out of OpenMMLab configurations."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from visionllm import card_from_config
from visionllm.core.errors import ConfigError
from visionllm.datasets.catalog import Card

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="mmengine is not installed")

COCO = """
data = dict(type="CocoDataset", data_root="data/coco/", ann_file="annotations/train.json",
            data_prefix=dict(img="train/"))
train_dataloader = dict(batch_size=2, dataset=dict(type="RepeatDataset", times=3, dataset=data))
val_dataloader = dict(dataset=dict(type="CocoDataset", data_root="data/coco/", ann_file="annotations/val.json",
                                   data_prefix=dict(img="val/")))
"""
VOC = """
train_dataloader = dict(dataset=dict(type="VOCDataset", data_root="data/VOCdevkit/",
    ann_file="VOC2007/ImageSets/Main/trainval.txt", data_prefix=dict(sub_data_root="VOC2007/")))
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "net.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_coco(tmp_path: Path) -> None:
    card = card_from_config(written(tmp_path, COCO), trust=True)
    Card(**yaml.safe_load(yaml.safe_dump(card)))
    assert card["format"] == "coco"
    assert card["root"] == "data/coco/"
    assert card["splits"]["train"] == {"images": "train/", "annotations": "annotations/train.json"}
    assert card["splits"]["val"]["annotations"] == "annotations/val.json"


def test_voc(tmp_path: Path) -> None:
    card = card_from_config(written(tmp_path, VOC), trust=True)
    assert card["format"] == "voc"
    assert card["splits"]["train"] == {
        "images": "VOC2007/JPEGImages", "annotations": "VOC2007/Annotations",
        "list": "VOC2007/ImageSets/Main/trainval.txt",
    }  # fmt: skip


def test_poses(tmp_path: Path) -> None:
    text = COCO.replace('type="CocoDataset",', 'type="CocoDataset", data_mode="topdown",')
    assert card_from_config(written(tmp_path, text), trust=True)["task"] == "pose"


@pytest.mark.parametrize("text", ["a = [", "raise RuntimeError('no')", "1 / 0", "a = b"])
def test_code_that_fails_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"net\.py: not a configuration that mmengine reads") as caught:
        card_from_config(written(tmp_path, text), trust=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "no data loader"),
        (
            COCO.replace('data_root="data/coco/", ann_file="annotations/val', 'data_root="else/", ann_file="a/val'),
            "one root",
        ),
        (COCO.replace("RepeatDataset", "ConcatDataset"), "mixture"),
        (COCO.replace("val.json", "val.pkl"), "neither COCO"),
    ],
)
def test_what_is_no_card(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        card_from_config(written(tmp_path, text), trust=True)


def test_code_is_not_run_unless_trusted(tmp_path: Path) -> None:
    path = written(tmp_path, "raise RuntimeError('it ran')")
    with pytest.raises(ConfigError, match="--trust"):
        card_from_config(path)
    with pytest.raises(ConfigError, match="no such file"):
        card_from_config(tmp_path / "none.py")
