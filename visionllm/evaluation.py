"""Scores on data the model has not seen, free-running: the question is worded, the reply is the model's own.

``known=True`` measures the known-task path instead, where the phrases are given and nothing is generated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from visionllm.core.answer import Answer
from visionllm.core.errors import ConfigError, DatasetError
from visionllm.core.regions import named_region
from visionllm.core.sample import Sample, Turn
from visionllm.core.task import TASKS
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.formats.inventing import invent, plain
from visionllm.datasets.plan import item_rng
from visionllm.decoders import Decoder
from visionllm.metrics import METRICS
from visionllm.metrics.routing import RoutingCounter
from visionllm.model import VisionLLM
from visionllm.routing.render import render_question

_WORDING, _STRANGERS = 11, 12  # streams of random numbers: that word the questions, that invent names


@dataclass(kw_only=True)
class Setting:
    """How an evaluation asks.

    Args:
        known: use the known-task path.
        batch_size: questions at a time.
        limit: first so many samples; None for all.
        seed: of the wordings.
        chunk: phrases in one question; None asks for all names of the data set at once.
        among: fill every question up to so many phrases with invented names; they are routed like any other, and only
            the boxes of the data set's own names are scored. None adds nothing.
        task: what is asked, where it is not the card's task.
        canonical: ask in the canonical wording instead of drawn ones.
        judges: further metrics of what was made, each with what it asks: ``{"shows": "embedded", "frechet":
            "facebook/dinov2-small"}``; a checkpoint of this project, or a network of transformers by name.
        options: per-call options of the decoders, such as ``{"objects": {"longest": 448}}``.
    """

    known: bool = False
    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    chunk: int | None = None
    among: int | None = None
    task: str | None = None
    canonical: bool = False
    judges: Mapping[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("limit", self.limit), ("chunk", self.chunk),
                            ("among", self.among)):  # fmt: skip
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")


def evaluate(
    model: VisionLLM,
    dataset: str | Path | Dataset,
    split: str = "val",
    *,
    data_root: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Ask about every sample of a split and score the answers.

    Args:
        dataset: an open data set, a name of the catalogue, or the path of a card.
        progress: called with (questions done, all).
        settings: see ``Setting``.

    Returns:
        ``routing`` (share of replies with the right tokens, phrases and order; kinds of failure), the task's metric,
        the numbers of pictures and questions, seconds, what was asked how, and ``annotations``, if any of them were
        dropped or clipped.

    Raises:
        ConfigError: the task is not loaded, or has no known-task path; a number of a setting is less than one.
        DatasetError: there is nothing to ask, or no truth to compare with.
    """
    how = Setting(**settings)
    data = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, split, data_root, task=how.task)
    asker = ASKERS[data.task]
    task = None if asker.task is None else TASKS[asker.task]
    lacking = data.tasks - {task.name for task in model.tasks}
    if lacking:
        raise ConfigError(f"{data.name}: task {min(lacking)!r} is not loaded in this model")
    if how.known and (task is None or task.told):
        raise ConfigError(f"{data.key}: there is no known-task path to plain words; leave --known out")
    name = asker.metric or (None if task is None else task.metric)
    total = len(data) if how.limit is None else min(how.limit, len(data))
    # The operating point a user meets is reported beside the usual ones.
    threshold = None if task is None else cast(Decoder, model.decoders[task.decoder]).operating_point(task.name)
    metric = None if name is None else METRICS[name](data.names, threshold=threshold)
    judged = {name: METRICS[name](data.names, judge=_judge(name, value)) for name, value in how.judges.items()}
    routing = RoutingCounter()
    started, done, asked, pictures = time.perf_counter(), 0, 0, 0
    for samples in _batches(data, total, how):
        questions = [_fill(sample, how) for sample in samples]
        answers = _ask(model, questions, how)
        for number, (sample, question, (answer, *further)) in enumerate(
            zip(samples, questions, answers, strict=True), asked
        ):
            turn = sample.turns[0]
            for turns, said in zip(_exchanges(question), (answer, *further), strict=False):
                # What a caption in the model's own words routes is not right or wrong by name.
                if not how.known and all(one.task is None or one.reply is None for one in turns):
                    routing.add(_routes(turns), said.trace.routed)
            scored = bool(sample.pictures) or (task is not None and not task.pictures)
            if (metric is not None or judged) and scored and (turn.target is not None or turn.reply is not None):
                for part, own, key in _by_picture(sample, turn, answer, number):
                    for one in filter(None, (metric, *judged.values())):
                        one.add(part, own, key=key)
                pictures += 1
        asked += sum(map(len, answers))
        done = samples[-1].source.index + 1
        if progress is not None:
            progress(min(done, total), total)
    if not asked:
        lacks = f"; the data set has no {' or '.join(sorted(asker.needs))}" if asker.needs else ""
        raise DatasetError(f"{data.key}: nothing to ask of {total} samples{lacks}")
    report: dict[str, Any] = {
        "dataset": data.key, "task": data.task, "path": "known task" if how.known else "free-running",
        "samples": total, "questions": asked, "model": model.fingerprint,
        "seconds": round(time.perf_counter() - started, 1), "seed": how.seed,
    }  # fmt: skip
    if data.report():
        report["annotations"] = data.report()
    if not how.known:
        report["routing"] = routing.compute()
    if name is not None and metric is not None and pictures:
        report[name] = metric.compute()
    report |= {name: one.compute() for name, one in judged.items()}
    return report


