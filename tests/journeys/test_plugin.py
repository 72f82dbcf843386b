"""The plugin of docs/plugin.md: what the page shows is installed and passes the contract suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def installed(root: Path, tmp_path: Path) -> Path:
    """The page's files as an installer would leave them."""
    blocks: dict[str, str] = {}
    for kind, text in BLOCK.findall((root / "docs" / "plugin.md").read_text(encoding="utf-8")):
        blocks.setdefault(kind, text)  # the first of each kind is the file
    project = tomllib.loads(blocks["toml"])["project"]
    package = tmp_path / "visionllm_count"
    package.mkdir()
    (package / "__init__.py").write_text(blocks["python"])
    (package / "count.yaml").write_text(blocks["yaml"])
    info = tmp_path / f"visionllm_count-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path


def test_the_page_passes_the_contract(installed: Path, root: Path) -> None:
    suite = [sys.executable, "-m", "pytest", "tests/decoders/test_contract.py", "-k", "count", "-q"]
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*suite, "-p", "no:cacheprovider"], cwd=root, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 10, "the suite did not see the plugin"
