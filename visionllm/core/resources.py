"""Where the files that travel with the package lie: the YAML of configs/.

A source checkout keeps configs/ beside the package; an installed wheel carries the same files inside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def config_folder(kind: str) -> Path:
    """The folder `configs/<kind>` ("datasets", "mixtures", "models", "train") of a checkout or an installation."""
    inside, beside = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    return (inside if inside.is_dir() else beside) / kind
