"""One decoder for all networks that find boxes and masks: what a toolbox owes is ``Network``.

L = links, P = phrases asked of a picture together, K = classes of the network, N = things found, M = true things.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from visionllm.core.arrays import object_array
from visionllm.core.config import Config
from visionllm.core.detections import Detections
from visionllm.core.errors import ConfigError, DatasetError
from visionllm.core.geometry import Geometry
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.pixels import PixelSpec
from visionllm.core.superlink import SuperLinks
from visionllm.core.task import Task
from visionllm.decoders.base import Context, Decoder
from visionllm.decoders.bridges.words import Hearing, class_layers, hear
from visionllm.decoders.objects.found import find
from visionllm.decoders.objects.phrases import PhraseHead
from visionllm.decoders.objects.tasks import DETECTION, SEGMENTATION


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Things:
    """What is, or was found, in one prepared picture.

    Args:
        boxes_xyxy: (N, 4) float32, pixels of the prepared picture, edges.
        labels: (N,) int64, the phrase of each.
        scores: (N,) float32; None for what is true.
        masks: (N, H, W) bool, or as float32 how likely a pixel belongs to it; None where there are none.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None


class Network(Hearing, ABC):
    """A toolbox's network with K classes, one picture at a time, so that no picture pads another.

    Args:
        net: as the toolbox builds it.
        classes: K.
        settings: all that it was built from, in JSON's types.
    """

    # It learns masks, and cannot learn from boxes alone.
    masks = False
    # Its operators know no float type of less than 32 bits: autocast is off inside it.
    precise = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    # Both sides of the prepared picture are multiples of it.
    multiple = 32
    # Queries that it chooses among the places of a picture, of which there is one in `multiple` squared at least.
    queries = 0

    def __init__(self, net: nn.Module, classes: int, settings: dict[str, Any]) -> None:
        super().__init__(net)
        self.classes, self.settings = classes, settings

    @property
    def least(self) -> int:
        """Side of a small picture that it can take."""
        return self.multiple * max(2, math.ceil(math.sqrt(self.queries)))

    @abstractmethod
    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        """The toolbox's own losses, weighed and added as it does."""

    @abstractmethod
    def find(self, pixels_3HW: Tensor) -> Things:
        """What the toolbox's own post-processing leaves."""

    def learn(self, width: int, names: list[str]) -> None:
        """Put layers that read phrases in place of those that hold classes (``class_layers``)."""
        hear(self.net, names, self.classes, width, self.spoken)


class BridgeConfig(Config):
    """What all bridges have in common."""

    longest: PositiveInt = Field(640, description="longer side of the pictures, pixels")
    enlarge: float | None = Field(None, gt=0, description="but never so many times as large; null sets no limit")
    width: PositiveInt = Field(64, description="numbers that a phrase becomes for the network's layers of classes")
    threshold: float = Field(0.3, ge=0, le=1, description="score from which on something counts as found")


class BridgeOptions(Config):
    """Per call.

    Args:
        threshold: least score; None for that of the decoder.
        max_boxes: things a phrase, at most.
    """

    threshold: float | None = Field(None, ge=0, le=1)
    max_boxes: PositiveInt = 100


def serving(name: str, *tasks: Task) -> tuple[Task, ...]:
    """Tasks of ours as another decoder serves them: words, tokens, results and metrics are the same."""
    return tuple(replace(task, decoder=name, loss_weights={"loss": 1.0}) for task in tasks)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class _Asked:
    """At most K links of one picture: their indices, the picture as (3, H, W), the part of it that is no padding as
    (width, height), and where in the batch it is from."""

    links: list[int]
    pixels: Tensor
    content: tuple[int, int]
    geometry: Geometry
    owner: tuple[int, int]


