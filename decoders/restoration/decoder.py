"""The restoration decoder: a picture comes back with more pixels.

L = links, B = pictures, H x W = pixels, s = scale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, PictureError
from visionllm.core.images import Images, Recipe, fingerprint_of, places_of
from visionllm.core.pixels import PixelSpec
from visionllm.core.sample import Picture, PictureTarget
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.core.task import Task
from visionllm.decoders.base import Context, Decoder, register_decoder
from visionllm.decoders.restoration.network import Restored, Sdan, charbonnier
from visionllm.decoders.restoration.tasks import SUPER_RESOLUTION


class RestorationConfig(Config):
    """How the restoration decoder is built."""

    scale: Literal[2, 4] = Field(2, description="how many times as large a picture becomes")
    width: PositiveInt = Field(64, description="channels")
    blocks: PositiveInt = Field(16, description="residual blocks")
    packing: PositiveInt = Field(4, description="side of what the offset network packs; its attention has width "
                                                "x packing^2 rows")  # fmt: skip
    condition: PositiveInt = Field(32, description="width of the vector of words")
    margin: int = Field(0, ge=0, description="pixels along the edges of a small picture that are not learned from")
    most_pixels: PositiveInt = Field(2_000_000, description="of a picture that is made larger; more are refused")


class RestorationOptions(Config):
    """Per call: there is nothing to choose."""


@register_decoder("restoration")
class RestorationDecoder(Decoder):
    """SDAN under super links: in training a picture is aligned with its sharp counterpart, in use with itself, so that
    nothing of a truth can enter. Results have ``scale`` times the sides of the original picture."""

    tasks: tuple[Task, ...] = (SUPER_RESOLUTION,)
    Config = RestorationConfig
    Options = RestorationOptions

    def __init__(
        self, *, link_width: int, scale: int, width: int, blocks: int, packing: int, condition: int, margin: int,
        most_pixels: int,
    ) -> None:  # fmt: skip
        super().__init__()
        queries = SUPER_RESOLUTION.tokens[0].queries
        self.words = nn.Sequential(
            nn.LayerNorm(link_width), nn.Flatten(1), nn.Linear(queries * link_width, condition), nn.GELU()
        )
        self.network = Sdan(width=width, blocks=blocks, scale=scale, packing=packing, condition=condition)
        self.queries, self.link_width, self.scale = queries, link_width, scale
        self.margin, self.most_pixels = margin, most_pixels

    @classmethod
    def from_config(cls, config: RestorationConfig, link_width: int) -> RestorationDecoder:
        return cls(link_width=link_width, **{name: getattr(config, name) for name in type(config).model_fields})

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        # The pixels as they came: resized they would no longer be what is to be improved.
        return {}

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        total = {name: torch.zeros((), device=links.states.device) for name in ("sharp", "aligned")}
        for size, rows in self._by_size(links, ctx).items():
            truths = [self._target(links.meta[i], ctx, size) for i in rows]
            wanted = self._stack(truths)
            reference = F.interpolate(wanted, scale_factor=1 / self.scale, mode="area")
            made = self._run(links, rows, ctx, reference)
            valid = made.valid.clone()
            if self.margin:
                edge = torch.zeros_like(valid)
                edge[..., self.margin : -self.margin, self.margin : -self.margin] = 1
                valid = valid * edge
            total["aligned"] = total["aligned"] + charbonnier(made.aligned, reference, valid).sum()
            larger = F.interpolate(valid, scale_factor=self.scale, mode="nearest")
            total["sharp"] = total["sharp"] + charbonnier(made.sharp, wanted, larger).sum()
        return total

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        return dict.fromkeys(("sharp", "aligned"), float(len(links)))

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: RestorationOptions) -> list[Images]:
        made: dict[int, Images] = {}
        places = places_of(links.meta)
        for size, rows in self._by_size(links, ctx).items():
            if size[0] * size[1] > self.most_pixels:
                raise PictureError(f"a picture of {size[0]} x {size[1]} is too large to be made larger; at most "
                                   f"{self.most_pixels} pixels are")  # fmt: skip
            for i in rows:  # one at a time: large pictures fill the memory alone
                sharp = self._run(links, [i], ctx, None).sharp[0].clamp(0, 1)
                pixels = (sharp * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
                picture = Picture(pixels=pixels, name=links.meta[i].phrase)
                made[i] = self._result(links.meta[i], places[i], picture, ctx)
        return [made[i] for i in range(len(links))]

    def idle(self) -> Tensor:
        side = self.network.packing
        nothing = torch.zeros(1, 3, side, side, device=self.network.out.weight.device)
        words = self.words(nothing.new_zeros(1, self.queries, self.link_width))
        made = self.network(nothing, nothing, words)
        return made.sharp.sum() + made.aligned.sum()

    def _run(self, links: SuperLinks, rows: Sequence[int], ctx: Context, reference: Tensor | None) -> Restored:
        small = self._stack([self._source(links.meta[i], ctx) for i in rows])
        states = links.states.to(self.network.out.weight.dtype).reshape(len(links), self.queries, -1)[list(rows)]
        return self.network(small, small if reference is None else reference, self.words(states))

    def _by_size(self, links: SuperLinks, ctx: Context) -> dict[tuple[int, int], list[int]]:
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, meta in enumerate(links.meta):
            found[self._source(meta, ctx).size].append(i)
        return found

    def _stack(self, pictures: Sequence[Picture]) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        return pixels.to(self.network.out.weight.device).permute(0, 3, 1, 2).float() / 255

    def _source(self, meta: LinkMeta, ctx: Context) -> Picture:
        return ctx.batch.samples[meta.sample].pictures[meta.media[0]]

    def _target(self, meta: LinkMeta, ctx: Context, size: tuple[int, int]) -> Picture:
        sample = ctx.batch.samples[meta.sample]
        target = sample.turns[meta.turn].target
        assert isinstance(target, PictureTarget), f"{meta.task} is learned from pictures"
        picture = target.pictures[meta.group]
        wanted = (size[0] * self.scale, size[1] * self.scale)
        if picture.size != wanted:
            raise AnnotationError(
                f"{sample.source}: the sharp picture is {picture.size[0]} x {picture.size[1]}, {self.scale} times "
                f"{size[0]} x {size[1]} is {wanted[0]} x {wanted[1]}; set decoders.restoration.scale, or mend the pair"
            )
        return picture

    def _result(self, meta: LinkMeta, place: int, picture: Picture, ctx: Context) -> Images:
        sample = ctx.batch.samples[meta.sample]
        recipe = Recipe(
            task=meta.task, phrase=meta.phrase, prompt=sample.turns[meta.turn].question, decoder=self.name,
            options={}, place=place, size=picture.size, model=ctx.model, source=self._source(meta, ctx).name,
            asked_about=tuple(fingerprint_of(one) for one in sample.pictures), turn=meta.turn,
        )  # fmt: skip
        return Images(pictures=(picture,), recipes=(recipe,))
