"""Where things are to stand, before a picture is drawn: planned from the words, then read by the UNet as a map.

B = pictures, N = things of a picture, O = states of a phrase, C = their width, K = numbers of a plan, R = width of the
map, h x w = latents. Boxes are (x0, y0, x1, y1) in parts of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, gelu, one_hot, pad

Box = tuple[float, float, float, float]
# Values of a number of a plan: whether the thing is there, the middle of its box, and its sides.
_VALUES = 16
_NUMBERS = 5
# A number that is less likely than this share of the likeliest is not drawn.
_UNLIKELY = 0.2
# Softness of a box in the map, in parts of the picture.
_EDGE = 0.04


class Layout(nn.Module):
    """Plans boxes for the things of a phrase, and shows them to a UNet.

    States that a UNet attends to say what is in a picture; that "left of" puts one thing there and the other here, it
    has to find out from noise, and a small one does not (docs/pictures.md has figures). So places are drawn first, one
    number after another, each under those before (as Feng et al. 2023, "LayoutGPT", has a language model do), from the
    two states of each thing. A map then holds at each place the states of the thing that stands there (Li et al. 2023,
    "GLIGEN"), and is added to what leaves each level of the UNet going down (Mou et al. 2023, "T2I-Adapter"). At first
    it adds nothing.

    Args:
        things: N; the states 2i and 2i + 1 of a phrase are those of thing i.
        width: C.
        levels: of the UNet, channels and how many times as small as the latents.
        hidden: width of what plans, and R.
    """

    def __init__(self, *, things: int, width: int, levels: Sequence[tuple[int, int]], hidden: int = 64) -> None:
        super().__init__()
        self.things = things
        count = things * _NUMBERS
        self.read, self.place = nn.Linear(2 * width, 2 * hidden), nn.Parameter(torch.randn(count, 2 * hidden) * 0.02)
        self.before = nn.Parameter(torch.randn(count, _VALUES, 2 * hidden) * 0.02)
        self.think = nn.Sequential(nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, 4 * hidden), nn.GELU())
        self.say = nn.Linear(4 * hidden, _VALUES)
        self.show = nn.Linear(2 * width, 3 * hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self._shrunk = tuple(shrunk for _, shrunk in levels)
        self.levels = nn.ModuleList([nn.Conv2d(hidden, channels, 1) for channels, _ in levels])
        for level in self.levels:
            nn.init.zeros_(level.weight)
            nn.init.zeros_(level.bias)

    def loss(self, states_BOC: Tensor, boxes: Sequence[Sequence[Box]]) -> Tensor:
        """Sum over all numbers of all plans of the cross entropy of foretelling each from those before it.

        Args:
            boxes: of each picture, those of its things.
        """
        plan_BK, known_BK = self._plan(boxes)
        plan_BK, known_BK = plan_BK.to(states_BOC.device), known_BK.to(states_BOC.device)
        said = one_hot(plan_BK, _VALUES).to(states_BOC.dtype)
        each_BKH = torch.einsum("bkv,kvh->bkh", said, self.before)
        before_BKH = pad(each_BKH.cumsum(1), (0, 0, 1, 0))[:, :-1]
        logits_BKV = self._logits(self._read(states_BOC), before_BKH, slice(None)).float()
        return cross_entropy(logits_BKV[known_BK], plan_BK[known_BK], reduction="sum")

    def count(self, boxes: Sequence[Sequence[Box]]) -> float:
        """Terms of ``loss``."""
        return float(self._plan(boxes)[1].sum())

    @torch.no_grad()
    def plan(self, states_BOC: Tensor, seeds: Sequence[torch.Generator]) -> list[list[Box]]:
        """Boxes of the things of each picture, drawn.

        Args:
            seeds: of each picture, on the CPU.
        """
        read_BNH = self._read(states_BOC)
        before_BH = torch.zeros_like(read_BNH[:, 0])
        plan_BK = torch.zeros(len(states_BOC), len(self.place), dtype=torch.long)
        for k in range(len(self.place)):
            logits_BV = self._logits(read_BNH, before_BH[:, None], slice(k, k + 1))[:, 0].float().cpu()
            share_BV = logits_BV.softmax(-1)
            share_BV = share_BV * (share_BV >= _UNLIKELY * share_BV.amax(-1, keepdim=True))
            for b, seed in enumerate(seeds):
                plan_BK[b, k] = torch.multinomial(share_BV[b], 1, generator=seed)
            before_BH = before_BH + self.before[k, plan_BK[:, k].to(before_BH.device)]
        return [self._boxes(plan_K) for plan_K in plan_BK.unflatten(1, (self.things, _NUMBERS))]

    def forward(
        self, states_BOC: Tensor, boxes: Sequence[Sequence[Box]], size: tuple[int, int]
    ) -> list[Tensor]:  # fmt: skip
        """What to add to each level of the UNet; nothing where no box is.

        Args:
            size: (h, w) of the latents.
        """
        maps_BN3hw = torch.stack([self._maps(own, size) for own in boxes]).to(states_BOC)
        shown_BN3R = self.show(self._pairs(states_BOC)).unflatten(-1, (3, -1))
        map_BRhw = torch.einsum("bnmr,bnmhw->brhw", shown_BN3R, maps_BN3hw)
        any_B111 = torch.tensor([len(own) > 0 for own in boxes], device=map_BRhw.device)[:, None, None, None]
        map_BRhw = gelu(self.mix(gelu(map_BRhw)))
        return [
            torch.where(any_B111, level(avg_pool2d(map_BRhw, shrunk)), 0.0)
            for level, shrunk in zip(self.levels, self._shrunk, strict=True)
        ]

    def _pairs(self, states_BOC: Tensor) -> Tensor:
        """(B, N, 2C)."""
        return states_BOC[:, : 2 * self.things].unflatten(1, (self.things, 2)).flatten(2)

    def _read(self, states_BOC: Tensor) -> Tensor:
        return self.read(self._pairs(states_BOC))

    def _logits(self, read_BNH: Tensor, before_BKH: Tensor, numbers: slice) -> Tensor:
        own_BKH = read_BNH.repeat_interleave(_NUMBERS, 1)[:, numbers]
        return self.say(self.think(own_BKH + self.place[numbers] + before_BKH))

    def _plan(self, boxes: Sequence[Sequence[Box]]) -> tuple[Tensor, Tensor]:
        """(B, K) the numbers of the boxes, and which of them are known: of a thing that is not there, that alone."""
        plan_BNK = torch.zeros(len(boxes), self.things, _NUMBERS, dtype=torch.long)
        known_BNK = torch.zeros_like(plan_BNK, dtype=torch.bool)
        for b, own in enumerate(boxes):
            known_BNK[b, :, 0] = True
            for n, (x0, y0, x1, y1) in enumerate(own[: self.things]):
                values = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                plan_BNK[b, n] = torch.tensor([1, *(values * _VALUES).long().clamp(0, _VALUES - 1).tolist()])
                known_BNK[b, n] = True
        return plan_BNK.flatten(1), known_BNK.flatten(1)

    def _boxes(self, plan_NK: Tensor) -> list[Box]:
        boxes: list[Box] = []
        for there, *numbers in plan_NK.tolist():
            if there:
                x, y, width, height = ((number + 0.5) / _VALUES for number in numbers)
                boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        return boxes

    def _maps(self, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
        """(N, 3, h, w): inside the box of a thing, and there how far right and down of its middle."""
        y_h1, x_1w = ((torch.arange(side) + 0.5) / side for side in size)
        y_h1, x_1w = y_h1[:, None], x_1w[None]
        maps = torch.zeros(self.things, 3, *size)
        for n, (x0, y0, x1, y1) in enumerate(boxes[: self.things]):
            inside = torch.ones(size)
            for far in (x_1w - x0, x1 - x_1w, y_h1 - y0, y1 - y_h1):
                inside = inside * (far / _EDGE).sigmoid()
            right = (2 * x_1w - x0 - x1) / max(x1 - x0, _EDGE)
            down = (2 * y_h1 - y0 - y1) / max(y1 - y0, _EDGE)
            maps[n] = torch.stack([inside, inside * right.clamp(-1, 1), inside * down.clamp(-1, 1)])
        return maps
