"""Sample to text: pieces that say what steers, what is supervised, and where a link hangs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from visionllm.core.regions import PLACEHOLDER, picture_name, region_name
from visionllm.core.sample import Sample, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.core.task import TASKS, Task
from visionllm.routing.vocabulary import END, IMAGE, IMAGE_END, IMAGE_START, REF, REF_END, START
from visionllm.routing.wording import BREATHS, Templates, bare, load_templates

_VOWELS = frozenset("aeiou")
# Share of lists in which no name has a quantifier. Drawn a name at a time, a long list would never be without one, and
# that is how people write long lists.
_BARE = 0.4
# Share of questions asked in one breath that take one of the shortest wordings, this part of them: so people ask.
_CURT, _SHORTEST = 0.5, 0.25
# Share of the questions about names in capitals that are in capitals throughout, where a name has more letters than an
# acronym.
_SHOUTED, _SHORT = 0.7, 4
_RELATION = re.compile(
    r" (?:of|in|on|with|without|for|near|next|to|left|right|above|below|behind|under|beside|between|facing|holding"
    r"|that) "
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Piece:
    """A run of text.

    Args:
        text: the words, or the text of one control token.
        control: it is a control token; everything else is encoded as plain text.
        supervised: the language model is trained to write it.
        free: it belongs to a reply in free words, of which nobody can know every one beforehand.
        branch: 0 on the trunk, k on the k-th branch.
        link: the link that hangs on this routing token.
        repeat: how often the control token stands (picture positions).
        ids: what the model itself has written, in place of text.
    """

    text: str
    control: bool = False
    supervised: bool = False
    free: bool = False
    branch: int = 0
    link: LinkMeta | None = None
    repeat: int = 1
    ids: tuple[int, ...] = ()


@dataclass(kw_only=True, slots=True, frozen=True)
class Style:
    """How turns without a question of their own are worded.

    Args:
        rng: draws wordings; None renders the canonical ones.
        tree: every phrase is a branch of its own, unseen by the others.
    """

    rng: np.random.Generator | None = None
    tree: bool = False


def render(sample: Sample, tokens_of_picture: Sequence[int], *, index: int = 0, style: Style | None = None,
           reply: bool = True) -> list[Piece]:  # fmt: skip
    """The conversation of a sample in ChatML.

    Args:
        tokens_of_picture: number of picture positions of each picture; pictures stand before the first question, each
            after its name where there are several.
        index: index of the sample in its batch, written into the links.
        reply: include the last reply; without it the text ends where the model goes on.
    """
    style = style or Style()
    # Branches leave one trunk: a conversation has no place for them, nor has a reply in free words.
    first = sample.turns[0]
    tree = style.tree and len(sample.turns) == 1 and first.task is not None and first.reply is None
    style = replace(style, tree=tree)
    pieces: list[Piece] = []
    regions = 0
    exchanges = sample.exchanges()
    for number, exchange in enumerate(exchanges):
        question, answer = _exchange(_turns(exchange, index, style), style)
        findings = exchange[0][1].told
        pieces += [_control(START), Piece(text="tool\n" if findings else "user\n")]
        if number == 0:
            for place, count in enumerate(tokens_of_picture):
                if len(tokens_of_picture) > 1:
                    pieces.append(Piece(text=f"{picture_name(place)}: "))
                pieces += [_control(IMAGE_START), Piece(text=IMAGE, control=True, repeat=count), _control(IMAGE_END)]
                pieces.append(Piece(text="\n"))
        pieces += [*_pointed(question, regions, named=not findings), _control(END), Piece(text="\n")]
        regions += 0 if findings else len(question) - 1
        pieces += [_control(START), Piece(text="assistant\n")]
        last = number == len(exchanges) - 1
        if reply or not last:
            pieces += answer
            if not tree:
                free = bool(answer) and answer[-1].free
                pieces += [Piece(text=END, control=True, supervised=True, free=free), Piece(text="\n")]
    return pieces


def _exchange(rendered: list[tuple[list[str], list[Piece]]], style: Style) -> tuple[list[str], list[Piece]]:
    """Questions asked in one breath, and one reply to all of them, in their order.

    A question is a list of words; between two of them stands a region.
    """
    question, answer = rendered[0]
    for more, reply in rendered[1:]:
        breath = BREATHS[0] if style.rng is None else _pick(BREATHS, style.rng)
        question = [*question[:-1], question[-1] + breath + more[0], *more[1:]]
        answer = [*answer, Piece(text=BREATHS[0], supervised=True), *reply]
    return question, answer


def render_question(*turns: Turn, rng: np.random.Generator | None = None) -> str:
    """The user's side of a turn, or of several in one breath, in a drawn wording or (without ``rng``) the canonical
    one."""
    style = Style(rng=rng)
    return PLACEHOLDER.join(_exchange(_turns(list(enumerate(turns)), 0, style), style)[0])


def _turns(exchange: Sequence[tuple[int, Turn]], sample: int, style: Style) -> list[tuple[list[str], list[Piece]]]:
    last = len(exchange) - 1
    return [_turn(turn, sample, number, style, followed=place < last) for place, (number, turn) in enumerate(exchange)]


def _pointed(question: Sequence[str], first: int, *, named: bool) -> list[Piece]:
    """Words of a question, and the regions between them, each after its name: what was found has none."""
    pieces = []
    for number, words in enumerate(question[:-1], first):
        # A region stands in a picture position: no token that a reply could hold.
        pieces += [Piece(text=f"{words}{region_name(number)} " if named else words), _control(IMAGE)]
    return [*pieces, Piece(text=question[-1])]


def _turn(turn: Turn, sample: int, number: int, style: Style, *, followed: bool) -> tuple[list[str], list[Piece]]:
    question, answer = _said(turn, sample, number, style, followed)
    words = question.split(PLACEHOLDER) if turn.regions else [question]
    assert len(words) == len(turn.regions) + 1, "regions and placeholders of a turn differ in number"
    return words, answer


def _said(turn: Turn, sample: int, number: int, style: Style, followed: bool) -> tuple[str, list[Piece]]:
    if turn.said is not None:
        return turn.question or "", [Piece(text="", ids=turn.said)]
    if turn.task is None:
        return turn.question or "", [Piece(text=turn.reply or "", supervised=True, free=True)]
    task = TASKS[turn.task]
    templates = load_templates(task.templates)
    tree = style.tree and bool(templates.branches)
    question, reply = _question(turn, templates, style.rng, tree, followed)
    if turn.reply is not None:
        return question, _woven(turn, task, sample, number)
    before, _, after = reply.partition("{links}")
    answer = [Piece(text=before, supervised=True)] if before and not tree else []
    for group, phrase in enumerate(turn.phrases):
        if group and not tree:
            answer.append(Piece(text=templates.join, supervised=True))
        link = LinkMeta(sample=sample, turn=number, task=task.name, token=task.tokens[0].text, phrase=phrase,
                        group=group)  # fmt: skip
        parts = turn.parts[group] if turn.parts else ()
        answer += _routed(link, parts, templates, supervised=not tree, branch=group + 1 if tree else 0)
    return question, answer + ([Piece(text=after, supervised=True)] if after and not tree else [])


def _woven(turn: Turn, task: Task, sample: int, number: int) -> list[Piece]:
    """A reply in free words in which the phrases of the turn are routed, where each is said."""
    words, pieces = turn.reply or "", []
    for group, phrase in enumerate(turn.phrases):
        before, found, words = words.partition(phrase)
        assert found, f"a reply does not say {phrase!r} after the phrase before it"
        link = LinkMeta(sample=sample, turn=number, task=task.name, token=task.tokens[0].text, phrase=phrase,
                        group=group)  # fmt: skip
        pieces += [Piece(text=before, supervised=True)] if before else []
        pieces += _named(link, phrase, supervised=True, branch=0)
    pieces += [Piece(text=words, supervised=True)] if words else []
    return [replace(piece, free=True) for piece in pieces]


def _question(
    turn: Turn, templates: Templates, rng: np.random.Generator | None, tree: bool, followed: bool
) -> tuple[str, str]:
    """The user's words, and the reply template that goes with them; ``followed`` by others in one breath."""
    canonical = templates.groups[0]
    if turn.question is not None:
        return turn.question, canonical.reply
    if tree:
        return (templates.branches[0] if rng is None else _pick(templates.branches, rng)), canonical.reply
    if rng is None:
        listed = turn.called or _apart(turn).join(_owning(turn, turn.phrases, templates.owns[0], ", "))
        return canonical.questions[0].replace("{phrases}", listed), canonical.reply
    group = templates.groups[int(rng.integers(len(templates.groups)))]
    between, last = templates.joins[int(rng.integers(len(templates.joins)))]
    bare = rng.random() < _BARE
    named = [phrase if bare else _quantified(phrase, templates, rng) for phrase in turn.phrases]
    owns = _pick(templates.owns, rng)
    inner = between
    if _apart(turn) != ", ":
        inner, between, last = (between if between.strip() not in (";", "") else ", "), _apart(turn), _apart(turn)
    named = _owning(turn, named, owns, inner)
    listed = last.join([between.join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
    listed = turn.called or listed
    known = group.questions
    if (followed or turn.joined) and rng.random() < _CURT:
        known = tuple(sorted(known, key=len)[: max(1, int(_SHORTEST * len(known)))])
    words = _pick(known, rng).replace("{phrases}", listed)
    # Nobody greets or thanks twice in one breath.
    words = ("" if turn.joined else _pick(templates.prefixes, rng)) + words
    words += "" if followed else _pick(templates.suffixes, rng)
    # A name that opens the question keeps its case: the reply repeats names as they were typed.
    if not turn.joined and rng.random() < 0.3 and not words.startswith(listed):
        words = words[:1].upper() + words[1:]
    # Who types a name in capitals often has the key down throughout; "RBC" is written so by everybody.
    loud = all(phrase.isupper() for phrase in turn.phrases) and any(len(phrase) > _SHORT for phrase in turn.phrases)
    if loud and not turn.regions and rng.random() < _SHOUTED:
        words = words.upper()
    return words, group.reply


def _quantified(phrase: str, templates: Templates, rng: np.random.Generator) -> str:
    # "tree left of the bus": the word before the first that relates it to others tells the number.
    noun = _RELATION.split(phrase, maxsplit=1)[0]
    number = "plural" if noun.endswith("s") and not noun.endswith("ss") else "singular"
    before = _pick(templates.quantifiers[number], rng)
    return before.replace("a(n)", "an" if phrase[:1].lower() in _VOWELS else "a") + phrase


def _apart(turn: Turn) -> str:
    """What stands between the phrases of a question, where nothing is drawn: lists in a list need two marks."""
    return "; " if turn.parts and not turn.usual else ", "


def _owning(turn: Turn, named: Sequence[str], wording: str, between: str) -> list[str]:
    """Each phrase of a question with its parts, unless it has none or they go without saying."""
    if not turn.parts or turn.usual:
        return list(named)
    return [
        wording.replace("{phrase}", phrase).replace("{parts}", between.join(parts)) if parts else phrase
        for phrase, parts in zip(named, turn.parts, strict=True)
    ]


def _routed(
    link: LinkMeta, parts: Sequence[str], templates: Templates, *, supervised: bool, branch: int
) -> list[Piece]:
    """``<ref>phrase</ref>[TOKEN]`` and the same for its parts; in a branch only the routing token follows from what
    stands before it."""
    task = TASKS[link.task]
    pieces = _named(link, bare(link.phrase, task.templates), supervised=supervised, branch=branch)
    token = task.parts_token
    for number, part in enumerate(parts):
        assert token is not None, f"task {link.task!r} has no token for parts"
        between = templates.parts_join if number else templates.opens
        pieces.append(Piece(text=between, supervised=supervised, branch=branch))
        pieces += _named(replace(link, token=token.text, phrase=part), part, supervised=supervised, branch=branch)
    return pieces


def _named(link: LinkMeta, words: str, *, supervised: bool, branch: int) -> list[Piece]:
    return [
        Piece(text=REF, control=True, supervised=supervised, branch=branch),
        Piece(text=words, supervised=supervised, branch=branch),
        Piece(text=REF_END, control=True, supervised=supervised, branch=branch),
        Piece(text=link.token, control=True, supervised=True, branch=branch, link=link),
    ]


def _control(text: str) -> Piece:
    return Piece(text=text, control=True)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
