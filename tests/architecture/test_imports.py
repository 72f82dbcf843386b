"""Who may import whom. The table is the architecture; the test reads the imports of every file, lazy ones included."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import visionllm

ROOT = Path(__file__).resolve().parents[2]

SIBLINGS = {unit: {"core"} for unit in ("routing", "decoders", "datasets", "mllm", "metrics")}
LEAVES = {unit: {"core"} for unit in ("optim", "distributed", "logs", "conflict")}
BELOW_ENGINE = {"core", *SIBLINGS, *LEAVES, "processor", "requests", "answering", "model", "config", "checkpoint"}
# unit -> the units it may import, itself excepted. A unit is a folder or a file right below `visionllm`.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    **SIBLINGS,
    **LEAVES,
    "processor": {"core", "routing"},
    "config": {"core", "decoders", "mllm"},
    "checkpoint": {"core", "routing", "config"},
    "requests": {"core"},
    "answering": {"core", "routing", "decoders", "mllm", "processor", "requests"},
    "losses": {"core", "routing", "mllm"},
    "model": {"core", "routing", "decoders", "mllm", "processor", "config", "checkpoint", "answering", "losses"},
    "runs": BELOW_ENGINE,
    "engine": BELOW_ENGINE | {"runs"},
    "evaluation": BELOW_ENGINE,
    "scores": BELOW_ENGINE | {"evaluation"},
    "scaffold": {"core", "decoders"},
    "testing": BELOW_ENGINE | {"runs"},
}
PUBLIC = set(visionllm.__all__)
HOMES = {name: home.split(".")[1] for name, home in visionllm._HOMES.items()}
FOLDERS = {"routing": "routing", "decoders": "decoders", "datasets": "datasets"}


def module_of(path: Path) -> str:
    """Import name of a file of the four trees: decoders/pose/heads.py -> visionllm.decoders.pose.heads."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "visionllm":
        parts.insert(0, "visionllm")
    return ".".join(parts)


