"""The bridge to Detectron2: the real one where it is installed, else a stand-in of its public names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from visionllm.core.errors import ConfigError
from visionllm.decoders import DECODERS
from visionllm.testing import CHECKS, Bench, Case
from visionllm.testing.own import VARIANTS
from visionllm.testing.report import run

pytestmark = pytest.mark.usefixtures("detectron2")

BOXES = VARIANTS["transformers"]().sample


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Of the real one its first variant; tests/decoders has the others."""
    if importlib.util.find_spec("detectron2") is not None:
        return Bench("detectron2")
    case = Case(config={"network": {"MODEL": {"MASK_ON": False}}, "longest": 96, "width": 8}, sample=BOXES,
                options={"threshold": 0.0})  # fmt: skip
    return Bench("detectron2", case)


@pytest.mark.parametrize("check", CHECKS)
def test_contract(bench: Bench, check: str) -> None:
    outcome = run(check, bench)
    assert outcome.error is None, f"{outcome.what}: {outcome.error}"


def test_unlinked_is_the_toolbox() -> None:
    from visionllm.decoders.bridges.detectron2 import build

    torch.manual_seed(0)
    plain = build({}, 80).eval()
    kind = DECODERS["detectron2"]
    decoder = kind.from_config(kind.Config(network={}), 16).eval()
    held = {name.replace(".own.", "."): value for name, value in decoder.network.net.state_dict().items()
            if ".read." not in name and not name.endswith(".offset")}  # fmt: skip
    plain.load_state_dict(held)
    pixels = torch.rand(3, 64, 96) * 255
    with torch.no_grad():
        (wanted,) = plain([{"image": pixels.flip(0), "height": 64, "width": 96}])
    got = decoder.unlinked(pixels)
    assert torch.equal(wanted["instances"].pred_boxes.tensor, got.boxes_xyxy)
    assert torch.equal(wanted["instances"].scores, got.scores)


def test_configurations(tmp_path: Path) -> None:
    from visionllm.decoders.bridges.detectron2 import classes_of, read

    (tmp_path / "net.yaml").write_text("MODEL:\n  ROI_HEADS: {NUM_CLASSES: 12}\n", encoding="utf-8")
    assert classes_of(read(str(tmp_path / "net.yaml"))) == 12
    (tmp_path / "on.yaml").write_text("_BASE_: net.yaml\n", encoding="utf-8")
    for name, said in (("on.yaml", "write its base"), ("no.yaml", "No such file"), ("lazy.py", "is code")):
        with pytest.raises(ConfigError, match=said):
            read(str(tmp_path / name))
    parts = {"ROI_HEADS": {"NUM_CLASSES": 3}, "RETINANET": {"NUM_CLASSES": 4}, "SEM_SEG_HEAD": {"NUM_CLASSES": 54}}
    with pytest.raises(ConfigError, match="different parts"):
        classes_of({"MODEL": {"META_ARCHITECTURE": "Own", **parts}})
    for architecture, count in (("GeneralizedRCNN", 3), ("PanopticFPN", 3), ("RetinaNet", 4)):
        assert classes_of({"MODEL": {"META_ARCHITECTURE": architecture, **parts}}) == count
    kind = DECODERS["detectron2"]
    with pytest.raises(ConfigError, match="Non-existent config key"):
        kind.from_config(kind.Config(network={"NO": 1}), 16)
