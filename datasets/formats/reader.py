"""What every format reader promises, and the checks all of them share: paths, boxes, names.

An annotation file that breaks its format is refused when it is opened. Dirt inside a sound file is handled by rule and
counted: a box partly outside its picture is clipped, a box without area is dropped, a box that is not finite makes its
picture a bad sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.core.poses import Skeleton
from visionllm.core.registry import Registry
from visionllm.core.sample import Picture, Record, Sample


@dataclass(kw_only=True, slots=True, frozen=True)
class Wording:
    """How the categories of a data set may be called.

    Args:
        synonyms: category name -> other words for it.
        plurals: category name or synonym -> its plural, where the rule for English would err.
        negatives: whether a category without a box is absent for certain, so that it may be asked for in training.
        skeletons: category name -> its keypoints, where the data set has poses and the task needs them.
        stuff: the categories that are no things: regions without number (sky, road).
    """

    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plurals: Mapping[str, str] = field(default_factory=dict)
    negatives: bool = True
    skeletons: Mapping[str, Skeleton] = field(default_factory=dict)
    stuff: frozenset[str] = frozenset()


@dataclass(kw_only=True, slots=True, frozen=True)
class Place:
    """Where a data set lies.

    Args:
        dataset: its name, for messages.
        root: folder of its files, resolved; None for a format that draws or invents its samples.
        card_folder: folder of its card, resolved, where the lists it names lie; None without a card file.
        names: the category names the card declares, or None to take those of the annotations.
        needs: fields of ``Record`` beyond boxes that the task learns from (``masks``, ``poses``, ``expressions``,
            ``captions``, ``questions``); others need not be filled. ``stuff`` asks for regions without number (sky,
            road) among the categories, each region one object.
    """

    dataset: str
    root: Path | None = None
    card_folder: Path | None = None
    names: tuple[str, ...] | None = None
    needs: frozenset[str] = frozenset()


class Reader(Protocol):
    """One split of a data set in one format.

    A reader that knows its objects without opening a picture has ``labels_of(index)`` besides: the (N,) int64 labels of
    the single objects of a sample, for ``Dataset.balanced``.
    """

    Split: ClassVar[type[Config]]
    needs_root: ClassVar[bool]
    names: tuple[str, ...]
    wording: Wording

    @classmethod
    def open(cls, split: Any, place: Place) -> Reader:
        """Read and check the annotations of a split.

        Raises:
            AnnotationError: the annotations break their format.
            DatasetError: a file or folder does not exist.
        """
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record | Sample:
        """The picture at ``index`` and all that is known of it; a ready sample from formats without pictures.

        Raises:
            AnnotationError, PictureError: this one sample is bad.
        """
        ...

    def digest(self) -> str:
        """Hash of the annotations' content: equal digests mean equal samples at equal indices."""
        ...

    def report(self) -> str:
        """What was dropped or clipped on opening, as one line; empty where nothing was."""
        ...


FORMATS: Registry[type[Reader]] = Registry("data set format", group="visionllm.formats")
register_format = FORMATS.register


def below(root: Path, name: str, *, source: str) -> Path:
    """The path of ``name`` under ``root``, which must be resolved; it need not exist.

    Raises:
        AnnotationError: ``name`` is no plain relative path, or leads out of ``root``, also through a link.
    """
    check_relative(name, source=source)
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise AnnotationError(f"{source}: {name!r} leads out of {root} through a link; keep the file below that folder")
    return path


def check_relative(name: str, *, source: str) -> None:
    """Refuse absolute paths, drives, addresses, NUL and ``..`` before any of them reaches the file system."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ":" in parts[0] or not parts[0] or ".." in parts:
        raise AnnotationError(f"{source}: {name!r} must be a relative path that stays below the data set's root")


def existing(path: Path, *, source: str, folder: bool = False) -> Path:
    """``path``, when it is a file (or a folder)."""
    if not (path.is_dir() if folder else path.is_file()):
        raise DatasetError(f"{source}: no {'folder' if folder else 'file'} {path}; check the card and the data root")
    return path


def located(place: Place, key: str, name: str, *, folder: bool = False) -> Path:
    """The file (or folder) that ``key`` of a split names below the data set's root; it exists."""
    assert place.root is not None
    where = f"{place.dataset}: {key}"
    return existing(below(place.root, name, source=where), source=where, folder=folder)


