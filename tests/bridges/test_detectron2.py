"""The bridge to Detectron2: the real one where it is installed, else a stand-in of its public names."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from visionllm.core.errors import ConfigError
from visionllm.decoders import DECODERS
from visionllm.testing import CHECKS, Bench, Case
from visionllm.testing.own import VARIANTS
from visionllm.testing.report import run
from visionllm.testing.toolboxes import detectron2_mask2former

pytestmark = pytest.mark.usefixtures("detectron2")

BOXES = VARIANTS["transformers"]().sample
QUERIES = {
    "MODEL": {
        "META_ARCHITECTURE": "Queries", "MASK_ON": True, "SEM_SEG_HEAD": {"NUM_CLASSES": 80},
        "QUERIES": {"COUNT": 20, "INSTANCE_ON": True},
    },
}  # fmt: skip


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


@pytest.fixture(scope="module", params=["queries", "mask2former"])
def registered(request: pytest.FixtureRequest) -> Bench:
    """An architecture of another package: one like Mask2Former, and Mask2Former's own where it is installed."""
    network = QUERIES
    if request.param == "mask2former":
        pytest.importorskip("mask2former")
        network = detectron2_mask2former()
    case = Case(config={"network": network, "mask_tensors": True, "longest": 96, "width": 8},
                sample=VARIANTS["transformers of masks"]().sample, options={"threshold": 0.0})  # fmt: skip
    return Bench("detectron2", case)


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("check", CHECKS)
def test_contract_of_another_package(registered: Bench, check: str) -> None:
    outcome = run(check, registered)
    assert outcome.error is None, f"{outcome.what}: {outcome.error}"


@pytest.mark.usefixtures("queries")
def test_boxes_around_masks() -> None:
    """Where an architecture leaves its boxes out."""
    kind = DECODERS["detectron2"]
    decoder = kind.from_config(kind.Config(network=QUERIES, mask_tensors=True), 16).eval()
    found = decoder.unlinked(torch.rand(3, 64, 96) * 255)
    assert found.masks is not None
    for box, mask in zip(found.boxes_xyxy, found.masks, strict=True):
        y, x = (mask > 0.5).nonzero(as_tuple=True)
        wanted = (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else (0, 0, 0, 0)
        assert tuple(box.tolist()) == wanted


@pytest.mark.usefixtures("queries")
def test_weights_that_say_no_version(tmp_path: Path) -> None:
    """Safetensors do not; a layer that would rename what its first version wrote leaves them as they are."""
    from visionllm.decoders.bridges.detectron2 import build

    path = tmp_path / "net.safetensors"
    plain = build(QUERIES, 80)
    save_file(plain.state_dict(), path)
    kind = DECODERS["detectron2"]
    decoder = kind.from_config(kind.Config(network=QUERIES, mask_tensors=True, checkpoint=str(path)), 16)
    assert torch.equal(decoder.network.net.queries.weight, plain.queries.weight)
    held = {name: value + 1 for name, value in decoder.state_dict().items()}
    other = deepcopy(decoder)
    other.load_state_dict(held)
    assert all(torch.equal(value, held[name]) for name, value in other.state_dict().items())
    assert torch.equal(decoder.network.net.queries.weight, plain.queries.weight)


@pytest.mark.usefixtures("queries")
def test_architectures_that_do_not_serve() -> None:
    kind = DECODERS["detectron2"]
    with pytest.raises(ConfigError, match=r"'Unheard'.*import that first"):
        kind.from_config(kind.Config(network={"MODEL": {"META_ARCHITECTURE": "Unheard"}}), 16)
    model = QUERIES["MODEL"]
    with pytest.raises(ConfigError, match=r"COUNT.*all keys"):
        kind.from_config(kind.Config(network={"MODEL": model | {"QUERIES": {"INSTANCE_ON": True}}}), 16)
    network = {"MODEL": model | {"QUERIES": {"COUNT": 4, "INSTANCE_ON": False}}}
    decoder = kind.from_config(kind.Config(network=network, mask_tensors=True), 16).eval()
    with pytest.raises(ConfigError, match="sem_seg, and no instances"):
        decoder.unlinked(torch.zeros(3, 64, 64))


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
