"""Asking: batches, streams, limits, cancelling, the known-task path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.answer import Answer
from visionllm.core.errors import Cancelled, ConfigError, PromptError, UnknownNameError
from visionllm.core.sample import Picture, Sample, Turn
from visionllm.requests import request_of

Make = Callable[..., Any]
EVERYTHING = {"objects": {"threshold": 0.0}}


def same(one: Answer, other: Answer, tolerance: float = 1e-4) -> None:
    assert one.text == other.text
    assert [link.meta.phrase for link in one.links] == [link.meta.phrase for link in other.links]
    assert len(one.pictures) == len(other.pictures)
    for a, b in zip(one.links, other.links, strict=True):
        assert a.result.phrases == b.result.phrases
        np.testing.assert_allclose(a.result.scores, b.result.scores, atol=tolerance)
        np.testing.assert_allclose(a.result.presence, b.result.presence, atol=tolerance)
        # Pixels: a picture is some 100 of them wide.
        np.testing.assert_allclose(a.result.boxes_xyxy, b.result.boxes_xyxy, atol=100 * tolerance)


@pytest.fixture
def crowd(picture: Make) -> list[tuple[Any, str, tuple[str, ...]]]:
    """(picture, prompt, phrases to be routed) in wide, tall, square, tiny and no pictures."""
    return [
        (picture(120, 60, seed=1), "detect car", ("car",)),
        (picture(60, 120, seed=2), "where are the red dogs, cats and mice, please?", ("red dogs", "cats", "mice")),
        (picture(90, 88, seed=3), "find 你好", ("你好", "b")),
        (picture(120, 60, seed=4), "car? truck? bus? tree?", ("car", "truck", "bus", "tree", "old house")),
        (picture(7, 5, seed=5), "speak", ()),
        (None, "no picture", ("ghost",)),
    ]


def test_batched_equals_single(model: Any, crowd: list, dictate: Make, reply_ids: Make) -> None:
    scripts = [reply_ids(model, phrases) if phrases else [] for _, _, phrases in crowd]
    dictate(model, *scripts)
    together = model.ask_many([(pictures, prompt) for pictures, prompt, _ in crowd], options=EVERYTHING)
    assert len(together) == len(crowd)
    for answer, (pictures, prompt, phrases), script in zip(together, crowd, scripts, strict=True):
        dictate(model, script)
        same(model.ask(pictures, prompt, options=EVERYTHING), answer)
        assert [phrase for _, phrase in answer.trace.routed] == list(phrases)
        assert [link.meta.phrase for link in answer.links] == (list(phrases) if pictures is not None else [])
        assert answer.prompt == prompt
    boxes = together[1].links[0].result.boxes_xyxy
    assert len(boxes) == 20
    assert np.abs(boxes - together[1].links[0].result.boxes_xyxy[:1]).max() > 1, (
        "boxes that are all alike prove nothing"
    )
    assert boxes.min() >= 0
    assert bool((boxes <= [60, 120, 60, 120]).all())


def test_batched_equals_single_when_free(model: Any, crowd: list) -> None:
    """What the random model says of its own will, to the letter."""
    together = model.ask_many([(pictures, prompt) for pictures, prompt, _ in crowd], max_new_tokens=12)
    for answer, (pictures, prompt, _) in zip(together, crowd, strict=True):
        alone = model.ask(pictures, prompt, max_new_tokens=12)
        assert alone.trace.token_ids == answer.trace.token_ids


def test_several_pictures_in_one_question(model: Any, picture: Make, dictate: Make, reply_ids: Make) -> None:
    dictate(model, reply_ids(model, ("car",)))
    answer = model.ask([picture(80, 60, seed=1), picture(60, 80, seed=2)], "detect car")
    assert len(answer.pictures) == 2
    assert [link.meta.phrase for link in answer.links] == ["car"]


def test_the_caller_is_left_as_it_was(make_model: Make, picture: Make) -> None:
    """Modes of the model and of autograd are those of the caller again, in the midst of a stream too."""
    model = make_model().train()
    for event in model.ask(picture(), "detect car", stream=True, max_new_tokens=3):
        assert torch.is_grad_enabled(), event
    assert model.training
    assert torch.is_grad_enabled()
    stream = model.ask(picture(), "detect car", stream=True, max_new_tokens=30)
    next(stream)
    stream.close()
    assert model.training
    assert torch.is_grad_enabled()


# --- streams --------------------------------------------------------------------------------------------------------

REPLIES = [
    "plain words",
    "größe 你好 🙂 done",  # characters of several tokens
    "ends in \ufffd",  # a user's own replacement mark
    "",
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_stream_is_the_answer_in_parts(model: Any, picture: Make, dictate: Make, reply: str) -> None:
    script = model.vocabulary.plain(reply)
    dictate(model, script)
    events = list(model.ask(picture(), "x", stream=True))
    assert "".join(event.text for event in events) == reply
    assert [event.answer is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].answer.text == reply
    assert not any("\ufffd" in event.text for event in events) or "\ufffd" in reply


def test_a_stream_cut_inside_a_character_is_still_the_answer(model: Any, picture: Make, dictate: Make) -> None:
    script = model.vocabulary.plain("a🙂")
    assert len(script) > 2
    dictate(model, script)
    events = list(model.ask(picture(), "x", stream=True, max_new_tokens=len(script) - 1))
    assert "".join(event.text for event in events) == events[-1].answer.text


def test_a_stream_of_a_batch(model: Any, crowd: list, dictate: Make, reply_ids: Make) -> None:
    dictate(model, *(reply_ids(model, phrases) if phrases else [] for _, _, phrases in crowd))
    events = list(model.ask_many([(pictures, prompt) for pictures, prompt, _ in crowd], stream=True))
    for request in range(len(crowd)):
        own = [event for event in events if event.request == request]
        assert [event.answer for event in own[:-1]] == [None] * (len(own) - 1)
        assert "".join(event.text for event in own) == own[-1].answer.text


# --- limits ---------------------------------------------------------------------------------------------------------


def test_allow_nothing_bans_every_routing_token(model: Any, picture: Make, dictate: Make, reply_ids: Make) -> None:
    script = reply_ids(model, ("car",))
    dictate(model, script)
    assert len(model.ask(picture(), "detect car", allow=["detection"]).links) == 1
    dictate(model, script)
    answer = model.ask(picture(), "detect car", allow=[])
    assert answer.links == ()
    assert model.vocabulary.control("[DET]") not in answer.trace.token_ids
    with pytest.raises(UnknownNameError, match="detection"):
        model.ask(picture(), "detect car", allow=["detektion"])
    with pytest.raises(PromptError, match=r"allow: expected a list such as \['detection'\]"):
        model.ask(picture(), "detect car", allow="detection")


def test_only_ids_with_a_text_are_written(model: Any, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A padded vocabulary has rows that stand for nothing; marks of pictures and chat are the renderer's."""
    rows = model.mllm.vocabulary_size
    assert rows > len(model.vocabulary)
    word = model.vocabulary.plain("a")[0]
    marks = [model.vocabulary.control(text) for text in ("<IMG_CONTEXT>", "<|im_start|>", "<img>", "</img>")]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(*hidden.shape[:-1], rows)
        table[..., word] = 1
        table[..., len(model.vocabulary) :] = 10
        table[..., marks] = 10
        return table

    monkeypatch.setattr(model.mllm, "logits", logits)
    assert model.ask(picture(), "x", max_new_tokens=4).text == "aaaa"


