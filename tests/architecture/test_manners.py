"""House rules that a reader should not have to check: safety, task names, files and folders, lengths, paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CODE_TREES = ("visionllm", "routing", "decoders", "datasets", "tools", "examples")
MAX_LINES = 600
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}


def python_files(*trees: str) -> list[Path]:
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def located(path: Path, findings: Iterator[tuple[int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in findings]


# --- safety ---------------------------------------------------------------------------------------------------------


def unsafe_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Ways in which a file or a user's text could become running code, and exceptions that vanish."""
    own_safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b).split(".")[-1] in SAFE_LOADERS for b in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        for name in names & UNSAFE_MODULES:
            yield node.lineno, f"imports {name}"
        if isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in unsafe_call(node, SAFE_LOADERS | own_safe))
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node.lineno, "bare except"
            elif ast.unparse(node.type) in {"Exception", "BaseException"} and _does_nothing(node.body):
                yield node.lineno, "swallows every exception"


def unsafe_call(call: ast.Call, safe_loaders: set[str]) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in {"eval", "exec", "torch.load", "torch.hub.load", "torch.jit.load", "os.system"}:
        yield f"calls {name}"
    if name in {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"}:
        yield f"calls {name}; use yaml.safe_load"
    if name == "yaml.load":
        given = keywords.get("Loader", ast.unparse(call.args[1]) if len(call.args) > 1 else "")
        if given.split(".")[-1] not in safe_loaders:
            yield "calls yaml.load without a safe loader"
    for keyword in ("allow_pickle", "trust_remote_code", "shell"):
        if keywords.get(keyword) == "True":
            yield f"passes {keyword}=True to {name}"


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Pass | ast.Continue) for statement in body)


def test_nothing_unsafe() -> None:
    wrong = [
        line
        for path in [*python_files(*CODE_TREES), ROOT / "setup.py"]
        for line in located(path, unsafe_code(ast.parse(path.read_text())))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", True),
        ("from pickle import loads", True),
        ("x = eval('1')", True),
        ("model.eval()", False),  # PyTorch's own verb
        ("torch.load(path)", True),
        ("yaml.load(text)", True),
        ("yaml.load(text, Loader=yaml.FullLoader)", True),
        ("yaml.load(text, Loader=yaml.SafeLoader)", False),
        ("class Strict(yaml.SafeLoader): ...\nyaml.load(text, Loader=Strict)", False),
        ("class Strict(yaml.Loader): ...\nyaml.load(text, Loader=Strict)", True),
        ("yaml.safe_load(text)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", True),
        ("try:\n    f()\nexcept:\n    raise", True),
        ("try:\n    f()\nexcept Exception:\n    pass", True),
        ("try:\n    f()\nexcept KeyError:\n    pass", False),
    ],
)
def test_unsafe_code_is_seen(source: str, found: bool) -> None:
    assert bool(list(unsafe_code(ast.parse(source)))) == found


# --- nobody compares the name of a task -----------------------------------------------------------------------------


