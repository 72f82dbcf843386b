"""The two layers of SDAN (arXiv 2104.00848, ICME 2021): a deformable convolution whose taps share one offset, and
attention between the channels of a packed picture.

B = pictures, C = channels, H x W = pixels, r = side of what is packed. Offsets are (dy, dx) in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class SharedOffsetConv(nn.Module):
    """A convolution that reads, at every place, around another one: y(p) = sum_k w_k x(p + p_k + o(p)) + b.

    One offset for all taps: the picture is moved, not torn, and a third-party offset such as an optical flow fits.

    Args:
        channels, outputs: in and out.
        kernel: side, odd.
    """

    def __init__(self, channels: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        assert kernel % 2, "a kernel of even side has no middle"
        self.convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)
        self.taps = kernel * kernel

    def forward(self, values_BCHW: Tensor, offsets_B2HW: Tensor) -> Tensor:
        """(B, outputs, H, W); outside of the picture is zero."""
        # torchvision wants (dy, dx) of each tap, one after the other.
        own = self.convolution
        return _sampled(values_BCHW, offsets_B2HW.repeat(1, self.taps, 1, 1), own.weight, own.bias, own.padding)


def moved(values_BCHW: Tensor, offsets_B2HW: Tensor) -> Tensor:
    """What lies ``offsets`` away from each place, read between pixels; outside of the picture is zero."""
    channels = values_BCHW.shape[1]
    eye = torch.eye(channels, device=values_BCHW.device, dtype=values_BCHW.dtype)[:, :, None, None]
    return _sampled(values_BCHW, offsets_B2HW, eye, None, (0, 0))


def _sampled(values: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None, padding: Any) -> Tensor:
    """``deform_conv2d`` in fp32 at least: it knows no half precision on a CPU, and places need more than its digits."""
    exact = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        bias = None if bias is None else bias.to(exact)
        return deform_conv2d(values.to(exact), offsets.to(exact), weight.to(exact), bias, padding=padding)


def inside(offsets_B2HW: Tensor) -> Tensor:
    """(B, 1, H, W) in {0, 1}: 1 where the place an offset leads to lies in the picture. Nothing is learned from it."""
    height, width = offsets_B2HW.shape[-2:]
    y = torch.arange(height, device=offsets_B2HW.device)[:, None] + offsets_B2HW[:, 0].detach()
    x = torch.arange(width, device=offsets_B2HW.device)[None] + offsets_B2HW[:, 1].detach()
    return ((y >= 0) & (y < height) & (x >= 0) & (x < width)).to(offsets_B2HW.dtype)[:, None]


class CrossPackingAttention(nn.Module):
    """Attention between the C r r channels of a packed picture: values at a distance meet without a large kernel.

    E = X X^T over the packed places, A = softmax(-E), out = gamma A X + X, as in SDAN; gamma begins at 0, where it is
    the identity.

    Args:
        side: r; both sides of a picture are multiples of it.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, values_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        packed = F.pixel_unshuffle(values_BCHW, self.side)
        rows_BNP = packed.flatten(2)
        weights = (-(rows_BNP.float() @ rows_BNP.float().transpose(1, 2))).softmax(-1).to(rows_BNP.dtype)
        mixed = (weights @ rows_BNP).reshape_as(packed)
        return F.pixel_shuffle(self.gamma * mixed + packed, self.side)
