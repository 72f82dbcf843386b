"""Any top-down estimator of MMPose as a decoder: a detector finds what a phrase says, and keypoints are read off each
thing by their names.

Heads that score pixels are asked (heat maps, SimCC as in RTMPose): a keypoint's link takes the place of one channel.
K = channels of the head, N = things, J = keypoints that are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from visionllm.core.arrays import object_array
from visionllm.core.config import validate
from visionllm.core.detections import Detections
from visionllm.core.errors import ConfigError
from visionllm.core.instances import Poses
from visionllm.core.pixels import PixelSpec
from visionllm.core.poses import UNKNOWN, VISIBLE, Pose
from visionllm.core.sample import Picture
from visionllm.core.skeletons import skeleton_of
from visionllm.core.superlink import SuperLinks
from visionllm.decoders.base import DECODERS, Context, Decoder, register_decoder
from visionllm.decoders.bridges.base import BoxBridge, BridgeOptions, serving
from visionllm.decoders.bridges.toolbox import ToolboxConfig, first, load_checkpoint, needed, plain, read_settings
from visionllm.decoders.bridges.words import LinkScores, Spoken, class_layers, hear
from visionllm.decoders.objects.layout import owners
from visionllm.decoders.objects.phrases import PhraseHead
from visionllm.decoders.objects.tasks import DETECTION, POSE

KEY = "decoders.mmpose"
# A crop is so many times as large as the box around the thing (MMPose's own).
PADDING = 1.25


class MMPoseConfig(ToolboxConfig):
    """An estimator of MMPose, and the decoder whose boxes it reads."""

    boxes: dict[str, dict[str, Any]] = Field(
        description="the decoder that finds the things, by name with its own keys, such as mmdet or transformers"
    )
    threshold: float = Field(0.3, ge=0, le=1, description="score of a keypoint from which on it is seen")


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class _Crop:
    """A thing cut out: (2, 3) matrix from pixel edges of the picture to those of the crop, and its (3, h, w) pixels."""

    matrix: np.ndarray
    pixels: Tensor


@register_decoder("mmpose")
class MMPoseDecoder(Decoder):
    """A top-down estimator of MMPose under super links, behind a decoder that finds boxes.

    The link of a thing is asked of the detector as that of a phrase; the links of its keypoints take the places of the
    estimator's channels, as many at a time as there are. It trains on true boxes, and its loss is the estimator's own.
    """

    tasks = serving("mmpose", POSE)
    Config = MMPoseConfig
    Options = BridgeOptions

    def __init__(
        self, net: Any, finder: BoxBridge, settings: dict[str, Any], *, link_width: int, width: int, threshold: float
    ) -> None:
        super().__init__()
        self.tasks = tuple(replace(task, loss_weights={"loss": 1.0, "boxes": 1.0}) for task in self.tasks)
        self.finder, self.settings = finder, settings
        self.channels = channels_of(settings)
        self.spoken = Spoken()
        layers = class_layers(partial(_with_channels, settings), self.channels)
        hear(net, layers, self.channels, width, self.spoken)
        if any(isinstance(m, LinkScores) and m.anchors != 1 for m in net.modules()):
            raise ConfigError(f"{KEY}.network.head: it tells places as numbers; take a head of heat maps or of SimCC")
        self.net = net
        self.codec = needed("mmpose.registry", KEY).KEYPOINT_CODECS.build(dict(first(settings["head"], "decoder")))
        self.names = PhraseHead(POSE.tokens[1].queries, link_width, width)
        self.threshold, self.link_width = threshold, link_width
        self.mean, self.std, self.swapped = _normalisation(settings)

    @classmethod
    def from_config(cls, config: MMPoseConfig, link_width: int) -> MMPoseDecoder:
        settings = read_settings(config, KEY)
        if len(config.boxes) != 1:
            raise ConfigError(f"{KEY}.boxes: {len(config.boxes)} decoders; name the one that finds the things")
        ((name, keys),) = config.boxes.items()
        kind = DECODERS[name]
        if not issubclass(kind, BoxBridge):
            raise ConfigError(f"{KEY}.boxes: {name} is no bridge to a detector; take mmdet, transformers or detectron2")
        finder = kind.from_config(validate(kind.Config, keys, source=f"{KEY}.boxes.{name}"), link_width)
        net = build(settings)
        if config.checkpoint is not None:
            load_checkpoint(net, config.checkpoint, KEY)
        return cls(net, finder, settings, link_width=link_width, width=config.width, threshold=config.threshold)

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in values.items() if name not in ("config", "checkpoint", "trust")}
        ((name, keys),) = values["boxes"].items()
        return {**kept, "network": self.settings, "boxes": {name: self.finder.described(keys)}}

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        # Crops are cut from the pictures as they came.
        return {f"{self.finder.name}.{role}": spec for role, spec in self.finder.pixels.items()}

    def train(self, mode: bool = True) -> MMPoseDecoder:
        super().train(mode)
        for layer in self.net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        return self

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        roots, parts = owners(links)
        total = links.states.sum() * 0.0
        found = self.finder.loss(*self._as_boxes(roots, ctx))["loss"]
        for link, own in enumerate(parts):
            true = self._true(roots, link, own.names, ctx)
            if not true:
                continue
            words = self.names(own.states)
            picture = _picture(roots, link, ctx)
            for start in range(0, len(own.names), self.channels):
                chosen = slice(start, start + self.channels)
                crops = [self._crop(picture, box, words.device) for box, _ in true]
                samples = [self._sample(crop, pose, chosen) for crop, (_, pose) in zip(crops, true, strict=True)]
                total = total + self._lost(crops, samples, words[chosen]) * len(true)
        return {"loss": total, "boxes": found}

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        roots, parts = owners(links)
        things = sum(
            len(self._true(roots, link, own.names, ctx)) * -(-len(own.names) // self.channels)
            for link, own in enumerate(parts)
        )
        return {"loss": float(things), "boxes": self.finder.counts(*self._as_boxes(roots, ctx))["loss"]}

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: BridgeOptions) -> list[Poses]:
        roots, parts = owners(links)
        if not len(roots):
            return []
        chosen = validate(
            self.finder.Options, {"threshold": options.threshold, "max_boxes": options.max_boxes}, source=KEY
        )
        results = []
        training = self.training
        self.eval()
        for link, found in enumerate(self.finder.predict(*self._as_boxes(roots, ctx), chosen)):
            results.append(self._posed(found, _picture(roots, link, ctx), roots.meta[link].phrase, parts[link]))
        self.train(training)
        return results

    def operating_point(self, task: str) -> float | None:
        return self.finder.operating_point(DETECTION.name)

    def idle(self) -> Tensor:
        device = self.names.project.weight.device
        words = self.names(torch.zeros(self.names.queries, self.link_width, device=device), observe=False)
        width, height = self.codec.input_size
        crop = _Crop(matrix=np.eye(2, 3), pixels=torch.zeros(3, height, width, device=device))
        point = np.full((1, 2), 0.5 * width, np.float32)
        pose = Pose(points_xy=point, visibility=np.array([VISIBLE], np.int8), skeleton=skeleton_of("one", ("one",)))
        return self.finder.idle() + self._lost([crop], [self._sample(crop, pose, slice(0, 1))], words)

    def _posed(self, found: Detections, picture: Picture, phrase: str, own: Any) -> Poses:
        kept = {one.name: getattr(found, one.name) for one in fields(Detections)}
        skeleton, count, joints = skeleton_of(phrase, own.names), len(found.scores), len(own.names)
        points, sure = np.zeros((count, joints, 2), np.float32), np.zeros((count, joints), np.float32)
        if count and joints:
            words = self.names(own.states, observe=False)
            crops = [self._crop(picture, box, words.device) for box in found.boxes_xyxy]
            for start in range(0, joints, self.channels):
                chosen = slice(start, start + self.channels)
                points[:, chosen], sure[:, chosen] = self._read(crops, words[chosen])
        seen = np.where(sure >= self.threshold, VISIBLE, UNKNOWN).astype(np.int8)
        poses = [Pose(points_xy=p, visibility=s, skeleton=skeleton) for p, s in zip(points, seen, strict=True)]
        likeness = np.clip(sure.mean(1) if joints else np.zeros(count), 0, 1).astype(np.float32)
        return Poses(poses=object_array(poses), likeness=likeness, **kept)

    def _read(self, crops: list[_Crop], words: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(N, J, 2) points in pixels of the picture, and (N, J) scores."""
        with self._asking(words):
            feats = self.net.extract_feat(torch.stack([crop.pixels for crop in crops]))
            own = self.net.head.predict(feats, [], test_cfg={})
        own = own[0] if isinstance(own, tuple) else own
        count = len(words)
        points = np.stack([one.keypoints[0, :count, :2] for one in own]).astype(np.float64) + 0.5
        scores = np.stack([one.keypoint_scores[0, :count] for one in own]).astype(np.float32)
        moved = [
            (p - crop.matrix[:, 2]) @ np.linalg.inv(crop.matrix[:, :2]).T for p, crop in zip(points, crops, strict=True)
        ]
        return np.stack(moved).astype(np.float32), scores

    def _lost(self, crops: list[_Crop], samples: list[Any], words: Tensor) -> Tensor:
        devices = [words.device] if words.is_cuda else []
        with torch.random.fork_rng(devices, enabled=not self.training), self._asking(words):
            if not self.training:
                torch.manual_seed(0)
            feats = self.net.extract_feat(torch.stack([crop.pixels for crop in crops]))
            losses = self.net.head.loss(feats, samples, train_cfg={"compute_acc": False})
            return sum((value for name, value in losses.items() if "loss" in name), words.sum() * 0.0)

    def _asking(self, words: Tensor) -> Any:
        return _Asking(self.spoken, words)

    def _sample(self, crop: _Crop, pose: Pose, chosen: slice) -> Any:
        """Truth of one crop, the asked points in the first channels."""
        structures, engine = needed("mmpose.structures", KEY), needed("mmengine.structures", KEY)
        points, seen = np.zeros((1, self.channels, 2), np.float32), np.zeros((1, self.channels), np.float32)
        own = pose.points_xy[chosen] @ crop.matrix[:, :2].T + crop.matrix[:, 2] - 0.5
        points[0, : len(own)], seen[0, : len(own)] = own, pose.known[chosen]
        coded = self.codec.encode(keypoints=points, keypoints_visible=seen)
        sample = structures.PoseDataSample(metainfo={"input_size": self.codec.input_size})
        device = crop.pixels.device
        sample.gt_instance_labels = engine.InstanceData(**{
            to: torch.from_numpy(np.ascontiguousarray(coded[name])).float().to(device)
            for name, to in self.codec.label_mapping_table.items() if name in coded
        })  # fmt: skip
        sample.gt_fields = engine.PixelData(**{
            to: torch.from_numpy(np.ascontiguousarray(coded[name])).float().to(device)
            for name, to in self.codec.field_mapping_table.items() if name in coded
        })  # fmt: skip
        return sample

    def _crop(self, picture: Picture, box_xyxy: np.ndarray, device: torch.device) -> _Crop:
        width, height = self.codec.input_size
        centre, size = (box_xyxy[:2] + box_xyxy[2:]) / 2, np.maximum(box_xyxy[2:] - box_xyxy[:2], 1.0) * PADDING
        scale = min(width / size[0], height / size[1])
        matrix = np.array([[scale, 0, width / 2 - scale * centre[0]], [0, scale, height / 2 - scale * centre[1]]])
        # OpenCV counts from the middles of pixels.
        middles = matrix.copy()
        middles[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5
        cut = cv2.warpAffine(picture.pixels, middles, (int(width), int(height)), flags=cv2.INTER_LINEAR)
        values = (cut.astype(np.float32) - self.mean) / self.std
        values = values[..., ::-1] if self.swapped else values
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


class _Asking:
    """Keypoints spoken, and autocast off: operators of MMPose know no small float types."""

    def __init__(self, spoken: Spoken, words: Tensor) -> None:
        self._parts = [torch.autocast(words.device.type, enabled=False), spoken.speaking(words.float())]

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in reversed(self._parts):
            part.__exit__(*error)


def build(settings: dict[str, Any]) -> Any:
    """An estimator from its keys, without a download.

    Raises:
        ConfigError: a key is wrong.
    """
    needed("mmpose.utils", KEY).register_all_modules(init_default_scope=False)
    models, config = needed("mmpose.registry", KEY).MODELS, needed("mmengine.config", KEY).Config
    own = deepcopy(settings)
    for part in (own, own.get("backbone") or {}):
        part.pop("init_cfg", None)
    own["_scope_"] = "mmpose"
    try:
        net = models.build(config({"model": own}).model)
        net.init_weights()
        return net
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{KEY}.network: {type(error).__name__}: {said[:300]}") from None


def channels_of(settings: dict[str, Any]) -> int:
    """How many keypoints an estimator has by its keys."""
    count = (settings.get("head") or {}).get("out_channels")
    if not isinstance(count, int) or "decoder" not in settings["head"]:
        raise ConfigError(f"{KEY}.network.head: no out_channels or no decoder in it; is it a top-down estimator?")
    return count


def _with_channels(settings: dict[str, Any], count: int) -> nn.Module:
    return build({**plain(settings), "head": {**plain(settings["head"]), "out_channels": count}})


def _normalisation(settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, bool]:
    """(3,) mean and deviation on RGB in [0, 255], and whether the network reads BGR."""
    own = settings.get("data_preprocessor") or {}
    mean, std = np.float32(own.get("mean") or [0.0] * 3), np.float32(own.get("std") or [1.0] * 3)
    swapped = not own.get("bgr_to_rgb", False)
    return (mean[::-1], std[::-1], True) if swapped else (mean, std, False)


def _picture(links: SuperLinks, link: int, ctx: Context) -> Picture:
    meta = links.meta[link]
    return ctx.batch.samples[meta.sample].pictures[meta.media[0]]
