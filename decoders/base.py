"""The decoder contract: two methods, plain numbers in, typed results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visionllm.core.batch import Batch
from visionllm.core.config import Config as Settings
from visionllm.core.pixels import PixelSpec
from visionllm.core.registry import Registry
from visionllm.core.superlink import SuperLinks
from visionllm.core.task import Task


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Context:
    """What a decoder may look at besides its links.

    Args:
        batch: the batch; a decoder finds its pictures under ``batch.pixels[f"{decoder}/{role}"]``.
        vision: (tiles, tokens, D) features of the language model's vision tower after the projector, or None.
        model: fingerprint of the weights that answer, or None (training).
    """

    batch: Batch
    vision: Tensor | None = None
    model: str | None = None


class Decoder(nn.Module):
    """A head under super links. Results are in pixels of the original picture.

    A subclass sets ``name``, ``tasks``, ``Config`` and ``Options`` and implements the methods below. A decoder built
    without the parts of a task sets a shorter ``tasks`` on itself. ``Config`` builds the decoder; ``Options`` are per
    call (``model.ask(..., options={decoder name: {...}})``).
    """

    name: ClassVar[str]
    tasks: tuple[Task, ...]
    Config: ClassVar[type[Settings]]
    Options: ClassVar[type[Settings]]

    @classmethod
    def from_config(cls, config: Any, link_width: int) -> Decoder:
        """Build from a validated ``Config``; ``link_width`` is the width of the language model."""
        raise NotImplementedError

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        """Role -> how its pictures are prepared."""
        raise NotImplementedError

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        """Named, un-weighted SUMS over the batch; the engine divides by ``counts``."""
        raise NotImplementedError

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        """The divisor of every loss, from targets alone, known before backward."""
        raise NotImplementedError

    def predict(self, links: SuperLinks, ctx: Context, options: Any) -> list[Any]:
        """One result per root link, in the order of ``links``."""
        raise NotImplementedError

    def described(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint says of the decoder, given the keys it was made of: it must build the decoder anew without
        any file beside it."""
        return dict(values)

    def tables_that_grow(self) -> list[Tensor]:
        """Parameters that settings over those of a checkpoint may give more rows than it has: they begin as the first
        ones again."""
        return []

    def attend(self, kind: str) -> None:
        """Choose how attention is computed, where there is a choice: a value of ``train.attention``."""

    def operating_point(self, task: str) -> float | None:
        """The score that results of a task reach unless a call asks for another; None where nothing is left out."""
        return None

    def idle(self) -> Tensor:
        """A scalar from one forward on the smallest dummy input, for ranks without links of this decoder."""
        raise NotImplementedError


DECODERS: Registry[type[Decoder]] = Registry("decoder", group="visionllm.decoders")


def register_decoder(name: str) -> Callable[[type[Decoder]], type[Decoder]]:
    """Class decorator: make a decoder known under ``name``."""

    def add(cls: type[Decoder]) -> type[Decoder]:
        cls.name = name
        return DECODERS.add(name, cls)

    return add
