"""Boxes against truth: COCO average precision, and what a user meets at one threshold.

Precision by faster-coco-eval (COCO protocol: 100 boxes a category and picture, crowds ignored). The matching is also
done here, once a picture (``metrics.precision``): from it come the operating point and the intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from visionllm.core.answer import Answer
from visionllm.core.boxes import box_area, box_iou, intersection_area, xywh_to_xyxy, xyxy_to_xywh
from visionllm.core.sample import BoxTarget, Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import drawn, interval, mean_of_known
from visionllm.metrics.precision import HIT, IGNORED, greedy_match, intervals, weighted_ap

_MAX_BOXES = 100  # a category and picture, as the COCO protocol counts
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(kw_only=True, slots=True)
class _Asked:
    """One category asked of one picture.

    Args:
        found: N of what was found, best score first, in COCO's own terms (``bbox``, or ``segmentation``; ``area``).
        scores: (N,) descending.
        presence: score of the category being there.
        truth: M of what is there, in the same terms.
        crowd: (M,) bool.
        match: (T, N) at each of the protocol's levels: hit, false or ignored (in a crowd).
    """

    found: list[dict[str, Any]]
    scores: np.ndarray
    presence: float
    truth: list[dict[str, Any]]
    crowd: np.ndarray
    match: np.ndarray

    @property
    def objects(self) -> int:
        return int((~self.crowd).sum())

    @property
    def absent(self) -> bool:
        """Nothing of it is there, no crowd either: any box is a false alarm."""
        return not self.truth


@METRICS.register("detection")
class DetectionMetric:
    """Scores detections against boxes, over all pictures and categories that were asked. Its subclasses compare what
    they like: they say how.

    Give it detections down to score 0: precision is measured over the whole curve.

    Args:
        names: category names of the data set; others that are asked join behind them.
        threshold: operating point to report besides the usual ones.
        resamples: for the intervals; 0 leaves them out.
    """

    result: ClassVar[str] = "detections"  # where an answer holds what is scored
    iou_type: ClassVar[str] = "bbox"  # of the COCO protocol

    def __init__(self, names: Sequence[str] = (), *, threshold: float | None = None, resamples: int = 300) -> None:
        self._labels = {name: i for i, name in enumerate(names)}
        self._threshold, self._resamples = threshold, resamples
        self._pictures: dict[Hashable, dict[int, _Asked]] = {}
        self._sizes: dict[Hashable, tuple[int, int]] = {}

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """Take an answer; a phrase that the reply did not route counts as nothing found."""
        phrases = turn.phrases
        found = getattr(answer, self.result)
        # Of equal phrases in one reply the first counts; a phrase nobody asked for is the routing measure's business.
        place = {phrase: i for i, phrase in reversed(list(enumerate(found.phrases)))}
        asked = {place[phrase]: i for i, phrase in enumerate(phrases) if phrase in place}
        labels = np.array([asked.get(label, -1) for label in found.labels.tolist()], np.int64)
        presence = np.zeros(len(phrases), np.float32)
        presence[list(asked.values())] = found.presence[list(asked)]
        self._sizes[key] = found.size
        self.update(phrases, self.shapes(found), found.scores, labels, presence, turn.target, key=key)

    def shapes(self, found: Any) -> np.ndarray:
        """(N, ...) what a result or a target gives to compare."""
        return np.asarray(found.boxes_xyxy, np.float64)

    def overlaps(self, found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, M) IoU, and the part of each found thing that lies inside each true one."""
        return box_overlaps(found, truth)

    def plain(self, shapes: np.ndarray) -> list[dict[str, Any]]:
        """Shapes as the COCO protocol has them."""
        return [{"bbox": box, "area": box[2] * box[3]} for box in xyxy_to_xywh(shapes).tolist()]

    def update(
        self,
        phrases: Sequence[str],
        shapes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        presence: np.ndarray,
        target: BoxTarget,
        *,
        key: Hashable,
    ) -> None:
        """Take plain arrays; ``labels`` and ``target.phrase`` are indices into ``phrases``.

        Args:
            phrases: asked of the picture in this question.
            shapes: (N, ...) boxes xyxy, or what else is compared.
            scores: (N,).
            labels: (N,); -1 for shapes of nothing asked.
            presence: (P,).
            target: of the same picture in the same pixels.
            key: of the picture; further questions about it bring further phrases.
        """
        picture = self._pictures.setdefault(key, {})
        truth, scores = self.shapes(target), np.asarray(scores, np.float64)
        for i, phrase in enumerate(phrases):
            label = self._labels.setdefault(phrase, len(self._labels))
            assert label not in picture, f"{phrase!r} is asked twice of picture {key!r}"
            own, true = np.flatnonzero(labels == i), target.phrase == i
            own = own[np.argsort(-scores[own], kind="stable")[:_MAX_BOXES]]
            picture[label] = _Asked(
                found=self.plain(shapes[own]),
                scores=scores[own],
                presence=float(presence[i]),
                truth=self.plain(truth[true]),
                crowd=target.ignored[true],
                match=greedy_match(*self.overlaps(shapes[own], truth[true]), target.ignored[true]),
            )

    def compute(self) -> dict[str, Any]:
        """All figures; None where nothing defines one.

        ``AP``, ``AP50``, ``AP75`` (means over categories that have an object) and their 95 % intervals, ``categories``
        (each one's ``AP``, ``AP50`` with intervals, number of objects), ``presence`` (``accuracy`` at 0.5, ``auroc``),
        ``best`` (the threshold at which an absent phrase gets a box in at most 5 % of the pictures, and what it gives),
        ``operating`` (other thresholds), ``default`` (the decoder's own), ``counting`` (the threshold at which counts
        are right most often).
        """
        return {
            **self._with_intervals(self.average_precision()),
            "presence": self.presence(),
            "best": self.at(self.best_threshold()),
            "operating": [self.at(threshold) for threshold in _THRESHOLDS],
            "default": None if self._threshold is None else self.at(self._threshold),
            "counting": self.counting(),
            "pictures": len(self._pictures),
        }

    def average_precision(self) -> dict[str, Any]:
        """COCO's figures, by faster-coco-eval."""
        boxes = sum(len(asked.scores) for _, _, asked in self._all())
        objects = sum(asked.objects for _, _, asked in self._all())
        table = np.zeros((10, len(self._labels))) if not boxes else self._coco_precision()
        counts = np.zeros(len(self._labels), int)
        for _, label, asked in self._all():
            counts[label] += asked.objects
        known = counts > 0
        each = {
            name: {
                "AP": _number(table[:, label].mean() if known[label] else np.nan),
                "AP50": _number(table[0, label] if known[label] else np.nan),
                "objects": int(counts[label]),
            }
            for name, label in self._labels.items()
        }
        means = table[:, known].mean(1) if objects else np.full(10, np.nan)
        return {
            "AP": _number(means.mean()),
            "AP50": _number(means[0]),
            "AP75": _number(means[5]),
            "categories": each,
        }

    def own_precision(self) -> dict[str, float | None]:
        """``AP``, ``AP50`` and ``AP75`` from the matches made here: the same numbers as COCO's."""
        values = self._resampled(np.ones((1, len(self._pictures))))[:, 0]
        return {"AP": _number(values.mean()), "AP50": _number(values[0]), "AP75": _number(values[5])}

    def _with_intervals(self, report: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        """The report with 95 % intervals, those of categories too; None where they are left out or nothing is known."""
        weights = drawn(len(self._pictures), resamples=self._resamples, seed=seed)
        tables = self._tables(weights)
        nothing = np.full((10, 0), np.nan)
        each = {
            name: {**entry, **intervals(tables.get(label, nothing))}
            for (name, entry), label in zip(report["categories"].items(), self._labels.values(), strict=True)
        }
        return {**report, **intervals(self._mean(tables, weights)), "categories": each}

    def at(self, threshold: float) -> dict[str, Any]:
        """What a user meets at one threshold.

        ``recall``: objects hit by a box of IoU 0.5 or more; ``phrase_recall``: phrases with an object that have a hit;
        ``precision``: boxes that hit, those in crowds aside; ``false_alarm_phrases``: of all pairs of a picture and an
        asked phrase absent from it, those with a box; ``false_alarm_pictures``: pictures with a box for any of the
        phrases absent from them, which grows with the number of phrases asked; each of the two with its 95 % interval.
        """
        entries = [(asked, asked.match[0, asked.scores >= threshold]) for _, _, asked in self._all()]
        hits = sum(int((match == HIT).sum()) for _, match in entries)
        counted = sum(int((match != IGNORED).sum()) for _, match in entries)
        present = [bool((match == HIT).any()) for asked, match in entries if asked.objects]
        alarms = self._alarms()
        worst = np.array([scores.max() for scores in alarms if len(scores)])
        every = np.concatenate([np.zeros(0), *alarms])
        return {
            "threshold": float(threshold),
            "recall": _share(hits, sum(asked.objects for asked, _ in entries)),
            "phrase_recall": _share(sum(present), len(present)),
            "precision": _share(hits, counted),
            "false_alarm_phrases": _share(int((every >= threshold).sum()), len(every)),
            "false_alarm_phrases_interval": interval(
                [(scores >= threshold).tolist() for scores in alarms], resamples=self._resamples
            ),
            "false_alarm_pictures": _share(int((worst >= threshold).sum()), len(worst)),
            "false_alarm_pictures_interval": interval(
                [[score >= threshold] for score in worst.tolist()], resamples=self._resamples
            ),
        }

    def best_threshold(self, false_alarms: float = 0.05) -> float:
        """The lowest threshold at which a phrase gets a box in at most this share of the pictures that lack it."""
        alarms = np.sort(np.concatenate([np.zeros(0), *self._alarms()]))[::-1]
        allowed = int(np.floor(false_alarms * len(alarms) + 1e-9))
        # Alarms beyond the allowed number must fall below; scores are compared with >=.
        if allowed >= len(alarms) or alarms[allowed] < 0:
            return 0.0
        # The next float32, because decoders compare in float32.
        return float(np.nextafter(np.float32(alarms[allowed]), np.float32(np.inf)))

    def counting(self) -> dict[str, float | None]:
        """The threshold at which the number of boxes is right most often, and how often: the mean of the shares among
        phrases with and phrases without objects. Hundredths are tried; of equally good ones the middle one is taken.
        """
        entries = [asked for _, _, asked in self._all() if asked.objects or asked.absent]
        steps = np.arange(1, 100) / 100
        kinds = [[asked for asked in entries if bool(asked.objects) == there] for there in (True, False)]
        shares = [
            np.mean([np.searchsorted(-a.scores, -steps, side="right") == a.objects for a in own], axis=0)
            for own in kinds if own
        ]  # fmt: skip
        if not shares:
            return {"threshold": None, "exact": None}
        exact = np.mean(shares, axis=0)
        best = np.flatnonzero(exact == exact.max())
        return {"threshold": float(steps[best[len(best) // 2]]), "exact": float(exact.max())}

    def presence(self) -> dict[str, float | None]:
        """``accuracy`` at 0.5 and area under the ROC curve of the presence score; all-crowd phrases are left out."""
        entries = [asked for _, _, asked in self._all() if asked.objects or asked.absent]
        scores = np.array([asked.presence for asked in entries])
        truth = np.array([asked.objects > 0 for asked in entries], bool)
        return {
            "accuracy": _share(int(((scores >= 0.5) == truth).sum()), len(entries)),
            "auroc": auroc(scores, truth),
        }

    def _all(self) -> list[tuple[int, int, _Asked]]:
        return [(p, label, a) for p, asked in enumerate(self._pictures.values()) for label, a in asked.items()]

    def _alarms(self) -> list[np.ndarray]:
        """Best score of each absent phrase, picture by picture; -1 where no box came."""
        return [
            np.array([a.scores[0] if len(a.scores) else -1.0 for a in asked.values() if a.absent])
            for asked in self._pictures.values()
        ]

    def _resampled(self, weights: np.ndarray) -> np.ndarray:
        """(T, R) mean precision at each level, for rows of (R, pictures) weights; NaN where a row holds no object."""
        return self._mean(self._tables(weights), weights)

    def _tables(self, weights: np.ndarray) -> dict[int, np.ndarray]:
        """Label -> (T, R) precision of that category."""
        per_label: dict[int, list[tuple[int, _Asked]]] = {}
        for picture, label, asked in self._all():
            per_label.setdefault(label, []).append((picture, asked))
        return {label: weighted_ap(entries, weights) for label, entries in per_label.items()}

    def _mean(self, tables: Mapping[int, np.ndarray], weights: np.ndarray) -> np.ndarray:
        nothing = np.full((1, 10, len(weights)), np.nan)
        return mean_of_known(np.stack(list(tables.values())) if tables else nothing, 0)

    def _coco_precision(self) -> np.ndarray:
        """(10 IoU thresholds, categories) average precision; -1 where a category has no object."""
        entries = self._all()
        truth = [
            {"image_id": p, "category_id": label, **shape, "iscrowd": int(crowd)}
            for p, label, asked in entries
            for shape, crowd in zip(asked.truth, asked.crowd.tolist(), strict=True)
        ]
        found = [
            {"image_id": p, "category_id": label, **shape, "score": score}
            for p, label, asked in entries
            for shape, score in zip(asked.found, asked.scores.tolist(), strict=True)
        ]
        sizes = [self._sizes.get(key, (0, 0)) for key in self._pictures]
        coco = COCO(
            {
                "images": [{"id": p, "width": w, "height": h} for p, (w, h) in enumerate(sizes)],
                "categories": [{"id": label, "name": name} for name, label in self._labels.items()],
                "annotations": [{"id": i + 1, **entry} for i, entry in enumerate(truth)],
            },
            print_function=quiet,
        )
        protocol = COCOeval_faster(coco, coco.loadRes(found), iouType=self.iou_type, print_function=quiet)
        protocol.evaluate()
        protocol.accumulate()
        # (IoU, recall, category, area, boxes): all areas, the largest number of boxes.
        precision = np.asarray(protocol.eval["precision"])[:, :, :, 0, -1]
        return precision.mean(1)


def box_overlaps(boxes_xyxy: np.ndarray, truth_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) IoU of boxes, and the part of each box that lies inside each true one."""
    # Through xywh and back, so that rounding falls as in COCO's own figures.
    boxes, truth = (xywh_to_xyxy(xyxy_to_xywh(b)) for b in (boxes_xyxy, truth_xyxy))
    inside = intersection_area(boxes, truth) / np.maximum(box_area(boxes), 1e-12)[:, None]
    return box_iou(boxes, truth), inside


def auroc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Chance that a true one scores above a false one, ties counting half; None without both kinds."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def quiet(*_: object) -> None:
    """faster-coco-eval reports its progress through this."""


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
