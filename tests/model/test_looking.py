"""Answers that are said after a look: what is found is told, and the reply to that is the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.errors import ConfigError
from visionllm.core.regions import PLACEHOLDER, Box
from visionllm.core.sample import Sample, Turn
from visionllm.evaluation import evaluate
from visionllm.routing.findings import told
from visionllm.routing.readout import Text, run_text
from visionllm.routing.render import Style

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def looking(make_model: Make) -> Any:
    return make_model(looks=True, regions={"layers": [1, -1], "channels": 16}, threshold=0.02)


def look_ids(model: Any, phrases: tuple[str, ...]) -> list[int]:
    batch = model.processor.encode([Sample(turns=(Turn(task="looking", phrases=phrases),))])
    return [token for token in batch.labels[0].tolist() if token != -100]


def test_a_task_of_its_own(model: Any, looking: Any) -> None:
    assert "[FIND]" in looking.vocabulary.tokens
    assert "[FIND]" not in model.vocabulary.tokens


def test_what_was_found_is_told(looking: Any, dictate: Make, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second prompt holds question, look and findings; the answer has its words and the boxes."""
    seen: list[Sample] = []
    script = [*look_ids(looking, ("cars", "dog")), *looking.vocabulary.plain("yes")]
    encode = looking.processor.encode
    monkeypatch.setattr(looking.processor, "encode", lambda s, *a, **k: (seen.extend(s), encode(s, *a, **k))[1])
    dictate(looking, script)
    answer = looking.ask(picture(90, 60), "more cars than dogs?")
    assert answer.text == "yes"
    assert answer.prompt == "more cars than dogs?"
    assert [link.meta.phrase for link in answer.links] == ["cars", "dog"]
    assert answer.trace.routed == (("[FIND]", "cars"), ("[FIND]", "dog"))
    assert [answer.trace.looked[p] for p in answer.trace.positions] == [looking.vocabulary.control("[FIND]")] * 2
    assert looking.vocabulary.text(list(answer.trace.token_ids)) == "yes"
    assert len(seen) == 2
    asked, findings = seen[1].turns
    assert asked.question == "more cars than dogs?"
    assert asked.said == answer.trace.looked
    counts = [part.split()[0] for part in findings.question.split(";")]
    labels = answer.detections.labels.tolist()
    assert counts == [str(labels.count(0)), str(labels.count(1))]
    assert len(labels) > 0
    assert findings.regions
    assert answer.explain()