def test_progress_is_told_and_cancels(model: Any, picture: Make, dictate: Make) -> None:
    seen: list[tuple[int, int]] = []
    dictate(model, model.vocabulary.plain("some words"))
    model.ask(picture(), "x", progress=lambda done, limit: seen.append((done, limit)), max_new_tokens=50)
    assert [done for done, _ in seen] == list(range(1, len(model.vocabulary.plain("some words")) + 2))
    assert {limit for _, limit in seen} == {50}
    dictate(model, model.vocabulary.plain("some words"))
    with pytest.raises(Cancelled, match="2 tokens"):
        model.ask(picture(), "x", progress=lambda done, limit: done < 2)


@pytest.mark.parametrize(("prompt", "words"), [("", "empty"), (" \n", "empty"), (None, "NoneType"), (b"x", "bytes")])
def test_a_prompt_that_is_none(model: Any, picture: Make, prompt: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        model.ask(picture(), prompt)


def test_blanks_around_a_prompt_are_no_words(model: Any, picture: Make, dictate: Make) -> None:
    dictate(model, [])
    answer = model.ask(picture(), " detect  all cars\n\n")
    assert answer.prompt == "detect  all cars"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(model: Any, picture: Make, stream: bool) -> None:
    with pytest.raises(PromptError, match="1024"):
        list(model.ask(picture(), "a b " * 1000, stream=stream))


@pytest.mark.parametrize("requests", [["photo.jpg"], [()], [("a.jpg",)], "photo.jpg", [{"a": 1, "b": 2}]])
def test_requests_that_are_none(model: Any, requests: Any) -> None:
    with pytest.raises(PromptError, match=r"requests\[0\]: expected \(pictures, prompt\)") as caught:
        model.ask_many(requests)
    assert "\n" not in str(caught.value)


def test_a_reply_that_was_cut_off_says_so(model: Any, picture: Make, dictate: Make, reply_ids: Make) -> None:
    script = reply_ids(model, ("car", "dog"))
    dictate(model, script)
    whole = model.ask(picture(), "detect car, dog", max_new_tokens=len(script) + 1)
    assert not whole.trace.cut
    assert not any("cut" in line for line in whole.statements())
    dictate(model, script)
    short = model.ask(picture(), "detect car, dog", max_new_tokens=len(script) - 3)
    assert short.trace.cut
    assert "cut off at its length limit" in short.statements()[-1]
    assert "length limit (max_new_tokens)" in short.explain()


def test_the_reply_ends_with_the_context(make_model: Make, picture: Make, dictate: Make) -> None:
    model = make_model(context=96)
    dictate(model, model.vocabulary.plain("a ") * 200)
    answer = model.ask(picture(), "x " * 20)
    start = model.processor.encode([_asked(picture(), "x " * 20)], reply=False).input_ids.shape[1]
    assert start + len(answer.trace.token_ids) == 96


def _asked(picture: Picture, prompt: str) -> Any:
    return request_of(picture, prompt)


def test_a_long_neighbour_does_not_cut_a_reply(make_model: Make, picture: Make, dictate: Make) -> None:
    model = make_model(context=96)
    script = model.vocabulary.plain("a ") * 20
    dictate(model, script)
    alone = model.ask(picture(), "x").text
    dictate(model, script, script)
    assert model.ask_many([(picture(), "x"), (picture(), "x " * 30)])[0].text == alone


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"object": {}}, UnknownNameError, "objects"),
        ({"objects": {"treshold": 0.1}}, ConfigError, "threshold"),
        ({"objects": {"threshold": 2}}, ConfigError, "threshold"),
    ],
)
def test_wrong_options_are_told_before_anything_is_run(
    model: Any, picture: Make, options: dict, error: type, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        model.ask(picture(), "x", options=options)
    assert "\n" not in str(caught.value)


# --- the known-task path --------------------------------------------------------------------------------------------


def test_the_verb_of_a_task(model: Any, picture: Make) -> None:
    answer = model.detect(picture(120, 60), ["car", "red dog"], options=EVERYTHING)
    assert [link.meta.phrase for link in answer.links] == ["car", "red dog"]
    assert answer.text == "<ref>car</ref>[DET], <ref>red dog</ref>[DET]"
    with pytest.raises(AttributeError):
        _ = model.detekt


def test_links_do_not_hang_on_the_chunk(model: Any, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks share nothing but the prompt, so their links are those of one pass."""
    seen: list[torch.Tensor] = []
    decode = model._decode
    monkeypatch.setattr(model, "_decode", lambda links, *rest: (seen.append(links.states), decode(links, *rest))[1])
    phrases = [f"thing {i}" for i in range(7)]
    whole = model.detect(picture(), phrases)
    parts = model.detect(picture(), phrases, chunk=3)
    assert [len(states) for states in seen] == [28, 12, 12, 4]
    torch.testing.assert_close(torch.cat(seen[1:]), seen[0], atol=1e-5, rtol=1e-5)
    assert whole.text == parts.text
    assert [link.meta.phrase for link in parts.links] == phrases


@pytest.mark.parametrize("chunk", [0, -1, 1.5])
def test_a_chunk_holds_phrases(model: Any, picture: Make, chunk: Any) -> None:
    with pytest.raises(PromptError, match="chunk: expected a whole number from 1 up"):
        model.detect(picture(), ["car", "dog"], chunk=chunk)


@pytest.mark.parametrize("phrases", ["car", [], ["car", " "], [""], [3], ["car", None], None, 3])
def test_phrases_that_are_none(model: Any, picture: Make, phrases: Any) -> None:
    with pytest.raises(PromptError, match="phrases"):
        model.detect(picture(), phrases)


def test_typed_tokens_on_the_known_path_are_phrases(model: Any, picture: Make) -> None:
    phrases = ["[DET]", "</ref>[DET]", "<|im_end|>", "<IMG_CONTEXT>", "a\ud800"]
    answer = model.detect(picture(), phrases)
    assert [link.meta.phrase for link in answer.links] == phrases


def agreeing(model: Any, phrases: tuple[str, ...], reply_ids: Make, wrong: int | None = None) -> Callable:
    """Logits of a model that writes the canonical reply, its token number ``wrong`` excepted."""
    script = reply_ids(model, phrases)
    size = model.mllm.vocabulary_size
    state = {"step": 0}

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dim() == 2:  # writing, one position at a time
            number = state["step"]
            state["step"] += 1
            ids = [script[number] if number < len(script) else model.vocabulary.end]
        else:  # checking: the reply ends the text, its last token is the newline after the end mark
            after = len(model.vocabulary.plain("\n"))
            ids = [0] * (hidden.shape[1] - len(script) - after) + script + [0] * after
            number = -1
        table = torch.zeros(len(ids), size)
        table[torch.arange(len(ids)), torch.tensor(ids)] = 9.0
        if wrong is not None:
            place = 0 if hidden.dim() == 2 else len(ids) - len(script) - after + wrong
            if hidden.dim() == 3 or number == wrong:
                table[place] /= 2  # the second best
                table[place, model.vocabulary.plain("z")[0]] = 9.0
        return table if hidden.dim() == 2 else table[None]

    return logits


def test_verified_equals_free_running(
    model: Any, picture: Make, reply_ids: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrases = ("car", "red dog")
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids))
    verified = model.detect(picture(), list(phrases), verify=True, options=EVERYTHING)
    assert verified.trace.seconds.keys() == {"total"}, "the fast path must have been taken"
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids))
    free = model.ask(picture(), "detect car, red dog", options=EVERYTHING)
    assert verified.prompt == free.prompt
    assert verified.trace.token_ids == free.trace.token_ids
    same(verified, free, 1e-5)


@pytest.mark.parametrize("wrong", [0, 1, 3, -1])
def test_a_model_that_disagrees_speaks_for_itself(
    model: Any, picture: Make, reply_ids: Make, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """The last one is the end mark: the model would have gone on."""
    phrases = ("car", "red dog")
    wrong = wrong % len(reply_ids(model, phrases))
    monkeypatch.setattr(model.config, "quote", False)
    monkeypatch.setattr(model.config, "max_new_tokens", 2)  # a list longer than what is usual
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids, wrong))
    verified = model.detect(picture(), list(phrases), verify=True)
    assert "write" in verified.trace.seconds, "the reply must have been generated"
    assert len(verified.trace.token_ids) >= wrong, "and not be cut"
    assert "z" in verified.text


def test_a_model_that_would_misspell_quotes(
    model: Any, picture: Make, reply_ids: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked freely it writes a letter of its own into a phrase; from the prompt's words it cannot, verified or not."""
    phrases = ("car", "red dog")
    reply = reply_ids(model, phrases)
    at = reply.index(model.vocabulary.control("</ref>")) - 1
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids, at))
    verified = model.detect(picture(), list(phrases), verify=True)
    assert "write" not in verified.trace.seconds
    assert [link.meta.phrase for link in verified.links] == list(phrases)
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids, at))
    assert model.ask(picture(), "detect car, red dog").text == verified.text
    monkeypatch.setattr(model.mllm, "logits", agreeing(model, phrases, reply_ids, at))
    assert "z" in model.ask(picture(), "detect car, red dog", quote=False).text


