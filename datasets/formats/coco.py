"""COCO instances: one JSON file a split, boxes as [x, y, width, height] in pixel edges, from 0."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from visionllm.core.arrays import object_array
from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, ShapeError
from visionllm.core.masks import Mask
from visionllm.core.media import load_picture
from visionllm.core.poses import HIDDEN, UNKNOWN, Pose, Skeleton, plain_names
from visionllm.core.sample import Record, Source
from visionllm.core.skeletons import load_skeleton
from visionllm.datasets.formats.reader import (
    Boxes,
    Place,
    Wording,
    below,
    check_names,
    check_relative,
    check_size,
    clean_boxes,
    located,
    read_bytes,
    register_format,
)
from visionllm.datasets.formats.strict import parse_json

MAX_BYTES = 2 * 1024**3


class CocoSplit(Config):
    """A split of a COCO card: the folder of pictures and the annotation file, below the root.

    Args:
        captions: the file of captions of the same pictures.
        skeleton: what the keypoints are, where the file's own names and edges do not say it.
        points: fields the keypoints stand in, one after another.
        least: where some flags are confidences between 0 and 1 (hands of COCO-WholeBody), a point of at least this is
            known, though not said to be visible; without it such a flag is an error.
    """

    images: str
    annotations: str
    captions: str | None = None
    skeleton: str | None = None
    points: list[str] = Field(default=["keypoints"], min_length=1)
    least: float | None = Field(default=None, gt=0, lt=1)


@register_format("coco")
class CocoReader:
    """Pictures in the order of the file; pictures without annotations stay, as negatives.

    ``Record.masks`` are filled where the task learns from masks. ``Record.extra`` holds ``image_id``, ``annotation_id``
    (N,) and ``area`` (N,) as annotated.
    """

    Split: ClassVar[type[Config]] = CocoSplit
    needs_root: ClassVar[bool] = True

    def __init__(
        self, *, dataset: str, root: Path, split: CocoSplit, annotations: Path, captions: Path | None = None,
        names: tuple[str, ...] | None = None, needs: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        data = read_bytes(annotations, limit=MAX_BYTES)
        self.dataset, self._root, self._images = dataset, root, split.images
        self._digest = hashlib.sha256(data).hexdigest()
        table = Table(annotations, parse_json(data, annotations))
        self.names, labels_of = table.categories(names)
        self._pictures = table.pictures()
        objects = table.objects({picture["id"]: i for i, picture in enumerate(self._pictures)}, labels_of)
        self._objects = objects
        sizes_wh = np.array([(p["width"], p["height"]) for p in self._pictures], np.float64).reshape(-1, 2)
        self._boxes = clean_boxes(_edges(objects["bbox"]), sizes_wh[objects["picture"]])
        # Annotations stand in any order: sort once, so that a picture's are one slice.
        self._order = np.argsort(objects["picture"], kind="stable")
        self._starts = np.searchsorted(objects["picture"][self._order], np.arange(len(self._pictures) + 1))
        self._file = annotations
        entries = table.content["annotations"]
        self._outlines = [entry.get("segmentation") for entry in entries] if "masks" in needs else None
        self._captions: dict[Any, list[str]] = {}
        if captions is not None and "captions" in needs:
            data = read_bytes(captions, limit=MAX_BYTES)
            self._digest = hashlib.sha256(self._digest.encode() + data).hexdigest()
            self._captions = Table(captions, parse_json(data, captions)).captions({p["id"] for p in self._pictures})
        self._points, self._least = None, split.least
        self.wording = Wording()
        if "poses" in needs:
            skeletons = table.skeletons(split.skeleton)
            named = {self.names[labels_of[i]]: known for i, known in skeletons.items() if known is not None}
            self.wording = Wording(skeletons=named)
            self._points = [
                (skeletons[entry["category_id"]], [entry.get(key) for key in split.points]) for entry in entries
            ]

    @classmethod
    def open(cls, split: Any, place: Place) -> CocoReader:
        assert place.root is not None
        located(place, "images", split.images, folder=True)
        return cls(
            dataset=place.dataset, root=place.root, split=split, names=place.names, needs=place.needs,
            annotations=located(place, "annotations", split.annotations),
            captions=None if split.captions is None else located(place, "captions", split.captions),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Record:
        entry = self._pictures[index]
        source = Source(dataset=self.dataset, index=index, file=entry["file_name"])
        rows = self._order[self._starts[index] : self._starts[index + 1]]
        self._check_finite(rows, source)
        path = below(self._root, f"{self._images}/{entry['file_name']}", source=str(source))
        picture = load_picture(path)
        check_size(picture, (entry["width"], entry["height"]), source=str(source))
        rows = rows[self._boxes.kept[rows]]
        return Record(
            picture=picture,
            names=self.names,
            boxes_xyxy=self._boxes.boxes_xyxy[rows],
            labels=self._objects["label"][rows],
            crowd=self._objects["crowd"][rows],
            source=source,
            masks=self._masks(rows, picture.size, source),
            poses=self._poses(rows, source),
            captions=tuple(self._captions.get(entry["id"], ())),
            extra={
                "image_id": entry["id"],
                "annotation_id": self._objects["id"][rows],
                "area": self._objects["area"][rows],
            },
        )

    def labels_of(self, index: int) -> np.ndarray:
        """See ``Reader.labels_of``."""
        rows = self._order[self._starts[index] : self._starts[index + 1]]
        return self._objects["label"][rows[self._boxes.kept[rows] & ~self._objects["crowd"][rows]]]

    def digest(self) -> str:
        return self._digest

    def report(self) -> str:
        return self._boxes.report(self.dataset)

    @property
    def boxes(self) -> Boxes:
        """All boxes of the split after cleaning, for reports and checks."""
        return self._boxes

    def _masks(self, rows: np.ndarray, size: tuple[int, int], source: Source) -> np.ndarray | None:
        """(N,) masks out of polygons or run-length codes, None where an object has neither."""
        if self._outlines is None:
            return None
        found: list[Mask | None] = []
        for row in rows.tolist():
            outline, where = self._outlines[row], f"{source}: {self._file}: annotations[{row}]"
            if not outline:
                found.append(None)
            elif isinstance(outline, list):
                found.append(Mask.from_polygons(outline, size, source=where))
            else:
                found.append(Mask.from_rle(outline, size=size, source=f"{where}.segmentation"))
        return object_array(found)

    def _poses(self, rows: np.ndarray, source: Source) -> np.ndarray | None:
        """(N,) poses, None where an object has no known point."""
        if self._points is None:
            return None
        found = []
        for row in rows.tolist():
            skeleton, parts = self._points[row]
            where = f"{source}: {self._file}: annotations[{row}]"
            found.append(pose_of(skeleton, parts, self._least, source=where))
        return object_array(found)

    def _check_finite(self, rows: np.ndarray, source: Source) -> None:
        broken = rows[~self._boxes.finite[rows]]
        if len(broken):
            row = int(broken[0])
            raise AnnotationError(
                f"{source}: {self._file}: annotations[{row}].bbox is not finite "
                f"({self._objects['bbox'][row].tolist()}); correct or remove it"
            )


def pose_of(skeleton: Skeleton | None, parts: list[Any], least: float | None = None, *, source: str) -> Pose | None:
    """A pose out of lists ``[x, y, flag, ...]`` that follow each other; None where no point is known.

    A flag between 0 and 1 is a confidence where ``least`` is given: the point is hidden from there on, unknown below.

    Raises:
        AnnotationError: a list is not such a list, their points are of another number, or a flag is not 0, 1 or 2.
    """
    if all(part is None for part in parts):
        return None
    if skeleton is None:
        raise AnnotationError(
            f"{source}: has keypoints, but its category names none; name a skeleton in the card's split"
        )
    flat: list[float] = []
    for part in parts:
        if not isinstance(part, list) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in part):
            raise AnnotationError(f"{source}: keypoints must be numbers x, y, flag, ...")
        flat += part
    if len(flat) != 3 * len(skeleton):
        raise AnnotationError(
            f"{source}: {len(flat)} numbers of keypoints, {len(skeleton)} points of {skeleton.name} have "
            f"{3 * len(skeleton)}"
        )
    table = np.array(flat, np.float64).reshape(-1, 3)
    if least is not None:
        doubtful = (table[:, 2] > 0) & (table[:, 2] < 1)
        table[doubtful, 2] = np.where(table[doubtful, 2] >= least, HIDDEN, UNKNOWN)
    wrong = np.flatnonzero(~np.isin(table[:, 2], (0, 1, 2)))
    if len(wrong):
        raise AnnotationError(
            f"{source}: {skeleton.keypoints[int(wrong[0])]!r} has the flag {table[wrong[0], 2]:g}; 0 is unknown, "
            "1 hidden, 2 visible"
            + ("; is it a confidence? name `least` in the card's split" if 0 < table[wrong[0], 2] < 1 else "")
        )
    if not table[:, 2].any():
        return None
    return Pose(points_xy=table[:, :2].astype(np.float32), visibility=table[:, 2].astype(np.int8), skeleton=skeleton)


def _is_pair(edge: Any) -> bool:
    return isinstance(edge, list) and len(edge) == 2 and all(type(end) is int for end in edge)


def _edges(boxes_xywh: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf - inf, found as not finite a moment later
        return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


class Table:
    """The checked columns of a parsed file. Every error names the file, the record, the field and the value."""

    def __init__(self, file: Path, content: Any) -> None:
        self.file = file
        if not isinstance(content, dict):
            raise AnnotationError(f"{file}: expected an object with images, annotations, categories; is it COCO?")
        self.content = content

    def categories(self, declared: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[Any, int]]:
        """Names of the data set, and the index of each category id among them."""
        entries = self.entries("categories", "id")
        found = [self._word(entry, f"categories[{i}]", "name") for i, entry in enumerate(entries)]
        check_names(found, source=f"{self.file}: categories")
        names = declared if declared is not None else tuple(found)
        for i, name in enumerate(found):
            if name not in names:
                raise AnnotationError(
                    f"{self.file}: categories[{i}].name: {name!r} is not among the card's names ({', '.join(names)})"
                )
        return names, {entry["id"]: names.index(name) for entry, name in zip(entries, found, strict=True)}

    def pictures(self) -> list[dict[str, Any]]:
        entries = self.entries("images", "id")
        for i, entry in enumerate(entries):
            where = f"images[{i}]"
            check_relative(self._word(entry, where, "file_name"), source=f"{self.file}: {where}.file_name")
            for key in ("width", "height"):
                if type(entry.get(key)) is not int or entry[key] <= 0:
                    raise self._error(where, key, entry.get(key), "a positive whole number of pixels")
        return entries

    def skeletons(self, name: str | None) -> dict[Any, Skeleton | None]:
        """What the keypoints of each category are: by the card, or by the names and edges of the file."""
        if name is not None:
            return dict.fromkeys((entry["id"] for entry in self.content["categories"]), load_skeleton(name))
        found: dict[Any, Skeleton | None] = {}
        for i, entry in enumerate(self.content["categories"]):
            raw, edges = entry.get("keypoints") or [], entry.get("skeleton") or []
            where = f"{self.file}: categories[{i}]"
            if not isinstance(raw, list) or not all(isinstance(word, str) for word in raw):
                raise self._error(f"categories[{i}]", "keypoints", raw, "a list of words")
            if not isinstance(edges, list) or not all(_is_pair(edge) for edge in edges):
                raise self._error(f"categories[{i}]", "skeleton", edges, "pairs of numbers, counted from 1")
            try:
                skeleton = Skeleton(
                    name=str(entry["name"]), keypoints=plain_names(raw), edges=tuple((a - 1, b - 1) for a, b in edges)
                )
                skeleton.flips  # noqa: B018 (a side without a partner is told here)
            except ShapeError as error:
                raise AnnotationError(f"{where}: {error}; name a skeleton in the card's split") from None
            found[entry["id"]] = skeleton if raw else None
        return found

    def things(self) -> dict[Any, bool]:
        """Whether each category is of things, by its id."""
        found: dict[Any, bool] = {}
        for i, entry in enumerate(self.content["categories"]):
            if entry.get("isthing") not in (0, 1):
                raise self._error(f"categories[{i}]", "isthing", entry.get("isthing"), "0 or 1")
            found[entry["id"]] = bool(entry["isthing"])
        return found

    def captions(self, pictures: Container[Any]) -> dict[Any, list[str]]:
        """Captions of each picture by its id, in the order of the file."""
        found: dict[Any, list[str]] = {}
        for i, entry in enumerate(self.entries("annotations", "id")):
            where = f"annotations[{i}]"
            if not known(entry.get("image_id"), pictures):
                raise self._error(where, "image_id", entry.get("image_id"), "the id of an entry of images")
            words = self._word(entry, where, "caption")
            found.setdefault(entry["image_id"], []).append(" ".join(words.split()))
        return found

    def objects(self, picture_of: dict[Any, int], label_of: dict[Any, int]) -> dict[str, np.ndarray]:
        """Columns picture, label, bbox (N, 4) xywh, crowd, area, id of all annotations."""
        entries = self.entries("annotations", "id")
        for i, entry in enumerate(entries):
            where = f"annotations[{i}]"
            if not known(entry.get("image_id"), picture_of):
                raise self._error(where, "image_id", entry.get("image_id"), "the id of an entry of images")
            if not known(entry.get("category_id"), label_of):
                named = ", ".join(str(key) for key in label_of) or "none"
                raise self._error(where, "category_id", entry.get("category_id"), f"the id of a category ({named})")
            box = entry.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or any(type(v) not in (int, float) for v in box):
                raise self._error(where, "bbox", box, "four numbers [x, y, width, height]")
            if entry.get("iscrowd", 0) not in (0, 1):
                raise self._error(where, "iscrowd", entry["iscrowd"], "0 or 1")
            if type(entry.get("area", 0)) not in (int, float):
                raise self._error(where, "area", entry["area"], "a number")
        boxes_xywh = np.array([[_float(v) for v in entry["bbox"]] for entry in entries], np.float64).reshape(-1, 4)
        areas = [entry.get("area", w * h) for entry, (w, h) in zip(entries, boxes_xywh[:, 2:], strict=True)]
        return {
            "picture": np.array([picture_of[entry["image_id"]] for entry in entries], np.int64),
            "label": np.array([label_of[entry["category_id"]] for entry in entries], np.int64),
            "bbox": boxes_xywh,
            "crowd": np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool),
            "area": np.array([_float(area) for area in areas], np.float32),
            "id": np.array([entry["id"] for entry in entries]),
        }

    def entries(self, key: str, unique: str) -> list[dict[str, Any]]:
        """The list under ``key``: objects, each with its own ``unique`` value."""
        entries = self.content.get(key)
        if not isinstance(entries, list):
            raise self._error(key, "", entries, "a list")
        seen: dict[Any, int] = {}
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self._error(f"{key}[{i}]", "", entry, "an object")
            value = entry.get(unique)
            if type(value) not in (int, str):
                raise self._error(f"{key}[{i}]", unique, value, "a whole number or a word")
            if value in seen:
                raise AnnotationError(
                    f"{self.file}: {key}[{seen[value]}] and {key}[{i}] share the {unique} {value!r}; give each its own"
                )
            seen[value] = i
        return entries

    def _word(self, entry: dict[str, Any], where: str, key: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self._error(where, key, value, "a word")
        return value

    def _error(self, where: str, key: str, value: Any, expected: str) -> AnnotationError:
        path = f"{where}.{key}" if key else where
        came = "nothing" if value is None else _shortened(repr(value))
        return AnnotationError(f"{self.file}: {path}: expected {expected}, got {came}")


def known(value: Any, table: Container[Any]) -> bool:
    return type(value) in (int, str) and value in table


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return float("inf")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