def test_what_is_asked_to_be_left_in_is_not_told(looking: Any, dictate: Make, picture: Make,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A call may want boxes of any score; what is told are those of the operating point."""
    seen: list[Sample] = []
    script = look_ids(looking, ("cars",))
    encode = looking.processor.encode
    monkeypatch.setattr(looking.processor, "encode", lambda s, *a, **k: (seen.extend(s), encode(s, *a, **k))[1])
    sure = None
    for threshold in (None, 0.0):
        dictate(looking, script)
        answer = looking.ask(picture(90, 60), "how many cars?", options={"objects": {"threshold": threshold}})
        if threshold is None:
            sure = len(answer.detections)
        else:
            assert len(answer.detections) > sure
        assert seen[-1].turns[-1].question.split()[0] == str(sure)


def test_some_look_and_some_do_not(looking: Any, dictate: Make, picture: Make) -> None:
    """In one batch, in the order asked, each with its own pictures; without a picture there is nothing to look at."""
    end, words = looking.vocabulary.end, looking.vocabulary.plain
    look = look_ids(looking, ("cars",))
    plain = words("hello")
    later = [*look, *words("3")]
    dictate(looking, later, [*plain, end], look)
    first, second = picture(90, 60), picture(60, 90, seed=3)
    answers = looking.ask_many([(first, "how many cars?"), (second, "hi"), (None, "how many cars?")])
    assert [answer.text for answer in answers] == ["3", "hello", "<ref>cars</ref>[FIND]"]
    assert [len(answer.links) for answer in answers] == [1, 0, 0]
    assert answers[0].pictures[0].size == (90, 60)


def test_streamed(looking: Any, dictate: Make, picture: Make) -> None:
    dictate(looking, [*look_ids(looking, ("cars",)), *looking.vocabulary.plain("no")])
    events = list(looking.ask(picture(), "is there a car?", stream=True))
    assert "".join(event.text for event in events) == "<ref>cars</ref>[FIND]no"
    assert [event.answer is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].answer.text == "no"


def test_a_conversation_remembers_what_was_said(looking: Any, dictate: Make, picture: Make) -> None:
    words = looking.vocabulary.plain
    chat = looking.chat(picture())
    dictate(looking, [*look_ids(looking, ("cars",)), *words("two")])
    assert chat.ask("how many cars?").text == "two"
    dictate(looking, words("sure"))
    assert chat.ask("are you sure?").text == "sure"


def test_a_conversation_remembers_what_was_found(looking: Any, dictate: Make, boxed: Make,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The next question is read behind the look and its findings, as in training; what was found has no name."""
    sample = boxed(phrases=("cars",), boxes=((0, 5, 5, 40, 30), (0, 30, 20, 70, 55)))
    first = replace(sample.turns[0], task="looking", question="how many cars?", then="2")
    (photo,) = sample.pictures
    second = Turn(question=f"what is {PLACEHOLDER}?", reply="a car", regions=(Box(5, 5, 40, 30),))
    trained = looking.processor.encode([sample.with_turns(first, second)])
    seen = []
    encode = looking.processor.encode
    monkeypatch.setattr(looking.processor, "encode", lambda *a, **k: seen.append(encode(*a, **k)) or seen[-1])
    monkeypatch.setattr(type(looking), "_sure", lambda self, link: first.target.boxes_xyxy[::-1])
    chat = looking.chat(photo)
    dictate(looking, [*look_ids(looking, ("cars",)), *looking.vocabulary.plain("2")])
    assert chat.ask("how many cars?").text == "2"
    dictate(looking, looking.vocabulary.plain("a car"))
    chat.ask(second.question, regions=second.regions)
    asked = seen[-1].input_ids[0]
    assert trained.input_ids[0, : len(asked)].tolist() == asked.tolist()
    assert "region 1" in looking.vocabulary.text(asked.tolist())
    torch.testing.assert_close(seen[-1].marks.masks, trained.marks.masks)


def test_the_same_prompt_in_training_and_use(looking: Any, dictate: Make, boxed: Make,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """If the truth is what is found, the ids the model answers from are those it was trained to answer from."""
    sample = boxed(phrases=("cars",), boxes=((0, 5, 5, 40, 30), (0, 30, 20, 70, 55)))
    turn = replace(sample.turns[0], task="looking", question="how many cars?", then="2")
    trained = looking.processor.encode([sample.with_turns(turn)])
    script = [*look_ids(looking, ("cars",)), *looking.vocabulary.plain("2")]
    seen = []
    encode = looking.processor.encode
    monkeypatch.setattr(looking.processor, "encode", lambda *a, **k: seen.append(encode(*a, **k)) or seen[-1])
    monkeypatch.setattr(type(looking), "_sure", lambda self, link: turn.target.boxes_xyxy[[1, 0]])
    dictate(looking, script)
    looking.ask(sample.pictures[0], "how many cars?")
    prompt = seen[1].input_ids[0]
    assert torch.equal(trained.input_ids[0, : len(prompt)], prompt)
    assert torch.equal(trained.marks.boxes, seen[1].marks.boxes)
    assert torch.equal(trained.marks.masks, seen[1].marks.masks)


def test_both_replies_teach_and_boxes_too(looking: Any, boxed: Make) -> None:
    sample = boxed(phrases=("cars",), boxes=((0, 5, 5, 40, 30),))
    turn = replace(sample.turns[0], task="looking", question="how many cars?", then="1")
    batch = looking.processor.encode([sample.with_turns(turn)])
    assert len(batch.links) == 1
    losses = looking(batch)
    assert losses.sums["objects/l1"] > 0
    ends = (batch.labels == looking.vocabulary.end).sum()
    assert ends == 2
    assert looking.counts(batch)["end"] == 2


def test_replies_in_plain_words_count_by_themselves(looking: Any, boxed: Make) -> None:
    """The words said of findings and an answer without a look do, one like the other; replies that route do not,
    branches neither."""
    listed, end = boxed(question="detect car, dog"), looking.vocabulary.end
    look = listed.with_turns(
        replace(listed.turns[0], task="looking", question="more cars than dogs?", then="yes"),
        Turn(question="what colour is it?", reply="light blue"),
    )
    batch = looking.processor.encode([listed, look, listed], [Style(), Style(), Style(tree=True)])
    said = batch.free
    plain = looking.vocabulary.plain
    assert batch.labels[said].tolist() == [*plain("yes"), end, *plain("light blue"), end]
    counts = looking.counts(batch)
    assert (counts["words"], counts["weakest"], counts["end"]) == (2, 2, 4)
    assert counts["lm"] == (batch.labels != -100).sum() - said.sum()
    encoded = looking.processor.encode([look])
    with torch.no_grad():
        losses = looking(batch)
        alone = looking(encoded)
        hidden = run_text(looking.mllm, Text.of(encoded), looking._see(encoded).all, keep_cache=False).hidden_BTD
        lost = -looking.mllm.logits(hidden[:, :-1]).log_softmax(-1)[0]
    torch.testing.assert_close(losses.sums["words"], alone.sums["words"], atol=1e-3, rtol=1e-4)
    places, labels = encoded.free[0, 1:].nonzero()[:, 0], encoded.labels[0, 1:]
    each = lost[places, labels[places]]
    answer = len(plain("yes")) + 1
    expected = each[:answer].mean() + each[answer:].mean()
    torch.testing.assert_close(alone.sums["words"], expected, atol=1e-4, rtol=1e-4)


def test_a_caption_whose_phrases_bring_boxes_counts_as_words(looking: Any, boxed: Make) -> None:
    """It is no routed list, though it routes: among lists its tokens would be most of the loss."""
    listed = boxed(question="detect car, dog")
    caption = Turn(task="detection", phrases=("red car",), question="what is where?", reply="A red car on grass.")
    both = listed.with_turns(listed.turns[0], replace(caption, joined=True))
    alone, batch, mixed = (looking.processor.encode(s) for s in ([listed], [listed, Sample(turns=(caption,))], [both]))
    labelled = (batch.labels != -100).sum(1)
    assert batch.free.sum(1).tolist() == [0, int(labelled[1])]
    before, counts = looking.counts(alone), looking.counts(batch)
    assert {name: counts[name] for name in ("lm", "weakest", "words")} == {
        "lm": before["lm"], "weakest": before["weakest"], "words": 1,
    }  # fmt: skip
    with torch.no_grad():
        sums, own = looking(batch).sums, looking(alone).sums
    torch.testing.assert_close(sums["lm"], own["lm"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(sums["weakest"], own["weakest"], atol=1e-3, rtol=1e-4)
    # In one breath with a list, each part counts as what it is.
    assert (looking.counts(mixed)["weakest"], looking.counts(mixed)["words"]) == (1, 1)
    assert mixed.free.sum() == labelled[1]


def test_a_model_without_regions_is_told_places(make_model: Make, dictate: Make, picture: Make) -> None:
    model = make_model(looks=True, threshold=0.02)
    dictate(model, [*look_ids(model, ("cars",)), *model.vocabulary.plain("1")])
    assert model.ask(picture(), "how many cars?").text == "1"
    assert not told(Sample(), regions=False).turns


def test_what_is_said_of_findings_has_no_known_path(looking: Any) -> None:
    from visionllm import open_dataset

    with pytest.raises(ConfigError, match="known"):
        evaluate(looking, open_dataset("scenes", "val", task="looking"), limit=1, known=True)


def test_scored_by_what_is_said(looking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routing is that of the look, words those of the answer."""
    from visionllm import open_dataset

    dataset = open_dataset("scenes", "val", task="looking")
    asked = []

    def ask_many(self: Any, requests: Any, **settings: Any) -> Any:
        from visionllm.core.answer import Answer, Trace

        made = []
        for pictures, question, _ in requests:
            turn = next(s.turns[0] for i in range(2) for s in dataset.ask_all(i)
                        if s.turns[0].question == question
                        and np.array_equal(s.pictures[0].pixels, pictures[0].pixels))  # fmt: skip
            asked.append(turn)
            routed = tuple(("[FIND]", phrase) for phrase in turn.phrases)
            made.append(Answer(text=turn.then, pictures=tuple(pictures), trace=Trace(routed=routed)))
        return made

    monkeypatch.setattr(type(looking), "ask_many", ask_many)
    report = evaluate(looking, dataset, limit=2)
    assert report["routing"]["exact"] == 1
    assert report["words"]["exact"] == 1
    assert report["words"]["counting"]["exact"] == 1
    assert report["words"]["replies"] == len(asked)
