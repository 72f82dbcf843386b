"""A small network that says how near each pixel is, under a super link.

L = links, D = width of the language model, B = pictures, C = channels, H x W = pixels of the resized picture.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from visionllm.core.config import Config
from visionllm.core.pixels import PixelSpec
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.core.task import Task, Token, register_task
from visionllm.decoders.base import Context, Decoder, register_decoder

from .result import Depths

NAME = "depth"
PAIRS = 256  # of pixels that are compared in each picture
TASK = register_task(
    Task(
        name=NAME,
        tokens=(Token(text="[DEPTH]", queries=4),),
        decoder=NAME,
        result="depths",  # answer.depths
        verb=NAME,  # model.depth(picture, ["picture"])
        templates="visionllm_depth:wordings.yaml",
        metric=NAME,
        loss_weights={"order": 1.0},
    )
)


class DepthConfig(Config):
    """How the decoder is built."""

    longest: PositiveInt = 192  # longer side of the pictures it sees
    width: PositiveInt = 24  # channels of its first layer


class DepthOptions(Config):
    """Per call: there is nothing to choose."""


@register_decoder(NAME)
class DepthDecoder(Decoder):
    """Down four times, under the link; up again with what was seen on the way (Ronneberger et al. 2015, "U-Net")."""

    tasks = (TASK,)
    Config = DepthConfig
    Options = DepthOptions

    def __init__(self, *, longest: int, width: int, link_width: int) -> None:
        super().__init__()
        self.longest = longest
        sizes = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in zip([3, *sizes], sizes, strict=False))
        self.words = nn.Sequential(
            nn.LayerNorm(link_width), nn.Flatten(1), nn.Linear(TASK.tokens[0].queries * link_width, 2 * sizes[-1])
        )
        # Places are part of what is seen: ground rises to the horizon.
        self.deep = _block(sizes[-1] + 2, sizes[-1])
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    @classmethod
    def from_config(cls, config: DepthConfig, link_width: int) -> DepthDecoder:
        return cls(longest=config.longest, width=config.width, link_width=link_width)

    @property
    def pixels(self) -> dict[str, PixelSpec]:
        return {"source": PixelSpec(longest=self.longest)}

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        """Pairs of pixels of which one is known to be nearer (Chen et al. 2016, "Single-image depth perception in the
        wild", section 4)."""
        total = links.states.sum() * 0.0
        for i, logits_HW, geometry in self._run(links, ctx):
            target = _target(links.meta[i], ctx).transform(geometry)
            near, far = _pairs(target, training=self.training)
            if len(near):
                at = logits_HW.flatten()
                total = total + F.softplus(at[far.to(at.device)] - at[near.to(at.device)]).mean()
            else:
                total = total + 0.0 * logits_HW.sum()
        return {"order": total}

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        return {"order": float(len(links))}

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: DepthOptions) -> list[Depths]:
        found: dict[int, Depths] = {}
        for i, logits_HW, geometry in self._run(links, ctx):
            picture = ctx.batch.samples[links.meta[i].sample].pictures[links.meta[i].media[0]]
            # What was padded is no part of the picture.
            width, height = (round(float(v)) for v in geometry.points(np.array([picture.size]))[0])
            near = logits_HW[:height, :width].float().cpu().numpy()
            near = cv2.resize(near, picture.size, interpolation=cv2.INTER_LINEAR)
            low, high = float(near.min()), float(near.max())
            near = (near - low) / max(high - low, 1e-6)
            found[i] = Depths(phrases=(links.meta[i].phrase,), maps=(near.astype(np.float32),),
                              scores=np.ones(1, np.float32), picture=picture)  # fmt: skip
        return [found[i] for i in range(len(links))]

    def idle(self) -> Tensor:
        weight = self.out.weight
        words = self.words(
            torch.zeros(1, TASK.tokens[0].queries, self.words[0].normalized_shape[0], device=weight.device)
        )
        return self._network(torch.zeros(1, 3, 16, 16, device=weight.device), words).sum()

    def _run(self, links: SuperLinks, ctx: Context) -> list[tuple[int, Tensor, Any]]:
        """Of every link its index, (H, W) logits of nearness, and the geometry of its picture."""
        if not len(links):
            return []
        states_LQD = links.states.reshape(len(links), TASK.tokens[0].queries, -1)
        words_LC = self.words(states_LQD.to(self.out.weight.dtype))
        found = []
        for bucket in ctx.batch.pixels[f"{NAME}/source"]:
            rows = [
                (i, row)
                for i, meta in enumerate(links.meta)
                for row, owners in enumerate(bucket.owners)
                if (meta.sample, meta.media[0]) in owners
            ]
            if rows:
                index = torch.tensor([row for _, row in rows], device=bucket.values.device)
                logits_BHW = self._network(bucket.values[index], words_LC[[i for i, _ in rows]])
                found += [
                    (i, logits_HW, bucket.geometry[row]) for (i, row), logits_HW in zip(rows, logits_BHW, strict=True)
                ]
        return found

    def _network(self, pixels_B3HW: Tensor, words_BC: Tensor) -> Tensor:
        """(B, H, W)."""
        size, seen, values = pixels_B3HW.shape[-2:], [], pixels_B3HW
        for layer in self.down:
            values = layer(values)
            seen.append(values)
        scale, shift = words_BC[..., None, None].chunk(2, 1)
        values = values * (1 + scale) + shift
        y, x = (torch.linspace(-1, 1, side, device=values.device, dtype=values.dtype) for side in values.shape[-2:])
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(values), -1, -1, -1)
        values = self.deep(torch.cat([values, places], 1))
        for layer, before in zip(self.up, seen[-2::-1], strict=True):
            values = F.interpolate(values, before.shape[-2:], mode="nearest")
            values = layer(torch.cat([values, before], 1))
        return F.interpolate(self.out(values), size, mode="bilinear", align_corners=False)[:, 0]


