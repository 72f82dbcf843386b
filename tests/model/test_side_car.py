"""Links ride in a side-car: the text never feels them, and every way to read them out gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from visionllm.core.batch import LinkLayout
from visionllm.core.regions import Point
from visionllm.core.sample import Sample, Turn
from visionllm.routing.generate import generate
from visionllm.routing.masks import QueryLayout, additive_mask
from visionllm.routing.readout import Text, find_links, read_out, run_prompt, run_text
from visionllm.routing.render import Style

Make = Callable[..., Any]
PHRASES = (("car", "red dog"), ("tree",), ("a", "house with a roof", "cup"))


@pytest.fixture(params=["sdpa", "eager", "matmul"])
def attention(request: pytest.FixtureRequest, model: Any) -> Iterator[str]:
    """Every attention implementation the masks must be right under."""
    model.mllm.attend(request.param)
    yield request.param
    model.mllm.attend("sdpa")


@pytest.fixture
def asked(picture: Make) -> list[Sample]:
    """Three samples of different lengths, one without a picture, worded by their own questions."""
    questions = ("detect car, red dog", "tree please", "find a, house with a roof and cup in this picture")
    return [
        Sample(
            pictures=() if i == 1 else (picture(80 + 40 * i, 60, seed=i),),
            turns=(Turn(task="detection", phrases=phrases, question=question),),
        )
        for i, (phrases, question) in enumerate(zip(PHRASES, questions, strict=True))
    ]


def vision_of(model: Any, batch: Any) -> Tensor | None:
    return None if batch.tiles is None else model.mllm.vision(batch.tiles)


def one_pass(model: Any, batch: Any) -> tuple[Tensor, Tensor, QueryLayout]:
    """Text and queries together in a single pass: hidden states of the text, of the queries, and the query layout."""
    text, width = Text.of(batch), batch.input_ids.shape[1]
    layout = QueryLayout.of(batch.links, len(batch.input_ids), batch.device)
    embeds = model.mllm.embed(batch.input_ids, vision_of(model, batch))
    embeds = torch.cat([embeds, model.link_queries.inputs(batch.links, layout)], 1)
    mask = additive_mask(batch.owner, batch.branch, layout, text_rows=slice(None), query_rows=True, dtype=torch.float32)
    position = torch.cat([text.position, layout.positions(text.position)], 1)
    hidden = model.mllm.text(embeds, mask, position, keep_cache=False).hidden_BTD
    return hidden[:, :width], hidden[:, width:], layout


@pytest.mark.parametrize("tree", [False, True])
@torch.no_grad()
def test_text_logits_do_not_feel_the_links(model: Any, asked: list[Sample], attention: str, tree: bool) -> None:
    batch = model.processor.encode(asked, [Style(tree=tree)] * 3)
    assert len({int((row >= 0).sum()) for row in batch.owner}) > 1, "the batch must be padded"
    alone = model.mllm.logits(run_text(model.mllm, Text.of(batch), vision_of(model, batch)).hidden_BTD)
    beside = model.mllm.logits(one_pass(model, batch)[0])
    real = batch.owner >= 0
    torch.testing.assert_close(beside[real], alone[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tree", [False, True])
@torch.no_grad()
def test_second_pass_equals_one_pass(model: Any, asked: list[Sample], attention: str, tree: bool) -> None:
    batch = model.processor.encode(asked, [Style(tree=tree)] * 3)
    _, hidden_BGD, layout = one_pass(model, batch)
    links = model.links(batch)
    assert links.meta == batch.links.meta
    first = 0
    for number, count in enumerate(links.queries):
        row = batch.links.row[number]
        own = hidden_BGD[row][layout.link_BG[row] == number]
        torch.testing.assert_close(links.states[first : first + count], own, atol=1e-5, rtol=1e-5)
        first += count


@pytest.mark.parametrize("tree", [False, True])
@torch.no_grad()
def test_link_equals_insertion_behind_its_token(model: Any, asked: list[Sample], attention: str, tree: bool) -> None:
    """A group's states are those of its queries put into the text right behind their token, the rest cut off."""
    batch = model.processor.encode(asked, [Style(tree=tree)] * 3)
    links = model.links(batch)
    embeds = model.mllm.embed(batch.input_ids, vision_of(model, batch))
    starts = torch.tensor([0, *links.queries]).cumsum(0)
    for number, (row, column) in enumerate(zip(batch.links.row, batch.links.column, strict=True)):
        branch = batch.branch[row]
        seen = (batch.owner[row] >= 0) & (torch.arange(len(branch)) <= column)
        seen &= (branch == 0) | (branch == branch[column])
        table = model.link_queries.tables[batch.links.meta[number].token]
        inline = torch.cat([embeds[row][seen], table])[None]
        hidden = model.mllm.text(inline, None, torch.arange(inline.shape[1])[None], keep_cache=False).hidden_BTD
        torch.testing.assert_close(
            links.states[starts[number] : starts[number + 1]], hidden[0, -len(table) :], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_later_text_moves_no_link(model: Any, asked: list[Sample]) -> None:
    longer = [replace(s, turns=(replace(s.turns[0], phrases=(*s.turns[0].phrases, "and", "more")),)) for s in asked]
    short, long = model.links(model.processor.encode(asked)), model.links(model.processor.encode(longer))
    kept = [i for i, meta in enumerate(long.meta) if meta.phrase not in ("and", "more")]
    torch.testing.assert_close(long.select(kept).states, short.states, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_links_come_in_the_order_they_are_named(model: Any, asked: list[Sample]) -> None:
    """Rows are filled one by one; links of several rows may be named in turns."""
    batch = model.processor.encode(asked)
    order = [5, 0, 3, 1, 4, 2]
    turns = model.links(replace(batch, links=batch.links.select(order)))
    expected = model.links(batch).select(order)
    assert turns.meta == expected.meta
    torch.testing.assert_close(turns.states, expected.states, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tree_link_alone_equals_among_eighty(model: Any, picture: Make, attention: str) -> None:
    phrases = tuple(f"thing {i} of many" for i in range(79)) + ("zebra",)

    def links(names: tuple[str, ...]) -> Any:
        sample = Sample(pictures=(picture(),), turns=(Turn(task="detection", phrases=names),))
        return model.links(model.processor.encode([sample], [Style(tree=True)]))

    alone, among = links(("zebra",)), links(phrases)
    torch.testing.assert_close(among.select([79]).states, alone.states, atol=1e-5, rtol=1e-5)
    linear = model.links(model.processor.encode(
        [Sample(pictures=(picture(),), turns=(Turn(task="detection", phrases=phrases[-2:]),))]
    ))  # fmt: skip
    gap = (linear.select([1]).states - alone.states).abs().max()
    assert gap > 1e-2, "in the linear layout the phrase before it must be felt, else this test sees nothing"


@torch.no_grad()
def test_packed_samples_do_not_meet(model: Any, asked: list[Sample], attention: str) -> None:
    """Two samples in one row, told apart by their owners, give the text and the links they give alone."""
    parts = [model.processor.encode([sample]) for sample in asked]
    apart = [model.links(part) for part in parts]
    widths = [part.input_ids.shape[1] for part in parts]
    text = Text(
        ids=torch.cat([p.input_ids for p in parts], 1),
        owner=torch.cat([torch.full_like(p.owner, i) for i, p in enumerate(parts)], 1),
        branch=torch.cat([p.branch for p in parts], 1),
        position=torch.cat([p.position_ids for p in parts], 1),
    )
    links = LinkLayout(
        row=tuple(0 for p in parts for _ in p.links.meta),
        column=tuple(sum(widths[:i]) + c for i, p in enumerate(parts) for c in p.links.column),
        queries=tuple(q for p in parts for q in p.links.queries),
        meta=tuple(replace(m, sample=i) for i, p in enumerate(parts) for m in p.links.meta),
    )
    vision = torch.cat([v for p in parts if (v := vision_of(model, p)) is not None])
    out = run_text(model.mllm, text, vision)
    packed = read_out(model.mllm, model.link_queries, text, links, out.cache)
    torch.testing.assert_close(packed.states, torch.cat([a.states for a in apart]), atol=1e-5, rtol=1e-5)
    for i, part in enumerate(parts):
        alone = run_text(model.mllm, Text.of(part), vision_of(model, part)).hidden_BTD
        own = out.hidden_BTD[:, sum(widths[:i]) : sum(widths[: i + 1])]
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)


# --- generation -----------------------------------------------------------------------------------------------------


def caught_links(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The links every following call hands to the decoders."""
    seen: list[Any] = []
    decode = model._decode

    def spy(links: Any, *rest: Any) -> Any:
        seen.append(links)
        return decode(links, *rest)

    monkeypatch.setattr(model, "_decode", spy)
    return seen


@pytest.mark.parametrize("alike", [False, True])
def test_read_out_after_generation_equals_training(
    model: Any, asked: list[Sample], attention: str, dictate: Make, reply_ids: Make, monkeypatch: pytest.MonkeyPatch,
    alike: bool,
) -> None:  # fmt: skip
    """Replies of different lengths: some rows are done early, and the last token of the longest is not in the cache.
    About one picture, what all prompts begin with runs once."""
    asked = about_one_picture(asked) if alike else asked
    seen = caught_links(model, monkeypatch)
    scripts = [reply_ids(model, phrases)[:-1] for phrases in PHRASES]
    assert len({len(s) for s in scripts}) == 3
    longest = max(len(s) for s in scripts)
    dictate(model, *scripts)
    # The limit cuts the longest reply right behind its last routing token, so that token was never run.
    answers = model.ask_many([(list(s.pictures), s.turns[0].question) for s in asked], max_new_tokens=longest)
    assert [len(a.trace.token_ids) for a in answers] == [len(s) for s in scripts]
    with torch.no_grad():
        trained = model.links(model.processor.encode(asked))
    assert [(m.sample, m.phrase, m.token) for m in seen[0].meta] == [
        (m.sample, m.phrase, m.token) for m in trained.meta
    ]
    torch.testing.assert_close(seen[0].states, trained.states, atol=1e-5, rtol=1e-5)


def about_one_picture(asked: list[Sample]) -> list[Sample]:
    return [replace(sample, pictures=asked[0].pictures) for sample in asked]


@torch.no_grad()
def test_what_all_prompts_begin_with_runs_once(make_model: Make, asked: list[Sample], picture: Make) -> None:
    """Up to where the questions part, or to a region, which stands in a position like a picture's."""
    model = make_model(regions={"layers": [-1], "channels": 8})
    image, per_tile = model.vocabulary.control("<IMG_CONTEXT>"), model.mllm.tokens_per_tile
    pointed = [
        replace(sample, turns=(Turn(question="see <region> and <region>", regions=(Point(x, 9), Point(x, 30))),))
        for sample, x in zip(about_one_picture(asked), (5, 40, 70), strict=True)
    ]
    for samples in (about_one_picture(asked), pointed):
        batch = model.processor.encode(samples, reply=False)
        tiles = int((batch.input_ids[0, : batch.shared] == image).sum())
        assert tiles == model.processor.tiling.count(samples[0].pictures[0].size) * per_tile
        assert bool((batch.input_ids[:, : batch.shared] == batch.input_ids[0, : batch.shared]).all())
        text, vision = Text.of(batch), model._see(batch).all
        last = run_prompt(model.mllm, text, vision).hidden_BTD[:, -1]
        torch.testing.assert_close(last, run_text(model.mllm, text, vision).hidden_BTD[:, -1], atol=1e-5, rtol=1e-5)
        for row, sample in enumerate(samples):
            one = model.processor.encode([sample], reply=False)
            assert one.shared == 0
            own = run_text(model.mllm, Text.of(one), model._see(one).all).hidden_BTD[0, -1]
            torch.testing.assert_close(last[row], own, atol=1e-5, rtol=1e-5)
    twice = [pointed[0], pointed[0]]
    whole = model.processor.encode(twice, reply=False)
    assert whole.input_ids[0, whole.shared] == image, "regions may differ where all words are the same"
    other = [replace(asked[0], pictures=(picture(80, 60, seed=9),)), asked[0]]
    assert [model.processor.encode(samples, reply=False).shared for samples in (other, asked)] == [0, 0]
    assert model.processor.encode(about_one_picture(asked)).shared == 0


@pytest.mark.parametrize("alike", [False, True])
@torch.no_grad()
def test_reading_out_does_not_change_what_is_written(
    model: Any, asked: list[Sample], attention: str, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """Links are read in the midst of writing, again and again; a plain cache-free loop writes the same tokens."""
    asked = about_one_picture(asked) if alike else asked
    few = [model.vocabulary.control(token) for token in ("[DET]", "<ref>", "</ref>")]
    few += model.vocabulary.plain("abcdefgh")
    heads = [torch.randn(32, len(few), generator=torch.Generator().manual_seed(seed)) for seed in range(20)]

    def few_words(hidden: Tensor) -> Tensor:
        # A random model repeats one word; under a random head of few words the next one hangs on all it has seen.
        logits = torch.zeros(*hidden.shape[:-1], model.mllm.vocabulary_size)
        logits[..., few] = 100 + hidden @ heads[0]
        return logits

    monkeypatch.setattr(model.mllm, "logits", few_words)
    batch = model.processor.encode(asked, reply=False)
    banned, width = model.vocabulary.banned(), batch.input_ids.shape[1]

    def write(read: bool) -> tuple[Tensor, int]:
        text, count, steps = None, 0, generate(
            model.mllm, Text.of(batch), model._see(batch).all, end=model.vocabulary.end, banned=banned,
            limits=[24] * len(asked),
        )  # fmt: skip
        for step in steps:
            text = step.text
            layout = find_links(text, width, model.vocabulary)
            count += len(layout)
            if read and len(layout):
                read_out(model.mllm, model.link_queries, text, layout, step.cache)
        assert text is not None
        return text.ids[:, width:], count

    plain, count = write(False)
    while count == 0 and len(heads) > 1:  # which head routes depends on the random model
        heads.pop(0)
        plain, count = write(False)
    assert count > 0, "nothing was routed: the test would see nothing"
    read, _ = write(True)
    assert torch.equal(read, plain)
    slow = written_slowly(model, batch, banned, 24)
    assert torch.equal(slow[:, : plain.shape[1]], plain)


def written_slowly(model: Any, batch: Any, banned: list[int], count: int) -> Tensor:
    """Greedy writing of one row at a time without padding, cache or links."""
    rows = []
    for row in range(len(batch.samples)):
        real = batch.owner[row] >= 0
        ids, end = batch.input_ids[row][real][None], model.vocabulary.end
        alone = model.processor.encode([batch.samples[row]], reply=False)
        assert torch.equal(alone.input_ids, ids)
        written: list[int] = []
        for _ in range(count):
            if written and written[-1] == end:
                written.append(end)
                continue
            whole = torch.cat([ids, torch.tensor([written], dtype=torch.long)], 1)
            out = model.mllm.net.model.language_model(
                inputs_embeds=model.mllm.embed(whole, vision_of(model, alone)), use_cache=False
            )
            logits = model.mllm.logits(out.last_hidden_state[:, -1])
            logits[:, banned] = float("-inf")
            written.append(int(logits.argmax(-1)))
        rows.append(torch.tensor(written))
    return torch.stack(rows)


# --- gradients ------------------------------------------------------------------------------------------------------


def grouped(model: Any) -> dict[str, list[tuple[str, Tensor]]]:
    """Parameters by the part of the model that a loss must reach."""
    net = model.mllm.net.model
    parts: dict[str, Any] = {"projector": net.multi_modal_projector, "link queries": model.link_queries}
    parts |= {f"LLM layer {i}": layer for i, layer in enumerate(net.language_model.layers)}
    parts |= {f"vision layer {i}": layer for i, layer in enumerate(net.vision_tower.encoder.layer)}
    parts |= {"patch embedding": net.vision_tower.embeddings, "token embedding": net.get_input_embeddings()}
    return {name: list(part.named_parameters()) for name, part in parts.items()}


@pytest.mark.parametrize("tree", [False, True])
def test_detection_loss_reaches_the_language_model(make_model: Make, boxed: Make, tree: bool) -> None:
    model = make_model().train()
    batch = model.processor.encode([boxed(), boxed(size=(60, 90), seed=1)], [Style(tree=tree)] * 2)
    losses = model(batch)
    total = sum(value for name, value in losses.sums.items() if name.startswith("objects/"))
    total.backward()
    for part, parameters in grouped(model).items():
        # A key bias moves all scores of a query alike: softmax does not feel it, so its gradient is nought.
        felt = {n: p.grad for n, p in parameters if "k_proj.bias" not in n and "key.bias" not in n}
        dead = [n for n, grad in felt.items() if grad is None or not bool(grad.abs().max() > 0)]
        dead = [n for n in dead if not n.endswith("mask_token")]
        assert not dead, f"{part}: no gradient at {dead}"
        assert all(bool(torch.isfinite(grad).all()) for grad in felt.values() if grad is not None)


# --- losses of the words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [False, True])
def test_where_a_reply_leads_is_counted_again(model: Any, asked: list[Sample], tree: bool) -> None:
    """At the first token of a reply, at each routing token and behind it, nowhere else; as many divisors as replies."""
    batch = model.processor.encode(asked, [Style(tree=tree)] * 3)
    with torch.no_grad():
        losses = model(batch)
        out = run_text(model.mllm, Text.of(batch), vision_of(model, batch), keep_cache=False)
        scores = model.mllm.logits(out.hidden_BTD).log_softmax(-1)
    expected = torch.zeros(())
    for row, column in zip(batch.links.row, batch.links.column, strict=True):
        for place in () if tree else (column - 1, column):
            expected = expected - scores[row, place, int(batch.labels[row, place + 1])]
    for row in () if tree else range(3):
        first = int((batch.labels[row] != -100).nonzero()[0])
        expected = expected - scores[row, first - 1, int(batch.labels[row, first])]
    torch.testing.assert_close(losses.sums["end"], expected, atol=1e-4, rtol=1e-5)
    assert model.counts(batch)["end"] == (0 if tree else 3)
    assert float(losses.sums["lm"]) > float(losses.sums["end"]) > (-1 if tree else 0)
    worst = torch.zeros(())
    for row in () if tree else range(3):
        wanted = batch.labels[row, 1:]
        told = wanted != -100
        worst = worst + (-scores[row, :-1][told].gather(1, wanted[told][:, None])).max()
    torch.testing.assert_close(losses.sums["weakest"], worst, atol=1e-4, rtol=1e-5)
    assert model.counts(batch)["weakest"] == (0 if tree else 3)
