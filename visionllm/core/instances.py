"""Masks and poses of phrases in one picture: what segmentation and pose estimation give back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
from PIL import Image, ImageColor

from visionllm.core.answer import RESULT_TYPES
from visionllm.core.arrays import object_array
from visionllm.core.detections import COLOURS, Detections, check_array, check_range
from visionllm.core.errors import ShapeError
from visionllm.core.masks import Mask, SoftMask
from visionllm.core.poses import VISIBLE, Pose
from visionllm.core.sample import Picture

if TYPE_CHECKING:
    import supervision

    from visionllm.core.panoptic import Panoptic

_TINT = 0.45  # how much of a mask's colour covers the picture

# Likelihood times 255 from which on a pixel more likely belongs to a phrase than not.
EVEN = 128


@RESULT_TYPES.register("masks")
@dataclass(kw_only=True, slots=True, frozen=True, eq=False, repr=False)
class Masks(Detections):
    """Detections, each with the pixels it fills, and the pixels each phrase fills. All that ``Detections`` does, masks
    do.

    Args:
        masks: (N,) objects, one ``Mask`` a box (see ``object_array``).
        areas: (P,) objects, one ``SoftMask`` a phrase: how likely each pixel belongs to it, by all that was found,
            faint things too. Taking some of the boxes leaves it. None: by its masks and their scores.

    Raises:
        ShapeError: there are more or fewer masks than boxes, or areas than phrases, or one is of a picture of another
            size.
    """

    masks: np.ndarray
    areas: np.ndarray = None  # type: ignore[assignment]  # set below

    _rows_of: ClassVar[tuple[str, ...]] = ("boxes_xyxy", "scores", "labels", "masks")
    _phrases_of: ClassVar[tuple[str, ...]] = ("presence", "areas")
    _nouns: ClassVar[tuple[str, str]] = ("mask", "masks")

    def __post_init__(self) -> None:
        Detections.__post_init__(self)
        if self.masks.shape != self.scores.shape or self.masks.dtype != object:
            raise ShapeError(f"masks must be ({len(self.scores)},) of Mask, got {self.masks.shape} {self.masks.dtype}")
        for number, mask in enumerate(self.masks):
            if not isinstance(mask, Mask) or mask.size != self.size:
                raise ShapeError(f"masks[{number}] must be a Mask of a picture of {self.size}")
        if self.areas is None:
            own = [self.labels == label for label in range(len(self.phrases))]
            areas = [SoftMask.any_of(self.masks[rows], self.scores[rows], self.size) for rows in own]
            object.__setattr__(self, "areas", object_array(areas))
        if self.areas.shape != (len(self.phrases),) or self.areas.dtype != object:
            raise ShapeError(
                f"areas must be ({len(self.phrases)},) of SoftMask, got {self.areas.shape} {self.areas.dtype}"
            )
        for number, area in enumerate(self.areas):
            if not isinstance(area, SoftMask) or area.size != self.size:
                raise ShapeError(f"areas[{number}] must be a SoftMask of a picture of {self.size}")

    @classmethod
    def _no_rows(cls) -> dict[str, np.ndarray]:
        return {**Detections._no_rows(), "masks": object_array([])}

    @property
    def dense_NHW(self) -> np.ndarray:
        """(N, H, W) bool over the whole picture."""
        whole = np.zeros((len(self), self.size[1], self.size[0]), bool)
        for canvas_HW, mask in zip(whole, self.masks, strict=True):
            mask.paste(canvas_HW, True)
        return whole

    def area(self, phrase: str) -> Mask:
        """All pixels of a phrase, whatever else they belong to: "segment the road".

        Raises:
            UnknownNameError: the phrase was not asked.
        """
        whole = np.zeros((self.size[1], self.size[0]), bool)
        for area in self.of(phrase).areas:
            area.mask().paste(whole, True)
        return Mask.of(whole)

    def semantic(self) -> np.ndarray:
        """(H, W) int64: of each pixel the place of its phrase, and -1 where it has none: its semantic segmentation.

        Each pixel goes to the phrase it most likely belongs to (Cheng et al. 2021, "MaskFormer", section 3.4), of
        equals to the first asked; phrases of one meaning take pixels from each other, which ``area`` does not. Where
        even that one is less likely than not, there is none: the level of an ``area`` is higher, for nothing else
        keeps it from what belongs to others.
        """
        labels, likely = self.likeliest()
        return np.where(likely >= EVEN, labels, -1)

    def likeliest(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) int64 place of the likeliest phrase, and (H, W) uint8 its likelihood times 255."""
        labels = np.zeros((self.size[1], self.size[0]), np.int64)
        likely = np.zeros(labels.shape, np.uint8)
        for number, area in enumerate(self.areas):
            window = area.window()
            better = area.patch > likely[window]
            labels[window][better] = number
            likely[window][better] = area.patch[better]
        return labels, likely

    def panoptic(self, stuff: Collection[str] = ()) -> Panoptic:
        """Masks without overlap, every pixel to one owner at most.

        Args:
            stuff: phrases that are no things ("road"): all their masks become one segment.
        """
        from visionllm.core.panoptic import merge

        return merge(self, stuff)

    def to_dict(self) -> dict[str, Any]:
        """As of ``Detections``, with COCO's compressed codes: ``mask_rle`` of each box, ``area_rle`` of each phrase."""
        values = Detections.to_dict(self)
        for row, mask in zip(values["boxes"], self.masks, strict=True):
            row["mask_rle"] = mask.rle()
        for row, area in zip(values["phrases"], self.areas, strict=True):
            row["area_rle"] = area.mask().rle()
        return values

    def to_coco(
        self, *, image_id: int | str = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """As of ``Detections``, with ``segmentation``."""
        entries = Detections.to_coco(self, image_id=image_id, category_ids=category_ids)
        return [{**entry, "segmentation": mask.rle()} for entry, mask in zip(entries, self.masks, strict=True)]

    def to_supervision(self) -> supervision.Detections:
        """As of ``Detections``, with dense masks."""
        found = Detections.to_supervision(self)
        found.mask = self.dense_NHW
        return found

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """Each mask as a tint with a smooth line around it, one colour a phrase; then phrases and scores."""
        scene = np.array(self._scene(picture))
        line = max(1, round(min(self.size) / 300))
        # Large ones first, so that what lies in front of them stays visible.
        areas = np.array([mask.area for mask in self.masks.tolist()])
        for index in np.argsort(-areas, kind="stable").tolist():
            _tint(scene, self.masks[index], COLOURS[int(self.labels[index]) % len(COLOURS)][0], line)
        return self._annotated(Image.fromarray(scene), boxes=False)


@RESULT_TYPES.register("poses")
@dataclass(kw_only=True, slots=True, frozen=True, eq=False, repr=False)
class Poses(Detections):
    """Detections, each with its keypoints. All that ``Detections`` does, poses do.

    Args:
        poses: (N,) objects, one ``Pose`` a box (see ``object_array``).
        likeness: (N,) float32 in [0, 1], how like the truth each pose is expected to be, were its box right (object
            keypoint similarity). None: all are sure.

    Raises:
        ShapeError: there are more or fewer poses than boxes, or a likeness is out of its range.
    """

    poses: np.ndarray
    likeness: np.ndarray = None  # type: ignore[assignment]  # set below

    _rows_of: ClassVar[tuple[str, ...]] = ("boxes_xyxy", "scores", "labels", "poses", "likeness")
    _nouns: ClassVar[tuple[str, str]] = ("pose", "poses")

    def __post_init__(self) -> None:
        Detections.__post_init__(self)
        if self.poses.shape != self.scores.shape or self.poses.dtype != object:
            raise ShapeError(f"poses must be ({len(self.scores)},) of Pose, got {self.poses.shape} {self.poses.dtype}")
        for number, pose in enumerate(self.poses):
            if not isinstance(pose, Pose):
                raise ShapeError(f"poses[{number}] must be a Pose, got {type(pose).__name__}")
        if self.likeness is None:
            object.__setattr__(self, "likeness", np.ones(len(self.scores), np.float32))
        check_array("likeness", self.likeness, self.scores.shape, np.float32)
        check_range("likeness", self.likeness)

    def to_mmpose(self) -> Any:
        """As ``mmpose.structures.PoseDataSample`` (``core.exchange``)."""
        from visionllm.core.exchange import result_to_mmpose

        return result_to_mmpose(self)

    @classmethod
    def _no_rows(cls) -> dict[str, np.ndarray]:
        return {**Detections._no_rows(), "poses": object_array([]), "likeness": np.zeros(0, np.float32)}

    @property
    def pose_scores(self) -> np.ndarray:
        """(N,) scores of the poses, where ``scores`` are of the boxes: what poses are ranked by.

        Both must be right, so they are multiplied, as top-down pose estimators do. The likeness is squared, since half
        the likeness is less than half the chance that a pose is right: on 140 training scenes, with the embedded
        model's seventh edition, OKS-AP50 was .441 by the boxes' scores, .503 by the product, .525 so.
        """
        return self.scores * self.likeness**2

    def to_dict(self) -> dict[str, Any]:
        """As of ``Detections``, with ``likeness``, and ``keypoints``: name -> x, y and flag of every known point."""
        values = Detections.to_dict(self)
        for row, pose, likeness in zip(values["boxes"], self.poses, self.likeness.tolist(), strict=True):
            points = zip(pose.skeleton.keypoints, pose.points_xy.tolist(), pose.visibility.tolist(), strict=True)
            row["likeness"] = likeness
            row["keypoints"] = {name: [*point, flag] for name, point, flag in points if flag}
        return values

    def to_coco(
        self, *, image_id: int | str = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """As of ``Detections``, with ``keypoints`` in COCO's flat form; ``score`` is the pose's."""
        entries = Detections.to_coco(self, image_id=image_id, category_ids=category_ids)
        rows = zip(entries, self.pose_scores.tolist(), self.poses, strict=True)
        return [{**entry, "score": score, "keypoints": pose.flat()} for entry, score, pose in rows]

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """Skeletons, one colour a phrase; visible points are filled, hidden ones are rings; then phrases and scores."""
        scene = np.array(self._scene(picture))
        size = max(1, round(min(self.size) / 200))
        for label, pose in zip(self.labels.tolist(), self.poses, strict=True):
            _draw_pose(scene, pose, ImageColor.getrgb(COLOURS[label % len(COLOURS)][0]), size)
        return self._annotated(Image.fromarray(scene), boxes=False)


def _draw_pose(scene_HW3: np.ndarray, pose: Pose, colour: tuple[int, ...], size: int) -> None:
    """Lines between known points, then the points, in place."""
    # OpenCV counts pixels, we count edges: the pixel a point lies in.
    places = [(int(x), int(y)) for x, y in pose.points_xy.tolist()]
    for a, b in pose.skeleton.edges:
        if pose.known[a] and pose.known[b]:
            cv2.line(scene_HW3, places[a], places[b], colour, size, cv2.LINE_AA)
    for place, flag in zip(places, pose.visibility.tolist(), strict=True):
        if flag:
            cv2.circle(scene_HW3, place, 2 * size, colour, cv2.FILLED if flag == VISIBLE else size, cv2.LINE_AA)


def _tint(scene_HW3: np.ndarray, mask: Mask, colour: str, line: int) -> None:
    """Blend a colour into the pixels of a mask and draw its outline, in place."""
    rgb = ImageColor.getrgb(colour)
    (x, y), (height, width) = mask.corner, mask.patch.shape
    if not height:
        return
    window = scene_HW3[y : y + height, x : x + width]
    window[mask.patch] = (window[mask.patch] * (1 - _TINT) + np.array(rgb) * _TINT).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.patch.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    cv2.drawContours(scene_HW3, outlines, -1, rgb, line, cv2.LINE_AA)
