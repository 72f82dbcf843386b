"""Places that are written to."""

from __future__ import annotations

from pathlib import Path

from visionllm.core.errors import VisionLLMError


def make_folder(path: str | Path, *, source: str) -> Path:
    """The folder, made where it is not there.

    Args:
        source: who named it, for the message ("train.out").

    Raises:
        VisionLLMError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisionLLMError(
            f"{source}: {folder}: cannot be made a folder ({error.strerror}); choose another place"
        ) from None
    return folder
