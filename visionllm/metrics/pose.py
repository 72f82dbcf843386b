"""Poses against truth: COCO's keypoint precision, and how far single points are off.

``AP`` by faster-coco-eval (COCO protocol: object keypoint similarity with the skeleton's own sigmas, 20 poses a
picture), ranked by the poses' own scores; its interval from matches made here (``metrics.precision``). ``PCK`` is the
share of known points of a matched pose within a fifth of the longer side of the true box (Yang and Ramanan 2013,
"Articulated Human Detection"); ``NME`` their mean distance over the root of that box's area; ``flags`` the share of
them whose flag, hidden or visible, is told right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from visionllm.core.answer import Answer
from visionllm.core.arrays import object_array
from visionllm.core.boxes import xyxy_to_xywh
from visionllm.core.errors import DatasetError
from visionllm.core.poses import BODY, Pose
from visionllm.core.sample import Turn
from visionllm.core.skeletons import skeleton_of
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import RESAMPLES, drawn, interval, mean_of_known
from visionllm.metrics.detection import DetectionMetric, quiet
from visionllm.metrics.precision import greedy_match, intervals, weighted_ap

PCK_REACH = 0.2  # of the longer side of a box
_MAX_POSES = 20


def similarity(found: Pose, truth: Pose, area: float) -> float:
    """Object keypoint similarity over the known points of the truth (COCO); 0 where none is known.

    Args:
        area: of the true object, square pixels.
    """
    known = truth.known
    if not known.any():
        return 0.0
    squares = ((found.points_xy - truth.points_xy).astype(np.float64) ** 2).sum(1)[known]
    spread = (2 * truth.skeleton.spread[known]) ** 2
    return float(np.exp(-squares / spread / (area + np.spacing(1)) / 2).mean())


@METRICS.register("pose")
class PoseMetric(DetectionMetric):
    """Scores poses, each category on its own, with all that is measured of their boxes."""

    result: ClassVar[str] = "poses"

    def __init__(self, names: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(names, **settings)
        self._asked: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = defaultdict(list)

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """As for boxes; a point that the reply did not name counts as one that was not found."""
        super().add(turn, answer, key=key)
        target = turn.target
        known = target.poses if target.poses is not None else object_array([None] * len(target.boxes_xyxy))
        for number, (phrase, names) in enumerate(zip(turn.phrases, turn.parts, strict=True)):
            found = answer.poses.of(phrase) if phrase in answer.poses.phrases else answer.poses[:0]
            rows = target.phrase == number
            truth = [None if lost else pose for pose, lost in zip(known[rows], target.ignored[rows], strict=True)]
            self._asked[phrase, names].append({
                "found": list(found.poses), "scores": found.pose_scores.tolist(), "truth": truth,
                "boxes_xyxy": target.boxes_xyxy[rows], "size": found.size, "key": key,
            })  # fmt: skip

    def compute(self) -> dict[str, Any]:
        """As for boxes, and ``poses``: by category what ``PoseScores`` gives, and the means ``OKS_AP`` and ``OKS_AP50``
        with their 95 % intervals."""
        each: dict[str, Any] = {}
        place = {key: number for number, key in enumerate(self._pictures)}
        weights = drawn(len(place), resamples=self._resamples)
        resampled = []
        for (phrase, names), asked in self._asked.items():
            own = (pose.skeleton for one in asked for pose in one["truth"] if pose is not None)
            skeleton = next(own, skeleton_of(phrase, names)).named(names)
            scores = PoseScores(resamples=self._resamples)
            for one in asked:
                truth = [pose and replace(pose.named(names), skeleton=skeleton) for pose in one["truth"]]
                found = [replace(pose.named(names), skeleton=skeleton) for pose in one["found"]]
                scores.add(found, one["scores"], truth, one["boxes_xyxy"], size=one["size"], key=one["key"])
            each[phrase if phrase not in each else f"{phrase} ({', '.join(names)})"] = scores.compute()
            resampled.append(weighted_ap(scores.ranked(place), weights))
        known = [entry for entry in each.values() if entry["AP"] is not None]
        means = {
            f"OKS_{name}": float(np.mean([entry[name] for entry in known])) if known else None
            for name in ("AP", "AP50")
        }
        several = mean_of_known(np.stack(resampled), 0) if resampled else np.full((10, 0), np.nan)
        sure = {f"OKS_{name}": value for name, value in intervals(several).items() if "75" not in name}
        return {**super().compute(), **means, **sure, "poses": each}


@dataclass(kw_only=True, slots=True, frozen=True)
class _Found:
    """Poses found in one picture; see ``metrics.precision.Ranked``."""

    scores: np.ndarray
    match: np.ndarray
    objects: int


class PoseScores:
    """Collects poses found and true, of one skeleton.

    Args:
        resamples: for the intervals; 0 leaves them out.
    """

    def __init__(self, resamples: int = RESAMPLES) -> None:
        self._resamples = resamples
        self._ranked: list[_Found] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._keys: list[Hashable] = []
        self._sizes: list[tuple[int, int]] = []
        self._sigmas: np.ndarray | None = None
        self._near: list[list[float]] = []  # picture by picture
        self._far: list[list[float]] = []
        self._flags: list[list[float]] = []

    def add(
        self, found: Sequence[Pose], scores: Sequence[float], truth: Sequence[Pose | None], boxes_xyxy: np.ndarray, *,
        size: tuple[int, int], key: Hashable, areas: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Take one picture.

        Args:
            truth: of the objects of ``boxes_xyxy`` (M, 4); None where nothing is known of one, which is then ignored.
            size: (width, height) of the picture.
            areas: of the true objects; without them a share of their boxes.

        Raises:
            DatasetError: two skeletons meet.
        """
        picture = len(self._keys)
        self._keys.append(key)
        self._sizes.append(size)
        boxes_xywh = xyxy_to_xywh(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4))
        areas = list(areas) if areas is not None else [BODY * float(w * h) for _, _, w, h in boxes_xywh]
        for known in (*found, *(pose for pose in truth if pose is not None)):
            self._check(known, key)
        for pose, box, area in zip(truth, boxes_xywh.tolist(), areas, strict=True):
            flat = [0.0] if pose is None else pose.flat()
            self._truth.append({
                "image_id": picture, "category_id": 1, "bbox": box, "area": area, "iscrowd": 0,
                "keypoints": flat, "num_keypoints": 0 if pose is None else int(pose.known.sum()),
            })  # fmt: skip
        for pose, score in zip(found, scores, strict=True):
            points = np.array(pose.flat())
            points[2::3] = 1
            entry = {"image_id": picture, "category_id": 1, "score": float(score), "keypoints": points.tolist()}
            self._found.append(entry)
        self._ranked.append(_matched(found, scores, truth, boxes_xywh, areas))
        self._near.append([])
        self._far.append([])
        self._flags.append([])
        self._distances(found, scores, truth, boxes_xywh, areas)

    def ranked(self, place: Mapping[Hashable, int]) -> list[tuple[int, _Found]]:
        """What was matched, each with the place of its picture."""
        return [(place[key], one) for key, one in zip(self._keys, self._ranked, strict=True)]

    def compute(self) -> dict[str, Any]:
        """``AP``, ``AP50``, ``AP75``, ``AR``, ``PCK``, ``NME``, ``flags``, the numbers of poses and pictures; all but
        ``AR`` with 95 % intervals. None where nothing defines one."""
        known = sum(entry["num_keypoints"] > 0 for entry in self._truth)
        values = dict.fromkeys(("AP", "AP50", "AP75", "AR"))
        if known:
            values = dict.fromkeys(values, 0.0) if not self._found else self._coco()
        weights = drawn(len(self._keys), resamples=self._resamples)
        entries = list(enumerate(self._ranked))
        means: dict[str, Any] = {}
        for name, groups in (("PCK", self._near), ("NME", self._far), ("flags", self._flags)):
            every = [value for own in groups for value in own]
            means[name] = float(np.mean(every)) if every else None
            means[f"{name}_interval"] = interval(groups, resamples=self._resamples)
        return {
            **values,
            **intervals(weighted_ap(entries, weights) if entries else np.full((10, 0), np.nan)),
            **means,
            "poses": known,
            "pictures": len(self._keys),
        }

    def _check(self, pose: Pose, key: Hashable) -> None:
        sigmas = pose.skeleton.spread
        if self._sigmas is not None and not np.array_equal(sigmas, self._sigmas):
            raise DatasetError(f"sample {key}: poses of {pose.skeleton.name} among others; score each kind on its own")
        self._sigmas = sigmas

    def _distances(self, found: Sequence[Pose], scores: Sequence[float], truth: Sequence[Pose | None],
                   boxes_xywh: np.ndarray, areas: Sequence[float]) -> None:  # fmt: skip
        """Each true pose with the free one most like it, best scores first; a true pose nobody found is far away."""
        free = [i for i, pose in enumerate(truth) if pose is not None]
        pairs: dict[int, Pose] = {}
        for row in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
            likes = [(similarity(found[row], truth[i], areas[i]), i) for i in free]  # type: ignore[arg-type]
            if likes and max(likes)[0] > 0:
                best = max(likes)[1]
                pairs[best] = found[row]
                free.remove(best)
        for i, pose in enumerate(truth):
            if pose is None:
                continue
            _, _, width, height = boxes_xywh[i]
            if i not in pairs:
                self._near[-1] += [0.0] * int(pose.known.sum())
                continue
            far = np.linalg.norm(pairs[i].points_xy - pose.points_xy, axis=1)[pose.known]
            self._near[-1] += (far <= PCK_REACH * max(width, height)).astype(float).tolist()
            self._far[-1] += (far / np.sqrt(width * height)).tolist()
            self._flags[-1] += (pairs[i].visibility == pose.visibility)[pose.known].astype(float).tolist()

    def _coco(self) -> dict[str, float | None]:
        assert self._sigmas is not None
        points = len(self._sigmas)
        truth = [{**entry, "keypoints": entry["keypoints"] if entry["num_keypoints"] else [0.0] * 3 * points, "id": i}
                 for i, entry in enumerate(self._truth, 1)]  # fmt: skip
        coco = COCO(
            {
                "images": [{"id": p, "width": w, "height": h} for p, (w, h) in enumerate(self._sizes)],
                "categories": [{"id": 1, "name": "pose", "keypoints": [str(i) for i in range(points)]}],
                "annotations": truth,
            },
            print_function=quiet,
        )
        protocol = COCOeval_faster(
            coco, coco.loadRes(self._found), iouType="keypoints", print_function=quiet, kpt_oks_sigmas=self._sigmas
        )
        protocol.params.maxDets = [_MAX_POSES]
        protocol.evaluate()
        protocol.accumulate()
        precision = np.asarray(protocol.eval["precision"])[:, :, 0, 0, -1].mean(1)
        recall = np.asarray(protocol.eval["recall"])[:, 0, 0, -1]
        return {
            "AP": float(precision.mean()), "AP50": float(precision[0]), "AP75": float(precision[5]),
            "AR": float(recall.mean()),
        }  # fmt: skip


