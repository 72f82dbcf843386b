"""From nothing to a decoder that trains and answers: what ``visionllm new-decoder`` writes, beside an untouched
framework."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journey")


def visionllm(place: Path, *arguments: object, status: int = 0) -> str:
    """The command, with what is installed in ``site``."""
    path = os.pathsep.join(filter(None, (str(place / "site"), os.environ.get("PYTHONPATH"))))
    code = "from visionllm.cli import main; import sys; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=place, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def install(place: Path, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(place / "site"), str(folder)], check=True, capture_output=True)


def own_tests(place: Path, folder: Path) -> str:
    """Run a plugin's tests; the pytest plugin of the kit comes with the installation of visionllm."""
    path = os.pathsep.join(filter(None, (str(place / "site"), os.environ.get("PYTHONPATH"))))
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(tests, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
    return done.stdout


@pytest.mark.slow
def test_the_depth_plugin(tmp_path: Path, root: Path) -> None:
    """The finished one of examples/plugins, installed beside an untouched framework: proven, trained, asked."""
    shutil.copytree(root / "examples" / "plugins" / "depth", tmp_path / "depth")
    install(tmp_path, tmp_path / "depth")
    assert " passed" in own_tests(tmp_path, tmp_path / "depth")
    small = ["train.steps=2", "train.batch_size=2", "train.log_every=1", "train.save_every=2"]
    visionllm(tmp_path, "train", "depth/train.yaml", *small)
    model = tmp_path / "outputs" / "depth" / "step-0000002" / "model"
    told = visionllm(
        tmp_path, "eval", "--dataset", "scenes", "--task", "depth", "--known", "--limit", "2", "--model", model
    )
    assert '"order": 0.' in told


@pytest.mark.slow
def test_written_installed_checked_trained_asked(place: Path, root: Path) -> None:
    visionllm(place, "new-decoder", "sky_share", "--out", "mine")
    assert sorted(path.name for path in (place / "mine").iterdir()) == [
        "README.md", "pyproject.toml", "tests", "train.yaml", "visionllm_sky_share",
    ]  # fmt: skip
    assert "no decoder 'sky_share'" in visionllm(place, "check-decoder", "sky_share", status=2)
    install(place, place / "mine")
    table = visionllm(place, "check-decoder", "sky_share")
    assert "FAILED" not in table
    assert "gradient-to-links" in table

    own_tests(place, place / "mine")
    path = os.pathsep.join(filter(None, (str(place / "site"), os.environ.get("PYTHONPATH"))))
    small = ["train.steps=2", "train.batch_size=2", "train.log_every=1", "train.save_every=2"]
    told = visionllm(place, "train", "mine/train.yaml", *small)
    model = place / "outputs" / "sky_share" / "step-0000002" / "model"
    assert "model:" in told
    code = (
        "from visionllm import VisionLLM; import sys\n"
        "model = VisionLLM.from_pretrained(sys.argv[1])\n"
        "answer = model.sky_share(sys.argv[2], ['car', 'house'])\n"
        "print(answer.sky_shares.statements())\n"
        "both = [len(one.detect(sys.argv[2], ['car']).detections) for one in (model, VisionLLM.from_pretrained())]\n"
        "print('same cars:', both[0] == both[1] > 0, both)\n"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, str(model), str(root / "examples" / "street.jpg")], cwd=place,
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert "car: 0." in asked.stdout
    assert "house: 0." in asked.stdout
    assert "same cars: True" in asked.stdout, f"boxes are what they were: {asked.stdout}"
    report = visionllm(place, "eval", "--dataset", "scenes", "--task", "sky_share", "--known", "--limit", "2",
                       "--model", model)  # fmt: skip
    assert '"mean_error"' in report
    # Without the plugin the checkpoint says what to install.
    (place / "site").rename(place / "away")
    assert "pip install visionllm-sky-share==0.1" in visionllm(place, "ask", "hello", "--model", model, status=2)
