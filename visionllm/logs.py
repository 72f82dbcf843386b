"""What a run tells: JSON lines for machines, TensorBoard for curves, a progress bar for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunLog:
    """Writes ``log.jsonl`` and, where TensorBoard is installed, its events; shows a bar on a terminal.

    Args:
        folder: of the run; it is there.
        steps: all of them; the bar starts at ``start``.
        enabled: False on ranks other than the first.
    """

    def __init__(self, folder: Path, *, steps: int, start: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        self._sums: dict[str, tuple[float, int]] = {}
        self._board: Any = None
        if not enabled:
            return
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder))
        except ImportError:
            print(
                "TensorBoard is not installed (pip install visionllm[train]); log.jsonl holds everything",
                file=sys.stderr,
            )
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task("training", total=steps, completed=start)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Take the losses of a step; the next record holds their means."""
        for name, value in losses.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        if self._enabled:
            self._bar.update(self._task, completed=step, description=f"loss {losses['loss']:.3f}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record: the mean losses since the last one, and ``values``; numbers are rounded to six digits."""
        if not self._enabled:
            return
        values = {name: total / count for name, (total, count) in self._sums.items()} | dict(values)
        self._sums.clear()
        record = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if not sys.stderr.isatty():
            short = {k: v for k, v in record.items() if k in ("step", "loss", "lm", "lr", "samples/s")}
            print(json.dumps(short), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._enabled:
            self._bar.stop()
            self._file.close()
            if self._board is not None:
                self._board.close()