def imports_of(source: str, module: str) -> set[str]:
    """Dotted names a module imports, wherever in the file; `from a import b` gives `a.b`, relative ones resolved."""
    found: set[str] = set()
    is_package = module.endswith(".__init__")
    package = module.removesuffix(".__init__") if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            constants = (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
            found |= {value for value in constants if isinstance(value, str)}
    return found


def unit_of(imported: str) -> str | None:
    """The unit of ours behind a dotted name, None for a third party's; a public name counts as its home."""
    package, _, rest = imported.partition(".")
    if package != "visionllm":
        return None
    first = rest.split(".")[0]
    return HOMES.get(first, first or "visionllm")


def forbidden_imports(source: str, module: str) -> list[str]:
    """The imports of a library module that its row of the table does not grant."""
    unit = module.split(".")[1]
    wrong = []
    for name in sorted(imports_of(source, module)):
        target = unit_of(name)
        if name in {"visionllm.__version__"} or target is None or target == unit:
            continue
        if target not in ALLOWED[unit]:
            wrong.append(f"{module} imports {name}; {unit} may import {sorted(ALLOWED[unit]) or 'nothing of ours'}")
    return wrong


def forbidden_in_script(source: str, module: str) -> list[str]:
    """The imports of the command line or of a tool that go behind the public names."""
    wrong = []
    for name in sorted(imports_of(source, module)):
        rest = name.split(".")[1:]
        if unit_of(name) is None or rest in ([], ["__version__"]) or (len(rest) == 1 and rest[0] in PUBLIC):
            continue
        if module.startswith("visionllm.tools") and rest[0] == "cli":  # a tool is a short call of the command line
            continue
        wrong.append(f"{module} imports {name}; public names are {sorted(PUBLIC)}")
    return wrong


def library_files() -> list[Path]:
    """Python files the table speaks of: the four trees without the command line and the door (`__init__`)."""
    outside = {ROOT / "visionllm" / "__init__.py", ROOT / "visionllm" / "cli.py", ROOT / "visionllm" / "__main__.py"}
    trees = (ROOT / tree for tree in ("visionllm", *FOLDERS))
    return sorted(path for tree in trees for path in tree.rglob("*.py") if path not in outside)


def script_files() -> list[Path]:
    """The command line and the tools. A bench is neither: it times the insides, which have no public name."""
    command_line = [ROOT / "visionllm" / "cli.py", ROOT / "visionllm" / "__main__.py"]
    tools = (path for path in (ROOT / "tools").rglob("*.py") if ROOT / "tools" / "bench" not in path.parents)
    return [path for path in command_line if path.exists()] + sorted(tools)


def bench_files() -> list[Path]:
    return sorted((ROOT / "tools" / "bench").rglob("*.py"))


def test_every_unit_has_a_row() -> None:
    units = {module_of(path).split(".")[1] for path in library_files()}
    assert units <= set(ALLOWED), f"new units need a row in the table: {sorted(units - set(ALLOWED))}"


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while left := set(ALLOWED) - done:
        free = {unit for unit in left if ALLOWED[unit] - {unit} <= done}
        assert free, f"these units import each other: {sorted(left)}"
        done |= free


def test_library_keeps_to_the_table() -> None:
    wrong = [line for path in library_files() for line in forbidden_imports(path.read_text(), module_of(path))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_command_line_and_tools_use_public_names() -> None:
    wrong = [line for path in script_files() for line in forbidden_in_script(path.read_text(), module_of(path))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_import_by_folder_name() -> None:
    """`import routing` works only from the repository root, `import datasets` is Hugging Face's."""
    names = re.compile(r"(routing|decoders|tools|tests|configs)(\.|$)")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in [*library_files(), *script_files(), *sorted((ROOT / "tests").rglob("*.py")), *bench_files()]
        for name in imports_of(path.read_text(), module_of(path))
        if names.match(name)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("visionllm.core.boxes", "from visionllm.routing.masks import build"),  # core imports nothing of ours
        ("visionllm.decoders.pose.heads", "from visionllm.routing import render"),  # siblings
        ("visionllm.decoders.pose.heads", "from ...routing import render"),  # the same, relative
        ("visionllm.routing.render", "def f():\n    from visionllm.datasets import plan"),  # the same, lazy
        ("visionllm.datasets.catalog", "import importlib\nimportlib.import_module('visionllm.config')"),
        ("visionllm.metrics.detection", "from visionllm import VisionLLM"),  # a public name counts as its home
        ("visionllm.mllm.internvl", "import visionllm.model"),
        ("visionllm.config", "from visionllm.checkpoint import load"),
        ("visionllm.model", "from visionllm.engine import train"),
        ("visionllm.core.__init__", "from ..model import VisionLLM"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str) -> None:
    assert forbidden_imports(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("visionllm.core.answer", "from visionllm.core.boxes import area\nimport torch"),
        ("visionllm.decoders.pose.__init__", "from .heads import Pose\nfrom ..base import Decoder"),
        ("visionllm.datasets.catalog", "import datasets\nfrom visionllm.core import errors"),
        ("visionllm.engine", "from visionllm.model import VisionLLM\nfrom visionllm.datasets.plan import Plan"),
        ("visionllm.checkpoint", "from visionllm import __version__"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert not forbidden_imports(source, module)


@pytest.mark.parametrize(
    ("source", "ok"),
    [
        ("from visionllm import VisionLLM, train\nimport typer", True),
        ("import visionllm", True),
        ("from visionllm.cli import main", False),  # true for a tool only
        ("from visionllm.model import VisionLLM", False),
        ("from visionllm import engine", False),
    ],
)
def test_public_names_only(source: str, ok: bool) -> None:
    assert (not forbidden_in_script(source, "visionllm.cli")) == ok


def test_a_tool_may_call_the_command_line() -> None:
    assert not forbidden_in_script("from visionllm.cli import main", "visionllm.tools.train")
