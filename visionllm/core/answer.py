"""What the model gives back: its text, and the typed results that the decoders made of the routing tokens in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from visionllm.core.errors import PictureError, VisionLLMError
from visionllm.core.registry import Registry
from visionllm.core.sample import Picture
from visionllm.core.superlink import LinkMeta
from visionllm.core.task import TASKS

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Result(Protocol):
    """What a decoder makes of a link, in pixels of the original picture. A plugin brings its own class."""

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32 in [0, 1], one for each thing found."""
        ...

    @classmethod
    def merge(cls, results: Sequence[Self], picture: Picture | None = None) -> Self:
        """One result out of the results of several links on one picture; of none, the empty result."""
        ...

    def statements(self) -> list[str]:
        """One line a phrase, absent phrases too: ``car: 2 found``, ``bus: none found``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        ...

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """The result on its picture, or on the given one."""
        ...

    def save(self, path: str | Path) -> None:
        """Write a drawing or JSON, by the suffix of ``path``."""
        ...


# Attribute of Answer (and `result` of a Task) -> class of the results found there.
RESULT_TYPES: Registry[type[Result]] = Registry("result", group="visionllm.decoders")


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class LinkResult:
    """What one root link became.

    Args:
        meta: the link: token, phrase, task.
        decoder: registered name of the decoder that served it.
        result: what the decoder made.
    """

    meta: LinkMeta
    decoder: str
    result: Any


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Trace:
    """How an answer came to be; every part is optional.

    Args:
        token_ids: ids of the reply.
        looked: ids of a reply that looked for things; ``token_ids`` are what was said when they were found.
        positions: for each link, the index of its routing token in ``looked`` if there is one, else in ``token_ids``.
        routed: (token, phrase) of every routing token in the reply, decoded or not.
        seconds: wall time of each stage.
        cut: the reply reached its length limit before its end.
        model: fingerprint of the weights.
        seed: of the sampling.
    """

    token_ids: tuple[int, ...] = ()
    looked: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    routed: tuple[tuple[str, str], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cut: bool = False
    model: str | None = None
    seed: int | None = None


@dataclass(kw_only=True, slots=True, frozen=True, eq=False, repr=False)
class Answer:
    """A reply and its results. ``answer.detections`` merges what the links of detection tasks became, and so on.

    Args:
        text: the reply, routing tokens kept; of a reply that looked, what was said when it was told what was found.
        links: one entry for each routed root link that a decoder served, in reading order.
        unserved: root links whose task reads a picture, where none was given.
        pictures: the pictures asked about.
        prompt: the user's words.
        trace: how it was made.
    """

    text: str
    links: tuple[LinkResult, ...] = ()
    unserved: tuple[LinkMeta, ...] = ()
    pictures: tuple[Picture, ...] = ()
    prompt: str = ""
    trace: Trace = field(default_factory=Trace)

    def __getattr__(self, name: str) -> Any:
        # Reached for unknown attributes only. Private names are Python's own questions (copy, pickle, notebooks).
        if name.startswith("_") or name not in RESULT_TYPES:
            known = ", ".join(RESULT_TYPES)
            raise AttributeError(f"Answer has no {name!r}. Results: {known or 'none'}; all by task: results.")
        return self._merged(name, [link for link in self.links if TASKS[link.meta.task].result == name])

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *RESULT_TYPES})

    @property
    def results(self) -> dict[str, Any]:
        """Task name -> the merged result of its links, for the tasks that were routed to."""
        return {task: self._merged(TASKS[task].result, links) for task, links in self._by_task().items()}

    def on(self, picture: int) -> Answer:
        """The part of the answer that speaks of one picture of several."""
        if not 0 <= picture < len(self.pictures):
            raise PictureError(f"no picture {picture}; the answer speaks of {len(self.pictures)}, counted from 0")
        rows = [i for i, link in enumerate(self.links) if picture in link.meta.media]
        positions = tuple(self.trace.positions[i] for i in rows) if self.trace.positions else ()
        return Answer(
            text=self.text,
            links=tuple(self.links[i] for i in rows),
            unserved=self.unserved,
            pictures=(self.pictures[picture],),
            prompt=self.prompt,
            trace=replace(self.trace, positions=positions),
        )

    def statements(self) -> list[str]:
        """One line a phrase, such as ``bus: none found``; then what is missing."""
        lacking = [f"{meta.phrase}: {meta.task} needs a picture, and none was given" for meta in self.unserved]
        if self.trace.cut:
            lacking.append("the reply was cut off at its length limit; ask for fewer things, or raise max_new_tokens")
        return [line for link in self.links for line in link.result.statements()] + lacking

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        results = {task: [link.result.to_dict() for link in links] for task, links in self._by_task().items()}
        return {
            "prompt": self.prompt,
            "text": self.text,
            "pictures": [{"name": p.name, "width": p.size[0], "height": p.size[1]} for p in self.pictures],
            "results": results,
            "unserved": [{"task": meta.task, "phrase": meta.phrase} for meta in self.unserved],
        }

    def to_coco(self, **options: Any) -> list[dict[str, Any]]:
        """COCO result entries of every result that has them; options as of ``Detections.to_coco``."""
        results = [result for result in self.results.values() if hasattr(result, "to_coco")]
        return [entry for result in results for entry in result.to_coco(**options)]

    def draw(self, picture: int = 0) -> Image.Image:
        """One picture with everything found in it; pictures that were made stand beside it.

        Raises:
            PictureError: nothing was shown, found or made.
        """
        part = self.on(picture) if self.pictures or picture else self
        drawing = Image.fromarray(part.pictures[0].pixels) if part.pictures else None
        # What was found lies on the picture; what was made stands beside it, on a sheet that has another size.
        for result in sorted(part.results.values(), key=lambda result: bool(getattr(result, "made", False))):
            drawing = result.draw(drawing)
        if drawing is None:
            raise PictureError("there is no picture to draw on; the answer is its text")
        return drawing

    def save(self, path: str | Path) -> None:
        """Write the drawing of the first picture, or JSON, by the suffix of ``path``. Where all that came back is one
        picture that was made, that picture is written, with its recipe where the file is a PNG."""
        results = list(self.results.values())
        made = len(results) == 1 and getattr(results[0], "made", False) and len(results[0]) == 1
        if made and Path(path).suffix.lower() != ".json":
            results[0].save(path)
        else:
            save_as(path, values=self.to_dict, drawing=self.draw)

    @staticmethod
    def check_path(path: str | Path) -> None:
        """Before an answer is waited for: whether ``save`` knows the suffix.

        Raises:
            VisionLLMError: it does not.
        """
        check_suffix(Path(path), (".json", *PICTURE_SUFFIXES))

    def explain(self) -> str:
        """A table of links: which token of which phrase went to which decoder and what came out; then the times."""
        lines = [f"prompt  {self.prompt}", f"reply   {self.text}", ""]
        rows: list[tuple[str, ...]] = [("#", "at", "token", "phrase", "queries", "task", "decoder", "result")]
        rows += [self._row(i, link) for i, link in enumerate(self.links)]
        silent = "No routing token in the reply: the answer is its text."
        lines += _table(rows) if self.links else [] if self.unserved else [silent]
        lines += [f"{meta.token} {meta.phrase}: no picture to read" for meta in self.unserved]
        lines += ["", "cut     the reply reached its length limit (max_new_tokens)"] if self.trace.cut else []
        if self.trace.seconds:
            times = (f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in self.trace.seconds.items())
            lines += ["", f"time    {', '.join(times)}"]
        if self.trace.model:
            lines.append(f"model   {self.trace.model}")
        if self.trace.seed is not None:
            lines.append(f"seed    {self.trace.seed}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([self.text, *self.statements()])

    def __repr__(self) -> str:
        results = ", ".join(f"{task}: {result!r}" for task, result in self.results.items())
        return f"Answer({self.text!r}{', ' + results if results else ''})"

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{escape(self.prompt)}</b></p>", f"<p>{escape(self.text)}</p>"]
        for index in range(len(self.pictures)):
            parts += [r._repr_html_() for r in self.on(index).results.values() if hasattr(r, "_repr_html_")]
        return "".join(parts)

    def _by_task(self) -> dict[str, list[LinkResult]]:
        tasks = dict.fromkeys(link.meta.task for link in self.links)
        return {task: [link for link in self.links if link.meta.task == task] for task in tasks}

    def _merged(self, name: str, links: Sequence[LinkResult]) -> Any:
        return RESULT_TYPES[name].merge([link.result for link in links], self.pictures[0] if self.pictures else None)

    def _row(self, index: int, link: LinkResult) -> tuple[str, ...]:
        meta = link.meta
        queries = {token.text: token.queries for token in TASKS[meta.task].tokens}
        at = str(self.trace.positions[index]) if self.trace.positions else "-"
        found = "; ".join(link.result.statements())
        return (str(index), at, meta.token, meta.phrase, str(queries[meta.token]), meta.task, link.decoder, found)


def save_as(
    path: str | Path, *, values: Callable[[], dict[str, Any]], drawing: Callable[[], Image.Image] | None = None
) -> None:
    """Write JSON (``.json``) or a drawing (a picture suffix).

    Raises:
        VisionLLMError: another suffix, or a place that cannot be written.
    """
    path = Path(path)
    check_suffix(path, [".json", *(PICTURE_SUFFIXES if drawing else ())])
    draws = None if path.suffix.lower() == ".json" else drawing
    content = json.dumps(values(), indent=2, allow_nan=False) if draws is None else draws()
    try:
        if isinstance(content, str):
            path.write_text(content + "\n", encoding="utf-8")
        else:
            content.save(path)
    except OSError:
        raise VisionLLMError(f"{path}: cannot be written; check that the folder exists and is writable") from None


def check_suffix(path: Path, known: Sequence[str]) -> None:
    """Raises:
        VisionLLMError: the suffix is none of these.
    """
    suffix = path.suffix.lower()
    if suffix not in known:
        raise VisionLLMError(f"{path}: cannot save as {suffix or 'a file without suffix'!r}; use {', '.join(known)}")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
