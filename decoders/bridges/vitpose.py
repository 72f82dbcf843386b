"""ViTPose of transformers as a decoder (Xu et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.core.pixels import IMAGENET_MEAN, IMAGENET_STD
from visionllm.decoders.base import register_decoder
from visionllm.decoders.bridges.base import check_classes, serving
from visionllm.decoders.bridges.toolbox import Published
from visionllm.decoders.bridges.topdown import Estimator, TopDown, TopDownConfig, finder_of
from visionllm.decoders.objects.tasks import POSE

KEY = "decoders.vitpose"
# Of the heat map of a keypoint, in its cells (Xu et al. 2022, as in MMPose's configurations).
SIGMA = 2.0
# Side of the filter before a maximum is placed between cells (Zhang et al. 2020, "DARK").
KERNEL = 11


class VitPoseConfig(Published, TopDownConfig):
    """A ViTPose, and the decoder whose boxes it reads."""


class VitPoseEstimator(Estimator):
    """``VitPoseForPoseEstimation`` behind ``Estimator``: squared differences of heat maps."""

    mean, std = (np.array(values, np.float32) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __init__(self, net: Any) -> None:
        height, width = net.config.backbone_config.image_size
        settings = net.config.to_diff_dict() | {"num_labels": int(net.config.num_labels)}
        super().__init__(net, int(net.config.num_labels), (int(width), int(height)), settings)

    def loss(self, pixels_N3HW: Tensor, points_NK2: np.ndarray, seen_NK: np.ndarray) -> Tensor:
        maps = self._maps(pixels_N3HW)
        height, width = maps.shape[-2:]
        points = torch.from_numpy(points_NK2).to(maps) / self._cell(width, height).to(maps)
        x, y = (torch.arange(side, device=maps.device) for side in (width, height))
        across = (x - points[..., :1]).square()[:, :, None, :]
        down = (y - points[..., 1:]).square()[:, :, :, None]
        wanted = torch.exp(-(across + down) / (2 * SIGMA**2))
        seen = torch.from_numpy(seen_NK).to(maps)[..., None, None]
        return ((maps - wanted) * seen).square().mean()

    def read(self, pixels_N3HW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        from transformers.models.vitpose.image_processing_vitpose import (
            get_keypoint_predictions,
            post_dark_unbiased_data_processing,
        )  # fmt: skip

        maps = self._maps(pixels_N3HW).float().cpu().numpy()
        places, scores = get_keypoint_predictions(maps)
        places = post_dark_unbiased_data_processing(np.maximum(places, 0), maps, kernel=KERNEL)
        height, width = maps.shape[-2:]
        return places * self._cell(width, height).numpy(), np.clip(scores[..., 0], 0, 1)

    def _maps(self, pixels_N3HW: Tensor) -> Tensor:
        """(N, K, h, w)."""
        experts = getattr(self.net.config.backbone_config, "num_experts", 1)
        index = torch.zeros(len(pixels_N3HW), dtype=torch.long, device=pixels_N3HW.device) if experts > 1 else None
        return self.net(pixel_values=pixels_N3HW, dataset_index=index).heatmaps

    def _cell(self, width: int, height: int) -> Tensor:
        """(2,) pixels from one cell's middle to the next, the outermost on the outermost (Huang et al. 2020, "UDP")."""
        return torch.tensor([(self.input_size[0] - 1) / (width - 1), (self.input_size[1] - 1) / (height - 1)])


@register_decoder("vitpose")
class VitPoseDecoder(TopDown):
    """A ViTPose under super links, behind a bridge that finds boxes."""

    tasks = serving("vitpose", POSE)
    Config = VitPoseConfig

    @classmethod
    def from_config(cls, config: VitPoseConfig, link_width: int) -> VitPoseDecoder:
        finder = finder_of(config.boxes, link_width, KEY)
        net = build(config.network or {}) if config.pretrained is None else _load(config.pretrained)
        estimator = VitPoseEstimator(net)
        check_classes(estimator.channels, f"{KEY}.network.num_labels")
        return cls(
            estimator, partial(_with_labels, estimator.settings), finder, link_width=link_width, width=config.width,
            threshold=config.threshold,
        )  # fmt: skip


def build(settings: dict[str, Any]) -> Any:
    """A ViTPose from its keys."""
    from transformers import VitPoseConfig as Keys
    from transformers import VitPoseForPoseEstimation

    try:
        return VitPoseForPoseEstimation(Keys(**{k: v for k, v in settings.items() if k != "model_type"}))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{KEY}.network: {str(error).splitlines()[0]}") from None


def _with_labels(settings: dict[str, Any], count: int) -> nn.Module:
    kept = {key: value for key, value in settings.items() if key not in ("id2label", "label2id")}
    return build({**kept, "num_labels": count})


def _load(name: str) -> Any:
    from transformers import VitPoseForPoseEstimation

    try:
        return VitPoseForPoseEstimation.from_pretrained(name, use_safetensors=True, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{KEY}.pretrained: {name}: {str(error).splitlines()[0]}") from None
