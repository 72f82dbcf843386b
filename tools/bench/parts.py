"""What each part of the detector gives: one short training a part, all else equal. python tools/bench/parts.py

A detector from scratch (`configs/train/parts.yaml`) is trained once whole and once without each part, on the same
samples in the same order; the known-task path is scored on data it has not seen. VISIONLLM_DATA names the data root.
Arguments: names of the variants to run (all), then key=value words over the configuration.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from torch import Tensor

from visionllm import VisionLLM, evaluate
from visionllm.decoders.objects import criterion
from visionllm.decoders.objects.detector import LinkDetector
from visionllm.decoders.objects.phrases import Standardise
from visionllm.engine import train
from visionllm.runs import load_config

CONFIG = Path("configs/train/parts.yaml")
OBJECTS = "model.decoders.objects."
WEIGHT = "loss_weights.objects/"


@dataclass(kw_only=True, frozen=True)
class Variant:
    """Words over the configuration, and (object, attribute, value) of what has no key there."""

    words: Sequence[str] = ()
    patches: Sequence[tuple[object, str, object]] = field(default=())


def _as_they_are(self: Standardise, states_LF: Tensor, *, observe: bool = True) -> Tensor:
    return states_LF.float()


VARIANTS = {
    "whole": Variant(),
    "no dense supervision": Variant(words=[f"{OBJECTS}dense=false"]),
    "no denoising": Variant(words=[f"{OBJECTS}denoising=0"]),
    "no contrast": Variant(words=[f"{WEIGHT}{name}=0" for name in ("contrast", "dense_contrast", "denoise_contrast")]),
    "target IoU^1.5": Variant(patches=[(criterion, "QUALITY", criterion.GAMMA)]),
    "links not standardised": Variant(patches=[(Standardise, "forward", _as_they_are)]),
    "transformers' initial weights": Variant(patches=[(LinkDetector, "_initialise", lambda self: None)]),
    "frozen batch norm": Variant(words=[f"{OBJECTS}group_norm=null"]),
}


def measure(name: str, words: Sequence[str]) -> dict[str, float]:
    variant = VARIANTS[name]
    folder = Path("outputs/parts", name.replace(" ", "_").replace("'", ""))
    shutil.rmtree(folder, ignore_errors=True)
    out = f"train.out={folder}"
    with ExitStack() as stack:
        for patch in variant.patches:
            stack.enter_context(mock.patch.object(*patch))
        model = VisionLLM.from_pretrained(train(load_config(CONFIG, [out, *variant.words, *words])))
        scores = {data: evaluate(model, data, "val", known=True, limit=60)["detection"] for data in ("scenes", "bccd")}
    return {f"{data} {key}": value[key] for data, value in scores.items() for key in ("AP50", "AP")}


def main(arguments: Sequence[str]) -> None:
    words = [word for word in arguments if "=" in word]
    for name in [word for word in arguments if "=" not in word] or VARIANTS:
        found = measure(name, words)
        print(f"{name:30} " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
        with Path("outputs/parts/table.jsonl").open("a") as file:
            file.write(json.dumps({"variant": name, "words": words, **found}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
