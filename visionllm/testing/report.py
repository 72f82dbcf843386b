"""Run the checks on a decoder and tell how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionllm.core.errors import unknown_name
from visionllm.testing.bench import Bench, Case
from visionllm.testing.checks import CHECKS, CheckError

_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one check went; ``error`` is None where it passed."""

    check: str
    what: str
    error: str | None
    remark: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of one decoder, and what it costs.

    Args:
        parameters: that learn, and all.
        loss_ms, predict_ms, idle_ms: of the small decoder on a batch of four pictures, the quickest of three.
        kept_mb: what a training step keeps for its backward pass.
    """

    decoder: str
    outcomes: tuple[Outcome, ...]
    parameters: tuple[int, int]
    loss_ms: float
    predict_ms: float
    idle_ms: float
    kept_mb: float

    @property
    def passed(self) -> bool:
        return all(outcome.error is None for outcome in self.outcomes)

    def lines(self) -> list[tuple[str, str, str]]:
        """(check, ``ok`` or ``FAILED``, what is owed, or what is wrong) of each check."""
        return [
            (one.check, "ok" if one.error is None else "FAILED",
             one.error or one.what + (f" ({one.remark})" if one.remark else ""))
            for one in self.outcomes
        ]  # fmt: skip

    def costs(self) -> str:
        """One line."""
        learned, every = self.parameters
        if not every:
            return "what it costs could not be measured; the checks say why"
        return (f"made small: {every:,} parameters ({learned:,} learn); four pictures: loss {self.loss_ms:.1f} ms, "
                f"predict {self.predict_ms:.1f} ms, idle {self.idle_ms:.1f} ms; a step keeps {self.kept_mb:.1f} MB; "
                f"{torch.get_num_threads()} threads")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {
            "decoder": self.decoder, "passed": self.passed, "parameters": list(self.parameters),
            "loss_ms": self.loss_ms, "predict_ms": self.predict_ms, "idle_ms": self.idle_ms, "kept_mb": self.kept_mb,
            "checks": [
                {"check": one.check, "passed": one.error is None, "error": one.error, "seconds": one.seconds}
                for one in self.outcomes
            ],
        }  # fmt: skip


def check_decoder(
    name: str, case: Case | None = None, *, only: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> Report:
    """Run the checks on a registered decoder.

    Args:
        case: None takes the one it brings (``contract_case``).
        only: names of checks; none means all.
        progress: told the name of each check before it runs.

    Raises:
        UnknownNameError: there is no such decoder, or no such check.
        ConfigError: the decoder brings no case.
    """
    for asked in only:
        if asked not in CHECKS:
            raise unknown_name("check", asked, CHECKS)
    bench = Bench(name, case)
    outcomes = []
    for check in CHECKS.values():
        if only and check.name not in only:
            continue
        if progress is not None:
            progress(check.name)
        outcomes.append(run(check.name, bench))
    return Report(decoder=name, outcomes=tuple(outcomes), **_costs(bench))


def run(check: str, bench: Bench) -> Outcome:
    """One check. Whatever a decoder raises is its failure, and is told as that."""
    started, error, remark = time.perf_counter(), None, None
    try:
        remark = CHECKS[check].run(bench)
    except CheckError as caught:
        error = str(caught)
    except Exception as caught:  # noqa: BLE001 (a stranger's code may raise anything)
        error = f"raised {type(caught).__name__}: {str(caught).splitlines()[0] if str(caught) else ''}".rstrip(": ")
    return Outcome(
        check=check, what=CHECKS[check].what, error=error, remark=remark, seconds=time.perf_counter() - started
    )


def _costs(bench: Bench) -> dict[str, Any]:
    """Of a decoder that fails at any of it, nothing: a check says why."""
    nothing = {"parameters": (0, 0), "loss_ms": 0.0, "predict_ms": 0.0, "idle_ms": 0.0, "kept_mb": 0.0}
    try:
        decoder = bench.built()
        stage, kept = bench.stage(bench.crowd(), decoder), _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.seen, lambda tensor: tensor):
            decoder.train()
            stage.loss()
        decoder.eval()
        sizes = [(p.numel(), p.requires_grad) for p in decoder.parameters()]
        return {
            "parameters": (sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)),
            "loss_ms": _quickest(stage.loss), "predict_ms": _quickest(stage.predict),
            "idle_ms": _quickest(decoder.idle), "kept_mb": kept.bytes / 1e6,
        }  # fmt: skip
    except Exception:  # noqa: BLE001
        return nothing


class _Kept:
    """Bytes that a forward pass keeps, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._known: set[int] = set()

    def seen(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _quickest(call: Callable[[], Any]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) * 1000
