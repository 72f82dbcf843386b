"""How near each pixel is, under a super link.

L = links, Q = link queries, D = width of the language model, H x W = pixels of the prepared picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor

from visionllm.core.config import Config
from visionllm.core.pixels import PixelSpec
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.core.task import Task, Token, register_task
from visionllm.decoders.base import Context, Decoder, register_decoder

from .networks import Anything, Unet, anything
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
    width: PositiveInt = 24  # channels of the first layer of its own network
    pretrained: str | None = None  # folder or hub id of a Depth Anything to take in its place
    network: dict[str, Any] | None = None  # or keys of one

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.pretrained is not None and self.network is not None:
            raise ValueError("give either pretrained or network")
        return self


class DepthOptions(Config):
    """Per call: there is nothing to choose."""


@register_decoder(NAME)
class DepthDecoder(Decoder):
    """A map of what is near, of a network that reads the link."""

    tasks = (TASK,)
    Config = DepthConfig
    Options = DepthOptions

    def __init__(self, network: Unet | Anything, *, longest: int, link_width: int) -> None:
        super().__init__()
        self.network, self.longest, self.link_width = network, longest, link_width

    @classmethod
    def from_config(cls, config: DepthConfig, link_width: int) -> DepthDecoder:
        queries = TASK.tokens[0].queries
        network: Unet | Anything
        if config.pretrained is None and config.network is None:
            network = Unet(config.width, queries, link_width)
        else:
            network = anything(config.pretrained, config.network, queries, link_width)
        return cls(network, longest=config.longest, link_width=link_width)

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint of ours holds all weights: it names no other."""
        if isinstance(self.network, Unet):
            return dict(values)
        kept = {key: value for key, value in values.items() if key != "pretrained"}
        return {**kept, "network": self.network.settings}

    @property
    def pixels(self) -> dict[str, PixelSpec]:
        network = self.network
        return {
            "source": PixelSpec(longest=self.longest, multiple=network.multiple, mean=network.mean, std=network.std)
        }

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        """Pairs of pixels of which one is known to be nearer (Chen et al. 2016, "Single-image depth perception in the
        wild", section 4)."""
        total = links.states.sum() * 0.0
        for i, logits_HW, geometry in self._run(links, ctx):
            target = _target(links.meta[i], ctx).transform(geometry)
            near, far = _pairs(target, training=self.training)
            # What was padded is no part of the picture.
            height, width = target.ranks.shape
            logits_HW = logits_HW[:height, :width]
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
            width, height = (round(float(v)) for v in geometry.points(np.array([picture.size]))[0])
            near = logits_HW[:height, :width].float().cpu().numpy()
            near = cv2.resize(near, picture.size, interpolation=cv2.INTER_LINEAR)
            low, high = float(near.min()), float(near.max())
            near = (near - low) / max(high - low, 1e-6)
            found[i] = Depths(phrases=(links.meta[i].phrase,), maps=(near.astype(np.float32),),
                              scores=np.ones(1, np.float32), picture=picture)  # fmt: skip
        return [found[i] for i in range(len(links))]

    def idle(self) -> Tensor:
        like = next(self.network.parameters())
        links = like.new_zeros(1, TASK.tokens[0].queries, self.link_width)
        return self.network(like.new_zeros(1, 3, *[self.network.multiple] * 2), links).sum()

    def _run(self, links: SuperLinks, ctx: Context) -> list[tuple[int, Tensor, Any]]:
        """Of every link its index, (H, W) logits of nearness, and the geometry of its picture."""
        if not len(links):
            return []
        states_LQD = links.states.reshape(len(links), TASK.tokens[0].queries, -1)
        states_LQD = states_LQD.to(next(self.network.parameters()).dtype)
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
                logits_BHW = self.network(bucket.values[index], states_LQD[[i for i, _ in rows]])
                found += [
                    (i, logits_HW, bucket.geometry[row]) for (i, row), logits_HW in zip(rows, logits_BHW, strict=True)
                ]
        return found


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
