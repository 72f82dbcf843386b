"""What pixels say: a map at a quarter of the picture, for whatever boxes are too coarse for.

The encoder's finest tokens, enlarged, and features of the picture itself (Li et al. 2023, "Mask DINO", section 3.3).

B = pictures, C = width of the detector, M = width of the map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.decoders.objects.detector import Encoded

MAP_WIDTH = 64  # where no mask asks for another


class PixelMap(nn.Module):
    """Features of every pixel, of what is near it and of what the encoder made of the whole picture.

    Args:
        width: of the detector.
        map_width: M; a multiple of 8.
    """

    def __init__(self, width: int, map_width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_block(3, map_width // 2, stride=2), *_block(map_width // 2, map_width, stride=2))
        self.lateral = nn.Conv2d(width, map_width, 1)
        self.fuse = nn.Sequential(*_block(map_width, map_width), *_block(map_width, map_width))

    def forward(self, pixels_B3HW: Tensor, encoded: Encoded) -> Tensor:
        """(B, M, H / 4, W / 4); the pictures are those that were encoded, in the same order."""
        height, width = encoded.shapes[0]
        finest = encoded.memory_BSC[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
        near = self.stem(pixels_B3HW)
        far = F.interpolate(self.lateral(finest), size=near.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(near + far)


def _block(inside: int, outside: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    groups = 8 if outside % 8 == 0 else 1
    return (
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(groups, outside), nn.GELU(),
    )  # fmt: skip
