"""Procedural scenes as a data set: picture ``index`` of a split is the scene drawn from seed ``seed + index``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from visionllm.core.arrays import object_array
from visionllm.core.config import Config
from visionllm.core.errors import ConfigError
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose
from visionllm.core.sample import Edit, Picture, Question, Record, Source
from visionllm.core.skeletons import load_skeleton
from visionllm.datasets.formats.reader import Place, Wording, register_format

MOST_EXPRESSIONS = 8  # of one scene
LEAST_STUFF = 0.005  # part of the picture below which a region is left out
# Kinds of question. Another one, direction, is a step on the way to relations: which of two, with no yes or no to it.
Kind = Literal["number", "presence", "more", "relation", "colour", "side", "direction"]
USUAL: tuple[Kind, ...] = ("number", "presence", "more", "relation", "colour", "side")
ATTRIBUTES = ("colour", "state")  # of an object that a record tells; a person's colour is the shirt's


class ScenesSplit(Config):
    """A split of a scenes card. Splits are disjoint when their ranges [seed, seed + length) are."""

    length: PositiveInt
    seed: int = Field(ge=0)
    size: tuple[PositiveInt, PositiveInt] = Field((320, 240), description="width and height in pixels")
    world: Literal["street", "table", "field", "crowd", "sketch"] | None = Field(
        None,
        description="one world instead of street, table and field in turn; crowd holds many people, sketch one or two "
        "large things",
    )
    favour: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="category -> how many times as often it is drawn"
    )
    detail: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="width and height the pictures are shrunk to and enlarged again from; None leaves them sharp"
    )
    questions: tuple[Kind, ...] = Field(
        USUAL, description="kinds of question that are asked; of a scene that allows none of them, the usual ones"
    )


@register_format("scenes")
class ScenesReader:
    """All that a task needs is filled in; ``Record.extra["scene"]`` is the whole scene: keypoints, attributes."""

    Split: ClassVar[type[Config]] = ScenesSplit
    needs_root: ClassVar[bool] = False

    def __init__(
        self, *, dataset: str, length: int, seed: int, size: tuple[int, int], world: str | None = None,
        questions: tuple[str, ...] = USUAL, needs: frozenset[str] = frozenset(),
        detail: tuple[int, int] | None = None, favour: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        # Imported here: data sets of files need nothing that draws.
        from visionllm.datasets.scenes import CATEGORIES, STUFF, draw_scene

        self.dataset, self._length, self._seed, self._size, self._needs = dataset, length, seed, size, needs
        self._draw, self._world, self._kinds, self._detail = draw_scene, world, questions, detail
        self._favour = dict(favour or {})
        things = tuple(category.name for category in CATEGORIES)
        for name in self._favour:
            if name not in things:
                raise ConfigError(f"{dataset}: favour.{name}: no such category (it has: {', '.join(things)})")
        # Stuff has no number: its plural is itself.
        self._stuff = STUFF[1:] if "stuff" in needs else ()
        self.names = things + self._stuff
        self.wording = Wording(
            synonyms={category.name: tuple(category.synonyms) for category in CATEGORIES},
            plurals={category.name: category.plural for category in CATEGORIES} | {name: name for name in self._stuff},
            skeletons={"person": load_skeleton("coco_17")} if "poses" in needs else {},
            stuff=frozenset(self._stuff),
        )

    @classmethod
    def open(cls, split: Any, place: Place) -> ScenesReader:
        return cls(dataset=place.dataset, length=split.length, seed=split.seed, size=split.size, world=split.world,
                   questions=split.questions, needs=place.needs, detail=split.detail, favour=split.favour)  # fmt: skip

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> Record:
        if not 0 <= index < self._length:
            raise IndexError(index)
        seed = self._seed + index
        scene = self._draw(seed, size=self._size, world=self._world, favour=self._favour)
        labels = [self.names.index(thing.category) for thing in scene.objects]
        boxes = [thing.box_xyxy for thing in scene.objects]
        needs = self._needs
        masks = [Mask.of(scene.mask(i)) for i in range(len(boxes))] if "masks" in needs else []
        poses: list[Pose | None] = [self._pose(thing.keypoints) for thing in scene.objects]
        attributes = [tuple(thing.attributes[key] for key in ATTRIBUTES if key in thing.attributes)
                      for thing in scene.objects]  # fmt: skip
        for name in self._stuff:
            region = Mask.of(scene.stuff(name))
            if region.area >= LEAST_STUFF * scene.id_map.size:
                labels.append(self.names.index(name))
                boxes.append(tuple(region.box_xyxy.tolist()))
                masks += [region] if "masks" in needs else []
                poses.append(None)
                attributes.append(())
        return Record(
            picture=Picture(pixels=self._coarse(scene.image), name=f"scene {seed}"),
            names=self.names,
            boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            crowd=np.zeros(len(boxes), bool),
            source=Source(dataset=self.dataset, index=index, file=f"scene {seed}"),
            masks=object_array(masks) if "masks" in needs else None,
            poses=object_array(poses) if "poses" in needs else None,
            attributes=tuple(attributes),
            expressions=tuple(scene.referring(MOST_EXPRESSIONS)) if "expressions" in needs else (),
            captions=tuple(text for text, _ in scene.captions()) if "captions" in needs else (),
            shows=tuple(shows for _, shows in scene.captions()) if "captions" in needs else (),
            grounded=(tuple(scene.grounded_caption()),) if "grounded" in needs else (),
            questions=self._questions(scene.questions()) if "questions" in needs else (),
            edits=self._edits(seed) if "edits" in needs else (),
            extra={"scene": scene},
        )

    def _coarse(self, pixels: np.ndarray) -> np.ndarray:
        if self._detail is None:
            return pixels
        small = cv2.resize(pixels, self._detail, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, self._size, interpolation=cv2.INTER_CUBIC)

    def _questions(self, known: Sequence[Question]) -> tuple[Question, ...]:
        """Those of the kinds asked."""
        return (tuple(one for one in known if one.kind in self._kinds)
                or tuple(one for one in known if one.kind in USUAL))  # fmt: skip

    def _edits(self, seed: int) -> tuple[Edit, ...]:
        from visionllm.datasets.scenes import draw_edits

        return tuple(
            Edit(
                text=change.text, before=Picture(pixels=change.before, name=f"scene {seed}"),
                after=Picture(pixels=change.after, name=f"scene {seed}, {change.text}"),
                changed=Mask.of(change.region), shows=change.shows, wordings=change.wordings,
            )
            for change in draw_edits(seed, size=self._size, world=self._world, favour=self._favour)
        )  # fmt: skip

    def _pose(self, keypoints: np.ndarray | None) -> Pose | None:
        """A person's; None of things without keypoints."""
        if keypoints is None or not keypoints[:, 2].any():
            return None
        return Pose(
            points_xy=keypoints[:, :2].astype(np.float32), visibility=keypoints[:, 2].astype(np.int8),
            skeleton=load_skeleton("coco_17"),
        )  # fmt: skip

    def digest(self) -> str:
        # The first scene stands for the drawing code: another edition of it gives other scenes for the same seeds.
        first = [
            (thing.category, thing.box_xyxy)
            for thing in self._draw(self._seed, size=self._size, world=self._world, favour=self._favour).objects
        ]
        words = f"scenes {self._length} {self._seed} {self._size} {self.names} {first}"
        words += f" {self._detail}" if self._detail else ""
        words += f" {self._kinds}" if self._kinds != USUAL else ""
        words += f" {self._favour}" if self._favour else ""
        return hashlib.sha256(words.encode()).hexdigest()

    def report(self) -> str:
        return ""
