"""What sees depth under a link: a small network of its own, or a Depth Anything that has learned it already.

D = width of the language model, Q = link queries, B = pictures, C = channels, H x W = pixels of the prepared picture.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.core.pixels import IMAGENET_MEAN, IMAGENET_STD


class Unet(nn.Module):
    """Down four times, under the link; up again with what was seen on the way (Ronneberger et al. 2015, "U-Net")."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    multiple = 32  # of the sides of a prepared picture

    def __init__(self, width: int, queries: int, link_width: int) -> None:
        super().__init__()
        sizes = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in zip([3, *sizes], sizes, strict=False))
        self.words = _words(queries, link_width, sizes[-1])
        # Places are part of what is seen: ground rises to the horizon.
        self.deep = _block(sizes[-1] + 2, sizes[-1])
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor, links_BQD: Tensor) -> Tensor:
        """(B, H, W), larger where it is nearer."""
        size, seen, values = pixels_B3HW.shape[-2:], [], pixels_B3HW
        for layer in self.down:
            values = layer(values)
            seen.append(values)
        values = _told(values, self.words(links_BQD))
        y, x = (torch.linspace(-1, 1, side, device=values.device, dtype=values.dtype) for side in values.shape[-2:])
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(values), -1, -1, -1)
        values = self.deep(torch.cat([values, places], 1))
        for layer, before in zip(self.up, seen[-2::-1], strict=True):
            values = F.interpolate(values, before.shape[-2:], mode="nearest")
            values = layer(torch.cat([values, before], 1))
        return F.interpolate(self.out(values), size, mode="bilinear", align_corners=False)[:, 0]


class Anything(nn.Module):
    """Depth Anything (Yang et al. 2024, arXiv 2401.10891 and 2406.09414) as transformers has it: the link scales and
    shifts what its neck hands to its head."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, net: Any, queries: int, link_width: int) -> None:
        super().__init__()
        self.net, self.settings = net, net.config.to_dict()
        self.multiple = int(net.config.patch_size)
        # Metres grow where the others' numbers fall; both are taken before they are squeezed into their range, where a
        # pixel that has left it would learn nothing.
        self.sign = -1.0 if net.config.depth_estimation_type == "metric" else 1.0
        net.head.activation2, net.head.max_depth = nn.Identity(), 1
        self.words = _words(queries, link_width, int(net.config.fusion_hidden_size))
        # Next to nothing at first: it begins with what it has learned.
        nn.init.normal_(self.words[-1].weight, std=1e-3)
        nn.init.zeros_(self.words[-1].bias)
        for parameter in self._unused():
            parameter.requires_grad_(False)

    def forward(self, pixels_B3HW: Tensor, links_BQD: Tensor | None) -> Tensor:
        """(B, H, W), larger where it is nearer; of its own if no link speaks (None)."""
        height, width = (side // self.multiple for side in pixels_B3HW.shape[-2:])
        features = self.net.backbone.forward_with_filtered_kwargs(pixels_B3HW).feature_maps
        fused = list(self.net.neck(features, height, width))
        if links_BQD is not None:
            fused = [_told(values, self.words(links_BQD)) for values in fused]
        return self.sign * self.net.head(fused, height, width)

    def _unused(self) -> list[nn.Parameter]:
        """Parameters that no prediction hangs on: the token of masked patches, and the join of the deepest layer, which
        has none below it to join."""
        first = self.net.neck.fusion_stage.layers[0]
        own = [p for name, p in self.net.backbone.named_parameters() if name.endswith("mask_token")]
        return [*own, *first.residual_layer1.parameters()]


def anything(pretrained: str | None, settings: dict[str, Any] | None, queries: int, link_width: int) -> Anything:
    """A Depth Anything from published weights (a folder or hub id), or from its keys.

    Raises:
        CheckpointError: there are no such weights.
        ConfigError: the keys are no Depth Anything's.
    """
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    if pretrained is not None:
        try:
            net = DepthAnythingForDepthEstimation.from_pretrained(
                pretrained, use_safetensors=True, torch_dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"decoders.depth.pretrained: {pretrained}: {str(error).splitlines()[0]}") from None
        return Anything(net, queries, link_width)
    try:
        keys = {key: value for key, value in (settings or {}).items() if key != "model_type"}
        net = DepthAnythingForDepthEstimation(DepthAnythingConfig(**keys))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"decoders.depth.network: {str(error).splitlines()[0]}") from None
    return Anything(net, queries, link_width)


def _words(queries: int, link_width: int, channels: int) -> nn.Sequential:
    """A link to a scale and a shift of each channel."""
    return nn.Sequential(nn.LayerNorm(link_width), nn.Flatten(1), nn.Linear(queries * link_width, 2 * channels))


def _told(values_BCHW: Tensor, words_BC: Tensor) -> Tensor:
    scale, shift = words_BC[..., None, None].chunk(2, 1)
    return values_BCHW * (1 + scale) + shift


def _block(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
        nn.GroupNorm(1, outer),
        nn.GELU(),
        nn.Conv2d(outer, outer, 3, padding=1),
        nn.GroupNorm(1, outer),
        nn.GELU(),
    )