def _block(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
        nn.GroupNorm(1, outer),
        nn.GELU(),
        nn.Conv2d(outer, outer, 3, padding=1),
        nn.GroupNorm(1, outer),
        nn.GELU(),
    )


def _target(meta: LinkMeta, ctx: Context) -> Any:
    return ctx.batch.samples[meta.sample].turns[meta.turn].target


def _pairs(target: Any, *, training: bool) -> tuple[Tensor, Tensor]:
    """Indices of flat pixels, (P,) nearer and (P,) farther ones; the same ones each time unless it trains."""
    chance = None if training else torch.Generator().manual_seed(0)
    near, far = [], []
    ranks = torch.from_numpy(target.ranks).flatten().long()
    known = ranks.nonzero()[:, 0]
    if len(known):
        # Things are small beside the sky: each counts as much.
        share = ranks[known].unique(return_inverse=True)[1]
        weight = 1.0 / torch.bincount(share)[share].float()
        drawn = known[torch.multinomial(weight, 2 * PAIRS, replacement=True, generator=chance)].reshape(2, -1)
        apart = ranks[drawn[0]] != ranks[drawn[1]]
        first = (ranks[drawn[0]] < ranks[drawn[1]])[apart]
        one, other = drawn[0][apart], drawn[1][apart]
        near.append(torch.where(first, one, other))
        far.append(torch.where(first, other, one))
    ground = torch.from_numpy(target.ground).flatten().nonzero()[:, 0]
    if len(ground):
        drawn = ground[torch.randint(len(ground), (2, PAIRS // 4), generator=chance)]
        row = drawn // target.ground.shape[1]
        apart = (row[0] - row[1]).abs() * 20 > target.ground.shape[0]
        first = (row[0] > row[1])[apart]
        one, other = drawn[0][apart], drawn[1][apart]
        near.append(torch.where(first, one, other))
        far.append(torch.where(first, other, one))
    none = torch.zeros(0, dtype=torch.long)
    return torch.cat([none, *near]), torch.cat([none, *far])
