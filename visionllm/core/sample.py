"""A sample: pictures, what is asked of them, and the truth, from a data set or from a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from visionllm.core.arrays import move_all
from visionllm.core.errors import ShapeError
from visionllm.core.regions import Region, named_picture, named_region


@dataclass(kw_only=True, slots=True, frozen=True)
class Source:
    """Where a sample came from; every error about it starts with these words."""

    dataset: str
    index: int
    file: str = ""

    def __str__(self) -> str:
        return f"{self.dataset}[{self.index}]" + (f" ({self.file})" if self.file else "")


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Picture:
    """An upright RGB picture.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        name: file name or description, for messages and exports.
    """

    pixels: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ShapeError(
                f"picture {self.name!r} must be (H, W, 3) uint8 RGB, got {self.pixels.shape} {self.pixels.dtype}"
            )
        if 0 in self.pixels.shape:
            raise ShapeError(f"picture {self.name!r} is empty: {self.pixels.shape}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Target(Protocol):
    """The truth of one turn, in original pixels until a decoder stacks it."""

    def transform(self, geometry: Any) -> Target: ...


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class BoxTarget:
    """Boxes of the phrases of one turn.

    Args:
        boxes_xyxy: (N, 4) float32, pixels of the sample's picture, edges (x2 is exclusive).
        phrase: (N,) int64, index into the turn's phrases.
        ignore: (N,) bool, crowd regions: no loss, no false alarm.
        masks: (N,) objects, the ``Mask`` of each box, or None where it has none; None where no box has one.
        poses: likewise the ``Pose`` of each box.
    """

    boxes_xyxy: np.ndarray
    phrase: np.ndarray
    ignore: np.ndarray | None = None
    masks: np.ndarray | None = None
    poses: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes_xyxy)
        if self.boxes_xyxy.shape != (count, 4):
            raise ShapeError(f"boxes_xyxy must have shape (N, 4), got {self.boxes_xyxy.shape}")
        if self.phrase.shape != (count,):
            raise ShapeError(f"phrase must have shape ({count},), got {self.phrase.shape}")
        for name in ("masks", "poses"):
            values = getattr(self, name)
            if values is not None and values.shape != (count,):
                raise ShapeError(f"{name} must have shape ({count},), got {values.shape}")

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool, all False where no crowd is known."""
        return self.ignore if self.ignore is not None else np.zeros(len(self.boxes_xyxy), bool)

    def of(self, phrases: Sequence[int]) -> BoxTarget:
        """The truth of some of the phrases, which take these places."""
        place = {old: new for new, old in enumerate(phrases)}
        kept = np.isin(self.phrase, list(phrases))
        return BoxTarget(
            boxes_xyxy=self.boxes_xyxy[kept], ignore=self.ignored[kept],
            phrase=np.array([place[int(old)] for old in self.phrase[kept]], np.int64),
            masks=None if self.masks is None else self.masks[kept],
            poses=None if self.poses is None else self.poses[kept],
        )  # fmt: skip

    def transform(self, geometry: Any) -> BoxTarget:
        """Carry all of it through a geometry (``datasets.transforms``), dropping boxes that leave the picture."""
        boxes_xyxy, kept = geometry.boxes(self.boxes_xyxy)
        masks, poses = (None if v is None else move_all(v[kept], geometry) for v in (self.masks, self.poses))
        return BoxTarget(boxes_xyxy=boxes_xyxy[kept], phrase=self.phrase[kept], ignore=self.ignored[kept], masks=masks,
                         poses=poses)  # fmt: skip


