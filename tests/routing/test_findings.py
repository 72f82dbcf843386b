"""What is told of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from visionllm.core.regions import PLACEHOLDER
from visionllm.core.sample import BoxTarget, Sample, Things, Turn
from visionllm.routing.findings import EXTRA, MISSED, MOST_SHOWN, tell, told
from visionllm.routing.render import render

Make = Callable[..., Any]
BOXES = np.array([[0, 0, 20, 10], [50, 25, 100, 50], [90, 40, 100, 50], [0, 0, 4, 4], [30, 30, 32, 33]], np.float32)


def test_counts_places_and_regions() -> None:
    text, regions = tell([BOXES[:2], BOXES[:0]], [0, 0], [(100, 50)])
    assert text == "2 10,10<region> 75,75<region>; 0"
    assert [(r.x1, r.y1, r.x2, r.y2) for r in regions] == [(0, 0, 20, 10), (50, 25, 100, 50)]
    assert tell([BOXES[:2], BOXES[:0]], [0, 0], [(100, 50)], regions=False) == ("2 10,10 75,75; 0", ())


def test_each_phrase_in_its_picture() -> None:
    text, regions = tell([BOXES[:1], BOXES[:1]], [1, 0], [(100, 50), (200, 100)])
    assert text == "1 05,05<region>; 1 10,10<region>"
    assert [region.picture for region in regions] == [1, 0]


def test_what_is_not_shown_is_counted() -> None:
    text, regions = tell([BOXES], [0], [(100, 50)])
    assert text.startswith(f"{len(BOXES)} ")
    assert text.count(PLACEHOLDER) == len(regions) == MOST_SHOWN


@pytest.mark.parametrize("box", [[-30, -5, -1, 10], [100, 0, 130, 20], [-10, 45, 10, 60], [99.5, 49.5, 140, 90]])
def test_boxes_that_reach_out_of_the_picture(box: list[float]) -> None:
    """They count; what is shown of them is inside, or nothing is."""
    text, regions = tell([np.array([box], np.float32)], [0], [(100, 50)])
    assert text.startswith("1")
    assert len(regions) == text.count(PLACEHOLDER)
    for region in regions:
        assert region.mask((100, 50)).area
        x, y = text.removeprefix("1 ").removesuffix(PLACEHOLDER).split(",")
        assert 0 <= int(x) < 100
        assert 0 <= int(y) < 100


def test_the_truth_is_told_and_the_answer_said(picture: Make) -> None:
    """The largest first, each phrase its own, and what is ignored is not found."""
    target = BoxTarget(boxes_xyxy=BOXES, phrase=np.array([1, 0, 1, 0, 0]),
                       ignore=np.array([False, False, False, False, True]))  # fmt: skip
    look = Turn(task="looking", phrases=("cars", "dogs"), target=target, question="more cars than dogs?", then="no")
    sample = Sample(pictures=(picture(100, 50),), turns=(look, Turn(question="thanks", reply="welcome")))
    asked, findings, thanks = told(sample).turns
    assert (asked.phrases, asked.then, asked.question) == (look.phrases, None, look.question)
    assert findings.question == "2 75,75<region> 02,04<region>; 2 10,10<region> 95,90<region>"
    assert (findings.told, findings.reply, len(findings.regions)) == (True, "no", 4)
    assert thanks is sample.turns[1]
    twice = told(sample)
    assert told(twice) is twice


def test_rendered_as_a_message_of_nobody(picture: Make) -> None:
    """Own role, regions without names, and supervised are the look and the answer."""
    target = BoxTarget(boxes_xyxy=BOXES[:1], phrase=np.array([0]))
    look = Turn(task="looking", phrases=("cars",), target=target, question="how many cars?", then="1")
    pieces = render(told(Sample(pictures=(picture(100, 50),), turns=(look,))), [2])
    words = "".join(piece.text * piece.repeat for piece in pieces)
    assert words.endswith(
        "how many cars?<|im_end|>\n<|im_start|>assistant\n<ref>cars</ref>[FIND]<|im_end|>\n"
        "<|im_start|>tool\n1 10,10<IMG_CONTEXT><|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    )
    assert "".join(p.text for p in pieces if p.supervised) == "<ref>cars</ref>[FIND]<|im_end|>1<|im_end|>"


def test_mistakes_are_told_where_the_answer_does_not_hang_on_them(picture: Make) -> None:
    """One in a while missed, with company behind it, or a little beside its place; numbers are never wrong."""
    target = BoxTarget(boxes_xyxy=BOXES[1:2], phrase=np.array([0]))
    look = Turn(task="looking", phrases=("car",), target=target, question="what colour?", then="red", single=True)
    things = Things(names=("car", "dog"), boxes_xyxy=BOXES[:2], complete=False)
    one, many = (Sample(pictures=(picture(100, 50),), turns=(replace(look, single=single),), things=(things,))
                 for single in (True, False))  # fmt: skip
    truth = told(one).turns[1].question
    rng = np.random.default_rng(0)
    messages = Counter(told(one, rng=rng).turns[1].question for _ in range(400))
    first = Counter(message[0] for message in messages.elements())
    assert first["0"] / 400 == pytest.approx(MISSED, abs=0.04)
    assert (first["2"] + first["3"]) / 400 == pytest.approx(EXTRA, abs=0.06)
    assert len(messages) > 10
    for message in messages:
        if message[0] != "0":
            x, y = message.split()[1].split("<")[0].split(",")
            assert abs(int(x) - 75) <= 4
            assert abs(int(y) - 75) <= 4
    assert all(told(many, rng=rng).turns[1].question == truth for _ in range(50))
    # Out of training nothing is drawn.
    assert told(one).turns[1].question == truth
