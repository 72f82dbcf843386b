"""What docs/ask.md shows, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ask.md").read_text(encoding="utf-8"), re.DOTALL)
    for snippet in snippets:
        exec(snippet, names)  # noqa: S102 (the guide's own lines)
    assert len(snippets) > 5
    assert {path.name for path in tmp_path.iterdir()} >= {"found.png", "street.png", "street.json"}
