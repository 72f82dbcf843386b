"""MPII Human Pose as it is commonly converted to JSON: a list of people, each on a picture, with centre, scale and 16
joints. Everything is counted from 1, as in the original's Matlab file: one is subtracted from joints AND centre.

A person has no box: it is the square of 200 pixels times the scale around the centre.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visionllm.core.arrays import object_array
from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError
from visionllm.core.media import load_picture
from visionllm.core.poses import UNKNOWN, VISIBLE, Pose
from visionllm.core.sample import Record, Source
from visionllm.core.skeletons import load_skeleton
from visionllm.datasets.formats.reader import (
    Place,
    Wording,
    below,
    check_relative,
    clean_boxes,
    located,
    read_bytes,
    register_format,
)
from visionllm.datasets.formats.strict import parse_json

MAX_BYTES = 512 * 1024**2
_PERSON_PIXELS = 200  # a person of scale 1


class MpiiSplit(Config):
    """A split of an MPII card: the folder of pictures and the annotation file, below the root."""

    images: str
    annotations: str


@register_format("mpii")
class MpiiReader:
    """Pictures in the order in which they first occur; ``joints_vis`` 0 is unknown, 1 visible."""

    Split: ClassVar[type[Config]] = MpiiSplit
    needs_root: ClassVar[bool] = True
    names: tuple[str, ...] = ("person",)
    # Not everybody is annotated.
    wording = Wording(plurals={"person": "people"}, negatives=False, skeletons={"person": load_skeleton("mpii_16")})

    def __init__(self, *, dataset: str, root: Path, images: str, annotations: Path, needs: frozenset[str]) -> None:
        data = read_bytes(annotations, limit=MAX_BYTES)
        self.dataset, self._root, self._images, self._file = dataset, root, images, annotations
        self._digest, self._with_poses = hashlib.sha256(data).hexdigest(), "poses" in needs
        self._skeleton = self.wording.skeletons["person"]
        self._people: dict[str, list[dict[str, Any]]] = {}
        for number, entry in enumerate(_people(parse_json(data, annotations), annotations)):
            self._people.setdefault(str(entry.get("image")), []).append(self._checked(entry, number))
        self._pictures = list(self._people)

    @classmethod
    def open(cls, split: Any, place: Place) -> MpiiReader:
        assert place.root is not None
        located(place, "images", split.images, folder=True)
        annotations = located(place, "annotations", split.annotations)
        return cls(
            dataset=place.dataset, root=place.root, images=split.images, annotations=annotations, needs=place.needs
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Record:
        name = self._pictures[index]
        source = Source(dataset=self.dataset, index=index, file=name)
        picture = load_picture(below(self._root, f"{self._images}/{name}", source=str(source)))
        people = self._people[name]
        centre = np.array([person["center"] for person in people], np.float64) - 1
        half = np.array([person["scale"] for person in people], np.float64)[:, None] * _PERSON_PIXELS / 2
        sizes = np.tile(np.array(picture.size, np.float64), (len(people), 1))
        boxes = clean_boxes(np.concatenate([centre - half, centre + half], 1), sizes)
        kept = np.flatnonzero(boxes.kept)
        return Record(
            picture=picture,
            names=self.names,
            boxes_xyxy=boxes.boxes_xyxy[kept],
            labels=np.zeros(len(kept), np.int64),
            crowd=np.zeros(len(kept), bool),
            source=source,
            poses=object_array([self._pose(people[i]) for i in kept]) if self._with_poses else None,
        )

    def digest(self) -> str:
        return self._digest

    def report(self) -> str:
        return ""

    def _pose(self, person: dict[str, Any]) -> Pose:
        points = np.array(person["joints"], np.float32) - 1
        seen = np.array(person["joints_vis"]) > 0
        return Pose(
            points_xy=np.where(seen[:, None], points, 0).astype(np.float32),
            visibility=np.where(seen, VISIBLE, UNKNOWN).astype(np.int8), skeleton=self._skeleton,
        )  # fmt: skip

    def _checked(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        where, count = f"{self._file}: entry {number}", len(self._skeleton)
        if not isinstance(entry.get("image"), str):
            raise AnnotationError(f"{where}.image: expected a file name, got {entry.get('image')!r}")
        check_relative(entry["image"], source=f"{where}.image")
        for key, shape in (("joints", (count, 2)), ("joints_vis", (count,)), ("center", (2,)), ("scale", ())):
            try:
                value = np.array(entry[key], np.float64)
            except (KeyError, TypeError, ValueError):
                raise AnnotationError(f"{where}.{key}: expected numbers, got {entry.get(key)!r}") from None
            if value.shape != shape or not np.isfinite(value).all():
                raise AnnotationError(f"{where}.{key}: expected finite numbers of shape {shape}, got {value.shape}")
        return entry


def _people(content: Any, file: Path) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise AnnotationError(f"{file}: expected a list of people; is it MPII?")
    return content
