"""Boxes of phrases in one picture."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from visionllm.core.answer import RESULT_TYPES, save_as
from visionllm.core.boxes import xyxy_to_xywh
from visionllm.core.errors import PictureError, ShapeError, unknown_name
from visionllm.core.sample import Picture

if TYPE_CHECKING:
    import supervision

# (box, letters on it): hues that are told apart; phrase i takes colour i modulo their number.
COLOURS = (
    ("#E6194B", "#FFFFFF"), ("#1F77FF", "#FFFFFF"), ("#2CA02C", "#FFFFFF"), ("#FF8C00", "#000000"),
    ("#9B30FF", "#FFFFFF"), ("#00B8B8", "#000000"), ("#FFD500", "#000000"), ("#F032E6", "#FFFFFF"),
    ("#8B5A2B", "#FFFFFF"), ("#7FDB00", "#000000"),
)  # fmt: skip


@RESULT_TYPES.register("detections")
@dataclass(kw_only=True, slots=True, frozen=True, eq=False, repr=False)
class Detections:
    """Boxes with scores, each belonging to one of the phrases that were asked. Empty is normal.

    Args:
        boxes_xyxy: (N, 4) float32, pixel edges of the original picture.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into ``phrases``.
        phrases: what was asked; equal phrases of different questions are different entries.
        presence: (P,) float32 in [0, 1], calibrated score that the phrase is in the picture at all.
        size: (width, height) of the picture; (0, 0) where there is none.
        threshold: no box scores below it.
        picture: kept for drawing, or None.
        picture_name: for exports.

    Raises:
        ShapeError: an array has another shape or range.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    phrases: tuple[str, ...]
    presence: np.ndarray
    size: tuple[int, int]
    threshold: float = 0.0
    picture: Picture | None = None
    picture_name: str = ""

    # What holds one entry a box, and one a phrase, so that all of it is taken and joined together.
    _rows_of: ClassVar[tuple[str, ...]] = ("boxes_xyxy", "scores", "labels")
    _phrases_of: ClassVar[tuple[str, ...]] = ("presence",)
    _nouns: ClassVar[tuple[str, str]] = ("box", "boxes")

    def __post_init__(self) -> None:
        count = len(self.scores)
        check_array("boxes_xyxy", self.boxes_xyxy, (count, 4), np.float32)
        check_array("scores", self.scores, (count,), np.float32)
        check_array("labels", self.labels, (count,), np.int64)
        check_array("presence", self.presence, (len(self.phrases),), np.float32)
        check_range("scores", self.scores)
        check_range("presence", self.presence)
        if not np.isfinite(self.boxes_xyxy).all() or (self.boxes_xyxy[:, 2:] < self.boxes_xyxy[:, :2]).any():
            raise ShapeError("boxes_xyxy must be finite with x1 <= x2 and y1 <= y2; are they xywh?")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.phrases):
            raise ShapeError(f"labels must lie in 0..{len(self.phrases) - 1}, got {sorted(set(self.labels.tolist()))}")
        if self.picture is not None and self.picture.size != self.size:
            raise ShapeError(f"picture {self.picture.name!r} is {self.picture.size}, the boxes are of {self.size}")

    @classmethod
    def empty(
        cls,
        phrases: Sequence[str] = (),
        size: tuple[int, int] = (0, 0),
        *,
        threshold: float = 0.0,
        picture: Picture | None = None,
    ) -> Self:
        """Nothing found of ``phrases``."""
        return cls(
            **cls._no_rows(),
            phrases=tuple(phrases),
            presence=np.zeros(len(phrases), np.float32),
            size=picture.size if picture else size,
            threshold=threshold,
            picture=picture,
            picture_name=picture.name if picture else "",
        )

    @classmethod
    def _no_rows(cls) -> dict[str, np.ndarray]:
        return {
            "boxes_xyxy": np.zeros((0, 4), np.float32),
            "scores": np.zeros(0, np.float32),
            "labels": np.zeros(0, np.int64),
        }

    @classmethod
    def merge(cls, results: Sequence[Self], picture: Picture | None = None) -> Self:
        """Put detections of one picture together; phrases are joined in order, the lowest threshold holds for all.

        Args:
            results: may be empty.
            picture: the picture of an empty merge.

        Raises:
            ShapeError: they belong to different pictures.
        """
        if not results:
            return cls.empty(picture=picture)
        first = results[0]
        if any((d.size, d.picture_name) != (first.size, first.picture_name) for d in results):
            names = ", ".join(sorted({f"{d.picture_name or 'unnamed'} {d.size}" for d in results}))
            raise ShapeError(f"detections of different pictures cannot merge ({names}); take one with answer.on(index)")
        offsets = np.cumsum([0, *(len(d.phrases) for d in results)])
        rows = {name: np.concatenate([getattr(d, name) for d in results]) for name in (*cls._rows_of, *cls._phrases_of)}
        rows["labels"] = np.concatenate([d.labels + offset for d, offset in zip(results, offsets[:-1], strict=True)])
        return cls(
            **rows,
            phrases=tuple(phrase for d in results for phrase in d.phrases),
            size=first.size,
            threshold=min(d.threshold for d in results),
            picture=next((d.picture for d in results if d.picture is not None), None),
            picture_name=first.picture_name,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Self:
        """Some of the boxes, by number, slice, bool mask or index array; the phrases stay."""
        if isinstance(index, (int, np.integer)):
            index = np.array([index])
        elif not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.int64)
        return replace(self, **{name: getattr(self, name)[index] for name in self._rows_of})

    @property
    def found(self) -> np.ndarray:
        """(P,) bool: the phrase has a box."""
        return self.counts > 0

    @property
    def counts(self) -> np.ndarray:
        """(P,) int64: boxes of each phrase."""
        return np.bincount(self.labels, minlength=len(self.phrases))

    def of(self, phrase: str) -> Self:
        """Only what belongs to a phrase.

        Raises:
            UnknownNameError: the phrase was not asked.
        """
        chosen = [i for i, text in enumerate(self.phrases) if text == phrase]
        if not chosen:
            raise unknown_name("phrase", phrase, set(self.phrases))
        part = self[np.isin(self.labels, chosen)]
        return replace(
            part,
            labels=np.searchsorted(chosen, part.labels),
            phrases=tuple(self.phrases[i] for i in chosen),
            **{name: getattr(self, name)[chosen] for name in self._phrases_of},
        )

    def above(self, threshold: float) -> Self:
        """Only boxes that score at least ``threshold``."""
        return replace(self[self.scores >= threshold], threshold=max(threshold, self.threshold))

    def statements(self) -> list[str]:
        """One line a phrase, absent phrases too."""
        return [
            f"{phrase}: {f'{count} found' if count else 'none found'} (presence {presence:.2f})"
            for phrase, count, presence in zip(self.phrases, self.counts, self.presence, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; boxes are xyxy in original pixels."""
        return {
            "picture": self.picture_name,
            "width": self.size[0],
            "height": self.size[1],
            "threshold": float(self.threshold),
            "phrases": [
                {"phrase": phrase, "presence": presence, "found": found}
                for phrase, presence, found in zip(
                    self.phrases, self.presence.tolist(), self.counts.tolist(), strict=True
                )
            ],
            "boxes": [
                {"phrase": self.phrases[label], "label": label, "score": score, "box_xyxy": box}
                for label, score, box in self._rows()
            ],
        }

    def to_coco(
        self, *, image_id: int | str = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a COCO result file (boxes are xywh).

        Args:
            image_id: of the picture.
            category_ids: phrase -> category; by default the index of the phrase. A phrase of which nothing was found
                needs none.

        Raises:
            UnknownNameError: a phrase that was found has no category.
        """
        found = np.unique(self.labels).tolist()
        ids = dict(zip(found, found, strict=True))
        if category_ids is not None:
            for label in found:
                if self.phrases[label] not in category_ids:
                    raise unknown_name("category", self.phrases[label], category_ids)
                ids[label] = category_ids[self.phrases[label]]
        boxes_xywh = xyxy_to_xywh(self.boxes_xyxy).tolist()
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for (label, score, _), box in zip(self._rows(), boxes_xywh, strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """The same boxes as ``supervision.Detections``, phrases under ``class_name``."""
        import supervision

        names = np.array([self.phrases[label] for label in self.labels], dtype=object).astype(str)
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": names},
        )

    def to_mmdet(self) -> Any:
        """As ``mmdet.structures.DetDataSample`` (``core.exchange``)."""
        from visionllm.core.exchange import result_to_mmdet

        return result_to_mmdet(self)

    def to_detectron2(self) -> Any:
        """As ``detectron2.structures.Instances`` (``core.exchange``)."""
        from visionllm.core.exchange import result_to_detectron2

        return result_to_detectron2(self)

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """Boxes with phrases and scores, one colour a phrase, line and letters scaled to the picture.

        Raises:
            PictureError: no picture is kept and none is given.
            ShapeError: the picture given has another size.
        """
        return self._annotated(self._scene(picture), boxes=True)

    def _annotated(self, scene: Image.Image, *, boxes: bool) -> Image.Image:
        """Boxes, if wanted, and a label for each."""
        import supervision
        from matplotlib import get_data_path

        found = Detections.to_supervision(self)
        # Lines are drawn through pixels, our right and bottom edges lie behind the last one.
        found.xyxy[:, 2:] = np.maximum(found.xyxy[:, 2:] - 1, found.xyxy[:, :2])
        colours, letters = (supervision.ColorPalette.from_hex(list(column)) for column in zip(*COLOURS, strict=True))
        # supervision brings matplotlib, whose font knows far more letters than Pillow's own.
        font = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        unit = min(scene.size) / 400
        label = supervision.RichLabelAnnotator(
            color=colours,
            text_color=letters,
            font_path=str(font),
            font_size=max(10, round(11 * unit)),
            text_padding=max(2, round(3 * unit)),
            smart_position=True,
        )
        if boxes:
            line = supervision.BoxAnnotator(color=colours, thickness=max(1, round(1.5 * unit)))
            scene = line.annotate(scene, found)
        texts = [f"{self.phrases[label]} {score:.2f}" for label, score, _ in self._rows()]
        return label.annotate(scene, found, labels=texts)

    def save(self, path: str | Path) -> None:
        """Write the drawing, or JSON, by the suffix of ``path``."""
        save_as(path, values=self.to_dict, drawing=self.draw)

    def __repr__(self) -> str:
        counts = zip(self.phrases, self.counts, strict=True)
        phrases = ", ".join(f"{phrase} {count or 'none'}" for phrase, count in counts)
        noun = self._nouns[len(self) != 1]
        return f"{type(self).__name__}({len(self)} {noun}{': ' + phrases if phrases else ''})"

    def _repr_html_(self) -> str:
        drawing = ""
        if self.picture is not None:
            buffer = BytesIO()
            self.draw().save(buffer, "PNG")
            data = b64encode(buffer.getvalue()).decode("ascii")
            drawing = f'<img style="max-width:100%" src="data:image/png;base64,{data}">'
        rows = "".join(
            f"<tr><td>{escape(self.phrases[label])}</td><td>{score:.2f}</td>"
            f"<td>{', '.join(f'{edge:.1f}' for edge in box)}</td></tr>"
            for label, score, box in self._rows()
        )
        absent = "".join(
            f"<tr><td>{escape(phrase)}</td><td>{presence:.2f}</td><td>none found</td></tr>"
            for phrase, presence, found in zip(self.phrases, self.presence, self.found, strict=True)
            if not found
        )
        head = "<tr><th>phrase</th><th>score</th><th>x1, y1, x2, y2 (pixels)</th></tr>"
        return f"{drawing}<table>{head}{rows}{absent}</table>"

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        return zip(self.labels.tolist(), self.scores.tolist(), self.boxes_xyxy.tolist(), strict=True)

    def _scene(self, picture: Picture | Image.Image | None) -> Image.Image:
        picture = picture if picture is not None else self.picture
        if picture is None:
            raise PictureError("these detections keep no picture; give one: draw(picture)")
        if picture.size != self.size:
            raise ShapeError(f"the picture is {picture.size}, the boxes are of {self.size} (width, height)")
        return Image.fromarray(picture.pixels) if isinstance(picture, Picture) else picture.convert("RGB")


def check_array(name: str, array: Any, shape: tuple[int, ...], dtype: type) -> None:
    """
    Raises:
        ShapeError: a field of a result is no array of this shape and type.
    """
    came = f"{getattr(array, 'shape', type(array).__name__)} {getattr(array, 'dtype', '')}"
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        raise ShapeError(f"{name} must have shape {shape} and type {np.dtype(dtype)}, got {came}".rstrip())


def check_range(name: str, values: np.ndarray) -> None:
    """
    Raises:
        ShapeError: a value lies out of [0, 1].
    """
    # Written so that NaN fails too.
    if not ((values >= 0) & (values <= 1)).all():
        raise ShapeError(f"{name} must lie in [0, 1], got {values.min():.3g}..{values.max():.3g}")
