"""The same import names from a bare checkout, an editable installation and a wheel, worker processes included.

Each case is a sub-process over a copy of the tree, so an installation of this checkout cannot answer in its place.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# Import name -> folder, as setup.py maps them.
TREES = {
    "visionllm": "visionllm",
    "visionllm/decoders": "decoders",
    "visionllm/routing": "routing",
    "visionllm/datasets": "datasets",
}
HEAVY = {"torch", "transformers", "numpy", "PIL", "cv2", "pydantic", "typer", "rich", "scipy"}
FORBIDDEN = ("tests", "setup", "tools", "examples", "docs", "visionllm", "build")

# What every way of installing must make true; prints where the four packages were found.
PROBE = """
import importlib, importlib.util, json, sys
import visionllm
light = sorted(set(sys.modules) & set({heavy!r}))
wrong = []
for name in {forbidden!r}:
    try:
        importlib.import_module("visionllm." + name)
        wrong.append(name)
    except ModuleNotFoundError:
        pass
homes = {{"visionllm": list(visionllm.__path__)}}
for name in ("decoders", "routing", "datasets"):  # found, not imported: that would import torch in every case
    homes[name] = list(importlib.util.find_spec("visionllm." + name).submodule_search_locations)
deeper = [importlib.util.find_spec(name).origin for name in {modules!r}]
from visionllm.core.resources import config_folder
print(json.dumps(dict(
    homes=homes, deeper=deeper, heavy=light, wrong=wrong, cards=str(config_folder("datasets")),
    version=visionllm.__version__, public=visionllm.__all__, listed=dir(visionllm),
)))
"""

# Forget an editable installation in the environment the tests run in, then install another as pip would.
INSTALL_EDITABLE = """
import site, sys
editable = [finder for finder in sys.meta_path if getattr(finder, "__module__", "").startswith("__editable__")]
for finder in editable:
    sys.meta_path.remove(finder)
for name in [name for name in sys.modules if name.startswith("__editable__")]:
    del sys.modules[name]
sys.path.insert(0, {site!r})
site.addsitedir({site!r})
"""

# A worker process that is spawned starts from nothing: it has to find the packages by itself.
SPAWN = """
import multiprocessing

def work(name):
    import importlib
    return list(importlib.import_module("visionllm." + name).__path__)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print([path for name in ("decoders", "routing", "datasets") for path in pool.apply(work, (name,))])
"""


def files_of_trees(checkout: Path) -> set[str]:
    """Files of the four trees and of configs/, at the place they have inside a wheel."""
    return {
        f"{inside}/{path.relative_to(checkout / folder).as_posix()}"
        for inside, folder in {**TREES, "visionllm/configs": "configs"}.items()
        for path in (checkout / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def deep_modules() -> list[str]:
    """Modules below the folder without `__init__.py`, where a search is most easily lost."""
    return sorted(f"visionllm.datasets.{path.stem}" for path in (ROOT / "datasets").glob("*.py"))


def run(*arguments: str, cwd: Path, **env: str) -> str:
    """Run the interpreter in a folder; its standard output, or the reason why it failed."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=clean | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def probe(cwd: Path, prelude: str = "", **env: str) -> dict:
    code = PROBE.format(heavy=sorted(HEAVY), forbidden=FORBIDDEN, modules=deep_modules())
    return json.loads(run("-c", prelude + code, cwd=cwd, **env).splitlines()[-1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone holds, without what builds left behind."""
    copy = tmp_path_factory.mktemp("clone") / "project"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("visionllm", "decoders", "routing", "datasets", "configs", "tools", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the copy, built offline."""
    out = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out), cwd=checkout)
    (built,) = out.glob("*.whl")
    return built


def assert_found(found: dict, homes: dict[str, Path], cards: Path) -> None:
    assert found["homes"] == {name: [str(path)] for name, path in homes.items()}
    assert found["wrong"] == [], "these must not import as visionllm.<name>"
    assert found["heavy"] == [], "`import visionllm` has to stay cheap"
    assert found["cards"] == str(cards)
    assert set(found["public"]) <= set(found["listed"])
    assert {Path(origin).parent for origin in found["deeper"]} == {homes["datasets"]}


def checkout_homes(checkout: Path) -> dict[str, Path]:
    return {name: checkout / name for name in ("visionllm", "decoders", "routing", "datasets")}


def wheel_homes(site: Path) -> dict[str, Path]:
    inside = site / "visionllm"
    return {"visionllm": inside, **{name: inside / name for name in ("decoders", "routing", "datasets")}}


def test_bare_checkout_as_working_folder(checkout: Path) -> None:
    assert_found(probe(checkout), checkout_homes(checkout), checkout / "configs" / "datasets")


