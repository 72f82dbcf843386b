"""Pascal VOC: one XML file a picture, a list of pictures a split.

Coordinates are whole pixels counted from 1, both ends inclusive (the VOC development kit). Here they become edges
counted from 0: (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.core.media import load_picture
from visionllm.core.sample import Record, Source
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

MAX_BYTES = 16 * 1024**2
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class VocSplit(Config):
    """A split of a VOC card: folder of pictures, folder of XML files, ImageSets file, all below the root."""

    images: str
    annotations: str
    list: str


@dataclass(kw_only=True, slots=True, frozen=True)
class _Page:
    """One XML file. Boxes are 1-based and inclusive, as written."""

    size: tuple[int, int]
    names: tuple[str, ...]
    boxes_voc: tuple[tuple[float, ...], ...]
    difficult: tuple[bool, ...]


@register_format("voc")
class VocReader:
    """Pictures in the order of the list. Objects marked difficult count as crowd: neither a miss nor a false alarm.

    Without names in the card, the names are those of all XML files of the folder, sorted, so that the splits agree.
    """

    Split: ClassVar[type[Config]] = VocSplit
    needs_root: ClassVar[bool] = True
    wording = Wording()

    def __init__(
        self,
        *,
        dataset: str,
        root: Path,
        images: str,
        annotations: Path,
        list_file: Path,
        names: tuple[str, ...] | None,
    ) -> None:
        self.dataset, self._root, self._images = dataset, root, images
        self._ids = _read_list(list_file)
        digest = hashlib.sha256()
        pages = []
        for name in self._ids:
            file = annotations / f"{name}.xml"
            if not file.is_file():
                raise AnnotationError(f"{list_file}: {name!r} has no annotation file {file}")
            data = read_bytes(file, limit=MAX_BYTES)
            digest.update(name.encode() + b"\0" + data)
            pages.append(_parse(data, file))
        self.names = names if names is not None else _all_names(annotations, pages, set(self._ids))
        check_names(self.names, source=f"{dataset}: names")
        self._digest = digest.hexdigest()
        self._annotations, self._pages = annotations, pages
        self._labels = [self._label(page, i) for i, page in enumerate(pages)]
        self._boxes = _clean(pages)
        self._starts = np.cumsum([0, *(len(page.names) for page in pages)])
        self._files = _pictures_by_stem(root / images)

    @classmethod
    def open(cls, split: Any, place: Place) -> VocReader:
        assert place.root is not None
        located(place, "images", split.images, folder=True)
        return cls(
            dataset=place.dataset,
            root=place.root,
            images=split.images,
            annotations=located(place, "annotations", split.annotations, folder=True),
            list_file=located(place, "list", split.list),
            names=place.names,
        )

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: int) -> Record:
        page, name = self._pages[index], self._ids[index]
        source = Source(dataset=self.dataset, index=index, file=f"{name}.xml")
        rows = np.arange(self._starts[index], self._starts[index + 1])
        broken = np.flatnonzero(~self._boxes.finite[rows])
        if len(broken):
            box = page.boxes_voc[broken[0]]
            raise AnnotationError(f"{source}: object {broken[0]}: bndbox is not finite ({box}); correct or remove it")
        picture = load_picture(below(self._root, f"{self._images}/{self._picture(name, source)}", source=str(source)))
        check_size(picture, page.size, source=str(source))
        kept = self._boxes.kept[rows]
        return Record(
            picture=picture,
            names=self.names,
            boxes_xyxy=self._boxes.boxes_xyxy[rows[kept]],
            labels=self._labels[index][kept],
            crowd=np.array(page.difficult, bool)[kept],
            source=source,
            extra={"image_id": name},
        )

    def labels_of(self, index: int) -> np.ndarray:
        """See ``Reader.labels_of``."""
        kept = self._boxes.kept[self._starts[index] : self._starts[index + 1]]
        return self._labels[index][kept & ~np.array(self._pages[index].difficult, bool)]

    def digest(self) -> str:
        return self._digest

    def report(self) -> str:
        return self._boxes.report(self.dataset)

    @property
    def boxes(self) -> Boxes:
        """All boxes of the split after cleaning, for reports and checks."""
        return self._boxes

    def _label(self, page: _Page, index: int) -> np.ndarray:
        for i, name in enumerate(page.names):
            if name not in self.names:
                file = self._annotations / f"{self._ids[index]}.xml"
                raise AnnotationError(
                    f"{file}: object {i}: name: {name!r} is not among the card's names ({', '.join(self.names)})"
                )
        return np.array([self.names.index(name) for name in page.names], np.int64)

    def _picture(self, name: str, source: Source) -> str:
        """File name of the picture called ``name``, whatever its suffix."""
        files = self._files.get(name, [])
        if len(files) != 1:
            found = f"found {', '.join(files)}" if files else "found none"
            raise AnnotationError(f"{source}: expected one picture {name}.* in {self._root / self._images}, {found}")
        return files[0]


def _read_list(file: Path) -> list[str]:
    """Names of an ImageSets file; the flag that a per-class list carries behind each name is not a part of it."""
    try:
        lines = read_bytes(file, limit=MAX_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        name = " ".join(words[:-1] if len(words) > 1 and words[-1] in ("-1", "0", "1") else words)
        if not name:
            continue
        check_relative(name, source=f"{file}: line {number}")
        if name in first:
            raise AnnotationError(f"{file}: {name!r} stands on line {first[name]} and on line {number}; remove one")
        first[name] = number
    return list(first)


def _parse(data: bytes, file: Path) -> _Page:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise AnnotationError(f"{file}: declares a document type, which an annotation never needs; remove it")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{file}: not valid XML: {error}; is the file complete?") from None
    size = tuple(_number(root, f"size/{key}", file, "size") for key in ("width", "height"))
    if not all(math.isfinite(v) and v == int(v) and v > 0 for v in size):
        raise AnnotationError(f"{file}: size: expected whole positive width and height, got {size[0]:g} x {size[1]:g}")
    names, boxes_voc, difficult = [], [], []
    for i, entry in enumerate(root.findall("object")):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise AnnotationError(f"{file}: object {i}: name is missing; give it one")
        names.append(name)
        keys = ("xmin", "ymin", "xmax", "ymax")
        boxes_voc.append(tuple(_number(entry, f"bndbox/{key}", file, f"object {i}") for key in keys))
        flag = (entry.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            raise AnnotationError(f"{file}: object {i}: difficult: expected 0 or 1, got {flag!r}")
        difficult.append(flag == "1")
    return _Page(
        size=(int(size[0]), int(size[1])), names=tuple(names), boxes_voc=tuple(boxes_voc), difficult=tuple(difficult)
    )


def _number(parent: ElementTree.Element, path: str, file: Path, where: str) -> float:
    text = parent.findtext(path)
    try:
        return float(text or "")
    except ValueError:
        raise AnnotationError(f"{file}: {where}: {path}: expected a number, got {text!r}") from None


def _clean(pages: list[_Page]) -> Boxes:
    boxes_voc = np.array([box for page in pages for box in page.boxes_voc], np.float64).reshape(-1, 4)
    sizes_wh = np.array([page.size for page in pages for _ in page.names], np.float64).reshape(-1, 2)
    boxes_xyxy = boxes_voc - np.array([1.0, 1.0, 0.0, 0.0])
    # Both ends inclusive make a click without a drag a box of one pixel. It marks nothing: left without area.
    point = (boxes_voc[:, :2] == boxes_voc[:, 2:]).all(1)
    boxes_xyxy[point, 2:] = boxes_xyxy[point, :2]
    return clean_boxes(boxes_xyxy, sizes_wh)


def _all_names(annotations: Path, pages: list[_Page], parsed: set[str]) -> tuple[str, ...]:
    others = [file for file in sorted(annotations.glob("*.xml")) if file.stem not in parsed]
    pages = pages + [_parse(read_bytes(file, limit=MAX_BYTES), file) for file in others]
    return tuple(sorted({name for page in pages for name in page.names}))


def _pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror})") from None
    for path in entries:
        if path.suffix.lower() in SUFFIXES:
            files.setdefault(path.stem, []).append(path.name)
    return files
