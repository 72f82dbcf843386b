"""What can truly be said about a scene: relations, captions, referring expressions, questions and answers.

Everything follows from the objects' boxes, depth and attributes; whatever would be a matter of opinion is left out.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise, permutations
from typing import TYPE_CHECKING

from visionllm.core.sample import Question, Shows

from .catalogue import BY_NAME, CATEGORIES

if TYPE_CHECKING:
    from .scene import Scene, SceneObject

Relation = tuple[int, str, int]
Expression = tuple[str, tuple[int, ...]]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
            "thirteen", "fourteen")  # fmt: skip
_KINDS = {"vehicle": "vehicles", "animal": "animals"}
_OPENINGS = {
    "street": ("A street with ", "A city street with ", "This street shows "),
    "table": ("A table with ", "On a table there are ", "A tabletop with "),
    "sketch": ("A picture of ",),
    "field": ("A meadow with ", "A green field with ", "In a meadow there are "),
}
_GROUNDS = {"grass": "on grass", "road": "on a road", "table": "on a table"}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Kinds of question about things of which there is one each.
_SINGLE = ("colour", "side", "relation", "direction")
_CLEARER = 1.35  # how much larger the largest must be


def count_noun(name: str, count: int) -> str:
    """one: with an article; more: a number and the plural."""
    if name == "scissors":
        return "a pair of scissors" if count == 1 else f"{_NUMBERS[count]} pairs of scissors"
    return article(name) if count == 1 else f"{_NUMBERS[count]} {BY_NAME[name].plural}"


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def _verb(name: str) -> str:
    return "are" if name == "scissors" else "is"


def colour_of(thing: SceneObject) -> str | None:
    """The colour that may be said of the whole object; a person's is the shirt's and is said otherwise."""
    return None if thing.category in ("person", "orange") else thing.attributes.get("colour")


class Language:
    """The text of one scene; every list is a pure function of it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._objects = scene.objects
        self._of: dict[str, list[int]] = defaultdict(list)
        for index, thing in enumerate(scene.objects):
            self._of[thing.category].append(index)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose}/{self._scene.seed}/{self._scene.world}")

    # Relations

    def relations(self) -> list[Relation]:
        out: list[Relation] = []
        for i, a in enumerate(self._objects):
            for j, b in enumerate(self._objects):
                if i == j:
                    continue
                if a.carrier == j:
                    out.append((i, "on", j))
                elif b.carrier != i:
                    out += [(i, name, j) for name in self._between(a, b)]
        return out

    def _between(self, a: SceneObject, b: SceneObject) -> list[str]:
        names = [name for name in _OPPOSITE if _clearly(a, name, b)]
        if self._scene.world != "table" and _overlap(a, b) > 0.15 and a.depth != b.depth:
            names.append("in front of" if a.depth < b.depth else "behind")
        if _side_by_side(a, b):
            names.append("next to")
        return names

    # Captions

    def caption(self) -> str:
        return "".join(text for text, _ in self.grounded_caption())

    def captions(self) -> tuple[tuple[str, Shows], ...]:
        """Of a sketch short ones with more and with less in them; of any other scene its caption, which tells of too
        much to ask for it."""
        if self._scene.world != "sketch":
            return ((self.caption(), Shows()),)
        count = len(self._objects)
        told = [r for r in self.relations() if r[1] in _OPPOSITE]
        orders = list(permutations(range(count)))
        out: list[tuple[str, Shows]] = []
        for where in (f" {_GROUNDS[self._scene.ground]}", ""):
            for plain in (False, True):
                for order in orders:
                    things = [self._objects[i] for i in order]
                    names = [article(thing.category) if plain else self._group(thing.category, [i])
                             for i, thing in zip(order, things, strict=True)]  # fmt: skip
                    seen = tuple((thing.category, None if plain else colour_of(thing)) for thing in things)
                    boxes = tuple(self._in_parts(thing) for thing in things)
                    between = [relation for relation in told if relation[::2] == order]
                    for relation in [*between, None]:
                        words = f" {relation[1]} " if relation else " and "
                        relations = ((0, relation[1], 1),) if relation else ()
                        shows = Shows(things=seen, relations=relations, boxes=boxes)
                        out.append((words.join(names) + where, shows))
        found: dict[str, Shows] = {}
        for text, shows in out:
            found.setdefault(text, shows)
        return tuple(found.items())

    def _in_parts(self, thing: SceneObject) -> tuple[float, float, float, float]:
        height, width = self._scene.image.shape[:2]
        x0, y0, x1, y1 = thing.box_xyxy
        return x0 / width, y0 / height, x1 / width, y1 / height

    def grounded_caption(self) -> list[Expression]:
        rng = self._rng("caption")
        groups = sorted(self._of.items(), key=lambda item: -max(_area(self._objects[i]) for i in item[1]))[:6]
        pieces: list[Expression] = [(rng.choice(_OPENINGS[self._scene.world]), ())]
        for position, (name, members) in enumerate(groups):
            if position:
                pieces.append((" and " if position == len(groups) - 1 else ", ", ()))
            pieces.append((self._group(name, members), tuple(members)))
        pieces.append((".", ()))
        told = self._told_relation(rng)
        if told:
            i, relation, j = told
            first, second = self._named(i), self._named(j)
            pieces += [
                (" ", ()),
                (first[0].upper() + first[1:], (i,)),
                (f" {_verb(self._objects[i].category)} {relation} ", ()),
                (second, (j,)),
                (".", ()),
            ]
        return pieces

    def _group(self, name: str, members: list[int]) -> str:
        colours = {colour_of(self._objects[i]) for i in members}
        colour = colours.pop() if len(colours) == 1 else None
        if name == "person" and len(members) == 1:
            return f"a person in {self._objects[members[0]].attributes['colour']}"
        if not colour or name == "scissors":
            return count_noun(name, len(members))
        if len(members) == 1:
            return article(f"{colour} {name}")
        return f"{_NUMBERS[len(members)]} {colour} {BY_NAME[name].plural}"

    def _told_relation(self, rng: random.Random) -> Relation | None:
        """A relation between two objects that are each the only one of their category."""
        fit = [r for r in self.relations() if self._is_only(r[0]) and self._is_only(r[2])]
        return rng.choice(fit) if fit else None

    def _is_only(self, index: int) -> bool:
        return len(self._of[self._objects[index].category]) == 1

    def _named(self, index: int) -> str:
        return f"the {self._objects[index].category}"

    # Referring expressions

    def referring(self, k: int) -> list[Expression]:
        """At most k expressions, each true of exactly the objects named with it."""
        found: dict[str, tuple[int, ...]] = {}
        for name, members in self._of.items():
            for text, indices in (
                *self._plain(name, members),
                *self._extremes(name, members),
                *self._placed(name, members),
            ):
                found.setdefault(text, indices)
        for kind, plural in _KINDS.items():
            members = [i for i, thing in enumerate(self._objects) if BY_NAME[thing.category].kind == kind]
            if len(members) > 1:
                found.setdefault(f"the {plural}", tuple(members))
        everything = sorted(found.items())
        self._rng("referring").shuffle(everything)
        return everything[:k]

    def _plain(self, name: str, members: list[int]) -> list[Expression]:
        """By name, colour and what else a category can tell."""
        plural = BY_NAME[name].plural
        out: list[Expression] = [(f"the {name}" if len(members) == 1 else f"the {plural}", tuple(members))]
        by_text: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in members:
            for one, many in _descriptions(self._objects[i]):
                by_text[one, many].append(i)
        return out + [(one if len(group) == 1 else many, tuple(group)) for (one, many), group in by_text.items()]

    def _extremes(self, name: str, members: list[int]) -> list[Expression]:
        if len(members) < 2:
            return []
        out: list[Expression] = []
        width = self._scene.image.shape[1]
        across = sorted(members, key=lambda i: _middle(self._objects[i])[0])
        place = [_middle(self._objects[i])[0] / width for i in across]
        if place[1] - place[0] > 0.04:
            out.append((f"the leftmost {name}", (across[0],)))
        if place[-1] - place[-2] > 0.04:
            out.append((f"the rightmost {name}", (across[-1],)))
        size = sorted(members, key=lambda i: _area(self._objects[i]))
        if _area(self._objects[size[-1]]) > _CLEARER * _area(self._objects[size[-2]]):
            out.append((f"the largest {name}", (size[-1],)))
        if _CLEARER * _area(self._objects[size[0]]) < _area(self._objects[size[1]]):
            out.append((f"the smallest {name}", (size[0],)))
        return out

    def _placed(self, name: str, members: list[int]) -> list[Expression]:
        """By relation to an object that is the only one of its category; the rest must clearly not stand so."""
        out: list[Expression] = []
        for other, anchors in self._of.items():
            if other == name or len(anchors) != 1:
                continue
            anchor = self._objects[anchors[0]]
            for relation in _OPPOSITE:
                yes = [i for i in members if _clearly(self._objects[i], relation, anchor)]
                no = [i for i in members if not _at_all(self._objects[i], relation, anchor)]
                if yes and len(yes) + len(no) == len(members):
                    noun = name if len(yes) == 1 else BY_NAME[name].plural
                    out.append((f"the {noun} {relation} the {other}", tuple(yes)))
        riding = [i for i in members if self._objects[i].carrier >= 0]
        for other in {self._objects[self._objects[i].carrier].category for i in riding}:
            group = [i for i in riding if self._objects[self._objects[i].carrier].category == other]
            noun = name if len(group) == 1 else BY_NAME[name].plural
            out.append((f"the {noun} on {article(other) if len(group) == 1 else BY_NAME[other].plural}", tuple(group)))
        return out

    # Questions

    def questions(self) -> list[Question]:
        rng = self._rng("questions")
        here = sorted(self._of)
        possible = [c.name for c in CATEGORIES if self._scene.world in c.worlds and c.name not in self._of]
        absent = rng.sample(possible, min(3, len(possible)))
        out = [self._how_many(name) for name in (*here, *absent[:1])]
        out += [self._is_there(name) for name in (*here, *absent)]
        for name in here:
            if len(self._of[name]) == 1:
                out += self._about_one(name, self._of[name][0])
        for first, second in pairwise(here):
            a, b = len(self._of[first]), len(self._of[second])
            if a != b:
                more, fewer = BY_NAME[first].plural, BY_NAME[second].plural
                looks = ((more, tuple(self._of[first])), (fewer, tuple(self._of[second])))
                wordings = (f"Are there more {more} than {fewer}?", f"do you see more {more} than {fewer}?")
                out.append(_question("more", wordings, "yes" if a > b else "no", *looks))
        told = [r for r in self.relations() if r[1] in _OPPOSITE and self._is_only(r[0]) and self._is_only(r[2])]
        for i, relation, j in rng.sample(told, min(4, len(told))):
            true = rng.random() < 0.5
            asked = relation if true else _OPPOSITE[relation]
            verb, first, second = _verb(self._objects[i].category), self._named(i), self._named(j)
            looks = ((self._objects[i].category, (i,)), (self._objects[j].category, (j,)))
            wordings = (f"{verb.capitalize()} {first} {asked} {second}?",
                        f"can you say whether {first} {verb} {asked} {second}")  # fmt: skip
            out.append(_question("relation", wordings, "yes" if true else "no", *looks))
        rng.shuffle(out)
        return out + [self._which_way(*relation) for relation in told]

    def _which_way(self, i: int, relation: str, j: int) -> Question:
        verb, first, second = _verb(self._objects[i].category), self._named(i), self._named(j)
        looks = ((self._objects[i].category, (i,)), (self._objects[j].category, (j,)))
        if relation in ("above", "below"):
            return _question("direction", (f"{verb.capitalize()} {first} above or below {second}?",), relation, *looks)
        wordings = (f"{verb.capitalize()} {first} to the left or to the right of {second}?",
                    f"on which side of {second} {verb} {first}")  # fmt: skip
        return _question("direction", wordings, relation.removesuffix(" of"), *looks)

    def _how_many(self, name: str) -> Question:
        plural, members = BY_NAME[name].plural, tuple(self._of.get(name, ()))
        wordings = (f"How many {plural} are there?", f"how many {plural} do you see", f"count the {plural}",
                    f"What is the number of {plural} in the picture?",
                    f"how many {plural} can you count in this image?")  # fmt: skip
        return _question("number", wordings, str(len(members)), (plural, members))

    def _is_there(self, name: str) -> Question:
        one, members = count_noun(name, 1), tuple(self._of.get(name, ()))
        wordings = (f"Is there {one} in the picture?", f"is there {one}?", f"does the picture show {one}?",
                    f"Is {one} in this image", f"can {one} be seen")  # fmt: skip
        return _question("presence", wordings, "yes" if members else "no", (name, members))

    def _about_one(self, name: str, index: int) -> list[Question]:
        out: list[Question] = []
        thing, verb, looks = self._objects[index], _verb(name), (name, (index,))
        wordings: tuple[str, ...]
        colour = colour_of(thing)
        if colour:
            wordings = (f"What colour {verb} the {name}?", f"what is the colour of the {name}",
                        f"which color {verb} the {name}?", f"tell me the colour of the {name}")  # fmt: skip
            out.append(_question("colour", wordings, colour, looks))
        if name == "person":
            wordings = ("What colour is the person's shirt?", "which colour does the person wear")
            out.append(_question("colour", wordings, thing.attributes["colour"], looks))
        if name == "traffic light":
            wordings = ("Which colour does the traffic light show?", "what does the traffic light show")
            out.append(_question("colour", wordings, thing.attributes["state"], looks))
        width = self._scene.image.shape[1]
        x0, _, x1, _ = thing.box_xyxy
        if x1 <= width / 2 or x0 >= width / 2:
            wordings = (f"{verb.capitalize()} the {name} in the left or the right half of the picture?",
                        f"{verb} the {name} on the left or on the right")  # fmt: skip
            out.append(_question("side", wordings, "left" if x1 <= width / 2 else "right", looks))
        return out