def test_bare_checkout_on_the_path(checkout: Path, tmp_path: Path) -> None:
    found = probe(tmp_path, PYTHONPATH=str(checkout))
    assert_found(found, checkout_homes(checkout), checkout / "configs" / "datasets")


def test_spawned_worker_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SPAWN)
    printed = run("job.py", cwd=tmp_path, PYTHONPATH=str(checkout))
    assert printed.strip() == str([str(checkout / name) for name in ("decoders", "routing", "datasets")])


def test_datasets_is_hugging_faces(checkout: Path) -> None:
    code = "import datasets; datasets.load_dataset; print(datasets.__file__)"
    assert not Path(run("-c", code, cwd=checkout).strip()).is_relative_to(checkout)


def test_transformers_sees_hugging_faces_datasets(checkout: Path) -> None:
    """transformers asks `find_spec("datasets")`; the answer must be the package, not our folder."""
    code = """
import importlib.metadata, importlib.util
from transformers.utils import import_utils
import visionllm.datasets
print(importlib.util.find_spec("datasets").origin)
assert import_utils._is_package_available("datasets", return_version=True)[1] == importlib.metadata.version("datasets")
"""
    assert not Path(run("-c", code, cwd=checkout).strip()).is_relative_to(checkout)


def test_wheel_holds_the_tree(checkout: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files_of_trees(checkout)


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    points = configparser.ConfigParser()
    points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert points["console_scripts"]["visionllm"] == "visionllm.cli:main"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(archive.namelist())


def test_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # A stranger's `datasets` beside the package, as in any site-packages, must not become visionllm.datasets.
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").touch()
    found = probe(tmp_path, PYTHONPATH=str(site))
    assert_found(found, wheel_homes(site), site / "visionllm" / "configs" / "datasets")


def test_editable_installation(checkout: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    name = run("-c", build, cwd=checkout).splitlines()[-1]
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / name).extractall(site)
    found = probe(tmp_path, prelude=INSTALL_EDITABLE.format(site=str(site)))
    assert_found(found, checkout_homes(checkout), checkout / "configs" / "datasets")


@pytest.mark.slow
def test_a_plugin_from_a_wheel_beside_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In an environment of their own the example plugin is proven and answers, and no file of the framework changes."""
    shutil.copytree(ROOT / "examples" / "plugins" / "depth", tmp_path / "depth")
    build = ("-m", "pip", "wheel", "./depth", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path))
    run(*build, cwd=tmp_path)
    (plugin,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "clean")
    (site,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    # What both need is taken from around the tests; an editable installation there is not followed from here.
    (site / "needed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    commands = tmp_path / "clean" / "bin"

    def install(built: Path) -> dict[str, str]:
        run("-m", "pip", "--python", str(commands / "python"), "install", "--no-deps", "--no-index", "--quiet",
            str(built), cwd=tmp_path)  # fmt: skip
        files = sorted(path for path in (site / "visionllm").rglob("*") if path.is_file() and path.suffix != ".pyc")
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def clean(command: str, *arguments: str) -> str:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([commands / command, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    framework = install(wheel)
    assert install(plugin) == framework
    assert "gradient-to-model" in clean("visionllm", "check-decoder", "depth")
    code = (
        "import sys, visionllm; from visionllm import VisionLLM; print(visionllm.__file__)\n"
        "model = VisionLLM.from_pretrained(decoders={'depth': {}}, fresh=['decoders.depth', "
        "'link_queries.tables.[DEPTH]'])\n"
        "print(len(model.depth(sys.argv[1], ['picture']).depths.maps))\n"
    )
    told = clean("python", "-c", code, str(ROOT / "examples" / "street.jpg"))
    assert told.split() == [str(site / "visionllm" / "__init__.py"), "1"]


def test_public_names_are_listed_once() -> None:
    import visionllm

    assert sorted(visionllm._HOMES) == sorted(visionllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Visionllm'"):
        _ = visionllm.Visionllm


@pytest.mark.parametrize("name", ["VisionLLM", "Processor", "Answer", "Detections", "Sample", "Task", "VisionLLMError"])
def test_public_name_is_the_one_at_home(name: str) -> None:
    import importlib

    import visionllm

    assert getattr(visionllm, name) is getattr(importlib.import_module(visionllm._HOMES[name]), name)


def test_constraints_pin_what_is_required() -> None:
    """Every requirement has exactly one pin that satisfies it, so one tested set is what `make` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"not a pin: {line}"
            assert pins.setdefault(canonicalize_name(name), version) == version, f"pinned twice: {line}"
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the pinned {pin}"
