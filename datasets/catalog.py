"""The catalogue: a data set is a card, a small YAML file that says where it lies and how it is written down.

Cards of the catalogue are in ``configs/datasets``; a card of one's own is given by its path.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from visionllm.core.config import Config, read_yaml, validate
from visionllm.core.errors import ConfigError, DatasetError
from visionllm.core.resources import config_folder
from visionllm.core.sample import Record, Sample, Things
from visionllm.datasets.asking import ASKERS, check_wording, plural_of, tasks_asked
from visionllm.datasets.formats import FORMATS, Place, Reader, Wording

DATA_VARIABLE = "VISIONLLM_DATA"


class Card(Config):
    """What is written about a data set. The keys of a split belong to its format."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="its name in the catalogue and in reports")
    task: str = Field(description="registered task its annotations serve")
    format: str = Field(description="registered annotation format")
    root: str | None = Field(None, description="its folder, below the data root or absolute; none if nothing is read")
    splits: dict[str, dict[str, Any]] = Field(min_length=1)
    synonyms: dict[str, list[str]] = Field(default_factory=dict, description="category -> other words for it")
    plurals: dict[str, str] = Field(default_factory=dict, description="category or synonym -> its plural")
    negatives: bool = Field(True, description="whether all objects are annotated, so that the rest is absent")
    names: list[str] | None = Field(None, description="all categories in order, where the annotations have no list")
    license: str | None = Field(None, description="of the annotations and pictures")

    @field_validator("splits", "synonyms", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        # YAML reads the words no, on and 3 as something else than words.
        for key in value if isinstance(value, Mapping) else ():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text; quote it")
        return value


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Dataset:
    """One split of a data set, open for reading.

    Args:
        order: samples of the reader in the order in which they are read here; None: each once, as they come.
    """

    card: Card
    split: str
    reader: Reader
    wording: Wording
    task: str
    order: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def key(self) -> str:
        """Name of data set and split, and the task where it is not the card's, for plans and reports."""
        return f"{self.card.name}/{self.split}" + ("" if self.task == self.card.task else f" ({self.task})")

    @property
    def names(self) -> tuple[str, ...]:
        return self.reader.names

    @property
    def tasks(self) -> set[str]:
        """Names of all tasks that its samples may have."""
        return set(getattr(self.reader, "tasks", ())) or tasks_asked(self.task)

    def __len__(self) -> int:
        return len(self.reader) if self.order is None else len(self.order)

    def read(self, index: int) -> Record | Sample:
        """See ``Reader.read``."""
        return self.reader.read(index if self.order is None else int(self.order[index]))

    def balanced(self, threshold: float) -> Dataset:
        """Repeat factor sampling (Gupta, Dollár, Girshick 2019, "LVIS", arXiv 1908.03195, section 4.3): a picture comes
        max(1, sqrt(threshold / f)) times, f being the share of pictures that show the rarest of its categories.

        Parts of a time are carried on to the next picture, so that the whole is as long as these numbers add up to.

        Raises:
            ConfigError: the format does not tell what a sample shows without reading it.
        """
        labels_of = getattr(self.reader, "labels_of", None)
        if labels_of is None:
            raise ConfigError(
                f"{self.key}: balance: format {self.card.format} does not tell what a sample shows before it is read; "
                "leave balance out"
            )
        shown = np.zeros((len(self.reader), len(self.names)), bool)
        for index in range(len(self.reader)):
            shown[index, labels_of(index)] = True
        factors = np.sqrt(threshold / np.maximum(shown.mean(0), 1e-12)).clip(1)
        times = np.where(shown, factors, 1.0).max(1, initial=1.0)
        # A sum that rounding left just short of a whole number is that number.
        ends = np.floor(np.cumsum(times) + 1e-6).astype(np.int64)
        return replace(self, order=np.repeat(np.arange(len(self.reader)), np.diff(ends, prepend=0)))

    def ask(self, index: int, rng: np.random.Generator) -> Sample:
        """The training sample at ``index``."""
        partners = [self.read(int(i)) for i in rng.integers(len(self), size=self.partners)]
        return self.ask_about(self.read(index), rng, partners)

    @property
    def partners(self) -> int:
        """How many further records a sample takes."""
        return ASKERS[self.task].partners

    def ask_about(
        self, item: Record | Sample, rng: np.random.Generator, partners: Sequence[Record | Sample] = ()
    ) -> Sample:
        """A training sample from what was read; what is a sample already stays as it is."""
        if isinstance(item, Sample):
            return item
        others = [partner for partner in partners if isinstance(partner, Record)]
        sample = ASKERS[self.task].draw(item, self.wording, rng, *others)
        # Without its regions (road, sky) a record names only some of what is to be seen.
        complete = self.wording.negatives and "stuff" in ASKERS[self.task].needs
        things = tuple(things_of(one, self.wording, complete=complete) for one in (item, *others))
        return replace(sample, things=things)

    def ask_all(self, index: int, *, chunk: int | None = None) -> tuple[Sample, ...]:
        """The evaluation samples at ``index``: everything is asked, in a fixed order."""
        item = self.read(index)
        if isinstance(item, Sample):
            return (item,)
        partners = [self.read((index + 1 + k) % len(self)) for k in range(self.partners)]
        others = [partner for partner in partners if isinstance(partner, Record)]
        return ASKERS[self.task].every(item, self.wording, *others, chunk=chunk)

    def report(self) -> str:
        return self.reader.report()

    def digest(self) -> str:
        """Hash of all that decides the samples: annotations, wording, task."""
        words = f"{self.task} {self.reader.digest()} {self.names} {_plain(self.wording)}"
        if self.order is not None:
            words += f" {self.order.tolist()}"
        return hashlib.sha256(words.encode()).hexdigest()


def things_of(record: Record, wording: Wording, *, complete: bool) -> Things:
    """What a record says is there; a crowd is no thing."""
    single = np.flatnonzero(~record.crowd)
    attributes = record.attributes or ((),) * len(record.labels)
    names = tuple(" ".join((*attributes[row], record.names[record.labels[row]])) for row in single.tolist())
    masks = None if record.masks is None else record.masks[single]
    other = tuple((plural_of(record.names[record.labels[row]], wording),) for row in single.tolist())
    return Things(names=names, boxes_xyxy=record.boxes_xyxy[single], complete=complete, masks=masks, other=other)


def catalogue_folder() -> Path:
    """Where the cards lie, in a checkout and in an installation."""
    return config_folder("datasets")


def catalogue() -> tuple[str, ...]:
    """Names of all cards, sorted."""
    return tuple(sorted(path.stem for path in catalogue_folder().glob("*.yaml")))


def load_card(name_or_path: str | Path) -> Card:
    """A card of the catalogue by its name, or any card by the path of its file.

    Raises:
        ConfigError: the card breaks its format.
        DatasetError: the catalogue has no card of that name.
    """
    path = _card_path(name_or_path)
    card = validate(Card, read_yaml(path), source=str(path))
    for split, values in card.splits.items():
        validate(FORMATS[card.format].Split, values, source=f"{path}: splits.{split}")
    return card


def open_dataset(
    card: Card | str | Path, split: str, data_root: str | Path | None = None, *, task: str | None = None,
    card_folder: Path | None = None,
) -> Dataset:  # fmt: skip
    """Open a split of a card.

    Args:
        card: a card, or what ``load_card`` takes.
        split: one of the card's splits.
        task: what the samples ask for, where it is not the card's task.
        data_root: folder that relative roots are below; ``$VISIONLLM_DATA`` if None.
        card_folder: folder of the lists a card names, where ``card`` is not a path itself; the catalogue if None.

    Raises:
        ConfigError, DatasetError, AnnotationError: card, folder or annotations are wrong.
    """
    if not isinstance(card, Card):
        card_folder = card_folder or _card_path(card).parent
        card = load_card(card)
    if split not in card.splits:
        raise DatasetError(f"{card.name}: no split {split!r}; it has {', '.join(card.splits)}")
    task = card.task if task is None else task
    asker = ASKERS[task]  # an unknown task is told before anything is read
    reader_class = FORMATS[card.format]
    place = Place(
        dataset=card.name,
        root=_root(card, data_root) if reader_class.needs_root else None,
        card_folder=(card_folder or catalogue_folder()).resolve(),
        names=tuple(card.names) if card.names is not None else None,
        needs=asker.needs,
    )
    values = validate(reader_class.Split, card.splits[split], source=f"{card.name}: splits.{split}")
    reader = reader_class.open(values, place)
    wording = _wording(card, reader.wording)
    check_wording(wording, reader.names, source=card.name)
    return Dataset(card=card, split=split, reader=reader, wording=wording, task=task)


def _card_path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        return Path(name_or_path).resolve()
    known = catalogue()
    if text not in known:
        close = difflib.get_close_matches(text, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DatasetError(f"no data set {text!r}{hint}. Known: {', '.join(known)}; or give the path of a card.")
    return catalogue_folder() / f"{text}.yaml"


def _root(card: Card, data_root: str | Path | None) -> Path:
    """The card's folder, resolved."""
    if card.root is None:
        raise ConfigError(f"{card.name}: root: missing; name the folder below ${DATA_VARIABLE}, or an absolute one")
    given = data_root if data_root is not None else os.environ.get(DATA_VARIABLE) or None
    cure = f"set {DATA_VARIABLE} or --data-root to the folder that holds it"
    if Path(card.root).is_absolute():
        root, cure = Path(card.root), "correct the card's root"
    elif ".." in re.split(r"[/\\]", card.root):
        raise ConfigError(f"{card.name}: root: {card.root!r} must not climb with ..; give an absolute folder instead")
    elif given is None:
        raise DatasetError(f"{card.name}: root: {card.root!r} is relative and no data root is known; {cure}")
    else:
        root = Path(given) / card.root
    if not root.is_dir():
        raise DatasetError(f"{card.name}: root: no folder {root}; {cure}")
    return root.resolve()


def _wording(card: Card, default: Wording) -> Wording:
    """The card's words; what it says of a category replaces what the format says."""
    synonyms = {name: tuple(words) for name, words in card.synonyms.items()}
    return Wording(
        synonyms={**default.synonyms, **synonyms},
        plurals={**default.plurals, **card.plurals},
        negatives=card.negatives and default.negatives,
        skeletons=default.skeletons,
        stuff=default.stuff,
    )


def _plain(wording: Wording) -> str:
    return f"{sorted(wording.synonyms.items())} {sorted(wording.plurals.items())} {wording.negatives}"