class BoxBridge(Decoder):
    """Boxes, and masks where the network has some, of a network of another toolbox under super links.

    A link becomes a phrase embedding, which takes the place of one of the network's classes (``words``). More phrases
    than classes are asked in several passes. Losses are the toolbox's own; their gradient reaches the links through
    the layers that read phrases. In evaluation mode every loss of the same batch is the same: what a network draws at
    random is drawn from one seed.
    """

    Config: ClassVar[type[Config]] = BridgeConfig
    Options = BridgeOptions

    def __init__(
        self, network: Network, *, layers: list[str], link_width: int, longest: int, enlarge: float | None, width: int,
        threshold: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if not network.masks:
            self.tasks = tuple(task for task in self.tasks if task.result == DETECTION.result)
        network.learn(width, layers)
        self.network = network
        self.phrase_head = PhraseHead(DETECTION.tokens[0].queries, link_width, width)
        self.longest, self.enlarge, self.threshold, self.link_width = longest, enlarge, threshold, link_width

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        dropped = {name for name in ("pretrained", "config", "checkpoint", "trust") if name in values}
        return {**{k: v for k, v in values.items() if k not in dropped}, "network": self.network.settings}

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        network = self.network
        return {"source": PixelSpec(longest=self.longest, enlarge=self.enlarge, multiple=network.multiple,
                                    mean=network.mean, std=network.std)}  # fmt: skip

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        total = links.states.sum() * 0.0
        words_LE = self.phrase_head(links.states)
        for asked in self._asked(links, ctx):
            total = total + self._lost(asked.pixels, words_LE[asked.links], self._truth(asked, links, ctx))
        return {"loss": total}

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        asked: dict[tuple[int, int], int] = defaultdict(int)
        for meta in links.meta:
            asked[(meta.sample, meta.media[0])] += 1
        return {"loss": float(sum(-(-count // self.network.classes) for count in asked.values()))}

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: BridgeOptions) -> list[Detections]:
        results: dict[int, Detections] = {}
        words_LE = self.phrase_head(links.states, observe=False)
        threshold = self.threshold if options.threshold is None else options.threshold
        masked = {token.text for token in SEGMENTATION.tokens}
        training = self.network.training
        self.network.eval()
        for asked in self._asked(links, ctx):
            picture = ctx.batch.samples[asked.owner[0]].pictures[asked.owner[1]]
            with self._asking(words_LE[asked.links]):
                things = self.network.find(asked.pixels)
            assert things.scores is not None, "a network finds with scores"
            boxes_xyxy = asked.geometry.undo_boxes(things.boxes_xyxy.float().cpu().numpy().reshape(-1, 4))
            for p, link in enumerate(asked.links):
                meta = links.meta[link]
                own_N = torch.where(things.labels == p, things.scores, torch.full_like(things.scores, -1.0))
                best = float(own_N.clamp(min=0).max()) if len(own_N) else 0.0
                found = find(meta.phrase, picture, boxes_xyxy, own_N, best, threshold, options.max_boxes, None)
                if meta.token in masked:
                    assert things.masks is not None, "a link of masks reached a network without them"
                    masks = [_in_picture(things.masks[row], asked, picture.size) for row in found.rows.tolist()]
                    results[link] = Masks(masks=object_array(masks), **found.fields)
                else:
                    results[link] = Detections(**found.fields)
        self.network.train(training)
        return [results[i] for i in range(len(links))]

    @torch.no_grad()
    def unlinked(self, pixels_3HW: Tensor) -> Things:
        """What the network finds of its own classes, no phrase spoken: (3, H, W) prepared as ``pixels`` says."""
        with self.network.spoken.speaking(None):
            return self.network.find(pixels_3HW)

    def operating_point(self, task: str) -> float:
        return self.threshold

    def idle(self) -> Tensor:
        device = self.phrase_head.project.weight.device
        nothing = torch.zeros(self.phrase_head.queries, self.link_width, device=device)
        side = self.network.least
        truth = Things(
            boxes_xyxy=torch.tensor([[0.2, 0.2, 0.8, 0.8]], device=device) * side,
            labels=torch.zeros(1, dtype=torch.long, device=device),
            masks=torch.ones(1, side, side, dtype=torch.bool, device=device) if self.network.masks else None,
        )
        words = self.phrase_head(nothing, observe=False)
        return self._lost(torch.zeros(3, side, side, device=device), words, truth)

    def _lost(self, pixels_3HW: Tensor, words_PE: Tensor, truth: Things) -> Tensor:
        devices = [pixels_3HW.device] if pixels_3HW.is_cuda else []
        with torch.random.fork_rng(devices, enabled=not self.training), self._asking(words_PE):
            if not self.training:
                torch.manual_seed(0)
            return self.network.loss(pixels_3HW, truth)

    @contextmanager
    def _asking(self, words_PE: Tensor) -> Iterator[None]:
        kind = words_PE.device.type
        spoken = words_PE.float() if self.network.precise else words_PE
        precise = torch.autocast(kind, enabled=False) if self.network.precise else nullcontext()
        with precise, self.network.spoken.speaking(spoken):
            yield

    def _asked(self, links: SuperLinks, ctx: Context) -> Iterator[_Asked]:
        of_picture: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, meta in enumerate(links.meta):
            of_picture[(meta.sample, meta.media[0])].append(i)
        for bucket in ctx.batch.pixels[f"{self.name}/source"]:
            for row, owners in enumerate(bucket.owners):
                height, width = (int(bucket.mask[row].any(1 - side).sum()) for side in (0, 1))
                multiple = self.network.multiple
                sides = [-(-side // multiple) * multiple for side in (height, width)]
                pixels = bucket.values[row, :, : sides[0], : sides[1]]
                for owner in owners:
                    own = of_picture.get(owner, [])
                    for start in range(0, len(own), self.network.classes):
                        yield _Asked(
                            links=own[start : start + self.network.classes], pixels=pixels, content=(width, height),
                            geometry=bucket.geometry[row], owner=owner,
                        )  # fmt: skip

    def _truth(self, asked: _Asked, links: SuperLinks, ctx: Context) -> Things:
        """A thing that is true of several phrases comes once for each. Crowds are left out."""
        boxes, labels, masks = [], [], []
        size = (asked.pixels.shape[2], asked.pixels.shape[1])
        for p, link in enumerate(asked.links):
            meta = links.meta[link]
            sample = ctx.batch.samples[meta.sample]
            target = sample.turns[meta.turn].target
            keep = (target.phrase == meta.group) & ~target.ignored
            moved = asked.geometry.boxes_exact(target.boxes_xyxy[keep])
            boxes.append(moved.reshape(-1, 4))
            labels += [p] * len(moved)
            if self.network.masks and keep.any():
                held = [None] * len(moved) if target.masks is None else target.masks[keep].tolist()
                if any(mask is None for mask in held):
                    raise DatasetError(
                        f"{sample.source}: no masks of {meta.phrase!r}, and the network of decoders.{self.name} cannot "
                        "learn from boxes alone; train it on data with masks, or take a network without them"
                    )
                masks += [_prepared(mask, asked, size) for mask in held if mask is not None]
        device = asked.pixels.device
        return Things(
            boxes_xyxy=torch.from_numpy(np.concatenate(boxes)).float().to(device),
            labels=torch.tensor(labels, dtype=torch.long, device=device),
            masks=None if not self.network.masks else torch.from_numpy(
                np.stack(masks) if masks else np.zeros((0, *size[::-1]), bool)
            ).to(device),
        )  # fmt: skip


def built_layers(build: Any, classes: int) -> list[str]:
    """``class_layers``, the random numbers of everything else left as they were."""
    with torch.random.fork_rng([]):
        return class_layers(build, classes)


def check_classes(classes: int, key: str) -> None:
    """A network of one class has no layer whose outputs tell classes from anything else."""
    if classes < 2:
        raise ConfigError(f"{key}: {classes} classes; a network under links needs 2 or more")


def _prepared(mask: Mask, asked: _Asked, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of the prepared picture."""
    moved = mask.moved(asked.geometry).dense()
    canvas = np.zeros(size[::-1], bool)
    height, width = (min(a, b) for a, b in zip(moved.shape, canvas.shape, strict=True))
    canvas[:height, :width] = moved[:height, :width]
    return canvas


def _in_picture(mask_HW: Tensor, asked: _Asked, size: tuple[int, int]) -> Mask:
    """A mask of the prepared picture, hard or soft, in the picture as it came."""
    values = mask_HW.float().cpu().numpy()
    if values.shape != tuple(asked.pixels.shape[1:]):
        values = cv2.resize(values, tuple(asked.pixels.shape[:0:-1]), interpolation=cv2.INTER_LINEAR)
    width, height = asked.content
    return Mask.of(cv2.resize(values[:height, :width], size, interpolation=cv2.INTER_LINEAR) > 0.5)


def around(mask_HW: Tensor) -> Tensor:
    """(4,) box around the pixels of a mask; empty at the origin where there are none."""
    rows, columns = mask_HW.any(1).nonzero()[:, 0], mask_HW.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(4, device=mask_HW.device)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
