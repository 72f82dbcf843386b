"""What pixels say: a map at a quarter of the picture, for whatever boxes are too coarse for, and boxes seen close.

B = pictures, I = objects of a picture, N = all objects, K = sets of places, P = places of a set, C = width of the
detector, M = width of the map. Places are normalised by the picture without its padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.decoders.objects.detector import Encoded

MAP_WIDTH = 64  # where no mask asks for another


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Fine:
    """Pictures close up.

    Args:
        pixels_B3HW: their padded pixels, normalised.
        map_BMHW: what each pixel says, at a quarter of their size.
        ratios_B2: part of the (width, height) of both that a picture covers.
    """

    pixels_B3HW: Tensor
    map_BMHW: Tensor
    ratios_B2: Tensor

    def of(self, rows: list[int]) -> Fine:
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__slots__})


def read(table_BCHW: Tensor, ratios_B2: Tensor, places_BKP2: Tensor) -> Tensor:
    """(B, C, K, P) values of a table between its cells; beyond its edge the edge goes on."""
    grid = 2 * places_BKP2.float() * ratios_B2[:, None, None].float() - 1
    return F.grid_sample(table_BCHW.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


class PixelMap(nn.Module):
    """Features of every pixel, of what is near it and of what the encoder made of the whole picture.

    The encoder's finest tokens, enlarged, and features of the picture itself (Li et al. 2023, "Mask DINO", section
    3.3).

    Args:
        width: of the detector.
        map_width: M; a multiple of 8.
    """

    def __init__(self, width: int, map_width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_block(3, map_width // 2, stride=2), *_block(map_width // 2, map_width, stride=2))
        self.lateral = nn.Conv2d(width, map_width, 1)
        self.fuse = nn.Sequential(*_block(map_width, map_width), *_block(map_width, map_width))

    def forward(self, pixels_B3HW: Tensor, encoded: Encoded) -> Fine:
        """The pictures are those that were encoded, in the same order."""
        height, width = encoded.shapes[0]
        finest = encoded.memory_BSC[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
        near = self.stem(pixels_B3HW)
        far = F.interpolate(self.lateral(finest), size=near.shape[-2:], mode="bilinear", align_corners=False)
        return Fine(pixels_B3HW=pixels_B3HW, map_BMHW=self.fuse(near + far), ratios_B2=encoded.ratios_BL2[:, 0])


class Crop(nn.Module):
    """What a box shows, in its own frame: near and far, large and small things look alike there.

    As top-down pose estimators see a person (Xiao et al. 2018, "Simple baselines for human pose estimation", section
    2): the picture inside the box and a margin, resampled to a square of cells, with the map under it, through a small
    network that goes down to a quarter and up again (Ronneberger et al. 2015, "U-Net", section 2); every cell
    is told of the whole.

    Args:
        width: of the detector.
        map_width: M; a multiple of 8.
        side: cells along a side of the square; a multiple of 4.
        margin: around the box, of its sides.
    """

    def __init__(self, width: int, map_width: int, side: int, margin: float) -> None:
        super().__init__()
        self.side = side
        self.stem = nn.Sequential(*_block(3, map_width // 2, stride=2))
        self.join = nn.Sequential(*_block(map_width // 2 + map_width, map_width))
        self.down = nn.Sequential(*_block(map_width, map_width, stride=2))
        self.deep = nn.Sequential(
            *_block(map_width, 2 * map_width, stride=2), *_block(2 * map_width, 2 * map_width)
        )  # fmt: skip
        self.lift = nn.Conv2d(2 * map_width, map_width, 1)
        self.middle = nn.Sequential(*_block(map_width, map_width))
        self.top = nn.Sequential(*_block(map_width, map_width), nn.Conv2d(map_width, map_width, 1))
        # Laid side by side, not averaged: which way a body faces is a matter of what lies where.
        self.whole = nn.Linear((side // 4) ** 2 * 2 * map_width, width)
        self.tell = nn.Linear(width, 2 * map_width)
        self.register_buffer("cells_P2", square(side, margin), persistent=False)
        self.register_buffer("pixels_P2", square(2 * side, margin), persistent=False)

    def forward(self, fine: Fine, boxes_BI4: Tensor, open_BI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, M, P) what the cells of the N open boxes say, (N, C) what each box says as a whole, and (B, I, P, 2)
        places of the cells of all boxes, row by row."""
        places, spots = (
            boxes_BI4[..., None, :2] + frame * boxes_BI4[..., None, 2:] for frame in (self.cells_P2, self.pixels_P2)
        )
        near = read(fine.pixels_B3HW, fine.ratios_B2, spots).transpose(1, 2)[open_BI].unflatten(-1, (-1, 2 * self.side))
        far = read(fine.map_BMHW, fine.ratios_B2, places).transpose(1, 2)[open_BI].unflatten(-1, (-1, self.side))
        full = self.join(torch.cat([self.stem(near), far], 1))
        half = self.down(full)
        deep = self.deep(half)
        whole = self.whole(deep.flatten(1))
        deep = deep + self.tell(whole)[..., None, None]
        half = self.middle(half + _enlarged(self.lift(deep)))
        cells = self.top(full + _enlarged(half))
        return cells.flatten(2), whole, places


def square(side: int, margin: float) -> Tensor:
    """(P, 2) middles of the cells of a square over a box and its margin, in the frame of the box: middle 0, sides 1."""
    along = ((torch.arange(side) + 0.5) / side - 0.5) * (1 + 2 * margin)
    return torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).reshape(-1, 2)


def mlp(width: int, out: int) -> nn.Sequential:
    """Three layers, for heads of queries."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def _enlarged(table: Tensor) -> Tensor:
    return F.interpolate(table, scale_factor=2.0, mode="bilinear", align_corners=False)


def _block(inside: int, outside: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    groups = 8 if outside % 8 == 0 else 1
    return (
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(groups, outside), nn.GELU(),
    )  # fmt: skip
