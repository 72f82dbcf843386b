"""Names to things: a duplicate raises, an unknown name lists what exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from visionllm.core.errors import unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to things of one kind, completed by installed plugins on the first look-up.

    Args:
        kind: what the entries are, for error texts ("decoder").
        group: entry point group of third-party plugins; loading an entry point must register it.
        builtin: module whose import registers our own, treated like one more plugin, because a bare checkout has no
            entry points.
    """

    def __init__(self, kind: str, group: str | None = None, builtin: str | None = None) -> None:
        self.kind = kind
        self._group, self._builtin = group, builtin
        self._items: dict[str, T] = {}
        self._plugins_loaded = group is None and builtin is None

    def add(self, name: str, item: T) -> T:
        if name in self._items and self._items[name] is not item:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""
        return lambda item: self.add(name, item)

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            self._load_plugins()
        if name not in self._items:
            raise unknown_name(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        self._load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._items))

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        if self._builtin:
            import_module(self._builtin)
        for point in _points(self._group):
            point.load()


def _points(group: str | None) -> list[EntryPoint]:
    return list(entry_points(group=group)) if group else []
