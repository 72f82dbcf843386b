"""Every pixel has one owner: masks merged into a panoptic segmentation, and COCO's way of writing it.

The merge is that of Kirillov et al. 2019, "Panoptic Segmentation", section 6: things by falling score, a pixel goes to
the first that claims it, what has lost most of its mask to others is dropped; then stuff on what is left.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionllm.core.errors import AnnotationError, ShapeError, VisionLLMError, unknown_name
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask, Size

# Part of a mask that must be left when it is its turn, and pixels below which stuff is noise (share of the picture).
LEFT, SPECK = 0.5, 0.001
# A png holds an id as red + 256 green + 65536 blue.
_DIGITS = np.array([1, 256, 65536])


@dataclass(kw_only=True, slots=True, frozen=True)
class Segment:
    """One thing, or all the stuff of a phrase.

    Args:
        id: value of its pixels in the id map, above 0.
        phrase: what it is.
        thing: whether it is one of several that could be counted.
        score: of its mask; the likelihood of the likeliest pixel for stuff.
        area: number of pixels.
    """

    id: int
    phrase: str
    thing: bool
    score: float
    area: int


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Panoptic:
    """A panoptic segmentation of one picture.

    Args:
        ids: (H, W) int32; 0 where nothing is known.
        segments: one entry for every id in the map.

    Raises:
        ShapeError: the map and the segments hold different ids.
    """

    ids: np.ndarray
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype != np.int32:
            raise ShapeError(f"ids must be (H, W) int32, got {self.ids.shape} {self.ids.dtype}")
        if set(np.unique(self.ids)) - {0} != {segment.id for segment in self.segments}:
            raise ShapeError("the id map and the segments hold different ids")

    def mask(self, segment: Segment) -> Mask:
        """The pixels of a segment."""
        return Mask.of(self.ids == segment.id)

    def to_coco(
        self, category_ids: Mapping[str, int], *, image_id: int | str = 0, file_name: str = ""
    ) -> dict[str, Any]:
        """The entry of a COCO panoptic file that belongs to ``png``.

        Raises:
            UnknownNameError: a phrase has no category.
        """
        entries = []
        for segment in self.segments:
            if segment.phrase not in category_ids:
                raise unknown_name("category", segment.phrase, category_ids)
            mask = self.mask(segment)
            x1, y1, x2, y2 = (int(edge) for edge in mask.box_xyxy)
            entries.append({
                "id": segment.id, "category_id": category_ids[segment.phrase], "iscrowd": 0, "area": segment.area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            })  # fmt: skip
        return {"image_id": image_id, "file_name": file_name, "segments_info": entries}

    def png(self) -> Image.Image:
        """The id map as COCO stores it."""
        colours = self.ids[..., None] // _DIGITS % 256
        return Image.fromarray(colours.astype(np.uint8))

    def save(self, path: str | Path, category_ids: Mapping[str, int], *, image_id: int | str = 0) -> None:
        """Write ``path`` (.png) and its entry beside it (.json).

        Raises:
            UnknownNameError: a phrase has no category.
            VisionLLMError: another suffix, which would lose ids, or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise VisionLLMError(f"{path}: a panoptic segmentation is a .png")
        entry = self.to_coco(category_ids, image_id=image_id, file_name=path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").write_text(json.dumps(entry), encoding="utf-8")
            self.png().save(path, format="PNG")
        except OSError as error:
            raise VisionLLMError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def merge(masks: Masks, stuff: Collection[str] = ()) -> Panoptic:
    """Masks without overlap.

    Args:
        masks: of one picture; those below its operating point should be left out before (``masks.above``).
        stuff: phrases that are no things: their areas become one segment each.
    """
    ids = np.zeros((masks.size[1], masks.size[0]), np.int32)
    segments: list[Segment] = []

    def settle(mask: np.ndarray, phrase: str, thing: bool, score: float, least: float) -> None:
        free = mask & (ids == 0)
        area = int(free.sum())
        if area and area >= least:
            ids[free] = len(segments) + 1
            segments.append(Segment(id=len(segments) + 1, phrase=phrase, thing=thing, score=score, area=area))

    for row in np.argsort(-masks.scores, kind="stable").tolist():
        phrase = masks.phrases[int(masks.labels[row])]
        if phrase not in stuff:
            mask = masks.masks[row]
            settle(mask.dense(), phrase, True, float(masks.scores[row]), LEFT * mask.area)
    regions = [(phrase, max(a.peak for a in masks.of(phrase).areas)) for phrase in dict.fromkeys(masks.phrases)]
    for phrase, likely in sorted(regions, key=lambda region: -region[1]):
        if phrase in stuff:
            settle(masks.area(phrase).dense(), phrase, False, likely, SPECK * ids.size)
    return Panoptic(ids=ids, segments=tuple(segments))


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class PanopticTruth:
    """What an evaluation compares with.

    Args:
        whole: the true segmentation.
        stuff: the phrases that are no things.
    """

    whole: Panoptic
    stuff: frozenset[str] = frozenset()


def owned(masks: Sequence[Mask], phrases: Sequence[str], stuff: Collection[str] = (), *, size: Size) -> Panoptic:
    """A segmentation out of masks that do not overlap; masks of one phrase that is stuff are one segment.

    Args:
        phrases: one a mask.
        size: (width, height) of the picture, for no masks at all.

    Raises:
        ShapeError: two of them claim one pixel.
    """
    ids = np.zeros((size[1], size[0]), np.int32)
    segments: dict[Any, Segment] = {}
    for number, (mask, phrase) in enumerate(zip(masks, phrases, strict=True)):
        if not mask.area:
            continue
        own = mask.dense()
        taken = ids[own].max()
        if taken:
            other = next(segment.phrase for segment in segments.values() if segment.id == taken)
            raise ShapeError(f"{phrase!r} (mask {number}) and {other!r} claim the same pixels")
        owner = phrase if phrase in stuff else number
        before = segments.get(owner)
        number_of = before.id if before is not None else len(segments) + 1
        area = mask.area + (before.area if before is not None else 0)
        ids[own] = number_of
        segments[owner] = Segment(id=number_of, phrase=phrase, thing=phrase not in stuff, score=1.0, area=area)
    return Panoptic(ids=ids, segments=tuple(segments.values()))


def read_ids(picture: Image.Image, segments: Collection[int], *, source: str = "panoptic") -> np.ndarray:
    """(H, W) int32 ids out of a COCO panoptic png.

    Args:
        segments: the ids its entry lists.

    Raises:
        AnnotationError: it is no RGB picture, or holds an id that is not listed, or lacks one that is.
    """
    if picture.mode != "RGB":
        raise AnnotationError(f"{source}: a panoptic png must be RGB, this is {picture.mode}")
    ids = (np.asarray(picture, np.int64) * _DIGITS).sum(-1).astype(np.int32)
    found = set(np.unique(ids).tolist()) - {0}
    for wrong, words in ((found - set(segments), "is not in segments_info"), (set(segments) - found, "has no pixel")):
        if wrong:
            raise AnnotationError(f"{source}: segment {min(wrong)} {words}")
    return ids