def _question(kind: str, wordings: tuple[str, ...], answer: str, *looks: tuple[str, tuple[int, ...]]) -> Question:
    return Question(text=wordings[0], answer=answer, looks=looks, other=wordings[1:], kind=kind, single=kind in _SINGLE)


def _descriptions(thing: SceneObject) -> list[tuple[str, str]]:
    """Noun phrases for one and for several objects that this object fits."""
    name, plural, has = thing.category, BY_NAME[thing.category].plural, thing.attributes
    out: list[tuple[str, str]] = []
    colour = colour_of(thing)
    if colour:
        out.append((f"the {colour} {name}", f"the {colour} {plural}"))
    if name == "person":
        out.append((f"the person in {has['colour']}", f"the people in {has['colour']}"))
        out.append((f"the person with {has['trousers']} trousers", f"the people with {has['trousers']} trousers"))
        if has["pose"] in ("walking", "waving"):
            out.append((f"the {has['pose']} person", f"the {has['pose']} people"))
        if has["age"] == "child":
            out.append(("the child", "the children"))
    if "state" in has:
        out.append((f"the traffic light that shows {has['state']}", f"the traffic lights that show {has['state']}"))
    if "sign" in has and has["sign"] != "blue":
        out.append((f"the {has['sign']} sign", f"the {has['sign']} signs"))
    if "drink" in has:
        out.append((f"the glass of {has['drink']}", f"the glasses of {has['drink']}"))
    return out


