"""From questions to answers: the reply is written, its routing tokens are read out, and decoders make results of them.

``Answering`` is what a model can do once it is built; ``visionllm.model`` builds, trains and stores it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionllm.core.answer import Answer, LinkResult, Trace
from visionllm.core.batch import Batch, on_pictures
from visionllm.core.config import validate
from visionllm.core.errors import Cancelled, CheckpointError, PromptError, unknown_name
from visionllm.core.images import Images, Recipe, fingerprint_of
from visionllm.core.regions import PLACEHOLDER, Region, check_regions
from visionllm.core.sample import Sample, Turn
from visionllm.core.superlink import LinkMeta, SuperLinks
from visionllm.core.task import TASKS, Task
from visionllm.decoders import Context, Decoder
from visionllm.mllm.internvl import InternVL
from visionllm.mllm.regions import RegionEncoder
from visionllm.processor import Processor
from visionllm.requests import Pictures, parted, request_of, requests_of, sample_of, turn_of, worded
from visionllm.routing.capitals import typed
from visionllm.routing.findings import tell
from visionllm.routing.generate import Step, generate, restrict
from visionllm.routing.queries import LinkQueries
from visionllm.routing.quoting import Quoting
from visionllm.routing.readout import Text, find_links, read_out, run_text
from visionllm.routing.render import Style, render_question
from visionllm.routing.vocabulary import Vocabulary


@dataclass(kw_only=True, slots=True, frozen=True)
class Progress:
    """One event of a streamed answer: text just written, or the finished answer of one request.

    Args:
        request: index of the request in its batch.
        text: characters written since the last event, those of a reply that looks before it answers too; empty on the
            last.
        answer: set once, when the request is done.
    """

    request: int
    text: str = ""
    answer: Answer | None = None


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Seen:
    """What the language model sees of a batch.

    Args:
        tiles: (tiles, tokens, D) features, or None.
        slots: (S, D) the same in one row, and the embeddings of regions behind them, or None.
        all: (..., D) the slots in reading order, or None.
    """

    tiles: Tensor | None = None
    slots: Tensor | None = None
    all: Tensor | None = None


class Answering(nn.Module):
    """Questions to answers, for a model that brings the parts named here."""

    config: Any  # VisionLLMConfig
    mllm: InternVL
    region_encoder: RegionEncoder | None
    link_queries: LinkQueries
    decoders: nn.ModuleDict
    tasks: tuple[Task, ...]
    vocabulary: Vocabulary
    processor: Processor
    fingerprint: Any  # str; the model's is a property

    def ask(self, pictures: Pictures, prompt: str, *, regions: Sequence[Region] = (), stream: bool = False,
            **settings: Any) -> Any:  # fmt: skip
        """Answer one prompt about a picture, several pictures, or none.

        Args:
            pictures: path, bytes, PIL picture, array, or a sequence of these.
            prompt: the user's words; nothing in them can steer.
            regions: what each ``<region>`` of the prompt means, such as ``Box(10, 20, 50, 80)``.
            stream: return an iterator of ``Progress`` in place of the ``Answer``; stop iterating to cancel.
            settings: see ``ask_many``.
        """
        return self._ask(request_of(pictures, prompt, regions), stream, settings)

    def chat(self, pictures: Pictures = None, **settings: Any) -> Chat:
        """A conversation about one picture, several, or none: ``chat.ask("detect all cars")``, and so on.

        Args:
            settings: of every question; see ``ask_many``.
        """
        return Chat(self, sample_of(pictures), settings)

    def ask_many(
        self, requests: Iterable[tuple[Pictures, str] | tuple[Pictures, str, Sequence[Region]]], *,
        stream: bool = False, **settings: Any,
    ) -> Any:  # fmt: skip
        """Answer many prompts about pictures of any sizes in one batch; each answer is what ``ask`` alone would give.

        Args:
            requests: (pictures, prompt) pairs, or (pictures, prompt, regions).
            stream: as in ``ask``.
            allow: names of the tasks that may route in this call; None for all that are loaded.
            options: decoder name -> its per-call options.
            max_new_tokens: length limit of a reply.
            quote: whether phrases that a reply lists are written from the prompt's words (``routing.quoting``); None as
                the model was built.
            progress: called with (tokens written, limit) after every token; returning False cancels the call.
        """
        samples = requests_of(requests)
        events = self._answer(samples, **settings)
        return events if stream else _answers(events, len(samples))

    def known(self, task: str, pictures: Pictures, phrases: Sequence[str] | Mapping[str, Sequence[str]] = (), *,
              regions: Sequence[Region] = (), verify: bool = False, options: Mapping[str, Any] | None = None,
              chunk: int = 128) -> Answer:  # fmt: skip
        """Answer a question whose task and phrases are known: the reply is rendered, no token is generated.

        Every phrase branches off the shared prefix, so what else is asked does not change its link, and long lists go
        through in chunks. The verbs (``model.detect``) call this.

        Args:
            phrases: what to look for; of a task with parts (keypoints), each phrase with the names of its parts.
            regions: things pointed at, looked for behind the phrases, as "region 1", "region 2", ...
            verify: write the reply in one line instead and check that the model would have written each token itself;
                if not, the model's own reply is generated. The answer is then exactly that of the canonical prompt.
            chunk: phrases in one pass.
        """
        turn = turn_of(TASKS[task], phrases, regions)
        sample = sample_of(pictures)
        if len(sample.pictures) < TASKS[task].pictures:
            raise PromptError("pictures: expected at least one to look at")
        if regions:
            # Those of a question stand where all branches see them; a line holds the phrases too.
            own = turn.phrases[: len(turn.phrases) - len(regions)] if verify else ()
            shown = replace(turn, phrases=(*own, *[PLACEHOLDER] * len(regions)), regions=())
            turn = replace(turn, question=render_question(shown))
            check_regions(regions, [picture.size for picture in sample.pictures], turn.question or "")
        if verify:
            return self._verified(turn, sample, options)
        started = time.perf_counter()
        links: list[LinkResult] = []
        for part in parted(turn, chunk):
            batch = self._encode([sample.with_turns(part)], [Style(tree=True)], reply=True)
            with self._using():
                links += self._decode(self.links(batch), batch, options)[0]
        trace = Trace(seconds={"total": time.perf_counter() - started}, model=self.fingerprint)
        text = ", ".join(f"<ref>{link.meta.phrase}</ref>{link.meta.token}" for link in links)
        return Answer(text=text, links=tuple(links), pictures=sample.pictures, prompt="", trace=trace)

    def replay(self, made: Recipe | str | Path, pictures: Pictures = None) -> Images:
        """A picture that was made before, made again.

        Args:
            made: its recipe, or the PNG file it was saved to.
            pictures: those that were asked about, if there were any.

        Raises:
            CheckpointError: other weights made it, or the same under other settings.
            PromptError: it was made in a conversation, of other pictures, or this model no longer makes it of the
                prompt.
        """
        recipe = made if isinstance(made, Recipe) else Recipe.read(made)
        if recipe.model != self.fingerprint:
            raise CheckpointError(f"the picture was made by the model {recipe.model}, this is {self.fingerprint} (a "
                                  "fingerprint of weights and settings)")  # fmt: skip
        given = tuple(fingerprint_of(picture) for picture in sample_of(pictures).pictures)
        if recipe.asked_about is not None and given != recipe.asked_about:
            wanted = recipe.source or f"the {len(recipe.asked_about)} that were asked about, in their order"
            raise PromptError(f"the recipe is of other pictures than the {len(given)} given; give {wanted}")
        if recipe.turn:
            raise PromptError("the picture was made in a conversation; ask the same again")
        if recipe.prompt is None:
            alone = {"seed": recipe.seed, "count": 1}
            again = {name: alone.get(name, value) for name, value in recipe.options.items()}
            answer = self.known(recipe.task, pictures, [recipe.phrase], options={recipe.decoder: again})
            return answer.results[recipe.task][0]
        answer = self.ask(pictures, recipe.prompt, options={recipe.decoder: recipe.options})
        result = answer.results.get(recipe.task, ())
        if len(result) <= recipe.place:
            raise PromptError(f"{recipe.prompt!r} gave {len(result)} pictures, the recipe is of one more; "
                              "are these the pictures that were asked about?")  # fmt: skip
        return result[recipe.place]

    def links(self, batch: Batch) -> SuperLinks:
        """Super links of an encoded batch, without decoding them."""
        text = Text.of(batch)
        cache = run_text(self.mllm, text, self._see(batch).all).cache
        return read_out(self.mllm, self.link_queries, text, batch.links, cache)

    def _see(self, batch: Batch) -> Seen:
        """Pictures and regions of a batch."""
        if batch.tiles is None:
            return Seen()
        if batch.marks is None:
            tiles = self.mllm.vision(batch.tiles)
            slots = tiles.flatten(0, 1)
            return Seen(tiles=tiles, slots=slots, all=slots[batch.order])
        assert self.region_encoder is not None, "a batch with regions reached a model that takes none"
        marks = batch.marks
        tiles, layers = self.mllm.vision_layers(batch.tiles, self.region_encoder.layers)
        own = [states[marks.tile] for states in layers]
        regions = self.region_encoder(own, batch.tiles[marks.tile], marks.masks, marks.boxes)
        slots = torch.cat([tiles.flatten(0, 1), regions.to(tiles.dtype)])
        return Seen(tiles=tiles, slots=slots, all=slots[batch.order])

    # -- inside ----------------------------------------------------------------------------------------------------

    def _ask(self, sample: Sample, stream: bool, settings: Mapping[str, Any]) -> Any:
        events = self._answer([sample], **settings)
        return events if stream else _answers(events, 1)[0]

    def _decoders(self) -> list[tuple[str, Decoder]]:
        return [(name, module) for name, module in self.decoders.items() if isinstance(module, Decoder)]

    def _encode(self, samples: Sequence[Sample], styles: Sequence[Style] | None, *, reply: bool) -> Batch:
        return self.processor.encode(samples, styles, reply=reply).to(self.mllm.net.device, self.mllm.net.dtype)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Evaluation mode and no gradients, whatever the caller was doing."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def _allowed(self, allow: Sequence[str] | None) -> tuple[Task, ...]:
        if allow is None:
            return self.tasks
        if isinstance(allow, str):
            raise PromptError(f"allow: expected a list such as [{allow!r}], got one string")
        loaded = {task.name: task for task in self.tasks}
        for name in allow:
            if name not in loaded:
                raise unknown_name("loaded task", name, loaded)
        return tuple(loaded[name] for name in allow)

    def _banned(self, tasks: Sequence[Task]) -> list[int]:
        """Ids a reply must not hold: those that steer, and the rows of a padded vocabulary, which have no text."""
        return [*self.vocabulary.banned(tasks), *range(len(self.vocabulary), self.mllm.vocabulary_size)]

    # As a decorator it lets go of the caller's thread at every yield; as a block it would not.
    @torch.no_grad()
    def _answer(self, samples: Sequence[Sample], *, allow: Sequence[str] | None = None,
                options: Mapping[str, Any] | None = None, max_new_tokens: int | None = None, quote: bool | None = None,
                progress: Callable[[int, int], bool | None] | None = None) -> Iterator[Progress]:  # fmt: skip
        if not samples:
            return
        banned = self._banned(self._allowed(allow))
        self._check_options(options)
        times = {"encode": time.perf_counter()}
        batch = self._encode(samples, None, reply=False)
        start = batch.input_ids.shape[1]
        longest = self.config.max_new_tokens if max_new_tokens is None else max_new_tokens
        free = self.mllm.context_length - (batch.owner >= 0).sum(1)
        limits = free.clamp(max=longest).tolist()
        if longest < 1:
            raise PromptError(f"max_new_tokens: expected at least 1, got {longest}")
        if min(limits) < 1:
            raise PromptError(f"the prompt fills the context of {self.mllm.context_length} positions")
        times["write"] = time.perf_counter()
        with self._using():
            seen = self._see(batch).all
            text = Text.of(batch)
            steps = generate(self.mllm, text, seen, end=self.vocabulary.end, banned=banned, limits=limits,
                             quoting=self._quoting(text, start, quote))  # fmt: skip
            shown = [""] * len(samples)
            step: Step | None = None
            for count, step in enumerate(steps, 1):
                if progress is not None and progress(count, max(limits)) is False:
                    raise Cancelled(f"cancelled after {count} tokens")
                for i in range(len(samples)):
                    whole = self._reply(step.text, i, start)
                    # A character of several byte tokens is shown when it is whole.
                    if whole.startswith(shown[i]) and len(whole) > len(shown[i]) and not whole.endswith("\ufffd"):
                        yield Progress(request=i, text=whole[len(shown[i]) :])
                        shown[i] = whole
            assert step is not None
            times["read out"] = time.perf_counter()
            layout = find_links(step.text, start, self.vocabulary)
            meta = on_pictures(layout.meta, samples)
            layout = replace(layout, meta=typed(meta, samples) if self.config.lower_capitals else meta)
            found: list[list[LinkResult]] = [[] for _ in samples]
            if len(layout):
                links = read_out(self.mllm, self.link_queries, step.text, layout, step.cache)
                times["decode"] = time.perf_counter()
                found = self._decode(links, replace(batch, links=layout), options)
            times["end"] = time.perf_counter()
        seconds = _durations(times)
        looked: dict[int, tuple[Sample, Answer]] = {}
        for i, sample in enumerate(samples):
            own = [k for k, row in enumerate(layout.row) if row == i]
            served = {id(link.meta) for link in found[i]}
            roots = [k for k in own if self._is_root(layout.meta[k])]
            lacking = tuple(layout.meta[k] for k in roots if id(layout.meta[k]) not in served)
            written = zip(step.text.ids[i, start:].tolist(), step.text.owner[i, start:].tolist(), strict=True)
            ids = tuple(token for token, owner in written if owner >= 0)
            trace = Trace(
                token_ids=tuple(token for token in ids if token != self.vocabulary.end),
                cut=self.vocabulary.end not in ids,
                positions=tuple(layout.column[k] - start for k in roots if id(layout.meta[k]) in served),
                routed=tuple((layout.meta[k].token, layout.meta[k].phrase) for k in own), seconds=seconds,
                model=self.fingerprint,
            )  # fmt: skip
            whole = self._reply(step.text, i, start)
            if len(whole) > len(shown[i]):  # the limit fell inside a character
                yield Progress(request=i, text=whole[len(shown[i]) :])
            answer = Answer(text=whole, links=tuple(found[i]), unserved=lacking, pictures=sample.pictures,
                            prompt=sample.turns[-1].question or "", trace=trace)  # fmt: skip
            if any(TASKS[link.meta.task].told for link in answer.links):
                looked[i] = self._told(sample, answer), answer
            else:
                yield Progress(request=i, answer=answer)
        if looked:
            requests = list(looked)
            # What is said of findings is words: a reply that looked again would never end.
            for event in self._answer([sample for sample, _ in looked.values()], allow=(), options=options,
                                      max_new_tokens=max_new_tokens, quote=quote, progress=progress):  # fmt: skip
                request = requests[event.request]
                said = event.answer and _after(looked[request][1], event.answer)
                yield replace(event, request=request, answer=said)

    def _quoting(self, text: Text, start: int, quote: bool | None) -> list[Quoting]:
        """What may follow in each row, whose prompt ends at column ``start``."""
        if not (self.config.quote if quote is None else quote):
            return []
        rows = zip(text.ids[:, :start].tolist(), text.owner[:, :start].tolist(), strict=True)
        return [
            Quoting(self.vocabulary, [token for token, owner in zip(*row, strict=True) if owner >= 0]) for row in rows
        ]

    def _gone_on(self, past: Sample, answer: Answer, regions: tuple[Region, ...]) -> Sample:
        """The conversation with one answer more, and with what was found for it where the model looked."""
        # What the model wrote goes back as the ids it wrote: read as text, a typed "[DET]" in it could steer.
        said = answer.trace.token_ids
        if not answer.trace.looked:
            return past.with_turns(*past.turns, Turn(question=answer.prompt, said=said, regions=regions))
        looking = replace(answer, trace=replace(answer.trace, token_ids=answer.trace.looked))
        asked = past.with_turns(*past.turns, Turn(question=answer.prompt, regions=regions))
        *before, findings = self._told(asked, looking).turns
        return past.with_turns(*before, replace(findings, said=said))

    def _told(self, sample: Sample, answer: Answer) -> Sample:
        """The conversation with a reply that looked, and what was found."""
        found = [link for link in answer.links if TASKS[link.meta.task].told]
        text, regions = tell([self._sure(link) for link in found], [link.meta.media[0] for link in found],
                             [picture.size for picture in sample.pictures], regions=self.processor.regions)  # fmt: skip
        *before, asked = sample.turns
        return sample.with_turns(*before, replace(asked, said=answer.trace.token_ids),
                                 Turn(question=text, regions=regions, told=True))  # fmt: skip

    def _sure(self, link: LinkResult) -> np.ndarray:
        """(N, 4) boxes of a link that reach its decoder's operating point, the best first."""
        scores = link.result.scores
        order = np.argsort(-scores, kind="stable")
        least = dict(self._decoders())[link.decoder].operating_point(link.meta.task) or 0.0
        return link.result.boxes_xyxy[order[scores[order] >= least]]

    def _reply(self, text: Text, row: int, start: int) -> str:
        ids = [
            t for t, o in zip(text.ids[row, start:].tolist(), text.owner[row, start:].tolist(), strict=True) if o >= 0
        ]
        return self.vocabulary.text([t for t in ids if t != self.vocabulary.end])

    def _decode(self, links: SuperLinks, batch: Batch, options: Mapping[str, Any] | None) -> list[list[LinkResult]]:
        """Every link to its decoder; results of each sample in reading order. Links that lack a picture give none."""
        found: dict[int, LinkResult] = {}
        ctx = Context(batch=batch, model=self.fingerprint)
        chosen = self._check_options(options)
        for name, decoder in self._decoders():
            tasks = {task.name for task in decoder.tasks}
            served = [
                i for i, meta in enumerate(links.meta)
                if meta.task in tasks and (meta.parent >= 0 or self._is_root(meta))
                and len(batch.samples[meta.sample].pictures) >= TASKS[meta.task].pictures
            ]  # fmt: skip
            roots = [i for i in served if self._is_root(links.meta[i])]
            if roots:
                results = decoder.predict(links.select(served), ctx, chosen[name])
                assert len(results) == len(roots), (
                    f"decoder {name!r} gave {len(results)} results for {len(roots)} links"
                )
                found |= {
                    i: LinkResult(meta=links.meta[i], decoder=name, result=result)
                    for i, result in zip(roots, results, strict=True)
                }
        # Parts are in the result of the link that owns them; a part that nobody owns is in the trace alone.
        per_sample: list[list[LinkResult]] = [[] for _ in batch.samples]
        for i in sorted(found):
            per_sample[links.meta[i].sample].append(found[i])
        return per_sample

    def _is_root(self, meta: LinkMeta) -> bool:
        return self.vocabulary.tokens[meta.token][1].parent is None

    def _check_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        options = dict(options or {})
        for name in options:
            if name not in self.decoders:
                raise unknown_name("decoder", name, list(self.decoders))
        return {
            name: validate(type(decoder).Options, options.get(name, {}), source=f"options.{name}")
            for name, decoder in self._decoders()
        }

    def _verified(self, turn: Turn, sample: Sample, options: Mapping[str, Any] | None) -> Answer:
        sample = sample.with_turns(turn)
        started = time.perf_counter()
        batch = self._encode([sample], None, reply=True)
        with self._using():
            text = Text.of(batch)
            out = run_text(self.mllm, text, self._see(batch).all)
            logits = self.mllm.logits(out.hidden_BTD[:, :-1])
            logits[..., self._banned(self.tasks)] = float("-inf")
            wanted = batch.labels[0, 1:] != -100
            reply = batch.labels[0, 1:][wanted].tolist()
            start = int(wanted.nonzero()[0]) + 1
            for rule in self._quoting(text, start, None):
                for column, token in enumerate(reply, start - 1):
                    restrict(logits[0, column], rule)
                    rule.wrote(token)
            agrees = logits[0].argmax(-1)[wanted].tolist() == reply
            if agrees:
                links = read_out(self.mllm, self.link_queries, text, batch.links, out.cache)
                found = self._decode(links, batch, options)[0]
        question = render_question(turn)
        if not agrees:
            # The model's own reply is about as long as the rendered one: a long list does not fit in what is usual.
            longest = max(self.config.max_new_tokens, 2 * len(reply))
            return self.ask(list(sample.pictures), question, regions=turn.regions, options=options,
                            max_new_tokens=longest)  # fmt: skip
        reply = [token for token in reply if token != self.vocabulary.end]
        trace = Trace(token_ids=tuple(reply), seconds={"total": time.perf_counter() - started}, model=self.fingerprint)
        return Answer(text=self.vocabulary.text(reply), links=tuple(found), pictures=sample.pictures, prompt=question,
                      trace=trace)  # fmt: skip


