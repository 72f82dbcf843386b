"""Score cards: what is measured is told once, and a gap is a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import visionllm.scores
from visionllm.core.errors import ConfigError
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import catalogue
from visionllm.scores import load_card, measure, score, table

ONE = {"dataset": "scenes", "limit": 1}


def card_at(folder: Path, **changes: Any) -> Path:
    values = {
        "runs": {"scenes": {"dataset": "scenes", "limit": 2}, "known": {**ONE, "known": True}},
        "rows": [{"label": "mAP50", "run": "known", "value": "detection/AP50", "least": 1.5, "aim": 2}],
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path


def test_runs_are_measured_once(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = visionllm.scores.evaluate
    monkeypatch.setattr(visionllm.scores, "evaluate", lambda *a, **k: calls.append(k["limit"]) or real(*a, **k))
    told: set[tuple[str, int]] = set()
    text = score(model, card_at(tmp_path), tmp_path / "out", progress=lambda name, done, total: told.add((name, done)))
    assert calls == [2, 1]
    assert {("scenes", 2), ("known", 1)} <= told
    assert text.splitlines()[2].startswith("| mAP50 | ")
    assert score(model, card_at(tmp_path), tmp_path / "out") == text
    assert calls == [2, 1]
    # Another question, or other weights, are measured anew.
    free = load_card(card_at(tmp_path, runs={"known": ONE}))
    reports = measure(model, free, tmp_path / "out")
    assert calls == [2, 1, 1]
    assert reports["known"]["path"] == "free-running"
    held = json.loads((tmp_path / "out" / "scenes.json").read_text())
    held["report"]["model"] = "another"
    (tmp_path / "out" / "scenes.json").write_text(json.dumps(held))
    score(model, card_at(tmp_path), tmp_path / "out")
    assert calls == [2, 1, 1, 2, 1]


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "scenes/val", "model": "abc"}'])
def test_another_file_is_not_overwritten(model: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "scenes.json").write_text(text)
    with pytest.raises(ConfigError, match=r"scenes\.json: not a report of a score card"):
        score(model, card_at(tmp_path), tmp_path)
    assert (tmp_path / "scenes.json").read_text() == text


def test_the_table_by_hand(tmp_path: Path) -> None:
    rows = [
        {"label": "held", "run": "scenes", "value": "detection/AP50", "least": 0.5, "aim": 0.9},
        {"label": "missed", "run": "scenes", "value": "detection/AP50", "least": 0.7},
        {"label": "too many", "run": "scenes", "value": "detection/false", "most": 0.05},
        {"label": "few enough", "run": "scenes", "value": "detection/false", "most": 0.2},
        {"label": "told only", "run": "scenes", "value": "detection/P@0.5"},
        {"label": "nothing there", "run": "scenes", "value": "detection/none", "least": 0.4},
    ]
    report = {"detection": {"AP50": 0.61, "AP50_interval": [0.5, 0.7], "false": 0.1, "P@0.5": 0.25, "none": None}}
    assert table(load_card(card_at(tmp_path, rows=rows)), {"scenes": report}).splitlines()[2:] == [
        "| held | 0.610 (0.500-0.700) | 0.5 | - | 0.9 |",
        "| missed | 0.610 (0.500-0.700) | 0.7 | 0.090 | - |",
        "| too many | 0.100 | 0.05 at most | 0.050 | - |",
        "| few enough | 0.100 | 0.2 at most | - | - |",
        "| told only | 0.250 | - | - | - |",
        "| nothing there | - | 0.4 | 0.400 | - |",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": {"a": {"datset": "scenes"}}}, r"card\.yaml: runs\.a\.datset: unknown key \(did you mean dataset\?"),
        ({"rows": [{"label": "a", "run": "scene", "value": "b"}]}, r"rows\.0\.run: no run 'scene'; known: scenes,"),
        ({"runs": {}}, r"card\.yaml: runs: "),
    ],
)  # fmt: skip
def test_a_wrong_card_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_card(card_at(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_value_that_no_report_holds(tmp_path: Path) -> None:
    card = load_card(card_at(tmp_path, rows=[{"label": "a", "run": "scenes", "value": "detection/AP51"}]))
    with pytest.raises(ConfigError, match=r"'a': the report of 'scenes' has no 'detection/AP51' \(at 'AP51': AP50\)"):
        table(card, {"scenes": {"detection": {"AP50": 1}}})


def test_the_card_that_is_shipped(root: Path) -> None:
    card = load_card(root / "configs" / "scores" / "nano.yaml")
    for run in card.runs.values():
        assert run.dataset in catalogue()
        assert run.task is None or run.task in ASKERS
        assert run.split != "train"
