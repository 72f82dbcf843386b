"""The one configuration base, and the one place where a YAML file becomes a typed object."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from visionllm.core.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=BaseModel)
_LONGEST = 120  # characters of a wrong value that an error repeats


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file with the safe loader.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}: {getattr(error, 'problem', error)}") from None


def validate(cls: type[C], values: Any, *, source: str) -> C:
    """Make a config out of plain values; an error names ``source``, the path of the key and the cure."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected keys and values, got {type(values).__name__}")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(cls, item, source) for item in error.errors())) from None


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set ``a.b.c=value`` words (YAML values) in nested plain values; returns a new mapping."""
    for word in overrides:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {word!r}: expected key=value, such as train.steps=2000")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override {word!r}: the value is not valid YAML") from None
        values = _set(values, key.split("."), value, word)
    return values


def _set(values: dict[str, Any], path: list[str], value: Any, word: str) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**values, head: value}
    child = values.get(head) or {}
    if not isinstance(child, dict):
        raise ConfigError(f"override {word!r}: {head!r} holds a value, not keys")
    return {**values, head: _set(child, rest, value, word)}


def _sentence(cls: type[BaseModel], item: Any, source: str) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields(cls, item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        return f"{source}: {path}: unknown key ({hint})"
    if item["type"] == "missing":
        return f"{source}: {path}: missing"
    message = item["msg"][0].lower() + item["msg"][1:]
    got = repr(item["input"])
    return f"{source}: {path}: {message}, got {got if len(got) <= _LONGEST else f'{got[:_LONGEST]}...'}"


def _fields(cls: Any, loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model that ``loc`` leads to, through lists, mappings and unions."""
    for part in loc:
        if isinstance(cls, type) and issubclass(cls, BaseModel):
            field = cls.model_fields.get(str(part))
            # What is no field is an index or a key, and stands before the same model.
            cls = _model_in(field.annotation) if field else cls
    return list(cls.model_fields) if isinstance(cls, type) and issubclass(cls, BaseModel) else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
