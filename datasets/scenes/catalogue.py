"""What may be drawn: the categories, their names, and the worlds they appear in."""

from __future__ import annotations

from dataclasses import dataclass

WORLDS = ("street", "table", "field")
# Drawn where asked for by name only.
SPECIAL = ("crowd", "sketch")
STUFF = (
    "nothing", "sky", "road", "pavement", "grass", "building", "wall", "table", "vegetation", "pole", "fence", "hill",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A class of objects; the name is what a caption says, synonyms are other words for the same thing."""

    name: str
    plural: str
    synonyms: tuple[str, ...] = ()
    kind: str
    worlds: tuple[str, ...]


def _category(name: str, kind: str, worlds: str, *synonyms: str, plural: str = "") -> Category:
    return Category(name=name, plural=plural or name + "s", synonyms=synonyms, kind=kind, worlds=tuple(worlds.split()))


CATEGORIES: tuple[Category, ...] = (
    _category("person", "person", "street field", "human", "pedestrian", plural="people"),
    _category("car", "vehicle", "street", "automobile"),
    _category("van", "vehicle", "street", "minivan"),
    _category("truck", "vehicle", "street", "lorry", plural="trucks"),
    _category("bus", "vehicle", "street", "coach", plural="buses"),
    _category("bicycle", "vehicle", "street field", "bike"),
    _category("motorcycle", "vehicle", "street", "motorbike"),
    _category("traffic light", "thing", "street", "stoplight"),
    _category("traffic sign", "thing", "street", "road sign"),
    _category("street lamp", "thing", "street", "lamp post", "streetlight"),
    _category("fire hydrant", "thing", "street", "hydrant"),
    _category("bench", "thing", "street field", "seat", plural="benches"),
    _category("trash bin", "thing", "street", "garbage can", "waste bin"),
    _category("tree", "plant", "street field"),
    _category("house", "building", "street field", "home"),
    _category("dog", "animal", "street field", "hound"),
    _category("cat", "animal", "street field", "kitty"),
    _category("horse", "animal", "field", "pony"),
    _category("cow", "animal", "field", "cattle"),
    _category("sheep", "animal", "field", "lamb", plural="sheep"),
    _category("bird", "animal", "field street"),
    _category("ball", "thing", "field table", "toy ball"),
    _category("kite", "thing", "field"),
    _category("cup", "thing", "table", "mug"),
    _category("bottle", "thing", "table", "flask"),
    _category("wine glass", "thing", "table", "goblet", plural="wine glasses"),
    _category("plate", "thing", "table", "dish"),
    _category("bowl", "thing", "table"),
    _category("vase", "thing", "table", "flower vase"),
    _category("book", "thing", "table", "volume"),
    _category("laptop", "thing", "table", "notebook computer"),
    _category("phone", "thing", "table", "smartphone", "cell phone"),
    _category("clock", "thing", "table", "alarm clock"),
    _category("apple", "food", "table"),
    _category("orange", "food", "table"),
    _category("banana", "food", "table"),
    _category("fork", "thing", "table"),
    _category("knife", "thing", "table", plural="knives"),
    _category("spoon", "thing", "table"),
    _category("scissors", "thing", "table", plural="scissors"),
)
BY_NAME = {category.name: category for category in CATEGORIES}
