"""What a user hands over, as a sample: pictures of any kind, a prompt or the phrases of a known task, regions."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visionllm.core.errors import PromptError
from visionllm.core.media import PictureSource, load_picture
from visionllm.core.regions import Region, check_regions, region_name
from visionllm.core.sample import Picture, Sample, Turn
from visionllm.core.task import Task

Pictures = PictureSource | Sequence[PictureSource] | None


def sample_of(pictures: Pictures, loaded: dict[str | bytes | Path, Picture] | None = None) -> Sample:
    """A sample of one picture, several or none.

    Args:
        loaded: what was read before, by path or bytes; what is read now joins it.

    Raises:
        PictureError: one of them is none, or cannot be read.
    """
    if pictures is None:
        return Sample()
    sources: Any = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    loaded = {} if loaded is None else loaded
    found = []
    for source in sources:
        # Arrays and PIL pictures may change under their name: each is taken as it is now.
        if not isinstance(source, (str, bytes, Path)):
            found.append(load_picture(source))
            continue
        if source not in loaded:
            loaded[source] = load_picture(source)
        found.append(loaded[source])
    return Sample(pictures=tuple(found))


def turn_of(task: Task, phrases: Sequence[str] | Mapping[str, Sequence[str]], regions: Sequence[Region]) -> Turn:
    """The turn of a known task.

    Raises:
        PromptError: there is nothing to look for, or something that is no words, or parts are given to a task without,
            or left out where one needs them.
    """
    regions = listed(regions)
    if isinstance(phrases, str):
        raise PromptError(f"phrases: expected a list such as [{phrases!r}], got one string")
    if not _are_words(phrases):
        raise PromptError(f"phrases: expected a list of words, got {phrases!r}")
    if any(not phrase.strip() for phrase in phrases) or not (len(phrases) or regions):
        raise PromptError("phrases: expected at least one, and none of them empty")
    if task.parts_token is None:
        if isinstance(phrases, Mapping):
            raise PromptError(f"phrases: {task.name} has no parts; give a list of phrases")
        named = map(region_name, range(len(regions)))
        return Turn(task=task.name, phrases=(*phrases, *named), regions=tuple(regions))
    if regions:
        raise PromptError(f"regions: {task.name} looks for parts by name; name the thing they belong to in phrases")
    if not isinstance(phrases, Mapping):
        first = next(iter(phrases))
        raise PromptError(f"phrases: expected each with the names of its parts, such as {{{first!r}: ['nose']}}")
    for phrase, names in phrases.items():
        if isinstance(names, str) or not _are_words(names) or any(not name.strip() for name in names):
            raise PromptError(f"phrases.{phrase}: expected a list of names, none of them empty, got {names!r}")
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise PromptError(f"phrases.{phrase}: {twice!r} stands twice; name each part once")
    return Turn(task=task.name, phrases=tuple(phrases), parts=tuple(tuple(names) for names in phrases.values()))


def request_of(pictures: Pictures, prompt: str, regions: Sequence[Region] = (), *,
             loaded: dict[str | bytes | Path, Picture] | None = None) -> Sample:  # fmt: skip
    """A prompt about pictures; see ``sample_of`` and ``worded``."""
    return worded(sample_of(pictures, loaded), prompt, regions)


def requests_of(requests: Iterable[Any]) -> list[Sample]:
    """The samples of many requests; a file that several of them name is read once.

    Args:
        requests: (pictures, prompt) or (pictures, prompt, regions) each.

    Raises:
        PromptError: one of them is neither.
    """
    loaded: dict[str | bytes | Path, Picture] = {}
    found = []
    for number, request in enumerate([requests] if isinstance(requests, (str, bytes)) else requests):
        if not isinstance(request, (tuple, list)) or len(request) not in (2, 3):
            raise PromptError(f"requests[{number}]: expected (pictures, prompt) or (pictures, prompt, regions), got "
                              f"{reprlib.repr(request)}")  # fmt: skip
        found.append(request_of(*request, loaded=loaded))
    return found


def parted(turn: Turn, chunk: int) -> list[Turn]:
    """The turn in pieces of at most ``chunk`` phrases.

    Raises:
        PromptError: a piece would hold none.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise PromptError(f"chunk: expected a whole number from 1 up, got {chunk!r}")
    return [
        replace(turn, phrases=turn.phrases[i : i + chunk], parts=turn.parts[i : i + chunk])
        for i in range(0, len(turn.phrases), chunk)
    ]


def worded(sample: Sample, prompt: str, regions: Sequence[Region]) -> Sample:
    """The sample with a prompt, without the blanks around it.

    Raises:
        PromptError: there is none, or the regions do not fit it.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"prompt: expected text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise PromptError("prompt: empty; say what to look for, such as 'detect all cars'")
    regions = listed(regions)
    if regions:
        check_regions(regions, [picture.size for picture in sample.pictures], prompt)
    # A line end behind it is the shell's or the editor's, and no word of the user.
    return sample.with_turns(Turn(question=prompt.strip(), regions=regions))


def listed(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Regions as they were handed over.

    Raises:
        PromptError: it is no list.
    """
    if not isinstance(regions, (list, tuple)):
        raise PromptError(f"regions: expected a list such as [Box(10, 20, 50, 80)], got {regions!r}")
    return tuple(regions)


def _are_words(values: Any) -> bool:
    """Whether it is a list, or the like, of text."""
    return isinstance(values, Collection) and all(isinstance(value, str) for value in values)
