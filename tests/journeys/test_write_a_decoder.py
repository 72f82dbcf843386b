"""docs/write_a_decoder.md shows what is: every block of code on it is a part of the file named above it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BLOCK = re.compile(r"^`([^`]+)`$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(page: str) -> list[tuple[str, str]]:
    """(file, lines) of each block below the name of a file; commands and uses of the whole come without one."""
    found, file = [], ""
    for match in BLOCK.finditer(page):
        if match[1]:
            file = match[1]
        elif match[2] and "from visionllm import" not in match[3]:
            found.append((file, match[3]))
    return found


def test_blocks_are_parts_of_files(root: Path) -> None:
    blocks = shown((root / "docs" / "write_a_decoder.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    for file, lines in blocks:
        assert lines in (root / file).read_text(encoding="utf-8"), f"{file} no longer holds:\n{lines}"


def test_a_changed_block_is_seen() -> None:
    assert shown("`a.py`\n\n```python\nx = 1\n```\n\n```\nls\n```\n") == [("a.py", "x = 1\n")]
    with pytest.raises(AssertionError):
        assert "x = 2\n" in "x = 1\n"
