"""A score card: many evaluations of one model, and the table of what was to hold.

The card is YAML. ``runs`` are evaluations by name; each leaves a report. A row of the table is one value of a report,
beside the mark it has to reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from visionllm.core.config import Config, read_yaml, validate
from visionllm.core.errors import ConfigError
from visionllm.core.files import make_folder
from visionllm.evaluation import evaluate
from visionllm.model import VisionLLM


class Run(Config):
    """One evaluation; the keys are those of ``visionllm eval``."""

    dataset: str
    split: str = "val"
    task: str | None = None
    known: bool = False
    limit: PositiveInt | None = None
    chunk: PositiveInt | None = None
    among: PositiveInt | None = None
    judges: dict[str, str] = Field(default_factory=dict)


class Row(Config):
    """One line of the table."""

    label: str
    run: str
    value: str = Field(
        description="keys of the report, as in detection/AP50; its interval is read from <value>_interval"
    )
    least: float | None = None
    most: float | None = None
    aim: float | None = None


class ScoreCard(Config):
    """Evaluations, and what is told of them."""

    runs: dict[str, Run] = Field(min_length=1)
    rows: tuple[Row, ...] = ()


def load_card(path: str | Path) -> ScoreCard:
    """A score card from YAML.

    Raises:
        ConfigError: a key or a value is wrong, or a row tells of a run that is not there.
    """
    card = validate(ScoreCard, read_yaml(path), source=str(path))
    for number, row in enumerate(card.rows):
        if row.run not in card.runs:
            raise ConfigError(f"{path}: rows.{number}.run: no run {row.run!r}; known: {', '.join(card.runs)}")
    return card


def score(
    model: VisionLLM,
    card: str | Path,
    out: str | Path,
    *,
    data_root: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Evaluate all that a score card names, and return its table in Markdown; see ``measure`` for the arguments."""
    loaded = load_card(card)
    return table(loaded, measure(model, loaded, out, data_root=data_root, progress=progress))


def measure(
    model: VisionLLM, card: ScoreCard, out: str | Path, *, data_root: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate all runs of a card and return their reports by name.

    Args:
        out: folder of the reports, ``<run>.json``. One that is there, of these weights and this run, is not made anew.
        progress: called with the name of the run, samples done and samples in all.
    """
    folder = make_folder(out, source="out")
    reports: dict[str, Any] = {}
    for name, run in card.runs.items():
        path, settings = folder / f"{name}.json", run.model_dump()
        held = _held(path)
        if held["run"] != settings or held["report"]["model"] != model.fingerprint:

            def told(done: int, total: int, name: str = name) -> None:
                if progress is not None:
                    progress(name, done, total)

            held = {"run": settings, "report": evaluate(model, **settings, data_root=data_root, progress=told)}
            # Whole or not at all: an interrupted card is gone on with.
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
            aside.replace(path)
        reports[name] = held["report"]
    return reports


def _held(path: Path) -> dict[str, Any]:
    """What a file of reports holds; of nothing where there is none.

    Raises:
        ConfigError: it is another file, which would be overwritten.
    """
    if not path.is_file():
        return {"run": None, "report": None}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    if not isinstance(held, dict) or not {"run", "report"} <= held.keys() or "model" not in held["report"]:
        raise ConfigError(f"{path}: not a report of a score card; move it away, or give another --out")
    return held


def table(card: ScoreCard, reports: Mapping[str, Any]) -> str:
    """The rows in Markdown; ``gap`` is how far a value falls short of its mark."""
    lines = ["| measure | score (95 % interval) | mark | gap | aim |", "|---|---|---|---|---|"]
    for row in card.rows:
        report = reports[row.run]
        value, interval = _at(report, row.value, row), _at(report, f"{row.value}_interval", None)
        shown = "-" if value is None else f"{value:.3f}"
        if interval is not None:
            shown += f" ({interval[0]:.3f}-{interval[1]:.3f})"
        mark = f"{row.least:g}" if row.least is not None else "-" if row.most is None else f"{row.most:g} at most"
        gap = max(_short(value, row.least, 1), _short(value, row.most, -1))
        lines.append(
            f"| {row.label} | {shown} | {mark} | {f'{gap:.3f}' if gap else '-'} | "
            f"{'-' if row.aim is None else f'{row.aim:g}'} |"
        )
    return "\n".join(lines)


def _short(value: float | None, mark: float | None, sign: int) -> float:
    """By how much a value misses a mark that it should reach (1) or not exceed (-1); nothing measured misses it all."""
    if mark is None:
        return 0.0
    return abs(mark) if value is None else max(0.0, sign * (mark - value))


def _at(report: Any, path: str, row: Row | None) -> Any:
    """What stands at a path of keys; None, where no row insists on it.

    Raises:
        ConfigError: nothing stands there.
    """
    for key in path.split("/"):
        if not isinstance(report, Mapping) or key not in report:
            if row is None:
                return None
            known = ", ".join(report) if isinstance(report, Mapping) else "no keys"
            raise ConfigError(f"rows: {row.label!r}: the report of {row.run!r} has no {path!r} (at {key!r}: {known})")
        report = report[key]
    return report
