"""The pytest plugin of the conformance kit: a test that takes ``decoder_check`` runs once a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# A bench a decoder, made when its first check runs.
_BENCHES: dict[str, Any] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "decoder(name): the registered decoder that decoder_check checks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "decoder_check" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("decoder")
    if marker is None or len(marker.args) != 1:
        raise pytest.UsageError(f'{metafunc.definition.nodeid}: say which decoder, as in @pytest.mark.decoder("depth")')
    from visionllm.testing.checks import CHECKS

    metafunc.parametrize("decoder_check", [(marker.args[0], name) for name in CHECKS], ids=list(CHECKS), indirect=True)


@pytest.fixture
def decoder_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Call it: it fails with what the decoder owes."""
    from visionllm.testing.bench import Bench
    from visionllm.testing.report import run

    decoder, check = request.param

    def call() -> None:
        if decoder not in _BENCHES:
            _BENCHES[decoder] = Bench(decoder)
        outcome = run(check, _BENCHES[decoder])
        if outcome.error is not None:
            pytest.fail(f"{decoder}: {outcome.what}: {outcome.error}", pytrace=False)

    return call