def test_verifying_the_random_model_falls_back(model: Any, picture: Make) -> None:
    verified = model.detect(picture(), ["car"], verify=True)
    same(verified, model.ask(picture(), "detect car"))


def test_calling_the_model(model: Any, picture: Make, boxed: Make) -> None:
    assert isinstance(model(picture(), "x", max_new_tokens=2), Answer)
    assert "lm" in model(model.processor.encode([boxed()])).sums
    assert model.ask_many([]) == []


def test_a_picture_is_looked_at_once_however_many_ask(make_model: Make, picture: Make, dictate: Make) -> None:
    """Five questions about one picture, and one about another, in one batch: each answer is that of a call alone."""
    model = make_model(mask_width=16, pose_layers=1)
    vocabulary = model.vocabulary
    scripts = []
    for token in ("[DET]", "[SEG]", "[POSE]", "[DET]", None, "[SEG]"):
        script = [vocabulary.control("<ref>"), *vocabulary.plain("car"), vocabulary.control("</ref>")]
        scripts.append([*script, vocabulary.control(token)] if token else vocabulary.plain("two of them"))
    scripts[2] += [vocabulary.control("<ref>"), *vocabulary.plain("nose"), vocabulary.control("</ref>"),
                   vocabulary.control("[KPT]")]  # fmt: skip
    first, other = picture(), picture(seed=3)
    requests = [(other if i == 3 else first, f"question {i}") for i in range(6)]
    tiles: list[int] = []
    maps: list[int] = []
    model.mllm.net.model.vision_tower.register_forward_hook(
        lambda _, args, kwargs, out: tiles.append(len(out.last_hidden_state)), with_kwargs=True
    )
    model.decoders["objects"].detector.net.backbone.register_forward_hook(
        lambda _, args, out: maps.append(len(args[0]))
    )
    dictate(model, *scripts)
    together = model.ask_many(requests, options=EVERYTHING)
    per_picture = len(model.processor.encode([Sample(pictures=(first,), turns=(Turn(question="?"),))]).tiles)
    assert tiles == [2 * per_picture]
    assert maps == [2]
    for (shown, question), script, answer in zip(requests, scripts, together, strict=True):
        dictate(model, script)
        same(answer, model.ask(shown, question, options=EVERYTHING))


