"""Two processes on half of a step each make the gradient of one process on the whole step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("gradients.py")
TRAIN = Path(__file__).parents[2] / "tools" / "train.py"


def launch(processes: int, *words: object) -> str:
    """What a script and its arguments print, run by so many processes."""
    # A port that the launcher itself binds, so that two of these never meet at one.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
                f"--nproc-per-node={processes}"]  # fmt: skip
    done = subprocess.run([*launcher, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def written(config: dict[str, Any], folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


# A step of one picture and one list of names leaves a rank without any picture: its decoder must run on nothing.
@pytest.mark.parametrize(("names", "size"), [(0.2, 4), (1.0, 2)])
def test_two_ranks_make_the_gradient_of_one(
    tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path, names: float, size: int
) -> None:
    config = {
        "model": tiny_settings(denoising=0),
        "data": [{"dataset": "scenes", "weight": 1.0}, {"dataset": "phrases", "weight": names}],
        "train": {"out": str(tmp_path / "run"), "steps": 1, "batch_size": size, "max_side": 128},
    }
    path = written(config, tmp_path)
    outs = {count: tmp_path / f"{count}.safetensors" for count in (1, 2)}
    for count, out in outs.items():
        launch(count, SCRIPT, path, out)
    one, two = (load_file(out) for out in outs.values())
    assert one.keys() == two.keys()
    assert float(one["decoders.objects.phrase_head.project.weight"].abs().max()) > 0
    for name, value in one.items():
        scale = float(value.abs().max())
        assert torch.allclose(value, two[name], atol=1e-4 * max(scale, 1e-3)), name


def test_two_ranks_train_and_part(tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The command as the README has it: one checkpoint is written, one report printed, and both processes end."""
    config = {
        "model": tiny_settings(),
        "data": [{"dataset": "phrases"}],
        "train": {"out": str(tmp_path / "run"), "steps": 2, "batch_size": 4},
    }
    told = launch(2, TRAIN, written(config, tmp_path))
    assert told.count("skipped 0 of 4") == 1, told
    assert [folder.name for folder in (tmp_path / "run").glob("step-*")] == ["step-0000002"]
    assert (tmp_path / "run" / "step-0000002" / "model" / "model.safetensors").is_file()
