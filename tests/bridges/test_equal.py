"""With no phrase spoken, a network under links finds what its toolbox finds, at equal weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.decoders import DECODERS
from visionllm.testing import toolboxes
from visionllm.testing.small import (
    tiny_d_fine,
    tiny_detr,
    tiny_mask2former,
    tiny_owlv2,
    tiny_rf_detr,
    tiny_rt_detr,
    tiny_sam2,
    tiny_sam3,
    tiny_vitpose,
)  # fmt: skip

PIXELS = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(3))
WITH_MMDET = pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")
WITH_MMPOSE = pytest.mark.skipif(importlib.util.find_spec("mmpose") is None, reason="mmpose is not installed")
WITH_DETECTRON2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"
)


def stirred(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def saved(net: nn.Module, folder: Path) -> str:
    path = folder / "net.safetensors"
    save_file({name: value.contiguous().clone() for name, value in net.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize(
    "settings",
    [
        tiny_rt_detr(),
        tiny_rt_detr() | {"model_type": "rt_detr_v2"},
        tiny_d_fine(),
        tiny_detr(),
        tiny_detr("deformable_detr"),
        tiny_rf_detr(),
        tiny_mask2former(),
    ],
    ids=lambda settings: settings["model_type"],
)
def test_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    from visionllm.decoders.bridges.heads import _build

    plain = stirred(_build(settings))
    plain.save_pretrained(tmp_path)
    # Where its weights lie in memory can change their sums: both read them from one file.
    plain = type(plain).from_pretrained(tmp_path).eval()
    kind = DECODERS["transformers"]
    decoder = kind.from_config(kind.Config(pretrained=str(tmp_path)), 16).eval()
    with torch.no_grad():
        wanted = plain(pixel_values=PIXELS[None])
        got = decoder.network.net(pixel_values=PIXELS[None])
    for name in ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits"):
        if name in wanted:
            assert torch.equal(wanted[name], got[name]), name
    # A checkpoint of ours needs no folder beside it.
    assert decoder.described({"pretrained": "x", "width": 64})["network"]["model_type"] == settings["model_type"]


def test_owlv2(tmp_path: Path) -> None:
    """A phrase that is projected to what a text becomes is found as the text is."""
    from visionllm.decoders.bridges.heads import _build

    plain = stirred(_build(tiny_owlv2()))
    plain.save_pretrained(tmp_path)
    kind = DECODERS["transformers"]
    network = kind.from_config(kind.Config(pretrained=str(tmp_path)), 16).eval().network
    texts, pixels = torch.tensor([[2, 5, 1], [2, 7, 1]]), PIXELS[:, :96, :96]
    with torch.no_grad():
        wanted = plain(texts, pixel_values=pixels[None], interpolate_pos_encoding=True)
        network.prompt = nn.Identity()
        with network.spoken.speaking(wanted.text_embeds[0]):
            got = network.find(pixels)
    assert torch.allclose(wanted.logits[0].sigmoid().T.flatten(), got.scores, atol=1e-5)
    x, y, w, h = (wanted.pred_boxes[0] * 96).unbind(-1)
    xyxy = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    assert torch.allclose(xyxy.repeat(2, 1), got.boxes_xyxy, atol=1e-5)


@pytest.mark.parametrize("settings", [tiny_sam2(), tiny_sam3()], ids=lambda settings: settings["model_type"])
def test_sam(settings: dict[str, Any], tmp_path: Path) -> None:
    """A phrase that is projected to what a click becomes has the click's mask."""
    from visionllm.decoders.bridges.heads import _build

    plain = stirred(_build(settings))
    plain.save_pretrained(tmp_path)
    kind = DECODERS["transformers"]
    network = kind.from_config(kind.Config(pretrained=str(tmp_path)), 16).eval().network
    clicks, pixels = torch.randn(3, 32), PIXELS[:, :64, :64]
    plain.mask_decoder.dynamic_multimask_via_stability = False
    encode = plain.prompt_encoder.forward
    # A click is two tokens, with one that says no box follows; here it is one.
    plain.prompt_encoder.forward = lambda **given: (clicks[None, :, None], encode(**given)[1])
    with torch.no_grad():
        wanted = plain(pixel_values=pixels[None], multimask_output=False)
        network.prompt = nn.Identity()
        with network.spoken.speaking(clicks):
            got = network.find(pixels)
    masks = nn.functional.interpolate(wanted.pred_masks[0], (64, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(masks[:, 0].sigmoid(), got.masks, atol=1e-5)
    assert torch.allclose(wanted.object_score_logits.flatten().sigmoid(), got.scores, atol=1e-5)


def test_vitpose(tmp_path: Path) -> None:
    from visionllm.decoders.bridges.vitpose import build

    plain = stirred(build(tiny_vitpose()))
    plain.save_pretrained(tmp_path)
    kind = DECODERS["vitpose"]
    boxes = {"transformers": {"network": tiny_rt_detr()}}
    estimator = kind.from_config(kind.Config(pretrained=str(tmp_path), boxes=boxes), 16).eval().estimator
    with torch.no_grad():
        wanted, got = (net(pixel_values=PIXELS[None, :, :64, :64]).heatmaps for net in (plain, estimator.net))
    assert torch.equal(wanted, got)


@WITH_MMDET
@pytest.mark.parametrize(
    "settings",
    [
        toolboxes.mmdet_dino(),
        toolboxes.mmdet_retinanet(),
        toolboxes.mmdet_rcnn(),
        toolboxes.mmdet_rcnn(masks=True),
        toolboxes.mmdet_mask2former(),
    ],
    ids=["dino", "retinanet", "faster r-cnn", "mask r-cnn", "mask2former"],
)
def test_mmdet(settings: dict[str, Any], tmp_path: Path) -> None:
    from mmdet.structures import DetDataSample

    from visionllm.decoders.bridges.mmdet import build

    plain = stirred(build(settings))
    kind = DECODERS["mmdet"]
    decoder = kind.from_config(kind.Config(network=settings, checkpoint=saved(plain, tmp_path)), 16).eval()
    size = tuple(PIXELS.shape[1:])
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size,
                                     "scale_factor": (1.0, 1.0)})  # fmt: skip
    with torch.no_grad():
        (wanted,) = plain.predict(PIXELS[None], [sample], rescale=False)
    got = decoder.unlinked(PIXELS)
    assert len(wanted.pred_instances.scores) > 0
    assert torch.equal(wanted.pred_instances.bboxes, got.boxes_xyxy)
    assert torch.equal(wanted.pred_instances.scores, got.scores)
    assert torch.equal(wanted.pred_instances.labels, got.labels)
    if got.masks is not None:
        assert torch.equal(wanted.pred_instances.masks.float(), got.masks)


