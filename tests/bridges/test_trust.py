"""Configurations of OpenMMLab and the keys that a checkpoint keeps of them: what may run, and what may not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from visionllm.core.errors import ConfigError
from visionllm.decoders import DECODERS
from visionllm.testing import toolboxes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")
NET = toolboxes.mmdet_retinanet()


def built(**keys: Any) -> Any:
    kind = DECODERS["mmdet"]
    return kind.from_config(kind.Config(**keys), 16).network


def test_python_runs_only_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"x = __import__('os').mkdir({str(tmp_path / 'ran')!r})\nmodel = {NET!r}\n")
    with pytest.raises(ConfigError, match="trust: true"):
        built(config=str(path))
    assert not (tmp_path / "ran").exists()
    assert built(config=str(path), trust=True).classes == 80
    assert (tmp_path / "ran").exists()


def test_classes_are_kept_by_their_names(tmp_path: Path) -> None:
    """Of a configuration that imports them; the keys that are kept need no trust."""
    path = tmp_path / "net.py"
    path.write_text(
        "from mmdet.models import FPN, RetinaNet\nfrom torch.nn import ReLU\n"
        f"model = dict({NET!r}, type=RetinaNet, neck=dict({NET['neck']!r}, type=FPN, act_cfg=dict(type=ReLU)))\n"
    )
    settings = built(config=str(path), trust=True).settings
    assert [settings["type"], settings["neck"]["type"], settings["neck"]["act_cfg"]["type"]] == [
        "mmdet.RetinaNet", "mmdet.FPN", "ReLU",
    ]  # fmt: skip
    assert built(network=settings).classes == 80


@pytest.mark.parametrize("name", ["net.yaml", "net.json"])
def test_plain_files_need_no_trust(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text((json.dumps if name.endswith("json") else yaml.safe_dump)({"model": NET}))
    assert built(config=str(tmp_path / name)).classes == 80


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tag.yaml", "model: !!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path [RAN]]\n",
         "not plain YAML"),  # mmengine's loader would
        ("base.yaml", "_base_: base.py\nmodel: {}\n", "write its base into it"),  # which is Python
        ("base.json", '{"_base_": "base.py", "model": {}}', "write its base into it"),
        ("list.json", "[1]", "one file holds all keys"),
        ("none.yaml", "train: {}\n", "has no model"),
        ("broken.json", "{", "not plain"),
    ],
)  # fmt: skip
def test_plain_files_run_nothing(tmp_path: Path, name: str, text: str, said: str) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "base.py").write_text(f"x = __import__('os').mkdir({str(ran)!r})\n")
    (tmp_path / name).write_text(text.replace("RAN", str(ran)))
    with pytest.raises(ConfigError, match=said):
        built(config=str(tmp_path / name))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("part", "keys", "said"),
    [
        ("neck", {"type": "os.mkdir", "path": "RAN"}, "no name of a class"),  # imported and called
        ("neck", {"type": "mmengine.load", "file": "RAN"}, "no name of a class"),
        ("neck", {"type": "mmdet.os.mkdir", "path": "RAN"}, "no name of a class"),
        ("neck", {"type": "antigravity"}, "no name of a class"),  # a module of that name is imported
        ("test_cfg", {"nms": {"type": "__import__('os').mkdir('RAN')"}}, "no name of a class"),  # mmcv evaluates it
        ("assigner", {"type": "CameraMotionCompensation", "warp_mode": "1"}, "warp_mode: reads files or runs words"),
        ("teacher_config", "net.py", "teacher_config: reads files or runs words"),
        ("backbone", {"type": "mmseg.MixVisionTransformer"}, "mmseg cannot be imported"),  # blocked below
    ],
)
def test_keys_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, keys: Any, said: str) -> None:
    """They come with anybody's checkpoint."""
    monkeypatch.setitem(sys.modules, "mmseg", None)
    keys = json.loads(json.dumps(keys).replace("RAN", str(tmp_path / "ran")))
    with pytest.raises(ConfigError, match=f"decoders.mmdet(.network)?: .*{said}"):
        built(network={**NET, part: keys})
    assert not (tmp_path / "ran").exists()


def test_weights_that_keys_name_are_left_out(tmp_path: Path) -> None:
    named = {"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")}
    assert built(network={
        **NET, "init_cfg": named, "backbone": {**NET["backbone"], "pretrained": str(tmp_path / "none.pth")},
        "neck": {**NET["neck"], "init_cfg": named},
        "bbox_head": {**NET["bbox_head"], "init_cfg": [named, {"type": "Normal", "layer": "Conv2d", "std": 0.5}]},
    }).net.bbox_head.retina_reg.weight.std() > 0.4  # fmt: skip
