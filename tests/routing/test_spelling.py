"""What the queries of a link are taught to name."""

from __future__ import annotations

from typing import Any

from visionllm.core.batch import LinkLayout
from visionllm.core.superlink import LinkMeta
from visionllm.routing.queries import spelling
from visionllm.routing.vocabulary import REF_END


def layout(*phrases: str) -> LinkLayout:
    count = len(phrases)
    metas = tuple(LinkMeta(sample=0, turn=0, task="detection", token="[DET]", phrase=p) for p in phrases)
    return LinkLayout(row=(0,) * count, column=tuple(range(count)), queries=(4,) * count, meta=metas)


def test_a_short_phrase_is_named_and_ended(model: Any) -> None:
    ids = model.vocabulary.plain("car")
    assert len(ids) < 4
    named = spelling(layout("car"), model.vocabulary).tolist()
    assert named == [*ids, model.vocabulary.control(REF_END), *[-100] * (3 - len(ids))]


def test_a_long_phrase_is_cut_and_links_keep_their_order(model: Any) -> None:
    long = "an exceedingly long name of a thing"
    named = spelling(layout(long, "car"), model.vocabulary).tolist()
    assert named[:4] == model.vocabulary.plain(long)[:4]
    assert named[4] == model.vocabulary.plain("car")[0]


def test_no_link_names_nothing(model: Any) -> None:
    assert spelling(layout(), model.vocabulary).numel() == 0
