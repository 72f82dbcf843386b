"""The conformance kit: what every decoder owes, as checks that run on any that is installed.

    visionllm check-decoder depth

prints a table; in the tests of a plugin (the pytest plugin comes with the installation)

    @pytest.mark.decoder("depth")
    def test_conformance(decoder_check):
        decoder_check()

is one test a check. A decoder says how to make it small beside its class: ``contract_case()`` gives a ``Case``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionllm.testing.bench import Bench, Case
    from visionllm.testing.checks import CHECKS
    from visionllm.testing.report import Outcome, Report, check_decoder

__all__ = ["CHECKS", "Bench", "Case", "Outcome", "Report", "check_decoder"]

_HOMES = {"Bench": "bench", "Case": "bench", "CHECKS": "checks", "Outcome": "report", "Report": "report",
          "check_decoder": "report"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: pytest loads this package in every run."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
