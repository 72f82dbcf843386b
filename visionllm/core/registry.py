"""Names to things: a duplicate raises, an unknown name lists what exists, a plugin that fails takes nobody along."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from visionllm.core.errors import UnknownNameError, unknown_name

T = TypeVar("T")

# Seconds that loading one plugin may take.
_PATIENCE = "VISIONLLM_PLUGIN_SECONDS"
_registries: WeakSet[Registry[Any]] = WeakSet()
# Entry point (group, name) -> why it could not be loaded, or None.
_loaded: dict[tuple[str, str], str | None] = {}


class PluginWarning(UserWarning):
    """An installed plugin could not be loaded; all else goes on without it."""


class Registry(Generic[T]):
    """A mapping from names to things of one kind, completed by installed plugins when a name is not ours.

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
        _registries.add(self)

    def add(self, name: str, item: T) -> T:
        if name in self._items and self._items[name] is not item:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""
        return lambda item: self.add(name, item)

    def held(self) -> dict[str, T]:
        """What is registered by now; nothing is loaded for it."""
        return dict(self._items)

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise self._unknown(name)
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        """Ours are looked at first, then the plugin of that name, then all: whoever asks for one waits for no other."""
        for load in (self._load_own, lambda: self._load_plugins(name), self._load_plugins):
            if name in self._items:
                return True
            load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load_own()
        self._load_plugins()
        return iter(sorted(self._items))

    def _load_own(self) -> None:
        if self._builtin:
            import_module(self._builtin)

    def _load_plugins(self, name: str | None = None) -> None:
        for point in _points(self._group):
            if name is None or point.name == name:
                _load(point)

    def _unknown(self, name: str) -> UnknownNameError:
        error = unknown_name(self.kind, name, self._items)
        broken = [f"plugin {_titled(point)} {why}" for point in _points(self._group)
                  if (why := _loaded.get((point.group, point.name))) is not None]  # fmt: skip
        return UnknownNameError(f"{error} Not loaded: {'; '.join(broken)}.") if broken else error


def _points(group: str | None) -> list[EntryPoint]:
    return list(entry_points(group=group)) if group else []


def _load(point: EntryPoint) -> None:
    """Load a plugin once. One that raises, takes too long, or clashes with a name leaves a warning behind, and nothing
    in the registries."""
    key = (point.group, point.name)
    if key in _loaded:
        return
    _loaded[key] = None
    known = list(_registries)
    for registry in known:
        registry._load_own()  # ours must not be taken for what the plugin brought
    before = {registry: registry.held() for registry in known}
    reason: list[str] = []

    def attempt() -> None:
        try:
            point.load()
        except BaseException as error:  # noqa: BLE001 (a stranger's module may raise anything, SystemExit too)
            said = str(error).splitlines()
            reason.append(f"raised {type(error).__name__}{f': {said[0]}' if said else ''}")

    # In a thread of its own, so that one that never comes back can be left.
    worker = threading.Thread(target=attempt, daemon=True, name=f"plugin {point.name}")
    patience = float(os.environ.get(_PATIENCE, "60"))
    worker.start()
    worker.join(patience)
    if worker.is_alive():
        reason.append(f"did not load within {patience:g} seconds (${_PATIENCE})")
    if reason:
        for registry, items in before.items():
            registry._items = items
        _loaded[key] = reason[0]
        warnings.warn(f"plugin {_titled(point)} {reason[0]}; it is left out", PluginWarning, stacklevel=4)


def _titled(point: EntryPoint) -> str:
    """A plugin by its name and what brought it: ``'depth' (visionllm-depth 0.1)``."""
    return f"{point.name!r} ({point.dist.name} {point.dist.version})" if point.dist is not None else repr(point.name)
