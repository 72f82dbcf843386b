"""A convolutional stem: the vision tower reads maps of a backbone where it would read pixels.

A patch embedding is one linear map of raw pixels: a small tower must find out from few pictures what edges and wheels
are, and a cup of sixteen pixels is a single patch to it. A backbone knows neighbourhoods from the start (Dosovitskiy et
al. 2021, "An Image is Worth 16x16 Words", section 3.1, hybrid architecture; Xiao et al. 2021, "Early Convolutions Help
Transformers See Better"). Maps of several levels are read together, for a small thing is only in the fine ones
(Hariharan et al. 2015, "Hypercolumns").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone

from visionllm.core.errors import ConfigError
from visionllm.core.networks import known_config, use_group_norm


class Stem(nn.Module):
    """Pictures to patch embeddings by way of a backbone, in the place of a vision tower's own patch embedding.

    Each map is cut into patches of ``patch`` pixels of the picture; each gives an embedding by a linear map, and those
    of all maps are added.

    Args:
        keys: of a transformers backbone's configuration, with ``model_type`` and ``out_features`` (the maps that are
            read), and ``group_norm``: groups that replace batch norm, None to keep it.
        patch: side of a patch in pixels.
        width: of the embeddings, D.

    Raises:
        ConfigError: not a backbone, or the stride of a map does not divide the patch.
    """

    def __init__(self, keys: dict[str, Any], *, patch: int, width: int) -> None:
        super().__init__()
        path = "mllm.vision_config.stem"
        values = dict(keys) if isinstance(keys, dict) else {}
        groups = values.pop("group_norm", None)
        config = known_config(path, values)
        try:
            self.backbone = AutoBackbone.from_config(config)
        except ValueError:
            raise ConfigError(f"{path}.model_type: {config.model_type} is no backbone; one is resnet") from None
        if groups is not None:
            use_group_norm(self.backbone, groups, path=f"{path}.group_norm")
        with torch.no_grad():
            maps = self.backbone(torch.zeros(1, config.num_channels, 2 * patch, 2 * patch)).feature_maps
        strides = [2 * patch // found.shape[-1] for found in maps]
        for name, stride in zip(self.backbone.out_features, strides, strict=True):
            if patch % stride:
                raise ConfigError(f"{path}.out_features: {name} has stride {stride}, which does not divide {patch}")
        self.projections = nn.ModuleList(
            nn.Conv2d(found.shape[1], width, patch // stride, stride=patch // stride)
            for found, stride in zip(maps, strides, strict=True)
        )

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, 3, S, S) tiles to (N, patches, D), in reading order."""
        maps = self.backbone(tiles.to(self.projections[0].weight.dtype)).feature_maps
        total = sum(project(found) for project, found in zip(self.projections, maps, strict=True))
        return total.flatten(2).transpose(1, 2)