def _middle(thing: SceneObject) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box_xyxy
    return (x0 + x1) / 2, (y0 + y1) / 2


def _area(thing: SceneObject) -> float:
    x0, y0, x1, y1 = thing.box_xyxy
    return (x1 - x0) * (y1 - y0)


def _clearly(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """The boxes do not overlap along the axis, and lie apart mostly along it."""
    (ax, ay), (bx, by) = _middle(a), _middle(b)
    across, down = abs(ax - bx), abs(ay - by)
    if relation == "left of":
        return a.box_xyxy[2] <= b.box_xyxy[0] and across > down
    if relation == "right of":
        return a.box_xyxy[0] >= b.box_xyxy[2] and across > down
    if relation == "above":
        return a.box_xyxy[3] <= b.box_xyxy[1] and down > across
    assert relation == "below", relation
    return a.box_xyxy[1] >= b.box_xyxy[3] and down > across


def _at_all(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether anyone might say so: any part of a reaches beyond the middle of b to that side."""
    bx, by = _middle(b)
    return {
        "left of": a.box_xyxy[0] < bx, "right of": a.box_xyxy[2] > bx,
        "above": a.box_xyxy[1] < by, "below": a.box_xyxy[3] > by,
    }[relation]  # fmt: skip


def _overlap(a: SceneObject, b: SceneObject) -> float:
    """Intersection of the unoccluded boxes over the smaller one."""
    ax0, ay0, ax1, ay1 = a.full_box_xyxy
    bx0, by0, bx1, by1 = b.full_box_xyxy
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return shared / min((ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0))


def _side_by_side(a: SceneObject, b: SceneObject) -> bool:
    ax0, ay0, ax1, ay1 = a.full_box_xyxy
    bx0, by0, bx1, by1 = b.full_box_xyxy
    gap, low, high = max(ax0, bx0) - min(ax1, bx1), *sorted((ay1 - ay0, by1 - by0))
    return 0 <= gap < 0.4 * low and abs(ay1 - by1) < 0.3 * low and high < 2.5 * low
