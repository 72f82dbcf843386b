"""Top-down pose estimators of other toolboxes: a detector finds what a phrase says, and keypoints are read off each
thing by their names.

K = channels of the estimator, N = things, J = keypoints that are asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from visionllm.core.arrays import object_array
from visionllm.core.config import Config, validate
from visionllm.core.detections import Detections
from visionllm.core.errors import ConfigError
from visionllm.core.instances import Poses
from visionllm.core.pixels import PixelSpec
from visionllm.core.poses import UNKNOWN, VISIBLE, Pose
from visionllm.core.sample import Picture
from visionllm.core.skeletons import skeleton_of
from visionllm.core.superlink import SuperLinks
from visionllm.decoders.base import DECODERS, Context, Decoder
from visionllm.decoders.bridges.base import BoxBridge, BridgeOptions
from visionllm.decoders.bridges.words import Hearing, LinkScores, class_layers, hear
from visionllm.decoders.objects.layout import owners
from visionllm.decoders.objects.phrases import PhraseHead
from visionllm.decoders.objects.tasks import DETECTION, POSE

# A crop is so many times as large as the box around the thing (as in MMPose and ViTPose).
PADDING = 1.25


class Estimator(Hearing, ABC):
    """A toolbox's estimator of K keypoints on crops of one size.

    Args:
        net: as the toolbox builds it.
        channels: K.
        input_size: (width, height) of a crop.
        settings: all that it was built from, in JSON's types.
    """

    # (3,) on RGB in [0, 255], and whether the network reads BGR.
    mean: np.ndarray
    std: np.ndarray
    swapped = False

    def __init__(self, net: nn.Module, channels: int, input_size: tuple[int, int], settings: dict[str, Any]) -> None:
        super().__init__(net)
        self.channels, self.input_size, self.settings = channels, input_size, settings

    @abstractmethod
    def loss(self, pixels_N3HW: Tensor, points_NK2: np.ndarray, seen_NK: np.ndarray) -> Tensor:
        """The toolbox's own, mean over the crops; points count from the middle of the first pixel of a crop."""

    @abstractmethod
    def read(self, pixels_N3HW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(N, K, 2) points, counted likewise, and (N, K) scores."""


class TopDownConfig(Config):
    """What all of them have in common."""

    boxes: dict[str, dict[str, Any]] = Field(
        description="the decoder that finds the things, by name with its own keys, such as mmdet or transformers"
    )
    width: int = Field(64, gt=0, description="numbers that the name of a keypoint becomes for the network")
    threshold: float = Field(0.3, ge=0, le=1, description="score of a keypoint from which on it is seen")


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class _Crop:
    """A thing cut out: (2, 3) matrix from pixel edges of the picture to those of the crop, and its (3, h, w) pixels."""

    matrix: np.ndarray
    pixels: Tensor


class TopDown(Decoder):
    """An estimator under super links, behind a bridge that finds boxes.

    The link of a thing is asked of the detector as that of a phrase; the links of its keypoints take the places of the
    estimator's channels (``words``), as many at a time as there are. It trains on true boxes, and its loss is the
    estimator's own.
    """

    Options: ClassVar[type[Config]] = BridgeOptions

    def __init__(
        self, estimator: Estimator, build: Callable[[int], nn.Module], finder: BoxBridge, *, link_width: int,
        width: int, threshold: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tasks = tuple(replace(task, loss_weights={"loss": 1.0, "boxes": 1.0}) for task in self.tasks)
        self.finder = finder
        with torch.random.fork_rng([]):
            layers = class_layers(build, estimator.channels)
        hear(estimator.net, layers, estimator.channels, width, estimator.spoken)
        if any(isinstance(m, LinkScores) and m.anchors != 1 for m in estimator.net.modules()):
            raise ConfigError(
                f"decoders.{self.name}: its head tells places as numbers; take one of heat maps or of SimCC"
            )
        self.estimator = estimator
        self.names = PhraseHead(POSE.tokens[1].queries, link_width, width)
        self.threshold, self.link_width = threshold, link_width

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        dropped = ("pretrained", "config", "checkpoint", "trust")
        kept = {name: value for name, value in values.items() if name not in dropped}
        ((name, keys),) = values["boxes"].items()
        return {**kept, "network": self.estimator.settings, "boxes": {name: self.finder.described(keys)}}

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        # Crops are cut from the pictures as they came.
        return {f"{self.finder.name}.{role}": spec for role, spec in self.finder.pixels.items()}

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        roots, parts = owners(links)
        total = links.states.sum() * 0.0
        found = self.finder.loss(*self._as_boxes(roots, ctx))["loss"]
        for link, own in enumerate(parts):
            true = self._true(roots, link, own.names, ctx)
            if not true:
                continue
            words, picture = self.names(own.states), _picture(roots, link, ctx)
            crops = [self._crop(picture, box, words.device) for box, _ in true]
            for start in range(0, len(own.names), self.estimator.channels):
                chosen = slice(start, start + self.estimator.channels)
                poses = [pose for _, pose in true]
                total = total + self._lost(crops, poses, chosen, words[chosen]) * len(true)
        return {"loss": total, "boxes": found}

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        roots, parts = owners(links)
        things = sum(
            len(self._true(roots, link, own.names, ctx)) * -(-len(own.names) // self.estimator.channels)
            for link, own in enumerate(parts)
        )
        return {"loss": float(things), "boxes": self.finder.counts(*self._as_boxes(roots, ctx))["loss"]}

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: BridgeOptions) -> list[Poses]:
        roots, parts = owners(links)
        if not len(roots):
            return []
        training = self.training
        self.eval()
        boxes = self.finder.predict(*self._as_boxes(roots, ctx), options)
        results = [
            self._posed(found, _picture(roots, link, ctx), roots.meta[link].phrase, parts[link])
            for link, found in enumerate(boxes)
        ]
        self.train(training)
        return results

    def operating_point(self, task: str) -> float | None:
        return self.finder.operating_point(DETECTION.name)

    def idle(self) -> Tensor:
        device = self.names.project.weight.device
        words = self.names(torch.zeros(self.names.queries, self.link_width, device=device), observe=False)
        width, height = self.estimator.input_size
        crop = _Crop(matrix=np.eye(2, 3), pixels=torch.zeros(3, height, width, device=device))
        point = np.full((1, 2), 0.5 * width, np.float32)
        pose = Pose(points_xy=point, visibility=np.array([VISIBLE], np.int8), skeleton=skeleton_of("one", ("one",)))
        return self.finder.idle() + self._lost([crop], [pose], slice(0, 1), words)

    def _posed(self, found: Detections, picture: Picture, phrase: str, own: Any) -> Poses:
        kept = {one.name: getattr(found, one.name) for one in fields(Detections)}
        skeleton, count, joints = skeleton_of(phrase, own.names), len(found.scores), len(own.names)
        points, sure = np.zeros((count, joints, 2), np.float32), np.zeros((count, joints), np.float32)
        if count and joints:
            words = self.names(own.states, observe=False)
            crops = [self._crop(picture, box, words.device) for box in found.boxes_xyxy]
            for start in range(0, joints, self.estimator.channels):
                chosen = slice(start, start + self.estimator.channels)
                points[:, chosen], sure[:, chosen] = self._read(crops, words[chosen])
        seen = np.where(sure >= self.threshold, VISIBLE, UNKNOWN).astype(np.int8)
        poses = [Pose(points_xy=p, visibility=s, skeleton=skeleton) for p, s in zip(points, seen, strict=True)]
        likeness = np.clip(sure.mean(1) if joints else np.zeros(count), 0, 1).astype(np.float32)
        return Poses(poses=object_array(poses), likeness=likeness, **kept)

    def _read(self, crops: list[_Crop], words: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(N, J, 2) points in pixels of the picture, and (N, J) scores."""
        with self._asking(words):
            points, scores = self.estimator.read(torch.stack([crop.pixels for crop in crops]))
        own = points[:, : len(words)].astype(np.float64) + 0.5
        moved = [
            (at - crop.matrix[:, 2]) @ np.linalg.inv(crop.matrix[:, :2]).T for at, crop in zip(own, crops, strict=True)
        ]
        return np.stack(moved).astype(np.float32), scores[:, : len(words)].astype(np.float32)

    def _lost(self, crops: list[_Crop], poses: list[Pose], chosen: slice, words: Tensor) -> Tensor:
        """Mean over the crops; the asked points stand in the first channels."""
        shape = (len(crops), self.estimator.channels)
        points, seen = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
        for i, (crop, pose) in enumerate(zip(crops, poses, strict=True)):
            own = pose.points_xy[chosen] @ crop.matrix[:, :2].T + crop.matrix[:, 2] - 0.5
            points[i, : len(own)], seen[i, : len(own)] = own, pose.known[chosen]
        devices = [words.device] if words.is_cuda else []
        with torch.random.fork_rng(devices, enabled=not self.training), self._asking(words):
            if not self.training:
                torch.manual_seed(0)
            return self.estimator.loss(torch.stack([crop.pixels for crop in crops]), points, seen)

    @contextmanager
    def _asking(self, words: Tensor) -> Iterator[None]:
        # Operators of toolboxes know no small float types.
        with torch.autocast(words.device.type, enabled=False), self.estimator.spoken.speaking(words.float()):
            yield

    def _crop(self, picture: Picture, box_xyxy: np.ndarray, device: torch.device) -> _Crop:
        width, height = self.estimator.input_size
        centre, size = (box_xyxy[:2] + box_xyxy[2:]) / 2, np.maximum(box_xyxy[2:] - box_xyxy[:2], 1.0) * PADDING
        scale = min(width / size[0], height / size[1])
        matrix = np.array([[scale, 0, width / 2 - scale * centre[0]], [0, scale, height / 2 - scale * centre[1]]])
        # OpenCV counts from the middles of pixels.
        middles = matrix.copy()
        middles[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5
        cut = cv2.warpAffine(picture.pixels, middles, (width, height), flags=cv2.INTER_LINEAR)
        values = (cut.astype(np.float32) - self.estimator.mean) / self.estimator.std
        values = values[..., ::-1] if self.estimator.swapped else values
        return _Crop(matrix=matrix, pixels=torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))).to(device))

    def _true(
        self, links: SuperLinks, link: int, names: tuple[str, ...], ctx: Context
    ) -> list[tuple[np.ndarray, Pose]]:
        """Boxes and poses that are true of a phrase, the points in the order of their links."""
        meta = links.meta[link]
        target = ctx.batch.samples[meta.sample].turns[meta.turn].target
        if target.poses is None or not names:
            return []
        keep = (target.phrase == meta.group) & ~target.ignored
        pairs = zip(target.boxes_xyxy[keep], target.poses[keep].tolist(), strict=True)
        return [(box, pose.named(names)) for box, pose in pairs if pose is not None]

    def _as_boxes(self, links: SuperLinks, ctx: Context) -> tuple[SuperLinks, Context]:
        """The roots as links of the finder, and its own pictures."""
        token = DETECTION.tokens[0].text
        meta = tuple(replace(one, task=DETECTION.name, token=token) for one in links.meta)
        prefix = f"{self.name}/{self.finder.name}."
        own = {
            f"{self.finder.name}/{role.removeprefix(prefix)}": held
            for role, held in ctx.batch.pixels.items() if role.startswith(prefix)
        }  # fmt: skip
        return replace(links, meta=meta), replace(ctx, batch=replace(ctx.batch, pixels=own))


def finder_of(boxes: dict[str, dict[str, Any]], link_width: int, key: str) -> BoxBridge:
    """The bridge that finds the things.

    Raises:
        ConfigError: there is not one, or it is no bridge to a detector.
    """
    if len(boxes) != 1:
        raise ConfigError(f"{key}.boxes: {len(boxes)} decoders; name the one that finds the things")
    ((name, keys),) = boxes.items()
    kind = DECODERS[name]
    if not issubclass(kind, BoxBridge):
        raise ConfigError(f"{key}.boxes: {name} is no bridge to a detector; take mmdet, transformers or detectron2")
    made = kind.from_config(validate(kind.Config, keys, source=f"{key}.boxes.{name}"), link_width)
    assert isinstance(made, BoxBridge)
    return made


def _picture(links: SuperLinks, link: int, ctx: Context) -> Picture:
    meta = links.meta[link]
    return ctx.batch.samples[meta.sample].pictures[meta.media[0]]
