"""A task: all that is true of one kind of answer, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visionllm.core.registry import Registry


@dataclass(kw_only=True, slots=True, frozen=True)
class Token:
    """A routing token and how many link queries are read out behind it.

    Args:
        text: the token as it stands in a reply, such as ``[DET]``.
        queries: number of link queries.
        parent: text of the token whose links own this token's links (pose: a keypoint belongs to an object).
        like: text of the token whose weights this one starts from when it joins a trained model that has that token.
        echo: the queries read the phrase once more: to each the embedding of a piece is added, from the mark that opens
            the phrase on, as if the model wrote it again. So a query is about to say the piece of its number, which a
            model that copies phrases can do before it has seen one query; without, each would have to learn to count
            back from the phrase's end. What is read again is also read with all of itself in view (Springer et al.
            2024, "Repetition Improves Language Model Embeddings"). For tokens with as many queries as their phrases
            have pieces.
    """

    text: str
    queries: int
    parent: str | None = None
    like: str | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        if not self.text or self.text.split() != [self.text]:
            raise ValueError(f"Token: text: expected one word such as [DET], got {self.text!r}")
        if self.queries < 1:
            raise ValueError(f"Token {self.text}: queries: expected at least 1, got {self.queries}")


@dataclass(kw_only=True, slots=True, frozen=True)
class Task:
    """One kind of answer. Nobody outside compares its name; everything asks its fields.

    Args:
        name: registered name, also the name of its template resource.
        tokens: routing tokens; the first is the root.
        decoder: registered name of the decoder that serves it.
        result: attribute of ``Answer`` its results are found under (``detections``).
        verb: method of ``VisionLLM`` for the known-task path (``detect``), or None.
        templates: package resource with the wordings, ``package:file``.
        metric: registered name of the metric ``tools/eval.py`` reports.
        loss_weights: default weight of each loss the decoder names.
        told: what is found is told to the language model, which only then says its answer. Its results have
            ``boxes_xyxy`` and ``scores``.
        pictures: least number of pictures that it is about; 0 for what is made from words alone.
        says: what a phrase of it says: the ``things`` that are meant, the ``picture`` that is to be made, the
            ``change`` of one, or the ``whole`` picture itself. A change keeps its verb; none of the others has an
            article in front.
    """

    name: str
    tokens: tuple[Token, ...]
    decoder: str
    result: str
    verb: str | None
    templates: str
    metric: str
    loss_weights: dict[str, float]
    told: bool = False
    pictures: int = 1
    says: Literal["things", "picture", "change", "whole"] = "things"

    @property
    def parts_token(self) -> Token | None:
        """The token of what a root link owns (keypoints), or None."""
        return next((token for token in self.tokens if token.parent is not None), None)


PLUGINS = "visionllm.decoders"  # entry point group of plugins, and the package of our own decoders
TASKS: Registry[Task] = Registry("task", group=PLUGINS, builtin=PLUGINS)


def register_task(task: Task) -> Task:
    """Make a task known under its name.

    Raises:
        ValueError: another task has its name, or one of its tokens; its first token is no root, or the parent of
            another is none.
    """
    roots = [token.text for token in task.tokens if token.parent is None]
    if not roots or roots[0] != task.tokens[0].text:
        raise ValueError(f"task {task.name!r}: tokens: the first is the root, so it is there and has no parent")
    for token in task.tokens:
        if token.parent is not None and token.parent not in roots:
            raise ValueError(f"task {task.name!r}: {token.text}: no token {token.parent} of this task is a root")
    own = {token.text for token in task.tokens}
    for other in TASKS.held().values():
        shared = own & {token.text for token in other.tokens} if other.name != task.name else set()
        if shared:
            raise ValueError(f"token {min(shared)} of task {task.name!r} is that of task {other.name!r}")
    return TASKS.add(task.name, task)
