"""Queries that read their phrase once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from visionllm.core.sample import Sample, Turn
from visionllm.core.task import Token
from visionllm.routing.masks import QueryLayout
from visionllm.routing.readout import Text, echo, find_links
from visionllm.routing.render import Style
from visionllm.routing.vocabulary import REF, REF_END
from visionllm.routing.wording import bare
from visionllm.runs import ModelConfig, build_model
from visionllm.testing.bench import case_of
from visionllm.testing.small import tiny_settings

LONG = "a red car left of a tree on grass"


@pytest.fixture(scope="module")
def drawing() -> Any:
    """A small model with a decoder whose queries echo, beside one whose do not."""
    settings = tiny_settings()
    torch.manual_seed(0)
    return build_model(
        ModelConfig(**settings | {"decoders": settings["decoders"] | {"generation": case_of("generation").config}})
    ).eval()


def asked(*phrases: str, task: str = "generation") -> Sample:
    return Sample(turns=(Turn(task=task, phrases=phrases),))


def test_each_query_reads_what_stands_before_the_piece_of_its_number(drawing: Any) -> None:
    batch = drawing.processor.encode([asked("a car", LONG), asked("cup")], [Style(), Style()])
    layout = QueryLayout.of(batch.links, len(batch.input_ids), batch.device)
    vocabulary = drawing.vocabulary
    for link, meta in enumerate(batch.links.meta):
        said = vocabulary.plain(bare(meta.phrase, "generation.yaml"))
        wanted = [vocabulary.control(REF), *said, vocabulary.control(REF_END)]
        row, own = batch.links.row[link], layout.link_BG[batch.links.row[link]] == link
        again = layout.again_BG[row][own].tolist()
        assert [int(batch.input_ids[row, column]) for column in again if column >= 0] == wanted
        assert again[len(wanted) :] == [-1] * (64 - len(wanted))


def test_generated_text_is_read_as_training_text_is(drawing: Any) -> None:
    batch = drawing.processor.encode([asked("a car", LONG)])
    found = find_links(Text.of(batch), 0, drawing.vocabulary)
    assert found.echo == batch.links.echo
    assert found.select([1]).echo == (batch.links.echo[1],)


@pytest.mark.parametrize("tree", [False, True])
@torch.no_grad()
def test_alone_and_in_a_batch_links_are_the_same(drawing: Any, tree: bool) -> None:
    samples = [asked("cup"), asked(LONG, "dog")]
    whole = drawing.links(drawing.processor.encode(samples, [Style(tree=tree)] * 2))
    parts = [drawing.links(drawing.processor.encode([one], [Style(tree=tree)])).states for one in samples]
    torch.testing.assert_close(whole.states, torch.cat(parts), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_echo_is_added_to_the_query(drawing: Any) -> None:
    """With the words' embeddings shut off, phrases of one length have the queries' own inputs alone."""
    batch = drawing.processor.encode([asked("car")])
    before = drawing.links(batch).states
    table = drawing.link_queries.tables["[GEN]"].data
    kept = table.clone()
    row = drawing.mllm.embed(torch.tensor([[drawing.vocabulary.control(REF)]]), None)[0, 0]
    # What is added by hand to the first query is what the echo gives it.
    table[0] += row
    one = replace(batch, links=replace(batch.links, echo=()))
    by_hand = drawing.links(one).states
    table.copy_(kept)
    torch.testing.assert_close(by_hand[0], before[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(by_hand[1], before[1], atol=1e-3)


def test_only_tokens_that_echo_do(model: Any) -> None:
    vocabulary = model.vocabulary
    ids = [vocabulary.control(REF), *vocabulary.plain("car"), vocabulary.control(REF_END)]
    assert echo(ids, Token(text="[X]", queries=4), vocabulary) == 0
    loud = Token(text="[X]", queries=4, echo=True)
    assert echo(ids, loud, vocabulary) == len(ids)
    assert echo([5, 6, *ids], loud, vocabulary) == len(ids)
    assert echo([*ids, 7], loud, vocabulary) == 0, "something stands between phrase and token"
    assert echo([], loud, vocabulary) == 0


def test_queries_that_echo_begin_as_one(drawing: Any) -> None:
    echoing, other = drawing.link_queries.tables["[GEN]"], drawing.link_queries.tables["[DET]"]
    assert (echoing == echoing[0]).all()
    assert not (other == other[0]).all()
