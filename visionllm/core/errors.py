"""Errors a user can cause. Each is one line that names the file, the key, the value and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VisionLLMError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it and exits with status 2."""


class ConfigError(VisionLLMError):
    """A configuration file or an override is wrong."""


class PictureError(VisionLLMError):
    """A picture is missing, unreadable, or refused."""


class PromptError(VisionLLMError):
    """A prompt is empty, too long, or does not fit its pictures."""


class AnnotationError(VisionLLMError):
    """An annotation file breaks its format."""


class DatasetError(VisionLLMError):
    """A data set, card or split does not exist, or holds too many bad samples."""


class CheckpointError(VisionLLMError):
    """A checkpoint is incomplete, of another format version, or needs a plugin that is not installed."""


class ShapeError(VisionLLMError):
    """A value of a noun has the wrong shape or range."""


class Cancelled(VisionLLMError):
    """The caller's ``progress`` function ended the call."""


class UnknownNameError(VisionLLMError):
    """A name is not registered."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that nobody registered; it lists the names that exist."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UnknownNameError(f"no {kind} {name!r}{hint}. Known: {', '.join(names) or 'none'}.")
