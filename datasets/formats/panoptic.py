"""COCO panoptic: one JSON file a split, and for each picture a png in whose pixels stands who owns them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from visionllm.core.arrays import object_array
from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError
from visionllm.core.masks import Mask
from visionllm.core.media import load_picture
from visionllm.core.panoptic import read_ids
from visionllm.core.sample import Record, Source
from visionllm.datasets.formats.coco import MAX_BYTES, Table, known
from visionllm.datasets.formats.reader import (
    Place,
    Wording,
    below,
    check_relative,
    check_size,
    existing,
    located,
    read_bytes,
    register_format,
)
from visionllm.datasets.formats.strict import parse_json


class PanopticSplit(Config):
    """A split of a card: the folder of pictures, the annotation file and the folder of its pngs, below the root."""

    images: str
    annotations: str
    segments: str


@register_format("coco_panoptic")
class PanopticReader:
    """Pictures in the order of the file. Each segment is an object with its mask, and the box around that; regions
    without number (``isthing`` 0) are among them where the task needs them.

    ``Record.extra`` holds ``image_id`` and ``segment_id`` (N,).
    """

    Split: ClassVar[type[Config]] = PanopticSplit
    needs_root: ClassVar[bool] = True

    def __init__(
        self, *, dataset: str, root: Path, split: PanopticSplit, annotations: Path,
        names: tuple[str, ...] | None = None, needs: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        data = read_bytes(annotations, limit=MAX_BYTES)
        self.dataset, self._root, self._split, self._file = dataset, root, split, annotations
        self._digest = hashlib.sha256(data).hexdigest()
        table = Table(annotations, parse_json(data, annotations))
        every, label_of = table.categories(names)
        stuff = frozenset(every[label_of[i]] for i, thing in table.things().items() if not thing)
        self.names = tuple(name for name in every if "stuff" in needs or name not in stuff)
        self.wording = Wording(stuff=stuff & set(self.names))
        self._label_of = {
            i: self.names.index(every[label]) for i, label in label_of.items() if every[label] in self.names
        }
        self._pictures = table.pictures()
        entries = table.entries("annotations", "image_id")
        self._place_of = {entry["image_id"]: place for place, entry in enumerate(entries)}
        for place, entry in enumerate(entries):
            self._check(entry, f"{annotations}: annotations[{place}]", label_of)
        for place, picture in enumerate(self._pictures):
            if picture["id"] not in self._place_of:
                raise AnnotationError(f"{annotations}: images[{place}]: no annotation has its id {picture['id']!r}")
        self._entries = entries

    @classmethod
    def open(cls, split: Any, place: Place) -> PanopticReader:
        assert place.root is not None
        for key in ("images", "segments"):
            located(place, key, getattr(split, key), folder=True)
        return cls(
            dataset=place.dataset, root=place.root, split=split, names=place.names, needs=place.needs,
            annotations=located(place, "annotations", split.annotations),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Record:
        entry = self._pictures[index]
        place = self._place_of[entry["id"]]
        source = Source(dataset=self.dataset, index=index, file=entry["file_name"])
        picture = load_picture(below(self._root, f"{self._split.images}/{entry['file_name']}", source=str(source)))
        check_size(picture, (entry["width"], entry["height"]), source=str(source))
        segments = self._entries[place]["segments_info"]
        ids = self._ids(place, [segment["id"] for segment in segments], picture.size, source)
        segments = [segment for segment in segments if segment["category_id"] in self._label_of]
        masks = [Mask.of(ids == segment["id"]) for segment in segments]
        return Record(
            picture=picture, names=self.names, source=source, masks=object_array(masks),
            boxes_xyxy=np.array([mask.box_xyxy for mask in masks], np.float32).reshape(-1, 4),
            labels=np.array([self._label_of[segment["category_id"]] for segment in segments], np.int64),
            crowd=np.array([bool(segment.get("iscrowd", 0)) for segment in segments], bool),
            extra={"image_id": entry["id"], "segment_id": np.array([segment["id"] for segment in segments], np.int64)},
        )  # fmt: skip

    def labels_of(self, index: int) -> np.ndarray:
        """See ``Reader.labels_of``."""
        segments = self._entries[self._place_of[self._pictures[index]["id"]]]["segments_info"]
        single = [segment["category_id"] for segment in segments if not segment.get("iscrowd", 0)]
        return np.array([self._label_of[i] for i in single if i in self._label_of], np.int64)

    def digest(self) -> str:
        return self._digest

    def report(self) -> str:
        return ""

    def _ids(self, place: int, segments: list[int], size: tuple[int, int], source: Source) -> np.ndarray:
        """(H, W) owners of the pixels."""
        name = self._entries[place]["file_name"]
        where = f"{source}: {self._file}: annotations[{place}]"
        path = existing(below(self._root, f"{self._split.segments}/{name}", source=where), source=where)
        try:
            with Image.open(path) as png:
                if png.size != size:
                    raise AnnotationError(
                        f"{where}: {name} is {png.size[0]}x{png.size[1]}, the picture {size[0]}x{size[1]}"
                    )
                return read_ids(png, segments, source=f"{where}: {name}")
        except (OSError, SyntaxError, Image.DecompressionBombError):
            raise AnnotationError(f"{where}: {name} is not a picture that can be read") from None

    def _check(self, entry: dict[str, Any], where: str, label_of: dict[Any, int]) -> None:
        """
        Raises:
            AnnotationError: the entry of a picture breaks the format.
        """
        if not isinstance(entry.get("file_name"), str):
            raise AnnotationError(f"{where}.file_name: expected a word, got {entry.get('file_name')!r}")
        check_relative(entry["file_name"], source=f"{where}.file_name")
        segments = entry.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            raise AnnotationError(f"{where}.segments_info: expected a list of objects")
        for number, segment in enumerate(segments):
            at = f"{where}.segments_info[{number}]"
            if type(segment.get("id")) is not int or not 0 < segment["id"] < 256**3:
                raise AnnotationError(
                    f"{at}.id: expected a whole number that three bytes hold, got {segment.get('id')!r}"
                )
            if segment["id"] in [other["id"] for other in segments[:number]]:
                raise AnnotationError(f"{at}.id: {segment['id']} stands twice; give each segment its own")
            if not known(segment.get("category_id"), label_of):
                raise AnnotationError(f"{at}.category_id: {segment.get('category_id')!r} is no category of the file")
            if segment.get("iscrowd", 0) not in (0, 1):
                raise AnnotationError(f"{at}.iscrowd: expected 0 or 1, got {segment['iscrowd']!r}")
