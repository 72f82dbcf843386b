"""Two decoders that end in a picture: ``generation`` draws what a phrase says, ``editing`` changes a picture so.

L = links, Q = queries of a link, D = width of the language model, B = pictures, O = states the UNet attends to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from visionllm.core.config import Config
from visionllm.core.errors import Cancelled, ConfigError
from visionllm.core.images import Images, Recipe, fingerprint_of, places_of
from visionllm.core.pixels import PixelSpec
from visionllm.core.sample import Picture, PictureTarget, Shows
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.core.task import Task
from visionllm.decoders.base import Context, Decoder, register_decoder
from visionllm.decoders.diffusion.latent import LatentDiffusion
from visionllm.decoders.diffusion.layout import Box, Layout
from visionllm.decoders.diffusion.mapper import LinkMapper
from visionllm.decoders.diffusion.tasks import EDITING, GENERATION
from visionllm.decoders.diffusion.teacher import TextTeacher, names, told


class DiffusionConfig(Config):
    """How a diffusion decoder is built: from the keys of its parts, or from a published pipeline."""

    network: dict[str, Any] | None = Field(None, description="keys of unet, vae and scheduler, as diffusers has them")
    pretrained: str | None = Field(None, description="folder or hub id of a pipeline in Stable Diffusion's layout")
    size: PositiveInt = Field(512, description="longer side of the pictures, pixels")
    outputs: PositiveInt = Field(77, description="states the UNet attends to")
    mapper_layers: PositiveInt = Field(2, description="layers between links and these states")
    mapper_heads: PositiveInt = 8
    places: bool = Field(True, description="whether each of the states begins beside the link query of its own place")
    learn: Literal["drawing", "autoencoder", "pixels"] = Field(
        "drawing", description="what a training is for: the UNet under the links; before it, the latents themselves; "
                               "or, after it, how latents that stand become pixels"
    )  # fmt: skip
    drop: float = Field(0.1, ge=0, lt=1, description="share of the phrases that are left out in training, for guidance")
    noises: PositiveInt = Field(
        1, description="noises of each picture in a step of training: what is read and encoded once serves them all"
    )
    shift: PositiveFloat = Field(
        1.0, description="how far the steps drawn in training lean to the noisy ones, where words tell most; 1 is even"
    )
    min_snr: PositiveFloat | None = Field(None, description="bound of the signal-to-noise weights; None weighs alike")
    lora: PositiveInt | None = Field(
        None, description="rank of adapters on the UNet's attention; all else of it stands"
    )
    align: str | None = Field(
        None, description="pipeline whose text encoder the mapped links learn to be like; used in training alone"
    )

    tell: PositiveInt | None = Field(
        None, description="things of a picture that its first states learn to name, with their colours, where the data "
                          "say what is to be seen; used in training alone"
    )  # fmt: skip

    layout: PositiveInt | None = Field(
        None, description="things whose places are planned before a picture is drawn, for data that say where theirs "
                          "stand; None leaves places to the UNet"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_origin(self) -> DiffusionConfig:
        if (self.network is None) == (self.pretrained is None):
            raise ValueError("give either network or pretrained")
        return self


class GenerationOptions(Config):
    """Per call.

    Args:
        steps: of the sampler.
        guidance: how strongly the words steer; 1 is without guidance.
        sampler: ddim, dpm (DPM-Solver++) or euler.
        seed: of the first picture; each after it takes the next number.
        count: pictures a phrase.
        size: (width, height) in pixels; None for a square as large as it was built for.
        boxes: where the things stand, (x0, y0, x1, y1) in parts of the picture, in the order the words name them; None
            lets the model plan them. For a model with ``layout``.
        progress: called with (steps done, steps) after each step; returning False cancels the call.
    """

    steps: PositiveInt = 20
    guidance: float = Field(5.0, ge=0, le=100)
    sampler: Literal["ddim", "dpm", "euler"] = "ddim"
    seed: int = Field(0, ge=0, le=2**62)
    count: PositiveInt = 1
    size: tuple[PositiveInt, PositiveInt] | None = None
    boxes: tuple[Box, ...] | None = Field(None, min_length=1)
    progress: Callable[[int, int], bool | None] | None = Field(None, exclude=True)

    @field_validator("boxes")
    @classmethod
    def _inside(cls, boxes: tuple[Box, ...] | None) -> tuple[Box, ...] | None:
        for x0, y0, x1, y1 in boxes or ():
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(f"{[x0, y0, x1, y1]} is no (x0, y0, x1, y1) in parts of the picture, from 0 to 1")
        return boxes


class EditingOptions(GenerationOptions):
    """Per call, as those of generation.

    Args:
        source_guidance: how strongly the picture steers (InstructPix2Pix); below 1 is without guidance.
        size: None for the shape of the source, as large as it was built for.
    """

    source_guidance: float = Field(1.5, ge=0, le=100)


class DiffusionDecoder(Decoder):
    """What both have in common. Links go through ``LinkMapper`` to the states that the UNet attends to."""

    Config = DiffusionConfig
    # Latents the UNet reads for each that it draws.
    reads: int
    # Pictures that are drawn together: so many links of one call share a pass.
    together = 16

    def __init__(
        self, model: LatentDiffusion, *, link_width: int, size: int, outputs: int, mapper_layers: int,
        mapper_heads: int, drop: float, min_snr: float | None, lora: int | None = None, align: str | None = None,
        learn: str = "drawing", places: bool = True, tell: int | None = None, noises: int = 1, shift: float = 1.0,
        layout: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        task = self.tasks[0]
        if align is not None:
            self.tasks = (replace(task, loss_weights={**task.loss_weights, "align": 1.0}),)
        if tell is not None:
            if 2 * tell + 1 > outputs:
                raise ConfigError(f"decoders.{task.decoder}.tell: {tell} things take {2 * tell + 1} states; set "
                                  f"outputs to so many, or tell to {(outputs - 1) // 2}")  # fmt: skip
            self.tasks = (replace(task, loss_weights={**self.tasks[0].loss_weights, "told": 0.1}),)
        if layout is not None:
            if 2 * layout > outputs:
                raise ConfigError(f"decoders.{task.decoder}.layout: {layout} things take {2 * layout} states; set "
                                  f"outputs to so many, or layout to {outputs // 2}")  # fmt: skip
            self.tasks = (replace(task, loss_weights={**self.tasks[0].loss_weights, "places": 0.2}),)
        self.tell = tell
        self.unlinked = learn != "drawing"
        if self.unlinked:
            self.tasks = (replace(task, loss_weights={"reconstruction": 1.0}),)
            model.learn_autoencoder(latents=learn == "autoencoder")
        # In a list: what is learned from is no part of the model, and is not saved with it.
        self._teachers = [] if align is None else [TextTeacher(align, outputs, model.width)]
        if lora is not None:
            model.adapt(lora)
        channels, found = self.reads * model.channels, int(model.unet.config.in_channels)  # type: ignore
        if found != channels:
            raise ConfigError(
                f"decoders.{task.decoder}: its unet reads {found} channels, {task.name} has {channels}; "
                "set in_channels, or take a pipeline made for it"
            )
        if size % model.multiple:
            raise ConfigError(f"decoders.{task.decoder}.size: {_off(size, model.multiple)}")
        queries = task.tokens[0].queries
        self.model = model
        self.mapper = LinkMapper(
            queries=queries, link_width=link_width, outputs=outputs, width=model.width, layers=mapper_layers,
            heads=mapper_heads, places=places,
        )  # fmt: skip
        self.layout = None if layout is None else Layout(things=layout, width=model.width, levels=model.levels)
        # What stands in for the link of a phrase that was left out; nothing to learn where none is.
        self.null = nn.Parameter(torch.randn(queries, link_width) * 0.02, requires_grad=drop > 0)
        self.size, self.drop, self.min_snr, self.noises, self.shift = size, drop, min_snr, noises, shift

    @classmethod
    def from_config(cls, config: DiffusionConfig, link_width: int) -> DiffusionDecoder:
        if config.pretrained is not None:
            model = LatentDiffusion.load(config.pretrained)
        else:
            model = LatentDiffusion.build(config.network or {})
        kept = {name: getattr(config, name) for name in type(config).model_fields}
        kept = {name: value for name, value in kept.items() if name not in ("network", "pretrained")}
        return cls(model, link_width=link_width, **kept)

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        training = ("pretrained", "align", "learn", "tell", "noises", "shift")
        kept = {name: value for name, value in values.items() if name not in training}
        return {**kept, "network": self.model.network}

    def attend(self, kind: str) -> None:
        self.model.attend(kind)

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        # What is drawn is no picture of the sample's, and what is changed is read in the shape it is drawn in.
        return {}

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        total = torch.zeros((), device=links.states.device)
        if not len(links):
            return dict.fromkeys(self.tasks[0].loss_weights, total)
        if self.unlinked:
            return {"reconstruction": self._reconstructed(links, ctx)}
        states_LQD = links.states.to(self.null.dtype).reshape(len(links), self.mapper.queries, -1)
        keep_L = torch.ones(len(links), dtype=torch.bool)
        if self.training and self.drop:
            keep_L = torch.rand(len(links)) >= self.drop
        states_LQD = torch.where(keep_L.to(states_LQD.device)[:, None, None], states_LQD, self.null.to(states_LQD))
        states_LOC = self.mapper(states_LQD)
        # Of what was left out nothing is known.
        shows = [own if keep else Shows() for own, keep in zip(self._shows(links, ctx), keep_L.tolist(), strict=True)]
        for rows, size, wanted in self._wanted(links, ctx):
            source = self._source([links.meta[i] for i in rows], ctx, size)
            if source is not None and self.training and self.drop:
                # InstructPix2Pix: the picture is left out as often as the words, and both in some.
                seen = torch.rand(len(rows)) >= self.drop
                source = source * seen.to(source)[:, None, None, None]
            layout = self._layout(states_LOC[rows], [shows[i].boxes for i in rows], size)
            latents, many = self.model.encode(wanted, sample=self.training), self.noises if self.training else 1
            latents, states, source, *layout = (
                None if each is None else torch.cat([each] * many)
                for each in (latents, states_LOC[rows], source, *layout)
            )
            lost = self.model.loss(latents, states, source, min_snr=self.min_snr, shift=self.shift, layout=layout)
            total = total + lost.sum() / many
        losses = {"noise": total}
        for teacher in self._teachers:
            # What was left out is to be like nothing said: guidance goes by the difference of the two.
            said = [meta.phrase if keep else "" for meta, keep in zip(links.meta, keep_L.tolist(), strict=True)]
            wanted_LOC = teacher(said).to(states_LOC)
            losses["align"] = (states_LOC - wanted_LOC).square().flatten(1).mean(1).sum()
        if self.tell is not None:
            losses["told"] = told(shows, states_LOC, self.tell)
        if self.layout is not None:
            known = [i for i, own in enumerate(shows) if own.boxes]
            losses["places"] = self.layout.loss(states_LOC[known], [shows[i].boxes for i in known])
        return losses

    def _layout(
        self, states_BOC: Tensor, boxes: Sequence[Sequence[Box]], size: tuple[int, int]
    ) -> list[Tensor]:  # fmt: skip
        """What the UNet is shown of where things stand in pictures of a size (width, height)."""
        if self.layout is None:
            return []
        return self.layout(states_BOC, boxes, (size[1] // self.model.factor, size[0] // self.model.factor))

    def _wanted(self, links: SuperLinks, ctx: Context) -> Iterator[tuple[list[int], tuple[int, int], Tensor]]:
        """Links whose pictures have one size, that size, and the pictures (B, 3, H, W) in [-1, 1]."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, meta in enumerate(links.meta):
            by_size[self._size(self._target(meta, ctx).size, None)].append(i)
        for size, rows in by_size.items():
            yield rows, size, self._stack([self._target(links.meta[i], ctx) for i in rows], size)

    def _reconstructed(self, links: SuperLinks, ctx: Context) -> Tensor:
        # What the links say has no part in it.
        total = links.states.sum() * 0
        for _, _, wanted in self._wanted(links, ctx):
            total = total + self.model.reconstruction(wanted).sum()
        return total

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        counts = dict.fromkeys(self.tasks[0].loss_weights, float(len(links)))
        if self.tell is not None and not self.unlinked:
            counts["told"] = float(sum(len(names(shows, self.tell)) for shows in self._shows(links, ctx)))
        if self.layout is not None and not self.unlinked:
            counts["places"] = self.layout.count([shows.boxes for shows in self._shows(links, ctx) if shows.boxes])
        return counts

    def _shows(self, links: SuperLinks, ctx: Context) -> list[Shows]:
        """What the picture of each link has to show; nothing where nobody knows."""
        found = []
        for meta in links.meta:
            target = ctx.batch.samples[meta.sample].turns[meta.turn].target
            assert isinstance(target, PictureTarget), f"{meta.task} is learned from pictures"
            found.append(target.shows[meta.group] if target.shows else Shows())
        return found

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: Any) -> list[Images]:
        if not len(links):
            return []
        if options.steps >= self.model.steps:
            raise ConfigError(f"options.{self.name}.steps: {options.steps}, but the network was trained on "
                              f"{self.model.steps}; give fewer")  # fmt: skip
        states_LOC = self.mapper(links.states.to(self.null.dtype).reshape(len(links), self.mapper.queries, -1))
        null_OC = self.mapper(self.null[None])[0]
        # Seeds count within a sample, so that a picture does not hang on what else is in the batch.
        places = places_of(links.meta, options.count)
        jobs: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for i, meta in enumerate(links.meta):
            pictures = ctx.batch.samples[meta.sample].pictures
            own = pictures[meta.media[0]].size if self.reads > 1 else (self.size, self.size)
            jobs[self._size(own, options.size)] += [(i, places[i] + k) for k in range(options.count)]
        made: dict[tuple[int, int], Picture] = {}
        parts = [
            (size, rows[start : start + self.together])
            for size, rows in jobs.items() for start in range(0, len(rows), self.together)
        ]  # fmt: skip
        for part, (size, rows) in enumerate(parts):
            metas = [links.meta[i] for i, _ in rows]
            pixels = self._drawn(states_LOC[[i for i, _ in rows]], null_OC, metas, [place for _, place in rows], size,
                                 ctx, options, (part, len(parts)))  # fmt: skip
            for (i, place), picture in zip(rows, pixels, strict=True):
                made[i, place] = Picture(pixels=picture, name=links.meta[i].phrase)
        return [self._result(meta, i, places[i], made, ctx, options) for i, meta in enumerate(links.meta)]

    def idle(self) -> Tensor:
        device = self.null.device
        if self.unlinked:
            return self.model.idle_autoencoder()
        side = self.model.multiple // self.model.factor
        states = self.mapper(torch.zeros_like(self.null)[None] + self.null)
        nothing = torch.zeros(1, self.reads * self.model.channels, side, side, device=device)
        everywhere = [[(0.0, 0.0, 1.0, 1.0)] * (0 if self.layout is None else self.layout.things)]
        shown = self._layout(states, everywhere, (self.model.multiple, self.model.multiple))
        planned = 0.0 if self.layout is None else self.layout.loss(states, everywhere)
        return self.model.predict(nothing, torch.zeros(1, device=device), states, shown).sum() + planned

    def _drawn(
        self, states_BOC: Tensor, null_OC: Tensor, metas: Sequence[LinkMeta], places: Sequence[int],
        size: tuple[int, int], ctx: Context, options: Any, part: tuple[int, int],
    ) -> np.ndarray:  # fmt: skip
        """(B, H, W, 3) uint8."""
        shape = (self.model.channels, size[1] // self.model.factor, size[0] // self.model.factor)
        # On the CPU: a seed means the same picture on every device.
        seeds = [torch.Generator().manual_seed(options.seed + place) for place in places]
        noise = torch.stack([torch.randn(shape, generator=seed) for seed in seeds]).to(states_BOC)
        boxes = self._boxes(states_BOC, seeds, options.boxes)

        def stepped(done: int, steps: int) -> None:
            if options.progress is not None and options.progress(part[0] * steps + done, part[1] * steps) is False:
                raise Cancelled(f"cancelled after step {part[0] * steps + done}")

        pixels = self.model.draw(
            states_BOC, null_OC.expand_as(states_BOC), noise, sampler=options.sampler, steps=options.steps,
            guidance=options.guidance, source_BLhw=self._source(metas, ctx, size),
            source_guidance=getattr(options, "source_guidance", 1.0), layout=self._layout(states_BOC, boxes, size),
            progress=stepped,
        )  # fmt: skip
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _boxes(
        self, states_BOC: Tensor, seeds: Sequence[torch.Generator], asked: tuple[Box, ...] | None
    ) -> list[Sequence[Box]]:  # fmt: skip
        """Where things are to stand in each picture: as asked, or as planned."""
        most = 0 if self.layout is None else self.layout.things
        if asked is not None and len(asked) > most:
            knows = f"knows places of {most} things" if most else "plans no places (decoders.*.layout)"
            raise ConfigError(f"options.{self.name}.boxes: {len(asked)} boxes, but this model {knows}; give fewer")
        if asked is not None:
            return [asked] * len(states_BOC)
        return [] if self.layout is None else [*self.layout.plan(states_BOC, seeds)]

    def _result(
        self, meta: LinkMeta, link: int, place: int, made: Mapping[tuple[int, int], Picture], ctx: Context, options: Any
    ) -> Images:
        sample = ctx.batch.samples[meta.sample]
        pictures = tuple(made[link, place + k] for k in range(options.count))
        source = sample.pictures[meta.media[0]].name if self.reads > 1 else None
        asked_about = tuple(fingerprint_of(picture) for picture in sample.pictures)
        recipes = tuple(
            Recipe(
                task=meta.task, phrase=meta.phrase, prompt=sample.turns[meta.turn].question, decoder=self.name,
                options=options.model_dump(mode="json"), place=place + k, size=picture.size, model=ctx.model,
                source=source, asked_about=asked_about, turn=meta.turn,
            )
            for k, picture in enumerate(pictures)
        )  # fmt: skip
        return Images(pictures=pictures, recipes=recipes)

    def _size(self, size: tuple[int, int], asked: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) that is drawn: as asked, or the shape of ``size`` with the longer side it was trained on.

        Raises:
            ConfigError: what was asked is no multiple of the network's.
        """
        multiple = self.model.multiple
        if asked is not None:
            for side in asked:
                if side % multiple:
                    raise ConfigError(f"options.{self.name}.size: {_off(side, multiple)}")
            return asked
        scale = self.size / max(size)
        width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
        return width, height

    def _stack(self, pictures: Sequence[Picture], size: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        smaller = [size[0] < picture.size[0] for picture in pictures]
        small = np.stack([
            cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA if less else cv2.INTER_CUBIC)
            for picture, less in zip(pictures, smaller, strict=True)
        ])  # fmt: skip
        return torch.from_numpy(small).to(self.null.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _source(self, metas: Sequence[LinkMeta], ctx: Context, size: tuple[int, int]) -> Tensor | None:
        """Latents of the pictures to be changed; None where there are none to read."""
        if self.reads == 1:
            return None
        pictures = [ctx.batch.samples[meta.sample].pictures[meta.media[0]] for meta in metas]
        return self.model.encode(self._stack(pictures, size), scaled=False)

    def _target(self, meta: LinkMeta, ctx: Context) -> Picture:
        target = ctx.batch.samples[meta.sample].turns[meta.turn].target
        assert isinstance(target, PictureTarget), f"{meta.task} is learned from pictures"
        return target.pictures[meta.group]


@register_decoder("generation")
class GenerationDecoder(DiffusionDecoder):
    """Draws what a phrase says."""

    tasks: tuple[Task, ...] = (GENERATION,)
    Options = GenerationOptions
    reads = 1


@register_decoder("editing")
class EditingDecoder(DiffusionDecoder):
    """Changes a picture as a phrase says: the UNet reads the picture's latents beside the noise (Brooks et al. 2023,
    "InstructPix2Pix")."""

    tasks: tuple[Task, ...] = (EDITING,)
    Options = EditingOptions
    reads = 2


def _off(side: int, multiple: int) -> str:
    below = max(multiple, side // multiple * multiple)
    return f"{side} is not a multiple of {multiple}; use {below} or {below + multiple * (side > below)}"