def check_size(picture: Picture, size: tuple[int, int], *, source: str) -> None:
    """Boxes are in the frame of the upright picture, so the annotated (width, height) must be that picture's."""
    if picture.size != size:
        raise AnnotationError(
            f"{source}: annotated as {size[0]}x{size[1]}, but the upright picture is "
            f"{picture.size[0]}x{picture.size[1]}; correct the size or the picture"
        )


def check_names(names: Sequence[str], *, source: str) -> None:
    """Names must be words, and differ from each other."""
    for position, name in enumerate(names):
        if not name.strip():
            raise AnnotationError(f"{source}: category {position} has an empty name; give it one")
        if name in names[:position]:
            raise AnnotationError(
                f"{source}: category {name!r} stands at {names.index(name)} and at {position}; merge the two"
            )


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Boxes:
    """The boxes of a split after cleaning.

    Args:
        boxes_xyxy: (N, 4) float32, pixels, edges, inside their pictures. Rows not kept are meaningless.
        kept: (N,) bool, has an area inside its picture.
        finite: (N,) bool.
        clipped: (N,) bool, kept, but reached out of its picture.
        empty: (N,) bool, finite, but without area as annotated.
    """

    boxes_xyxy: np.ndarray
    kept: np.ndarray
    finite: np.ndarray
    clipped: np.ndarray
    empty: np.ndarray

    def report(self, dataset: str) -> str:
        """One line on what was dropped or clipped."""
        outside = self.finite & ~self.kept & ~self.empty
        counts = {
            f"{self.empty.sum()} dropped (no area)": self.empty.any(),
            f"{outside.sum()} dropped (outside the picture)": outside.any(),
            f"{self.clipped.sum()} clipped": self.clipped.any(),
            f"{(~self.finite).sum()} not finite (their pictures are skipped)": (~self.finite).any(),
        }
        said = [words for words, happened in counts.items() if happened]
        return f"{dataset}: of {len(self.kept)} boxes {', '.join(said)}" if said else ""


def clean_boxes(boxes_xyxy: np.ndarray, sizes_wh: np.ndarray) -> Boxes:
    """Clip boxes to their pictures and say which of them remain.

    Args:
        boxes_xyxy: (N, 4) float64, pixels, edges.
        sizes_wh: (N, 2) width and height of each box's picture.
    """
    finite = np.isfinite(boxes_xyxy).all(1)
    boxes_xyxy = np.where(finite[:, None], boxes_xyxy, 0.0)
    empty = finite & ((boxes_xyxy[:, 2:] <= boxes_xyxy[:, :2]).any(1))
    inside_xyxy = np.clip(boxes_xyxy, 0, np.concatenate([sizes_wh, sizes_wh], axis=1))
    # Decided in float32, the precision everything after this sees.
    inside_xyxy = inside_xyxy.astype(np.float32)
    kept = finite & ~empty & (inside_xyxy[:, 2:] > inside_xyxy[:, :2]).all(1)
    # A thousandth of a pixel outside is the rounding of whoever wrote the file.
    clipped = kept & (np.abs(inside_xyxy - boxes_xyxy).max(1, initial=0.0) > 1e-3)
    return Boxes(boxes_xyxy=inside_xyxy, kept=kept, finite=finite, clipped=clipped, empty=empty)


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The file's bytes; a file over ``limit`` bytes is refused unread.

    Raises:
        AnnotationError: the file is too large, cannot be read, or starts with a byte order mark.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise AnnotationError(f"{path}: {size:,} bytes, over the limit of {limit:,}; split the file")
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from None
    if re.match(rb"\xef\xbb\xbf|\xff\xfe|\xfe\xff", data):
        raise AnnotationError(f"{path}: starts with a byte order mark (byte 0); save it as plain UTF-8")
    return data
