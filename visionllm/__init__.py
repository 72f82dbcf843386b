"""VisionLLM: one multimodal LLM that answers in text and routes what text cannot carry to task decoders.

The names in `__all__` are the public surface. They are imported on first use, so `import visionllm` stays cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionllm.core.answer import Answer
    from visionllm.core.detections import Detections
    from visionllm.core.errors import VisionLLMError
    from visionllm.core.sample import Sample
    from visionllm.core.task import Task
    from visionllm.datasets.catalog import catalogue, open_dataset
    from visionllm.datasets.foreign import card_from_config
    from visionllm.engine import train
    from visionllm.evaluation import evaluate
    from visionllm.model import VisionLLM
    from visionllm.processor import Processor
    from visionllm.routing.render import render_question
    from visionllm.runs import describe, load_config
    from visionllm.scaffold import new_decoder
    from visionllm.scores import score
    from visionllm.testing.report import check_decoder

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Box",
    "Detections",
    "Pixels",
    "Point",
    "Polygon",
    "Processor",
    "Sample",
    "Scribble",
    "Task",
    "VisionLLM",
    "VisionLLMError",
    "card_from_config",
    "catalogue",
    "check_decoder",
    "describe",
    "evaluate",
    "load_config",
    "new_decoder",
    "open_dataset",
    "render_question",
    "score",
    "train",
]

_HOMES = {
    "Answer": "visionllm.core.answer",
    "Box": "visionllm.core.regions",
    "Detections": "visionllm.core.detections",
    "Pixels": "visionllm.core.regions",
    "Point": "visionllm.core.regions",
    "Polygon": "visionllm.core.regions",
    "Processor": "visionllm.processor",
    "Sample": "visionllm.core.sample",
    "Scribble": "visionllm.core.regions",
    "Task": "visionllm.core.task",
    "VisionLLM": "visionllm.model",
    "VisionLLMError": "visionllm.core.errors",
    "card_from_config": "visionllm.datasets.foreign",
    "catalogue": "visionllm.datasets.catalog",
    "check_decoder": "visionllm.testing.report",
    "describe": "visionllm.runs",
    "evaluate": "visionllm.evaluation",
    "load_config": "visionllm.runs",
    "new_decoder": "visionllm.scaffold",
    "open_dataset": "visionllm.datasets.catalog",
    "render_question": "visionllm.routing.render",
    "score": "visionllm.scores",
    "train": "visionllm.engine",
}


class _CheckoutFinder:
    """Find `visionllm.decoders`, `.routing` and `.datasets` beside this package, as a source checkout keeps them.

    An installed wheel holds the three inside this package and needs no finder. Only these names are answered: a
    `__path__` that reached the repository root would make `visionllm.tests` and `visionllm.setup` importable too.
    """

    def __init__(self, root: Path) -> None:
        self.folders = {f"{__name__}.{name}": root / name for name in ("decoders", "routing", "datasets")}

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = self.folders.get(fullname)
        if folder is None or not folder.is_dir():
            return None
        init = folder / "__init__.py"
        if init.is_file():
            return spec_from_file_location(fullname, init, submodule_search_locations=[str(folder)])
        # datasets/ has no __init__.py, or it would hide Hugging Face's `datasets` from the repository root.
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


def _is_checkout(root: Path) -> bool:
    """Whether `root` is this project's source tree, not a site-packages that holds a `datasets` of its own."""
    return (root / "setup.py").is_file() and (root / "pyproject.toml").is_file() and (root / "routing").is_dir()


_root = Path(__file__).resolve().parent.parent
if _is_checkout(_root):
    # First in line: an editable installation of another checkout must not lend its folders to this one.
    sys.meta_path.insert(0, _CheckoutFinder(_root))


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
