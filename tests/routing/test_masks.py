"""Who sees whom, against the rule written out loop by loop."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from visionllm.core.batch import LinkLayout
from visionllm.core.superlink import LinkMeta
from visionllm.routing.masks import QueryLayout, additive_mask, needs_mask

Row = tuple[int, list[tuple[int, list[int]]], list[tuple[int, int]]]


@st.composite
def rows(draw: st.DrawFn) -> list[dict]:
    """Rows of packed samples, each a trunk and some branches, with links on any of their positions."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        owner, branch = [], []
        for sample in range(draw(st.integers(1, 3))):
            trunk = draw(st.integers(1, 4))
            branches = draw(st.lists(st.integers(1, 3), max_size=3))
            owner += [sample] * (trunk + sum(branches))
            branch += [0] * trunk + [k + 1 for k, length in enumerate(branches) for _ in range(length)]
        columns = draw(st.lists(st.integers(0, len(owner) - 1), max_size=4))
        made.append({"owner": owner, "branch": branch, "columns": columns, "gap": draw(st.integers(0, 3))})
    return made


def tensors(made: list[dict], queries: list[int]) -> tuple[torch.Tensor, torch.Tensor, LinkLayout]:
    """Padded left; a finished row may also be padded right, as generation leaves it."""
    width = max(len(row["owner"]) + row["gap"] for row in made)
    owner = torch.full((len(made), width), -1)
    branch = torch.zeros(len(made), width, dtype=torch.long)
    links = []
    for r, row in enumerate(made):
        start = width - len(row["owner"]) - row["gap"]
        stop = start + len(row["owner"])
        owner[r, start:stop], branch[r, start:stop] = torch.tensor(row["owner"]), torch.tensor(row["branch"])
        links += [(r, start + column) for column in row["columns"]]
    # Links come in any order of rows.
    links = links[::-1]
    return owner, branch, LinkLayout(
        row=tuple(r for r, _ in links),
        column=tuple(c for _, c in links),
        queries=tuple(queries[i % len(queries)] for i in range(len(links))),
        meta=tuple(LinkMeta(sample=0, turn=0, task="t", token="[T]", phrase="") for _ in links),
    )  # fmt: skip


def text_sees(owner: torch.Tensor, branch: torch.Tensor, row: int, position: int, other: int) -> bool:
    own, its = int(owner[row, position]), int(owner[row, other])
    on_my_way = int(branch[row, other]) in (0, int(branch[row, position]))
    return its >= 0 and own == its and other <= position and on_my_way


@given(made=rows(), queries=st.lists(st.integers(1, 3), min_size=1, max_size=3), cut=st.integers(0, 6))
def test_mask_follows_the_rule(made: list[dict], queries: list[int], cut: int) -> None:
    owner, branch, links = tensors(made, queries)
    layout = QueryLayout.of(links, len(made), owner.device)
    width = owner.shape[1]
    cut = min(cut, width)
    mask = additive_mask(owner, branch, layout, text_rows=slice(cut, None), query_rows=True, dtype=torch.float32)
    assert bool(torch.isfinite(mask).all())
    seen = mask[:, 0] == 0
    assert bool((seen | (mask[:, 0] == torch.finfo(torch.float32).min)).all())
    for r in range(len(made)):
        # The queries of a row, in the order in which its links are named.
        places = [(i, step) for i in range(len(links)) if links.row[i] == r for step in range(links.queries[i])]
        for position in range(cut, width):
            line = seen[r, position - cut]
            if owner[r, position] >= 0:
                expected = [text_sees(owner, branch, r, position, other) for other in range(width)]
                assert line[:width].tolist() == expected
            assert not bool(line[width:].any()), "a text position sees a query"
        for g, (link, step) in enumerate(places):
            line = seen[r, width - cut + g]
            anchor = links.column[link]
            assert line[:width].tolist() == [text_sees(owner, branch, r, anchor, other) for other in range(width)]
            group = [other_link == link and other_step <= step for other_link, other_step in places]
            assert line[width:].tolist() == group + [False] * (layout.link_BG.shape[1] - len(places))


@given(made=rows())
def test_mask_of_text_alone_is_that_beside_queries(made: list[dict]) -> None:
    owner, branch, links = tensors(made, [2])
    layout = QueryLayout.of(links, len(made), owner.device)
    beside = additive_mask(owner, branch, layout, text_rows=slice(None), query_rows=True, dtype=torch.float32)
    alone = additive_mask(owner, branch, None, text_rows=slice(None), query_rows=False, dtype=torch.float32)
    width = owner.shape[1]
    assert torch.equal(alone, beside[:, :, :width, :width])


@given(made=rows())
def test_plain_causal_attention_only_where_it_is_enough(made: list[dict]) -> None:
    owner, branch, _ = tensors(made, [1])
    alone = all(len(set(row["owner"])) == 1 for row in made) and all(not any(row["branch"]) for row in made)
    assert needs_mask(owner, branch) == (not alone)


def test_positions_continue_from_the_routing_token() -> None:
    meta = LinkMeta(sample=0, turn=0, task="t", token="[T]", phrase="")
    links = LinkLayout(row=(0, 1), column=(2, 1), queries=(3, 1), meta=(meta, meta))
    layout = QueryLayout.of(links, 2, torch.device("cpu"))
    position = torch.tensor([[0, 1, 7], [0, 5, 6]])
    assert layout.positions(position)[0].tolist() == [8, 9, 10]
    assert layout.positions(position)[1, 0] == 6