def _matched(found: Sequence[Pose], scores: Sequence[float], truth: Sequence[Pose | None], boxes_xywh: np.ndarray,
             areas: Sequence[float]) -> _Found:  # fmt: skip
    """Poses of one picture with what is there, as the COCO protocol does it."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")[:_MAX_POSES]
    # What was not placed is written as zeros, and compared as such.
    placed = [replace(pose, points_xy=np.where(pose.known[:, None], pose.points_xy, 0))
              for pose in (found[row] for row in order.tolist())]  # fmt: skip
    unknown = np.array([pose is None or not pose.known.any() for pose in truth], bool)
    likes = np.array([
        [_near_box(pose, box, area) if lost or true is None else similarity(pose, true, area)
         for true, lost, box, area in zip(truth, unknown.tolist(), boxes_xywh, areas, strict=True)] for pose in placed
    ], np.float64).reshape(len(placed), len(truth))  # fmt: skip
    return _Found(
        scores=np.asarray(scores, np.float64)[order],
        match=greedy_match(likes, likes, unknown, once=True),
        objects=int((~unknown).sum()),
    )


def _near_box(found: Pose, box_xywh: np.ndarray, area: float) -> float:
    """Likeness to an object of which no point is known: how near all points are to its box, made thrice as large."""
    low, high = box_xywh[:2] - box_xywh[2:], box_xywh[:2] + 2 * box_xywh[2:]
    points = found.points_xy.astype(np.float64)
    off = np.maximum(0, low - points) + np.maximum(0, points - high)
    spread = (2 * found.skeleton.spread) ** 2
    return float(np.exp(-(off**2).sum(1) / spread / (area + np.spacing(1)) / 2).mean())
