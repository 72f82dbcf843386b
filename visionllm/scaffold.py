"""A new decoder as an installable package: written once, changed ever after."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from visionllm.core.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "assets" / "new_decoder"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# File of the package -> its template.
_FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "train.yaml": "train.yaml.txt",
    "@package@/__init__.py": "module.py.txt",
    "@package@/wordings.yaml": "wordings.yaml.txt",
    "tests/test_@name@.py": "test.py.txt",
}


def new_decoder(name: str, out: str | Path | None = None) -> Path:
    """Write a small working decoder package.

    Args:
        name: of the decoder and its task: lower case letters, digits and underscores.
        out: its folder, which must not exist; None takes ``visionllm-<name>``.

    Raises:
        ConfigError: the name is no name or taken, or the folder is there.
    """
    from visionllm.core.task import TASKS
    from visionllm.decoders import DECODERS

    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name of a decoder; use lower case letters, digits and underscores: depth")
    if name in DECODERS or name in TASKS:
        raise ConfigError(f"there is a decoder or a task {name!r} already; take another name")
    dashed = name.replace("_", "-")
    folder = Path(f"visionllm-{dashed}" if out is None else out)
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; move it away, or give another --out")
    words = {
        "name": name, "Name": "".join(part.capitalize() for part in name.split("_")), "TOKEN": name.upper(),
        "package": f"visionllm_{name}", "distribution": f"visionllm-{dashed}", "words": name.replace("_", " "),
    }  # fmt: skip
    for target, template in _FILES.items():
        path = folder / _filled(target, words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_filled((_TEMPLATES / template).read_text(encoding="utf-8"), words), encoding="utf-8")
    return folder


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: words[match.group(1)], text)