def test_pictures_of_a_generator_are_taken_as_they_come(model: Any, picture: Make) -> None:
    """A buffer that is filled anew, and arrays that die young, are other pictures each time; a file is read once."""
    shots = [picture(seed=seed).pixels for seed in range(3)]

    def frames() -> Any:
        for shot in shots:
            yield shot.copy(), "hi"
        buffer = np.empty_like(shots[0])
        for shot in shots:
            buffer[:] = shot
            yield buffer, "hi"

    answers = model.ask_many(frames(), max_new_tokens=1)
    for answer, shot in zip(answers, shots * 2, strict=True):
        assert np.array_equal(answer.pictures[0].pixels, shot)


def test_capitals_are_read_in_small_letters_and_given_back(
    make_model: Make, picture: Make, dictate: Make, tmp_path: Path
) -> None:
    """Where a model is built so, a prompt in capitals is the prompt in small letters, and its phrases are as typed."""
    prompts = ("detect all trucks", "DETECT ALL TRUCKS")
    samples = [Sample(turns=(Turn(question=prompt),)) for prompt in prompts]

    def read(model: Any) -> list[list[int]]:
        return [model.processor.encode([sample], None, reply=False).input_ids[0].tolist() for sample in samples]

    model = make_model()
    quiet, loud = read(model)
    assert quiet != loud
    before = model.fingerprint
    model.config.lower_capitals = True
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    assert model.fingerprint != before
    assert read(model) == [quiet, quiet]
    labels = model.processor.encode([Sample(turns=(Turn(task="detection", phrases=("trucks",)),))]).labels[0].tolist()
    reply = [token for token in labels if token != -100]
    dictate(model, reply, reply)
    small, typed = model.ask_many([(picture(), prompt) for prompt in prompts], options=EVERYTHING)
    assert (small.detections.phrases, typed.detections.phrases) == (("trucks",), ("TRUCKS",))
    assert typed.trace.routed == (("[DET]", "TRUCKS"),)
    assert (typed.text, typed.prompt) == ("<ref>trucks</ref>[DET]", "DETECT ALL TRUCKS")
    np.testing.assert_allclose(small.detections.scores, typed.detections.scores, atol=1e-5)
    known = [model.detect(picture(), [name], options=EVERYTHING).detections for name in ("trucks", "TRUCKS")]
    assert [found.phrases for found in known] == [("trucks",), ("TRUCKS",)]
    np.testing.assert_allclose(known[0].scores, known[1].scores, atol=1e-5)
