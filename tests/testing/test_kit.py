"""The kit passes a sound decoder and fails each of the faults planted in it, by the check that is meant to see it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from visionllm import check_decoder, new_decoder
from visionllm.core.answer import RESULT_TYPES
from visionllm.core.errors import ConfigError, UnknownNameError
from visionllm.core.task import TASKS
from visionllm.datasets.asking import ASKERS
from visionllm.decoders import DECODERS
from visionllm.metrics import METRICS
from visionllm.testing import CHECKS

REGISTRIES = (TASKS, DECODERS, RESULT_TYPES, METRICS, ASKERS)
# What is changed in the package that new-decoder writes, and the checks that must see it.
START, READ = "        queries = TASK", "return value_L, sure_L"
BODY, END = "        results = []\n", "        return results\n"
FAULTS: dict[str, tuple[str, str, set[str]]] = {
    "detaches its links": ("states_LQD.to(", "states_LQD.detach().to(", {"gradient-to-links", "gradient-to-model"}),
    "reads other samples": (
        READ, "return value_L - value_L.mean() + 0.5, sure_L", {"batched-is-single"},
    ),
    "ignores phrases": (
        "self.head(states_LQD.to(", "self.head(0 * states_LQD.to(", {"links-matter", "gradient-to-links"},
    ),
    "keeps state": (
        BODY, BODY + """        self.calls = getattr(self, 'calls', 0) + 0.1
        options = options.model_copy(update={'threshold': self.calls})
""", {"no-state"},
    ),
    "changes its weights": (BODY, BODY + "        self.head[0].bias.add_(0.01)\n", {"no-state"}),
    "gives a mean": (").sum()}", ").mean()}", {"losses-add-up"}),
    "counts wrongly": ('{"value": float(len(links))}', '{"value": 1.0}', {"losses-add-up", "no-links"}),
    "names losses otherwise": ('loss_weights={"value": 1.0}', 'loss_weights={"other": 1.0}', {"losses"}),
    "turns results round": (END, "        return results[::-1]\n", {"order", "batched-is-single"}),
    "leaves results out": (END, "        return results[:1]\n", {"batched-is-single", "one-and-many"}),
    "gives no number": (".sigmoid().float()", ".sigmoid().float().log().sqrt()", {"losses"}),
    "forgets a weight": (
        START, "        self.unused = nn.Linear(2, 2)\n" + START, {"gradient-to-parameters", "idle"},
    ),
    "leaves a tensor behind": (START, "        self.table = torch.ones(3)\n" + START, {"device"}),
    "keeps a weight out of checkpoints": (
        READ, "return value_L * self.__dict__.setdefault('half', torch.rand(1)), sure_L", {"save-and-load"},
    ),
    "takes any key": ("class @Name@Config(Config):", "class @Name@Config(Config, extra='ignore'):", {"config-errors"}),
    "wants one type": ("states_LQD.to(self.head[0].weight.dtype)", "states_LQD", {"bf16"}),
    "names no metric": ("    metric=NAME,", '    metric="nothing",', {"registration"}),
    "has idle hands": ("return self.head(nothing).sum()", "return nothing.sum()", {"idle"}),
    "stumbles over nothing": (
        "states_LQD = links.states.reshape(-1, TASK.tokens[0].queries, links.states.shape[-1])",
        "states_LQD, _ = links.of_token(TASK.tokens[0].text)", {"no-links"},
    ),
    "raises": ("        value_L, sure_L = self._read(links)\n", "        raise KeyError('x')\n", {"losses"}),
    "sees no empty picture": ("float(covered.mean())", "float(np.log(covered.mean()))", {"empty-targets"}),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write the package, with a change, import it, and give its name; nothing of it stays registered."""
    for registry in REGISTRIES:
        assert list(registry)
        monkeypatch.setattr(registry, "_items", registry.held())

    def make(old: str = "", new: str = "", *, name: str = "shade") -> str:
        number = 1 + sum(key.startswith(f"visionllm_{name}") for key in sys.modules)
        own = f"{name}{number}"
        folder = new_decoder(own, tmp_path / own)
        code = folder / f"visionllm_{own}" / "__init__.py"
        text = code.read_text()
        old, new = (words.replace("@Name@", own.capitalize()) for words in (old, new))
        if old:
            assert text.count(old) == 1, (old, text.count(old))
            code.write_text(text.replace(old, new))
        monkeypatch.syspath_prepend(str(folder))
        importlib.import_module(f"visionllm_{own}")
        return own

    return make


def test_what_is_written_does_all_it_owes(write: Callable[..., str]) -> None:
    seen: list[str] = []
    report = check_decoder(write(), progress=seen.append)
    assert report.passed, [line for line in report.lines() if line[1] != "ok"]
    assert seen == list(CHECKS) == [outcome.check for outcome in report.outcomes]
    assert report.parameters[1] > 0
    assert report.kept_mb > 0
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(write: Callable[..., str], fault: str) -> None:
    old, new, checks = FAULTS[fault]
    report = check_decoder(write(old, new))
    failed = {outcome.check for outcome in report.outcomes if outcome.error is not None}
    assert checks <= failed, (failed, report.lines())
    assert not report.passed
    assert all("\n" not in (outcome.error or "") for outcome in report.outcomes)


def test_what_is_not_there_is_said(write: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no decoder 'nothing'"):
        check_decoder("nothing")
    name = write("def contract_case()", "def another_case()")
    with pytest.raises(ConfigError, match=rf"'{name}': .* has no contract_case\(\)"):
        check_decoder(name)
    name = write()
    with pytest.raises(UnknownNameError, match="did you mean 'losses'"):
        check_decoder(name, only=["loses"])
    assert [outcome.check for outcome in check_decoder(name, only=["order", "losses"]).outcomes] == ["losses", "order"]
    for bad in ("Depth", "2d", "a-b", "class", "", "../x"):
        with pytest.raises(ConfigError, match="is no name of a decoder"):
            new_decoder(bad, tmp_path / "x")
    for taken in ("objects", "detection", name):
        with pytest.raises(ConfigError, match="already"):
            new_decoder(taken, tmp_path / "x")
    with pytest.raises(ConfigError, match="is there already"):
        new_decoder("fresh", tmp_path)
    assert not (tmp_path / "x").exists()
