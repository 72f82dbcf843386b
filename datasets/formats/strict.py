"""Annotation files in JSON, read as the standard has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from visionllm.core.errors import AnnotationError


def parse_json(data: bytes, file: Path) -> Any:
    """JSON as its standard has it: no NaN, no duplicate keys, UTF-8, and a place in every error."""
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{file}: not valid JSON at line {error.lineno}, column {error.colno} (byte {error.pos} of {len(data)}): "
            f"{error.msg}; is the file complete?"
        ) from None
    except RecursionError:
        raise AnnotationError(f"{file}: nested too deeply for an annotation file") from None
    except _NotJsonError as error:
        match = re.search(error.pattern, text)
        where = f" (line {text.count(chr(10), 0, match.start()) + 1})" if match else ""
        raise AnnotationError(f"{file}: {error}{where}; correct it") from None
    except ValueError as error:  # a number of absurd length
        raise AnnotationError(f"{file}: {str(error).split(';')[0]}") from None


class _NotJsonError(Exception):
    """What Python's parser lets pass, though the standard does not; ``pattern`` finds it in the text."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise _NotJsonError(f"an object has the key {key!r} twice", _twice(key))
    return result


def _twice(key: str) -> str:
    quoted = re.escape(json.dumps(key, ensure_ascii=False))
    return rf"{quoted}\s*:[^{{}}]*(?={quoted}\s*:)"


def _constant(word: str) -> Any:
    raise _NotJsonError(f"{word} is not a JSON number", rf"(?<![\w\"]){re.escape(word)}(?![\w\"])")
