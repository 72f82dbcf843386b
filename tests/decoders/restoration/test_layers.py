"""The layers of SDAN against what they must be equal to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionllm.decoders.restoration.layers import CrossPackingAttention, SharedOffsetConv, inside, moved
from visionllm.decoders.restoration.network import Sdan, charbonnier


def smooth(height: int = 20, width: int = 24) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.stack([torch.sin(x / 3) + torch.cos(y / 4), torch.sin((x + y) / 5), torch.cos(x * y / 90)])[None]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_zero_offsets_are_a_plain_convolution(kernel: int) -> None:
    torch.manual_seed(0)
    layer = SharedOffsetConv(3, 4, kernel).double()
    own = layer.convolution
    plain = F.conv2d(smooth(), own.weight, own.bias, padding=kernel // 2)
    torch.testing.assert_close(layer(smooth(), torch.zeros(1, 2, 20, 24).double()), plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, -2), (2, 3)])
def test_one_offset_everywhere_is_the_convolution_of_the_moved_picture(dy: int, dx: int) -> None:
    torch.manual_seed(0)
    layer, values = SharedOffsetConv(3, 4).double(), smooth()
    offsets = torch.tensor([dy, dx]).double()[None, :, None, None].expand(1, 2, 20, 24)
    there = torch.roll(values, (-dy, -dx), (2, 3))
    inner = (..., slice(5, -5), slice(5, -5))
    plain = F.conv2d(there, layer.convolution.weight, layer.convolution.bias, padding=1)
    torch.testing.assert_close(layer(values, offsets)[inner], plain[inner], atol=1e-12, rtol=0)
    torch.testing.assert_close(moved(values, offsets)[inner], there[inner], atol=1e-12, rtol=0)


def test_a_global_shift_is_recovered() -> None:
    """By gradient alone, from zero, where there is one."""
    values, wanted = smooth(), torch.roll(smooth(), (2, -1), (2, 3))
    shift = torch.zeros(2, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.05)
    for step in range(200):
        found = moved(values, shift[None, :, None, None].expand(1, 2, 20, 24))
        loss = (found - wanted)[..., 5:-5, 5:-5].square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert step or float(shift.grad.abs().min()) > 0
        optimizer.step()
    torch.testing.assert_close(shift.detach(), torch.tensor([-2.0, 1.0]).double(), atol=1e-2, rtol=0)


def test_inside_is_exact_at_a_corner() -> None:
    offsets = torch.zeros(1, 2, 3, 4)
    assert bool(inside(offsets).all())
    offsets[0, :, 0, 0] = torch.tensor([-0.5, 0.0])  # out at the top
    offsets[0, :, 2, 3] = torch.tensor([0.0, 1.0])  # out at the right
    offsets[0, :, 1, 1] = torch.tensor([1.0, 2.0])  # to the last place
    valid = inside(offsets)[0, 0]
    assert valid.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_attention_begins_as_identity_and_packs_without_loss() -> None:
    layer, values = CrossPackingAttention(4), torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(values), values)
    with torch.no_grad():
        layer.gamma.fill_(0.5)
    rows = F.pixel_unshuffle(values, 4).flatten(2)
    energy = rows @ rows.transpose(1, 2)
    weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)  # as the published code writes it
    expected = F.pixel_shuffle((0.5 * weights @ rows + rows).reshape(2, 48, 2, 3), 4)
    torch.testing.assert_close(layer(values), expected, atol=1e-5, rtol=1e-5)


def test_what_is_outside_does_not_enter_the_loss() -> None:
    valid = torch.ones(2, 1, 2, 2)
    valid[0, 0, 0, 0] = 0
    valid[1] = 0
    found, wanted = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.25)
    found[0, :, 0, 0] = 100
    torch.testing.assert_close(charbonnier(found, wanted, valid), torch.tensor([0.25, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scale", "size"), [(2, (7, 9)), (4, (8, 8))])
def test_at_first_it_is_bicubic_interpolation_of_any_size(scale: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Sdan(width=8, blocks=2, scale=scale, packing=4, condition=4)
    small = torch.rand(1, 3, *size)
    made = network(small, small, torch.zeros(1, 4))
    assert made.sharp.shape[-2:] == (scale * size[0], scale * size[1])
    filled = F.pad(small, (0, -size[1] % 4, 0, -size[0] % 4), mode="replicate")
    plain = F.interpolate(filled, scale_factor=scale, mode="bicubic", align_corners=False)
    torch.testing.assert_close(made.sharp, plain[..., : scale * size[0], : scale * size[1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(made.aligned, small)
    assert bool((made.offsets == 0).all())
    made.aligned.square().sum().backward()
    assert float(network.offsets[-1].weight.grad.abs().sum()) > 0
