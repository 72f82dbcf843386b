"""Any top-down estimator of MMPose as a decoder: heads that score pixels are asked, by heat maps or SimCC (as RTMPose).

K = channels of the head, N = things.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionllm.core.errors import ConfigError
from visionllm.decoders.base import register_decoder
from visionllm.decoders.bridges.base import serving
from visionllm.decoders.bridges.toolbox import (
    ToolboxConfig,
    build_openmmlab,
    first,
    load_checkpoint,
    needed,
    plain,
    read_settings,
)  # fmt: skip
from visionllm.decoders.bridges.topdown import Estimator, TopDown, TopDownConfig, finder_of
from visionllm.decoders.objects.tasks import POSE

KEY = "decoders.mmpose"


class MMPoseConfig(ToolboxConfig, TopDownConfig):
    """An estimator of MMPose, and the decoder whose boxes it reads."""


class MMPoseEstimator(Estimator):
    """A ``TopdownPoseEstimator`` of MMPose behind ``Estimator``; its codec makes targets out of points."""

    def __init__(self, net: Any, settings: dict[str, Any]) -> None:
        codec = needed("mmpose.registry", KEY).KEYPOINT_CODECS.build(dict(first(settings["head"], "decoder")))
        width, height = (int(side) for side in codec.input_size)
        super().__init__(net, channels_of(settings), (width, height), settings)
        self.codec = codec
        own = settings.get("data_preprocessor") or {}
        mean, std = (
            np.array(own.get(name) or [default] * 3, np.float32) for name, default in (("mean", 0.0), ("std", 1.0))
        )
        self.swapped = not own.get("bgr_to_rgb", False)
        self.mean, self.std = (mean[::-1], std[::-1]) if self.swapped else (mean, std)

    def loss(self, pixels_N3HW: Tensor, points_NK2: np.ndarray, seen_NK: np.ndarray) -> Tensor:
        samples = [self._sample(p, s, pixels_N3HW.device) for p, s in zip(points_NK2, seen_NK, strict=True)]
        losses = self.net.head.loss(self.net.extract_feat(pixels_N3HW), samples, train_cfg={"compute_acc": False})
        return torch.stack([value for name, value in losses.items() if "loss" in name]).sum()

    def read(self, pixels_N3HW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        own = self.net.head.predict(self.net.extract_feat(pixels_N3HW), [], test_cfg={})
        own = own[0] if isinstance(own, tuple) else own
        return np.stack([one.keypoints[0, :, :2] for one in own]), np.stack([one.keypoint_scores[0] for one in own])

    def _sample(self, points_K2: np.ndarray, seen_K: np.ndarray, device: torch.device) -> Any:
        structures, engine = needed("mmpose.structures", KEY), needed("mmengine.structures", KEY)
        coded = self.codec.encode(keypoints=points_K2[None], keypoints_visible=seen_K[None])
        sample = structures.PoseDataSample(metainfo={"input_size": self.codec.input_size})

        def held(table: dict[str, str]) -> dict[str, Tensor]:
            return {
                to: torch.from_numpy(np.ascontiguousarray(coded[name])).float().to(device)
                for name, to in table.items() if name in coded
            }  # fmt: skip

        sample.gt_instance_labels = engine.InstanceData(**held(self.codec.label_mapping_table))
        sample.gt_fields = engine.PixelData(**held(self.codec.field_mapping_table))
        return sample


@register_decoder("mmpose")
class MMPoseDecoder(TopDown):
    """A top-down estimator of MMPose under super links, behind a bridge that finds boxes."""

    tasks = serving("mmpose", POSE)
    Config = MMPoseConfig

    @classmethod
    def from_config(cls, config: MMPoseConfig, link_width: int) -> MMPoseDecoder:
        settings = read_settings(config, KEY)
        finder, net = finder_of(config.boxes, link_width, KEY), build(settings)
        if config.checkpoint is not None:
            load_checkpoint(net, config.checkpoint, KEY)
        return cls(
            MMPoseEstimator(net, settings), partial(_with_channels, settings), finder, link_width=link_width,
            width=config.width, threshold=config.threshold,
        )  # fmt: skip


def build(settings: dict[str, Any]) -> Any:
    """An estimator from its keys, without a download.

    Raises:
        ConfigError: a key is wrong.
    """
    return build_openmmlab("mmpose", settings, KEY)


def channels_of(settings: dict[str, Any]) -> int:
    """How many keypoints an estimator has by its keys."""
    count = (settings.get("head") or {}).get("out_channels")
    if not isinstance(count, int) or "decoder" not in settings["head"]:
        raise ConfigError(f"{KEY}.network.head: no out_channels or no decoder in it; is it a top-down estimator?")
    return count


def _with_channels(settings: dict[str, Any], count: int) -> nn.Module:
    return build({**plain(settings), "head": {**plain(settings["head"]), "out_channels": count}})
