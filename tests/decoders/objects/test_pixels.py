"""Boxes seen close: read where they lie, whatever the padding, each by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from visionllm.decoders.objects.pixels import Crop, Fine, read, square

WIDTH, MAP, SIDE = 16, 8, 8


def fine_of(pixels_3HW: Tensor, map_MHW: Tensor, *, pad: tuple[int, int] = (0, 0)) -> Fine:
    """One picture, padded on the right and below by (x, y) cells of its map with what must not be seen."""
    x, y = pad
    own = [torch.nn.functional.pad(table, (0, x * by, 0, y * by), value=9.0)
           for table, by in ((pixels_3HW, 4), (map_MHW, 1))]  # fmt: skip
    ratios = [table / padded for table, padded in zip(map_MHW.shape[:0:-1], own[1].shape[:0:-1], strict=True)]
    return Fine(pixels_B3HW=own[0][None], map_BMHW=own[1][None], ratios_B2=torch.tensor([ratios]))


def crop() -> Crop:
    torch.manual_seed(0)
    return Crop(WIDTH, MAP, SIDE, 0.1).eval()


def test_a_table_is_read_between_its_cells() -> None:
    table = torch.arange(12.0).reshape(1, 1, 3, 4)
    places = torch.tensor([[[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [2 / 4, 1.5 / 3], [-1.0, -1.0]]]])
    torch.testing.assert_close(read(table, torch.ones(1, 2), places)[0, 0, 0], torch.tensor([0.0, 11.0, 5.5, 0.0]))
    # The same picture in the left half of a wider table.
    wider = torch.nn.functional.pad(table, (0, 4))
    inside = places[:, :, :1]
    torch.testing.assert_close(read(wider, torch.tensor([[0.5, 1.0]]), inside), read(table, torch.ones(1, 2), inside))


def test_cells_of_a_square_lie_row_by_row() -> None:
    cells = square(4, 0.5)
    torch.testing.assert_close(cells[:5, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75, -0.75]))
    torch.testing.assert_close(cells[:5, 1], torch.tensor([-0.75, -0.75, -0.75, -0.75, -0.25]))


@torch.no_grad()
def test_padding_and_other_boxes_change_nothing() -> None:
    pixels, table = torch.randn(3, 48, 64), torch.randn(MAP, 12, 16)
    boxes = torch.tensor([[[0.4, 0.5, 0.3, 0.4], [0.6, 0.4, 0.2, 0.5], [0.5, 0.5, 0.4, 0.4]]])
    see = crop()
    cells, whole, places = see(fine_of(pixels, table), boxes, torch.tensor([[True, False, True]]))
    assert cells.shape == (2, MAP, SIDE**2)
    assert whole.shape == (2, WIDTH)
    assert places.shape == (1, 3, SIDE**2, 2)
    for row, box in ((0, 0), (1, 2)):
        alone = see(fine_of(pixels, table, pad=(5, 3)), boxes[:, box : box + 1], torch.tensor([[True]]))
        torch.testing.assert_close(alone[0][0], cells[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone[1][0], whole[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone[2][0, 0], places[0, box])


@torch.no_grad()
def test_a_thing_looks_alike_wherever_it_stands_and_however_large_it_is() -> None:
    see = crop()
    small, table = torch.randn(3, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2), torch.zeros(MAP, 24, 24)
    there, larger = torch.zeros(3, 96, 96), torch.zeros(3, 96, 96)
    there[:, 8:40, 56:88] = small
    larger[:, 16:80, 16:80] = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    # Read inside the thing alone: a margin of a tenth around boxes that are smaller by as much.
    boxes = torch.tensor([[72 / 96, 24 / 96, 1 / 3 / 1.2, 1 / 3 / 1.2], [0.5, 0.5, 2 / 3 / 1.2, 2 / 3 / 1.2]])
    open_ = torch.tensor([[True]])
    first = see(fine_of(there, table), boxes[None, :1], open_)
    second = see(fine_of(larger, table), boxes[None, 1:], open_)
    # Bilinear reading blurs block edges a little less in the larger one.
    assert float((first[0] - second[0]).abs().mean()) < 0.1 * float(first[0].std())
