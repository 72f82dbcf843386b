"""Where a decoder is checked: made small, with samples it can learn from, alone and in a small model beside another.

L = links, D = width of the language model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from visionllm.core.config import validate
from visionllm.core.errors import ConfigError
from visionllm.core.images import Images
from visionllm.core.resources import config_folder
from visionllm.core.sample import Sample
from visionllm.core.superlink import SuperLinks
from visionllm.decoders import DECODERS, Context, Decoder
from visionllm.model import VisionLLM
from visionllm.processor import Processor, Tiling
from visionllm.routing.render import Style
from visionllm.routing.vocabulary import Vocabulary
from visionllm.runs import ModelConfig, build_model
from visionllm.testing.small import tiny_settings

WIDTH = 32  # of the language model
# Phrases of the samples of a batch, and shapes of their pictures.
_PHRASES = ("a", "abc", "abcde", "a")
_SIZES = ((96, 64), (64, 96), (96, 64), (90, 90))


@dataclass(kw_only=True, frozen=True)
class Case:
    """A decoder made small, and samples it can learn from.

    Args:
        config: keys of its ``Config``; a pass takes well under a second on a CPU with it.
        sample: (phrases, size=(width, height), seed=int, empty=bool) -> a training sample; of an ``empty`` one nothing
            that is asked for is there.
        options: keys of its ``Options`` under which nothing found is dropped.
    """

    config: dict[str, Any]
    sample: Callable[..., Sample]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Stage:
    """A decoder and a batch for it."""

    decoder: Decoder
    ctx: Context
    links: SuperLinks
    options: Any

    def loss(self) -> dict[str, Tensor]:
        return self.decoder.loss(self.links, self.ctx)

    def predict(self) -> list[Any]:
        return self.decoder.predict(self.links, self.ctx, self.options)


def case_of(name: str) -> Case:
    """The case that a decoder brings.

    Raises:
        UnknownNameError: there is no such decoder.
        ConfigError: it brings none.
    """
    cls = DECODERS[name]
    modules = (cls.__module__, cls.__module__.partition(".")[0])  # beside the class, or in its package
    make = next(filter(None, (getattr(sys.modules[one], "contract_case", None) for one in modules)), None)
    if make is None:
        from visionllm.testing.own import VARIANTS

        if name in VARIANTS:
            return VARIANTS[name]()
        raise ConfigError(
            f"decoder {name!r}: {cls.__module__} has no contract_case(); add one beside the class (docs/plugin.md)"
        )
    made = make()
    return Case(config=made.config, sample=made.sample, options=made.options)


class Bench:
    """All that a check needs of one decoder.

    Args:
        name: registered.
        case: None takes the one it brings.
    """

    def __init__(self, name: str, case: Case | None = None) -> None:
        self.name, self.cls = name, DECODERS[name]
        self.case = case_of(name) if case is None else case
        tokenizer = Tokenizer.from_file(str(config_folder("models") / "nano" / "tokenizer.json"))
        self._vocabulary = Vocabulary(tokenizer, self.cls.tasks)

    def built(self, *, stirred: float = 0.1, seed: int = 0) -> Decoder:
        """The decoder, its parameters stirred, so that no zero of the initialisation hides a path."""
        torch.manual_seed(seed)
        config = validate(self.cls.Config, self.case.config, source="contract_case: config")
        decoder = self.cls.from_config(config, WIDTH).eval()
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(torch.randn_like(parameter) * stirred)
        return decoder

    def crowd(self) -> list[Sample]:
        """Pictures of three shapes, one to five phrases each."""
        return [self.case.sample(tuple(phrases), size=size, seed=i)
                for i, (phrases, size) in enumerate(zip(_PHRASES, _SIZES, strict=True))]  # fmt: skip

    def stage(self, samples: Sequence[Sample], decoder: Decoder | None = None) -> Stage:
        """The decoder, or a new one, before a batch; links are numbers out of their phrases."""
        decoder = self.built() if decoder is None else decoder
        tiling = Tiling(count=lambda size: 1, make=lambda pixels: torch.zeros(1, 3, 4, 4), tokens_per_tile=1)
        pixels = {f"{self.name}/{role}": spec for role, spec in decoder.pixels.items()}
        processor = Processor(self._vocabulary, tiling, pixels, 1 << 20)
        batch = processor.encode(list(samples), [Style(tree=True)] * len(samples))
        told = [states_of(meta.phrase, n) for meta, n in zip(batch.links.meta, batch.links.queries, strict=True)]
        links = SuperLinks(
            states=torch.cat([*told, torch.zeros(0, WIDTH)]).requires_grad_(), queries=batch.links.queries,
            meta=batch.links.meta,
        )  # fmt: skip
        options = validate(self.cls.Options, self.case.options, source="contract_case: options")
        return Stage(decoder=decoder, ctx=Context(batch=batch), links=links, options=options)

    def model(self, *, alone: bool = False, seed: int = 0) -> VisionLLM:
        """A small model that has the decoder beside one that finds boxes, or draws if it finds boxes itself; ``alone``,
        without it. Both have the same weights where they have the same parts."""
        settings = tiny_settings()
        beside = settings["decoders"]
        served = {task.name for name in beside if name != self.name for task in DECODERS[name].tasks}
        if served & {task.name for task in self.cls.tasks}:
            beside = {"generation": case_of("generation").config}
        own = beside if alone else beside | {self.name: self.case.config}
        torch.manual_seed(seed)
        model = build_model(ModelConfig(**settings | {"decoders": own}))
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                # Of each name the same numbers, whatever else is there.
                chance = torch.Generator().manual_seed(sum(map(ord, name)) + seed)
                parameter.copy_(torch.randn(parameter.shape, generator=chance) * (0.5 if parameter.ndim < 2 else 0.15))
        return model.eval()

    @cached_property
    def whole(self) -> VisionLLM:
        """``model()``, made once; nobody may change it."""
        return self.model()


def states_of(phrase: str, count: int) -> Tensor:
    """(count, D) that any phrase has of its own."""
    seed = sum((i + 1) * ord(letter) for i, letter in enumerate(phrase))
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def roots(links: SuperLinks) -> list[int]:
    """The links that results are given for; parts of a thing that is not there have nothing to learn."""
    return [i for i, meta in enumerate(links.meta) if meta.parent < 0]


def rows_of_roots(links: SuperLinks) -> Tensor:
    """(sum of queries,) bool."""
    owner = torch.repeat_interleave(torch.arange(len(links)), torch.tensor(links.queries))
    return torch.isin(owner, torch.tensor(roots(links)))


def numbers_of(result: Any) -> np.ndarray:
    """All numbers of a result, in order; of pictures their pixels, a step of which is less than 1e-2."""

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for key in sorted(value) for n in numbers(value[key])]
        if isinstance(value, list | tuple):
            return [n for item in value for n in numbers(item)]
        return [float(value)] if isinstance(value, int | float) else []

    pixels = [one.pixels / 128 for one in result] if isinstance(result, Images) else []
    return np.concatenate([numbers(json.loads(json.dumps(result.to_dict()))), *map(np.ravel, pixels)])


def same(one: Any, other: Any) -> bool:
    """Whether two results agree to a rounding: of pictures to a step of their pixels, else to a ten thousandth of the
    largest number."""
    a, b = numbers_of(one), numbers_of(other)
    step = 1e-2 if isinstance(one, Images) else 1e-4 * max(1.0, float(np.abs(a).max(initial=0.0)))
    return a.shape == b.shape and bool(np.allclose(a, b, atol=step, rtol=1e-4))
