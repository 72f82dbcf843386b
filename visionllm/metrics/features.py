"""How near pictures come to words and to other pictures by the features of a network, any of transformers' by name.

N = pictures, D = features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from visionllm.core.answer import Answer
from visionllm.core.errors import ConfigError
from visionllm.core.sample import Picture, Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

_POOLER = {"pooler.dense.weight", "pooler.dense.bias"}


class _Mean:
    """A number a picture that was made, by a network's features; their mean under ``name``."""

    judged_by: ClassVar[str] = "features"
    name: ClassVar[str]

    def __init__(self, categories: Sequence[str] = (), *, threshold: float | None = None, judge: str) -> None:
        self._network = _Network(judge)
        self._values: dict[Hashable, list[float]] = defaultdict(list)

    def compute(self) -> dict[str, Any]:
        """The mean over the pictures that were made, its 95 % interval, their number."""
        every = [value for own in self._values.values() for value in own]
        return {self.name: float(np.mean(every)) if every else None,
                f"{self.name}_interval": interval(list(self._values.values())), "pictures": len(every)}  # fmt: skip


@METRICS.register("clip_score")
class ClipScore(_Mean):
    """Cosine of a picture's and its words' features times 100, at least 0 (Hessel et al. 2021, "CLIPScore", without its
    factor 2.5).

    Args:
        judge: folder or hub id of a CLIP-like model: one with ``get_image_features`` and ``get_text_features``.
    """

    name = "score"

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        for phrase, _, made in _pairs(turn, answer):
            alike = torch.cosine_similarity(self._network.picture(made), self._network.words(phrase), dim=-1)
            self._values[key].append(max(float(alike), 0.0) * 100)


@METRICS.register("similarity")
class Similarity(_Mean):
    """Cosine of the features of a picture and of the one it should have become (with DINO: Ruiz et al. 2023,
    "DreamBooth").

    Args:
        judge: folder or hub id of a model of pictures.
    """

    name = "similarity"

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        for _, truth, made in _pairs(turn, answer):
            alike = torch.cosine_similarity(self._network.picture(made), self._network.picture(truth), dim=-1)
            self._values[key].append(float(alike))


@METRICS.register("frechet")
class FrechetDistance:
    """Distance between the features of the pictures that were made and of the true ones, both taken as normal (Heusel
    et al. 2017, "GANs trained by a two time-scale update rule", with features of any network: FID where it is that
    Inception). It falls with the number of pictures: compare at equal numbers.

    Args:
        judge: folder or hub id of a model of pictures.
    """

    judged_by: ClassVar[str] = "features"

    def __init__(self, categories: Sequence[str] = (), *, threshold: float | None = None, judge: str) -> None:
        self._network = _Network(judge)
        self._made: list[np.ndarray] = []
        self._true: list[np.ndarray] = []

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        for _, truth, made in _pairs(turn, answer):
            self._made.append(self._network.picture(made)[0].double().numpy())
            self._true.append(self._network.picture(truth)[0].double().numpy())

    def compute(self) -> dict[str, Any]:
        """``distance``, None of fewer than two pictures, and their number."""
        few = len(self._made) < 2
        return {"distance": None if few else frechet(np.array(self._made), np.array(self._true)),
                "pictures": len(self._made)}  # fmt: skip


def frechet(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^0.5) of means and covariances (Dowson and Landau 1982)."""
    means = one_ND.mean(0) - other_ND.mean(0)
    # The trace of the root of C1 C2 is the sum of the singular values of R1 R2', where Ck = Rk' Rk.
    roots = [(values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (one_ND, other_ND)]
    spread = sum(float(np.square(root).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return float(means @ means) + spread - 2 * shared


class _Network:
    """Features of pictures and, where it has them, of words.

    Raises:
        ConfigError: there is no such model, or it has no features of the kind.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._model, self._processor = _loaded(name)

    @torch.no_grad()
    def picture(self, picture: Picture) -> Tensor:
        """(1, D)."""
        read = self._processor(images=picture.pixels, return_tensors="pt")
        if hasattr(self._model, "get_image_features"):
            return _pooled(self._model.get_image_features(**read))
        return _pooled(self._model(**read))

    @torch.no_grad()
    def words(self, words: str) -> Tensor:
        """(1, D)."""
        if not hasattr(self._model, "get_text_features"):
            raise ConfigError(f"judges: {self._name}: has no features of words; take a CLIP model")
        read = self._processor(text=[words], return_tensors="pt", padding=True, truncation=True)
        return _pooled(self._model.get_text_features(**read))


@lru_cache(2)
def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor

    try:
        model, told = AutoModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
        model.eval()
        lacking = sorted(told["missing_keys"])
        if lacking and set(lacking) <= _POOLER:
            # DINO has none, and transformers makes one up: what it would have read is the feature (Caron et al. 2021).
            model.pooler = _First()
        elif lacking:
            raise ConfigError(f"judges: {name}: its weights lack {lacking[0]}; take a whole checkpoint")
        both = hasattr(model, "get_text_features")
        return model, (AutoProcessor if both else AutoImageProcessor).from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"judges: {name}: cannot be loaded ({str(error).splitlines()[0]})") from None


class _First(nn.Module):
    """(B, T, D) states -> (B, D), the first of each: that of the whole, where a network has one."""

    def forward(self, states_BTD: Tensor) -> Tensor:
        return states_BTD[:, 0]


def _pooled(found: Any) -> Tensor:
    """What a network says of the whole: its pooled output, or else the mean over places."""
    if isinstance(found, Tensor):
        return found.float()
    pooled = getattr(found, "pooler_output", None)
    return (found.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)).float()


def _pairs(turn: Turn, answer: Answer) -> list[tuple[str, Picture, Picture]]:
    """Phrase, the true picture, and the one that was made, of those that were."""
    made = answer.results.get(turn.task) if turn.task else None
    if made is None:
        return []
    found = [(phrase, truth, next(iter(made.of(phrase)), None))
             for phrase, truth in zip(turn.phrases, turn.target.pictures, strict=True)]  # fmt: skip
    return [(phrase, truth, picture) for phrase, truth, picture in found if picture is not None]
