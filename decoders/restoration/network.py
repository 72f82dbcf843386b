"""SDAN for pictures in RGB: a small picture is moved to where its reference has things, then drawn larger.

B = pictures, C = channels, H x W = pixels of the small picture, s = scale. Pictures are RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.decoders.restoration.layers import CrossPackingAttention, SharedOffsetConv, inside, moved

# Under the root of the loss: where a difference counts by its amount and no longer by its square.
_SOFT = 1e-6


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Restored:
    """What the network makes of a picture: (B, 3, sH, sW) ``sharp``, (B, 3, H, W) ``aligned`` to the reference,
    (B, 1, H, W) ``valid`` where that comes from within the picture, and the (B, 2, H, W) offsets."""

    sharp: Tensor
    aligned: Tensor
    valid: Tensor
    offsets: Tensor


class Sdan(nn.Module):
    """Alignment, residual blocks, sub-pixel convolution.

    Beyond the paper: a picture in RGB in the place of a mosaic; the sharp picture is learned as what it has more than
    the small one, moved likewise and enlarged by bicubic interpolation; the offsets begin at zero, where they have a
    gradient all the same; and a vector of words scales and shifts what every block makes (Perez et al. 2018, "FiLM"),
    from nothing at first.

    Args:
        width: C.
        blocks: residual blocks.
        scale: s, a power of two.
        packing: side of what the offset network packs.
        condition: width of the vector of words.
    """

    def __init__(self, *, width: int, blocks: int, scale: int, packing: int, condition: int) -> None:
        super().__init__()
        self.scale, self.packing = scale, packing
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        # The reference beside its mirror images, as the paper has it.
        self.reference = nn.Sequential(nn.Conv2d(12, width, 3, padding=1), nn.ReLU())
        self.offsets = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), CrossPackingAttention(packing), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), CrossPackingAttention(packing), nn.ReLU(),
            nn.Conv2d(width, 2, 3, padding=1),
        )  # fmt: skip
        self.align = SharedOffsetConv(width, width)
        self.rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, condition) for _ in range(blocks))
        self.after = nn.Conv2d(width, width, 3, padding=1)
        steps = scale.bit_length() - 1
        self.enlarge = nn.Sequential(*(
            part for _ in range(steps)
            for part in (nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU())
        ))  # fmt: skip
        self.out = nn.Conv2d(width, 3, 3, padding=1)
        for layer in (self.offsets[-1], self.out, self.rgb):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, small_B3HW: Tensor, reference_B3HW: Tensor, words_BD: Tensor) -> Restored:
        """Any sides: they are filled up to multiples of the packing with what lies at the edge, and cut off again.

        Args:
            reference_B3HW: where things should lie; the small picture itself where nothing else is known.
            words_BD: vector of words of each picture.
        """
        height, width = small_B3HW.shape[-2:]
        fill = (0, -width % self.packing, 0, -height % self.packing)
        small, reference = (F.pad(one, fill, mode="replicate") for one in (small_B3HW, reference_B3HW))
        features = self.head(small)
        mirrored = torch.cat([reference, reference.flip(-1), reference.flip(-2), reference.flip(-1, -2)], 1)
        offsets = self.offsets(torch.cat([features, self.reference(mirrored)], 1))
        features = self.align(features, offsets).relu()
        base = moved(small, offsets)
        deep = features
        for block in self.blocks:
            deep = block(deep, words_BD)
        enlarged = F.interpolate(base, scale_factor=self.scale, mode="bicubic", align_corners=False)
        sharp = self.out(self.enlarge(self.after(deep) + features)) + enlarged
        return Restored(
            sharp=sharp[..., : height * self.scale, : width * self.scale],
            aligned=(self.rgb(features) + base)[..., :height, :width],
            valid=inside(offsets)[..., :height, :width], offsets=offsets[..., :height, :width],
        )  # fmt: skip


class _Block(nn.Module):
    """Two convolutions, without bias and norm, under words."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.words = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.words.bias)

    def forward(self, values_BCHW: Tensor, words_BD: Tensor) -> Tensor:
        scale, shift = self.words(words_BD)[..., None, None].chunk(2, 1)
        made = self.second(self.first(values_BCHW).relu())
        return values_BCHW + made * (1 + scale) + shift


def charbonnier(found_BCHW: Tensor, wanted_BCHW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """(B,) mean of sqrt(d^2 + eps^2) over the valid pixels of each picture; 0 where none is."""
    lost = ((found_BCHW.float() - wanted_BCHW.float()).square() + _SOFT**2).sqrt() * valid_B1HW
    count = valid_B1HW.flatten(1).sum(1) * found_BCHW.shape[1]
    return lost.flatten(1).sum(1) / count.clamp(min=1)