def _judge(metric: str, value: str) -> Any:
    """What a metric asks: itself a network by name, or a detector of ours.

    Raises:
        ConfigError: there is no such metric, or it asks nobody.
    """
    kind = getattr(METRICS[metric], "judged_by", None)
    if kind is None:
        known = ", ".join(name for name in METRICS if hasattr(METRICS[name], "judged_by"))
        raise ConfigError(f"judges: {metric} asks nobody; one of {known} does")
    if kind != "detector":
        return value
    other = VisionLLM.from_pretrained(None if value == "embedded" else value)
    task = next((task.name for task in other.tasks if task.result == "masks"), None)
    if task is None:
        raise ConfigError(f"judges.{metric}: {value} finds no masks")
    return lambda picture, names: other.known(task, [picture], names).results[task]


def _by_picture(sample: Sample, turn: Turn, answer: Answer, question: int) -> Iterator[tuple[Turn, Answer, Any]]:
    """The parts of a question and its answer that are about one picture each, with a key of their own.

    A phrase that compares with a region means something else in the next ``question``: there the key is new each time.
    """
    index = sample.source.index
    if len(sample.pictures) <= 1 or not turn.phrases:
        yield turn, answer, index
        return
    for number in range(len(sample.pictures)):
        rows = [i for i, phrase in enumerate(turn.phrases) if sample.picture_of(phrase) == number]
        if rows:
            phrases = tuple(turn.phrases[i] for i in rows)
            key = (index, number, question) if turn.regions else (index, number)
            yield replace(turn, phrases=phrases, target=turn.target.of(rows)), answer.on(number), key


def _routes(asked: Sequence[Turn]) -> list[tuple[str, str]]:
    """(token, phrase) of all that the reply to what is asked in one breath must route."""
    found: list[tuple[str, str]] = []
    for turn in asked:
        task = None if turn.task is None else TASKS[turn.task]
        for number, phrase in enumerate(turn.phrases if task is not None else ()):
            assert task is not None
            found.append((task.tokens[0].text, phrase))
            if task.parts_token is not None and turn.parts:
                found += [(task.parts_token.text, part) for part in turn.parts[number]]
    return found


def _exchanges(sample: Sample) -> list[list[Turn]]:
    """The turns of each question."""
    return [[turn for _, turn in exchange] for exchange in sample.exchanges()]


def _batches(data: Dataset, total: int, how: Setting) -> Iterator[list[Sample]]:
    waiting: list[Sample] = []
    for index in range(total):
        waiting += data.ask_all(index, chunk=how.chunk)
        while len(waiting) >= how.batch_size:
            yield waiting[: how.batch_size]
            waiting = waiting[how.batch_size :]
    if waiting:
        yield waiting


def _fill(sample: Sample, how: Setting) -> Sample:
    """The sample with invented names behind its own; its target keeps counting the first ones."""
    turn, *others = sample.turns
    rng = item_rng(how.seed, sample.source.index, _STRANGERS)
    phrases = list(turn.phrases)
    taken = {plain(phrase) for phrase in phrases}
    while turn.task is not None and len(phrases) < (how.among or 0):
        name = invent(rng)
        if plain(name) not in taken:
            taken.add(plain(name))
            phrases.append(name)
    parts = turn.parts and (*turn.parts, *[turn.parts[0]] * (len(phrases) - len(turn.parts)))
    return sample.with_turns(replace(turn, phrases=tuple(phrases), parts=parts), *others)


def _known(model: VisionLLM, sample: Sample, options: Mapping[str, Any]) -> Answer:
    turn = sample.turns[0]
    own = [phrase for phrase in turn.phrases if named_region(phrase, turn.regions) is None]
    if turn.regions and own:
        raise ConfigError(f"there is no known-task path to {own[0]!r}, which compares with a region; leave --known out")
    phrases = dict(zip(own, turn.parts, strict=True)) if turn.parts else own
    return model.known(turn.task or "", list(sample.pictures), phrases, regions=turn.regions, options=options)


def _ask(model: VisionLLM, samples: Sequence[Sample], how: Setting) -> list[list[Answer]]:
    """Answers to the questions of each sample: those of a conversation one after the other, each behind the model's
    own replies to those before it."""
    # The whole curve is measured: a decoder that drops results below a threshold is asked not to.
    options = {
        name: {
            **({"threshold": 0.0} if "threshold" in type(decoder).Options.model_fields else {}),
            **how.options.get(name, {}),
        }
        for name, decoder in model.decoders.items()
    }
    if how.known:
        return [[_known(model, sample, options)] for sample in samples]
    asked = []
    for sample in samples:
        rng = None if how.canonical else item_rng(how.seed, sample.source.index, _WORDING)
        asked.append([
            (render_question(*turns, rng=rng), [region for turn in turns for region in turn.regions])
            for turns in _exchanges(sample)
        ])  # fmt: skip
    answers: dict[int, list[Answer]] = {}
    for number, (sample, questions) in enumerate(zip(samples, asked, strict=True)):
        if len(questions) > 1:
            chat = model.chat(list(sample.pictures), options=options)
            answers[number] = [chat.ask(words, regions=regions) for words, regions in questions]
    alone = [number for number in range(len(samples)) if number not in answers]
    requests = [(list(samples[number].pictures), *asked[number][0]) for number in alone]
    for number, answer in zip(alone, model.ask_many(requests, options=options) if requests else (), strict=True):
        answers[number] = [answer]
    return [answers[number] for number in range(len(samples))]
