"""Installed plugins, good and bad: each in a process of its own, as an installer would leave it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from visionllm.core.task import Task, Token, register_task
from visionllm.decoders.base import Decoder, register_decoder

TASK = register_task(Task(name="{name}", tokens=(Token(text="[{token}]", queries=1),), decoder="{decoder}",
                          result="detections", verb=None, templates="detection.yaml", metric="detection",
                          loss_weights={{}}))

@register_decoder("{decoder}")
class Mine(Decoder):
    tasks = (TASK,)
"""


def plugin(folder: Path, name: str, text: str) -> None:
    (folder / f"p_{name}.py").write_text(text)
    info = folder / f"visionllm_{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: visionllm-{name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[visionllm.decoders]\n{name} = p_{name}\n")


def good(plugin: str, **other: str) -> str:
    return GOOD.format(**{"name": plugin, "token": plugin.upper(), "decoder": plugin, **other})


def python(folder: Path, code: str, **environment: str) -> str:
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


LIST = """
from visionllm.decoders import DECODERS
from visionllm.core.task import TASKS
print("decoders", *DECODERS); print("tasks", *TASKS)
try:
    DECODERS["nothing"]
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('no such card')", "raised RuntimeError: no such card"),
        ("import no_such_toolbox", "raised ModuleNotFoundError: No module named 'no_such_toolbox'"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("import time; time.sleep(30)", "did not load within 2 seconds"),
        (good("bad", decoder="objects"), "raised ValueError: decoder 'objects' is registered twice"),
        (good("bad", name="detection"), "raised ValueError: task 'detection' is registered twice"),
        (good("bad", token="DET"), "raised ValueError: token [DET] of task 'bad' is that of task 'detection'"),
        (good("bad") + "\n1 / 0\n", "raised ZeroDivisionError: division by zero"),
    ],
    ids=["raises", "lacks a package", "exits", "hangs", "decoder clashes", "task clashes", "token clashes", "half"],
)
def test_a_bad_plugin_is_named_and_takes_nobody_along(tmp_path: Path, text: str, why: str) -> None:
    plugin(tmp_path, "bad", text)
    plugin(tmp_path, "fine", good("fine"))
    told = python(tmp_path, LIST, VISIONLLM_PLUGIN_SECONDS="2")
    decoders, tasks = (line.split()[1:] for line in told.splitlines()[:2])
    assert "fine" in decoders and "fine" in tasks  # noqa: PT018
    assert "bad" not in decoders and "bad" not in tasks  # noqa: PT018
    assert {"objects", "generation", "editing", "restoration"} <= set(decoders)
    assert f"plugin 'bad' (visionllm-bad 0.3) {why}" in told
    assert told.count("PluginWarning") == 1, "once, however many registries ask"
    assert "no decoder 'nothing'" in told


def test_who_asks_for_one_waits_for_no_other(tmp_path: Path) -> None:
    """Ours need no plugin; a plugin's needs that one alone."""
    plugin(tmp_path, "slow", "print('slow is loaded')\n" + good("slow"))
    plugin(tmp_path, "quick", "print('quick is loaded')\n" + good("quick"))
    told = python(tmp_path, "import visionllm; from visionllm.decoders import DECODERS; DECODERS['objects']")
    assert "loaded" not in told
    told = python(tmp_path, "from visionllm.decoders import DECODERS; DECODERS['quick']")
    assert "quick is loaded" in told
    assert "slow is loaded" not in told


def test_the_embedded_model_loads_no_plugin(tmp_path: Path) -> None:
    plugin(tmp_path, "slow", "print('slow is loaded')\n" + good("slow"))
    code = "from visionllm import VisionLLM; print(VisionLLM.from_pretrained().detect('examples/street.jpg', ['car']))"
    assert "loaded" not in python(tmp_path, code)