def registered_names(trees: list[ast.Module]) -> set[str]:
    """Names of tasks and texts of routing tokens, as the calls `Task(name=...)` and `Token("[X]", ...)` state them."""
    names: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            maker = ast.unparse(node.func).split(".")[-1]
            key = {"Task": "name", "Token": "text"}.get(maker)
            given = [k.value for k in node.keywords if k.arg == key] + (node.args[:1] if maker == "Token" else [])
            names |= {v.value for v in given if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return names


def task_comparisons(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """Comparisons, matches and look-ups that branch on which task it is instead of asking the task's fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_speaks_of_task(side) for side in sides) and any(_literals(side) & names for side in sides):
                yield node.lineno, f"compares a task's name: {ast.unparse(node)}"
        elif isinstance(node, ast.Match) and _speaks_of_task(node.subject):
            if any(_literals(case.pattern) & names for case in node.cases):
                yield node.lineno, f"matches a task's name: {ast.unparse(node.subject)}"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict) and _speaks_of_task(node.slice):
            if any(_literals(key) & names for key in node.value.keys if key is not None):
                yield node.lineno, "looks a task's name up in a table"


TASK_WORDS = re.compile(r"name|text|(\w+_)?(task|token|decoder)(_?(name|text|type|id))?")


def _speaks_of_task(node: ast.AST) -> bool:
    return bool(TASK_WORDS.fullmatch(ast.unparse(node).split(".")[-1].lower()))


def _literals(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_nobody_compares_task_names() -> None:
    paths = python_files("visionllm", "routing", "decoders", "datasets", "tools")
    trees = {path: ast.parse(path.read_text()) for path in paths}
    names = registered_names(list(trees.values()))
    wrong = [line for path, tree in trees.items() for line in located(path, task_comparisons(tree, names))]
    assert not wrong, "ask the task's fields instead:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if task.name == 'detection': ...", True),
        ("if 'detection' != link.task.name: ...", True),
        ("if task in ['detection', 'pose']: ...", True),
        ("if token.text == '[DET]': ...", True),
        ("match task.name:\n    case 'detection': ...", True),
        ("build = {'detection': f}[task.name]", True),
        ("if task.name == other.name: ...", False),
        ("if split == 'detection': ...", False),  # no task on the other side
        ("if task.name == 'unheard of': ...", False),
        ("if task.parent is None: ...", False),
    ],
)
def test_a_comparison_is_seen(source: str, found: bool) -> None:
    assert bool(list(task_comparisons(ast.parse(source), {"detection", "[DET]"}))) == found


def test_registered_names_are_read_from_their_definitions() -> None:
    source = "T = Task(name='depth', tokens=(Token('[DEPTH]', queries=2), task.Token(text='[D]', queries=1)))"
    assert registered_names([ast.parse(source)]) == {"depth", "[DEPTH]", "[D]"}


# --- files and folders ----------------------------------------------------------------------------------------------


def test_no_drawer_for_odds_and_ends() -> None:
    odd = [p for p in python_files(*CODE_TREES, "tests") if {p.stem, *p.parts} & {"utils", "util", "misc", "helpers"}]
    assert not odd, f"give these a name that says what they hold: {odd}"


@pytest.mark.parametrize("tree", ["tests", "tools", "configs"])
def test_folders_that_are_no_packages(tree: str) -> None:
    assert not sorted((ROOT / tree).rglob("__init__.py"))


def test_datasets_would_hide_the_hugging_face_package() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("tree", ["visionllm", "routing", "decoders", "datasets"])
def test_folders_that_are_packages(tree: str) -> None:
    """Only datasets/ itself has a reason to be a namespace; elsewhere a missing `__init__.py` is an oversight."""
    folders = {path.parent for path in python_files(tree)} - {ROOT / "datasets"}
    assert not sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())


def test_files_fit_a_reader() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*CODE_TREES, "tests")}
    long = {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines, a noun is missing: {long}"


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.y*ml")), ids=lambda path: path.stem)
def test_config_files(path: Path) -> None:
    """Data only, `.yaml`, and opened like a lab book by a comment."""
    text = path.read_text()
    assert path.suffix == ".yaml"
    assert re.match(r"# \S", text), f"{path.name}: open with a comment: what it is, command, hardware, time, score"
    assert isinstance(yaml.safe_load(text), dict | list)


# --- what is written ------------------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.\-/~$})<])/(?:work|home|root|opt|Users|mnt|tmp)/\w")


def written_files() -> list[Path]:
    """Everything a reader sees: code, data and prose, not what builds and runs leave behind."""
    trees = [*CODE_TREES, "tests", "configs", "docs"]
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ".sh"}
    below = [path for tree in trees for path in (ROOT / tree).rglob("*") if path.suffix in suffixes]
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name not in {"LICENSE", ".git"}]
    return sorted([*below, *top, ROOT / ".ci" / "run"])


def test_no_path_of_a_machine() -> None:
    """A path that exists on one machine only is wrong on all others."""
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in written_files()
        if (found := MACHINE_PATH.search(path.read_text(errors="replace")))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see " + "/".join(["", "home", "me", "data"]), True),
        ('"' + "/".join(["", "tmp", "x"]) + '"', True),
        ("https://example.org/home/page", False),
        ("tests" + "/".join(["", "root", "x"]) + ", ~/data/x, an/opt/x", False),
    ],
)
def test_a_machine_path_is_seen(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == found


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.stem)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    missing = [target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()]
    assert not missing