class Chat:
    """A conversation: each question is read after all that was asked and answered before it, and may route anywhere.

    ``answers`` holds what came back so far.
    """

    def __init__(self, model: Answering, sample: Sample, settings: Mapping[str, Any]) -> None:
        self.answers: list[Answer] = []
        self._model, self._sample, self._settings = model, sample, dict(settings)
        self._past = sample.with_turns()

    def ask(self, prompt: str, *, regions: Sequence[Region] = (), stream: bool = False, **settings: Any) -> Any:
        """Answer the next prompt.

        Args:
            regions: of this prompt; the conversation counts on from those before.
            stream: as in ``Answering.ask``; an answer that is not waited for is not part of the conversation.
            settings: over those of the conversation.

        Raises:
            PromptError: the prompt is empty, or the conversation no longer fits the context.
        """
        asked = worded(self._sample, prompt, regions)
        sample = asked.with_turns(*self._past.turns, *asked.turns)
        events = self._heard(self._model._ask(sample, True, {**self._settings, **settings}), tuple(regions))
        return events if stream else _answers(events, 1)[0]

    def _heard(self, events: Iterator[Progress], regions: tuple[Region, ...]) -> Iterator[Progress]:
        for event in events:
            if event.answer is not None:
                self.answers.append(event.answer)
                self._past = self._model._gone_on(self._past, event.answer, regions)
            yield event


def _answers(events: Iterator[Progress], count: int) -> list[Answer]:
    found: dict[int, Answer] = {event.request: event.answer for event in events if event.answer is not None}
    return [found[i] for i in range(count)]


def _after(looked: Answer, said: Answer) -> Answer:
    """One answer of a reply that looked and of what was said then."""
    seconds = {stage: looked.trace.seconds.get(stage, 0.0) + own for stage, own in said.trace.seconds.items()}
    trace = replace(said.trace, positions=looked.trace.positions, routed=looked.trace.routed, seconds=seconds,
                    looked=looked.trace.token_ids, cut=looked.trace.cut or said.trace.cut)  # fmt: skip
    return replace(said, links=looked.links, prompt=looked.prompt, trace=trace)


def _durations(times: dict[str, float]) -> dict[str, float]:
    return {a: times[b] - times[a] for a, b in pairwise(times)}