class Shows(NamedTuple):
    """What a picture must show to be what its words say.

    Args:
        things: category and colour of each; None where no colour is told.
        relations: (thing, how it lies to the other, other), indices of ``things``: ``(0, "left of", 1)``.
        absent: categories of which nothing may be left.
        moved: (thing, ``"left"`` or ``"right"``): where a thing went, against the picture that was changed.
        light: it is the light of the whole picture that changed.
        boxes: of each thing where it stands in the picture that the words came from, (x0, y0, x1, y1) in parts of it;
            empty where nobody knows. No picture must show that: words leave places open.
    """

    things: tuple[tuple[str, str | None], ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    absent: tuple[str, ...] = ()
    moved: tuple[tuple[int, str], ...] = ()
    light: bool = False
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class PictureTarget:
    """The pictures that the phrases of one turn are to become, one each. One made out of the sample's own picture moves
    with it, and may have so many times as many pixels.

    Args:
        pictures: one a phrase.
        changed: of each the ``Mask`` of what differs from the sample's own picture; empty where nobody knows.
        shows: of each what has to be in it; empty where nobody knows.
    """

    pictures: tuple[Picture, ...]
    changed: tuple[Any, ...] = ()
    shows: tuple[Shows, ...] = ()

    # Light that changed on one side alone would be learned as part of the change.
    pixelwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.changed and len(self.changed) != len(self.pictures):
            raise ShapeError(f"{len(self.pictures)} pictures with {len(self.changed)} masks of what changed")
        if self.shows and len(self.shows) != len(self.pictures):
            raise ShapeError(f"{len(self.pictures)} pictures with {len(self.shows)} lists of what they show")

    def transform(self, geometry: Any) -> PictureTarget:
        """The same geometry for each, in its own pixels."""

        def moved(picture: Picture) -> np.ndarray:
            own, (width, height) = picture.size, geometry.input_size
            if own == (width, height):
                return np.asarray(geometry.picture(picture.pixels))
            times = own[0] / width
            if own != (round(times * width), round(times * height)):
                raise ShapeError(f"a target of {own} is no multiple of its picture of {(width, height)}")
            out = geometry.output_size
            larger = type(geometry).resize(own, geometry.input_size).then(geometry)
            larger = larger.then(type(geometry).resize(out, (round(times * out[0]), round(times * out[1]))))
            return np.asarray(larger.picture(picture.pixels))

        return PictureTarget(
            pictures=tuple(replace(picture, pixels=moved(picture)) for picture in self.pictures),
            changed=tuple(mask.moved(geometry) for mask in self.changed),
            # Boxes would have to move along; nothing that reads them moves its pictures.
            shows=tuple(shows._replace(boxes=()) for shows in self.shows),
        )


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class WordsTarget:
    """All replies that are right, where a question has several (captions)."""

    references: tuple[str, ...]

    def transform(self, geometry: Any) -> WordsTarget:
        """Words stay as they are."""
        return self


class Question(NamedTuple):
    """A question about a whole picture.

    Args:
        text: the question.
        answer: the right answer.
        looks: what must be looked for to answer it, each phrase as the question says it with the indices of the things
            that it means, none where there is no such thing; empty where nobody says.
        other: further wordings of the question, which say the same phrases.
        kind: the sort of question it is, such as ``colour``; empty where nobody says.
        single: it takes for granted that there is one of each thing ("the car"): its answer does not hang on how many
            are found.
    """

    text: str
    answer: str
    looks: tuple[tuple[str, tuple[int, ...]], ...] = ()
    other: tuple[str, ...] = ()
    kind: str = ""
    single: bool = False


class Edit(NamedTuple):
    """A change of a picture.

    Args:
        text: the change in words ("remove the red car").
        before, after: the picture without and with it.
        changed: ``Mask`` of what differs.
        shows: what the picture with it must show, and no longer show.
        wordings: the change in other words, for training.
    """

    text: str
    before: Picture
    after: Picture
    changed: Any
    shows: Shows = Shows()
    wordings: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Turn:
    """One question and its answer.

    Args:
        task: registered task name, or None for plain words.
        phrases: what is asked for; each gets a routing token in the reply, in this order.
        parts: for each phrase the names of its parts, where the task has tokens for parts (keypoints); or none at all.
        regions: what each ``<region>`` of the question means; without them these are plain words.
        usual: the parts are the ones that such a thing is known to have: the question leaves them out.
        target: the truth, None in use.
        question: the user's own words; None lets the renderer draw a wording from the task's templates.
        called: what the question calls all the phrases instead ("them": an earlier turn has named them).
        means: what each phrase means in plain words: "car in picture 2" of "same as region 1 in picture 2". Their links
            are to be the same (``routing.former``). Empty where the phrases are as plain as can be.
        reply: words of the answer, where they follow from no template (training of text tasks); of a task, words that
            say each of the phrases, in their order.
        then: of a task whose findings are told (``Task.told``), what is said once they are.
        told: nobody asked this: it tells what the turn before it has found.
        said: ids of a reply the model itself has written, in a conversation that goes on; they are taken as they are.
        joined: asked in one breath with the turn before it, and answered in the same reply.
        whole: what is said is true of the whole picture only ("the leftmost tree", a number): nothing may be cut off.
        kind: the sort of question it is, by which reports tell results apart; empty where nobody says.
        single: of a question whose findings are told, see ``Question``.
    """

    task: str | None = None
    phrases: tuple[str, ...] = ()
    parts: tuple[tuple[str, ...], ...] = ()
    usual: bool = False
    regions: tuple[Region, ...] = ()
    target: Any = None
    question: str | None = None
    called: str | None = None
    means: tuple[str, ...] = ()
    reply: str | None = None
    then: str | None = None
    told: bool = False
    said: tuple[int, ...] | None = None
    joined: bool = False
    whole: bool = False
    kind: str = ""
    single: bool = False

    def __post_init__(self) -> None:
        if self.parts and len(self.parts) != len(self.phrases):
            raise ShapeError(f"parts of {len(self.parts)} phrases do not fit {len(self.phrases)} phrases")
        if self.means and len(self.means) != len(self.phrases):
            raise ShapeError(f"meanings of {len(self.means)} phrases do not fit {len(self.phrases)} phrases")

    @property
    def words(self) -> str | None:
        """What a right answer says in the end, where words are expected."""
        return self.reply if self.then is None else self.then

    def plain(self) -> Turn:
        """The same, asked for by what its phrases mean, in words that need neither a region nor another turn."""
        if not self.means:
            return self
        return replace(self, phrases=self.means, regions=(), question=None, called=None, reply=None, means=())


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Things:
    """What a data set says is in a picture, whatever is asked of it.

    Args:
        names: (N) categories, each behind the attributes it is known to have (``red car``).
        boxes_xyxy: (N, 4) float32, original pixels, edges.
        masks: (N,) objects, the ``Mask`` of each, or None where it has none; None where no thing has one.
        complete: whatever else is in the picture is no thing that the data set would name.
        other: (N) further words for each, such as its plural; empty where none are known.
        moves: geometries (``datasets.transforms``) that the picture has gone through since.
    """

    names: tuple[str, ...]
    boxes_xyxy: np.ndarray
    complete: bool
    masks: np.ndarray | None = None
    other: tuple[tuple[str, ...], ...] = ()
    moves: tuple[Any, ...] = ()

    def transform(self, geometry: Any) -> Things:
        """The geometry is noted: most trainings never ask what is where, and masks are dear to move."""
        return replace(self, moves=(*self.moves, geometry))

    def placed(self) -> Things:
        """Where they are in the picture as it is now, without what has left it."""
        things = replace(self, moves=())
        for geometry in self.moves:
            boxes_xyxy, kept = geometry.boxes(things.boxes_xyxy)
            names = tuple(name for name, there in zip(things.names, kept, strict=True) if there)
            other = (
                tuple(words for words, there in zip(things.other, kept, strict=True) if there) if things.other else ()
            )
            masks = None if things.masks is None else move_all(things.masks[kept], geometry)
            things = replace(things, names=names, other=other, boxes_xyxy=boxes_xyxy[kept], masks=masks)
        return things


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Sample:
    """Pictures, a conversation about them, and where they came from. Targets are in ORIGINAL pixels.

    ``things`` are what is in each picture, in their order, or empty where nobody knows.
    """

    pictures: tuple[Picture, ...] = ()
    turns: tuple[Turn, ...] = ()
    source: Source = field(default_factory=lambda: Source(dataset="user", index=0))
    things: tuple[Things, ...] = ()

    @property
    def regions(self) -> tuple[Region, ...]:
        """Of all turns, in the order in which they stand in the text."""
        return tuple(region for turn in self.turns for region in turn.regions)

    @property
    def named(self) -> tuple[Region, ...]:
        """Those that the user speaks of, ``region 1``, ``region 2``, ...; what was found has no name."""
        return tuple(region for turn in self.turns if not turn.told for region in turn.regions)

    def exchanges(self) -> list[list[tuple[int, Turn]]]:
        """The turns of each question with their places: those asked in one breath stand together."""
        found: list[list[tuple[int, Turn]]] = []
        for place, turn in enumerate(self.turns):
            if turn.joined and found:
                found[-1].append((place, turn))
            else:
                found.append([(place, turn)])
        return found

    def picture_of(self, phrase: str) -> int:
        """Which picture a phrase is about: that of its region, the one its last words name, or the first."""
        region = named_region(phrase, self.named)
        return region.picture if region is not None else named_picture(phrase, len(self.pictures)) or 0

    def with_turns(self, *turns: Turn) -> Sample:
        return replace(self, turns=turns)

    def plain(self) -> Sample | None:
        """The same, asked for by what its phrases mean; None where they are as plain as can be."""
        return self.with_turns(*(turn.plain() for turn in self.turns)) if any(t.means for t in self.turns) else None


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Record:
    """What a data set knows of one picture, before anything is asked: the catalogue's unit.

    Args:
        picture: the picture.
        names: category names of the data set, the universe negatives are drawn from.
        boxes_xyxy: (N, 4) float32, original pixels, edges.
        labels: (N,) int64, index into ``names``.
        crowd: (N,) bool.
        source: where it came from.
        masks: (N,) objects, ``Mask`` or None; None where nobody asked for masks or the format has none.
        poses: (N,) objects, ``Pose`` or None; None where nobody asked for poses or the format has none.
        attributes: (N,) words that are true of each object beside its category (``("red",)``); empty where the format
            has none.
        expressions: words for some of the objects ("the red van"), and the indices of these.
        captions: sentences about the whole picture.
        shows: of each of these what a picture of it must show; empty where nobody knows.
        grounded: the same, each as pieces of text with the indices of the things they mean.
        questions: about the whole picture.
        edits: changes of it, or of a picture like it.
        smaller: the same view in fewer pixels, through another lens; the two do not lie on each other.
        extra: further annotations of the format by name.
    """

    picture: Picture
    names: tuple[str, ...]
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    source: Source
    masks: np.ndarray | None = None
    poses: np.ndarray | None = None
    attributes: tuple[tuple[str, ...], ...] = ()
    expressions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    captions: tuple[str, ...] = ()
    shows: tuple[Shows, ...] = ()
    grounded: tuple[tuple[tuple[str, tuple[int, ...]], ...], ...] = ()
    questions: tuple[Question, ...] = ()
    edits: tuple[Edit, ...] = ()
    smaller: Picture | None = None
    extra: dict[str, Any] = field(default_factory=dict)