class OneWordPhrases(nn.Module):
    """A language model to whom every phrase is one word; what the words mean is given to it."""

    pad_to_max = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.language_backbone = nn.Module()
        self.language_backbone.body = nn.Linear(width, width)
        self.language_backbone.body.language_dim = width
        self.words_PE = torch.zeros(0, width)

    def tokenizer(self, captions: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(char_to_token=lambda at: captions[0].count(". ", 0, at))

    def forward(self, captions: list[str]) -> dict[str, torch.Tensor]:
        from mmdet.models.language_models.bert import generate_masks_with_special_tokens_and_transfer_map as masks_of

        ids = torch.arange(captions[0].count(". "))[None]
        masks, places = masks_of({"input_ids": ids}, [])
        return {"embedded": self.words_PE[None], "masks": masks, "position_ids": places,
                "text_token_mask": torch.ones_like(ids, dtype=torch.bool)}  # fmt: skip


@WITH_MMDET
@pytest.mark.parametrize("phrases", [["car"], ["car", "man on a bike", "tree"]], ids=len)
def test_grounding_dino_of_mmdet(phrases: list[str], tmp_path: Path) -> None:
    """Phrases are found as MMDetection finds words of the same meaning. Its weights come with a language model, which
    is left out."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample

    from visionllm.decoders.bridges.toolbox import build_openmmlab

    torch.manual_seed(0)
    settings = toolboxes.mmdet_grounding()
    settings["test_cfg"] = {"max_per_img": settings["num_queries"] * len(phrases)}
    MODELS.register_module("OneWordPhrases", force=True, module=OneWordPhrases)
    language = {"type": "OneWordPhrases", "width": 64}
    plain = stirred(build_openmmlab("mmdet", {**settings, "language_model": language}, "decoders.mmdet"))
    kind = DECODERS["mmdet"]
    decoder = kind.from_config(kind.Config(network=settings, checkpoint=saved(plain, tmp_path)), 16).eval()
    decoder.network.net.text_feat_map.load_state_dict(plain.text_feat_map.state_dict())
    size = tuple(PIXELS.shape[1:])
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size,
                                     "scale_factor": (1.0, 1.0)})  # fmt: skip
    sample.text, sample.custom_entities = phrases, True
    links = torch.randn(len(phrases) * decoder.phrase_head.queries, 16)
    with torch.no_grad():
        plain.language_model.words_PE = words_PE = decoder.phrase_head(links, observe=False)
        (wanted,) = plain.predict(PIXELS[None], [sample], rescale=False)
        with decoder.network.spoken.speaking(words_PE):
            got = decoder.network.find(PIXELS)
    assert set(got.labels.tolist()) == set(range(len(phrases)))
    assert wanted.pred_instances.label_names == [phrases[p] for p in got.labels.tolist()]
    assert torch.equal(wanted.pred_instances.labels, got.labels)
    assert torch.allclose(wanted.pred_instances.bboxes, got.boxes_xyxy, atol=1e-5, rtol=0)
    assert torch.allclose(wanted.pred_instances.scores, got.scores, atol=1e-5, rtol=0)
    assert len(got.scores.unique()) > 1


@WITH_MMPOSE
@pytest.mark.parametrize("settings", [toolboxes.mmpose_heatmap(), toolboxes.mmpose_simcc()], ids=["heat maps", "simcc"])
def test_mmpose(settings: dict[str, Any], tmp_path: Path) -> None:
    from visionllm.decoders.bridges.mmpose import build

    plain = stirred(build(settings))
    kind = DECODERS["mmpose"]
    boxes = {"transformers": {"network": tiny_rt_detr()}}
    decoder = kind.from_config(kind.Config(network=settings, checkpoint=saved(plain, tmp_path), boxes=boxes), 16).eval()
    crop = PIXELS[None, :, :64, :64] if "HeatmapHead" in str(settings["head"]) else PIXELS[None, :, :64, :48]
    with torch.no_grad():
        wanted, got = (net.head.forward(net.extract_feat(crop)) for net in (plain, decoder.estimator.net))
    for one, other in zip(*([x] if torch.is_tensor(x) else list(x) for x in (wanted, got)), strict=True):
        assert torch.equal(one, other)


@WITH_DETECTRON2
@pytest.mark.parametrize(
    "settings",
    [
        toolboxes.detectron2_retinanet(),
        toolboxes.detectron2_rcnn(),
        toolboxes.detectron2_rcnn(masks=True),
        toolboxes.detectron2_rcnn(masks=True, stuff=True),
        toolboxes.detectron2_mask2former(),
    ],
    ids=["retinanet", "faster r-cnn", "mask r-cnn", "panoptic fpn", "mask2former"],
)
def test_detectron2(settings: dict[str, Any], tmp_path: Path) -> None:
    from detectron2.config import CfgNode, get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    if other := settings["MODEL"]["META_ARCHITECTURE"] == "MaskFormer":
        pytest.importorskip("mask2former").add_maskformer2_config(config)
    config.merge_from_other_cfg(CfgNode(settings))
    config.MODEL.DEVICE = "cpu"
    plain = stirred(build_model(config))
    # As Detectron2 writes it, with all keys and every default.
    (tmp_path / "net.yaml").write_text(config.dump(), encoding="utf-8")
    kind = DECODERS["detectron2"]
    own = kind.Config(config=str(tmp_path / "net.yaml"), checkpoint=saved(plain, tmp_path), mask_tensors=other)
    decoder = kind.from_config(own, 16).eval()
    pixels = (PIXELS * 50 + 128).clamp(0, 255)
    with torch.no_grad():
        (found,) = plain([{"image": pixels.flip(0), "height": 96, "width": 128}])
    wanted, got = found["instances"], decoder.unlinked(pixels)
    assert len(wanted.scores) > 0
    assert torch.equal(wanted.pred_boxes.tensor, got.boxes_xyxy) or other  # it leaves its boxes out
    assert torch.equal(wanted.scores, got.scores)
    assert torch.equal(wanted.pred_classes, got.labels)
    assert (got.masks is not None) == config.MODEL.MASK_ON
    if got.masks is not None:
        assert torch.equal(wanted.pred_masks.float(), got.masks)


@WITH_MMDET
def test_weights_are_safetensors_alone(tmp_path: Path) -> None:
    kind = DECODERS["mmdet"]
    (tmp_path / "net.pth").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, said in (
        ("net.pth", "may hold code"),
        ("broken.safetensors", "checkpoint"),
        ("other.safetensors", "Missing key"),
        ("nowhere.safetensors", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=said):
            kind.from_config(kind.Config(network=toolboxes.mmdet_retinanet(), checkpoint=str(tmp_path / name)), 16)


@WITH_MMDET
def test_a_wrong_key_is_one_line() -> None:
    kind = DECODERS["mmdet"]
    broken = toolboxes.mmdet_retinanet() | {"neck": {"type": "NoSuchNeck"}}
    with pytest.raises(ConfigError, match=r"decoders\.mmdet\.network: .*NoSuchNeck"):
        kind.from_config(kind.Config(network=broken), 16)
    with pytest.raises(ConfigError, match="no num_classes"):
        kind.from_config(kind.Config(network={"type": "RetinaNet"}), 16)


def test_wrong_keys_of_transformers_are_one_line() -> None:
    kind = DECODERS["transformers"]
    for network, said in (
        ({"model_type": "bert", "num_labels": 3}, "no detector"),
        ({"model_type": "nothing", "num_labels": 3}, "nothing"),
        ({**tiny_rt_detr(), "num_labels": 1}, "2 or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            kind.from_config(kind.Config(network=network), 16)
