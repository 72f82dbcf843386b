"""How a network that knows K classes comes to know phrases instead.

A closed-set network holds its classes in a few layers: those that score them, and those that look up a row for each. In
their place stand layers that read the phrases of the picture at hand. Phrase p takes the place of class p; the other
places are shut. Assigners, losses and post-processing of the network then work as they are, with p for a label.
With no phrases spoken, each layer is the network's own again.

P = phrases, K = classes, E = width of a phrase, A = anchors (or other things) that a layer scores at a place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from visionllm.core.errors import ConfigError

# Logit of a place without a phrase: too low to be chosen, and finite in every float type.
SHUT = -30.0


class Spoken:
    """The phrases that a network is asked about just now; all its replaced layers share one."""

    def __init__(self) -> None:
        self.words_PE: Tensor | None = None

    @contextmanager
    def speaking(self, words_PE: Tensor | None) -> Iterator[None]:
        """(P, E), or None for the network's own classes; over when the block is."""
        before, self.words_PE = self.words_PE, words_PE
        try:
            yield
        finally:
            self.words_PE = before


class Hearing(nn.Module):
    """A toolbox's network, and what is said to it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.spoken = net, Spoken()
        for layer in net.modules():
            if not type(layer)._load_from_state_dict.__module__.startswith("torch."):
                vars(layer)["_load_from_state_dict"] = partial(_load_as_it_is, layer)

    def train(self, mode: bool = True) -> Self:
        # One picture is no batch to take statistics of: they stay as they are, as in any detector's fine-tuning.
        super().train(mode)
        for layer in self.net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        return self


def _load_as_it_is(layer: nn.Module, held: Any, prefix: str, told: dict[str, Any], *rest: Any) -> None:
    """Layers rename what older versions of theirs wrote. No checkpoint of ours is older, and none says its version."""
    type(layer)._load_from_state_dict(layer, held, prefix, {"version": layer._version, **told}, *rest)


class LinkScores(nn.Module):
    """Scores of phrases in place of scores of classes: a layer of the same kind reads E features, whose dot products
    with the phrases are the logits (as Grounding DINO scores text: Liu et al. 2023, section 3.4).

    Args:
        own: the layer it stands for, linear or convolution, (..., A * K) or (..., A * (K + 1)), background last.
        classes: K.
    """

    def __init__(self, own: nn.Linear | nn.Conv2d, classes: int, width: int, spoken: Spoken) -> None:
        super().__init__()
        outputs = _outputs(own)
        self.background = bool(outputs % classes)
        self.anchors, self.classes, self.width = outputs // (classes + self.background), classes, width
        self.own = own.requires_grad_(False)
        self.read = _like(own, self.anchors * (width + self.background))
        held = own.bias
        # Where classes are rare, layers begin with a low score of each (Lin et al. 2017, section 3.3): phrases do too.
        start = 0.0 if held is None or self.background else float(held.detach().float().mean())
        self.offset = nn.Parameter(torch.tensor(start))
        self._spoken = [spoken]  # in a list: no part of the module

    @property
    def out_features(self) -> int:
        return _outputs(self.own)

    def forward(self, values: Tensor) -> Tensor:
        words_PE = self._spoken[0].words_PE
        if words_PE is None:
            return self.own(values)
        read = self.read(values)
        if isinstance(self.read, nn.Conv2d):
            read = read.movedim(1, -1)
        read = read.unflatten(-1, (self.anchors, -1))
        scores = read[..., : self.width] @ words_PE.to(read.dtype).T * self.width**-0.5 + self.offset
        shut = scores.new_full((*scores.shape[:-1], self.classes - len(words_PE)), SHUT)
        logits = torch.cat([scores, shut, *([read[..., self.width :]] if self.background else [])], -1).flatten(-2)
        return logits.movedim(-1, 1) if isinstance(self.read, nn.Conv2d) else logits


class LinkRows(nn.Module):
    """A row of each phrase in place of a row of each class: what denoising queries begin as.

    Args:
        own: the table it stands for, (K or more, C).
    """

    def __init__(self, own: nn.Embedding, width: int, spoken: Spoken) -> None:
        super().__init__()
        self.own = own.requires_grad_(False)
        self.read = nn.Linear(width, own.embedding_dim)
        self._spoken = [spoken]

    @property
    def weight(self) -> Tensor:
        return self.own.weight

    def forward(self, labels: Tensor) -> Tensor:
        words_PE = self._spoken[0].words_PE
        if words_PE is None:
            return self.own(labels)
        rows = self.read(words_PE)
        none = rows.new_zeros(self.own.num_embeddings - len(rows), rows.shape[1])
        return nn.functional.embedding(labels, torch.cat([rows, none]))


class Shared(nn.Module):
    """One answer for all phrases in place of one for each class (boxes of a class of their own): the mean of theirs, to
    begin with.

    Args:
        own: the layer it stands for, (..., K * n), the n of a class side by side.
    """

    def __init__(self, own: nn.Linear, classes: int, spoken: Spoken) -> None:
        super().__init__()
        self.classes, self.own = classes, own.requires_grad_(False)
        self.read = _like(own, _outputs(own) // classes)
        with torch.no_grad():
            self.read.weight.copy_(own.weight.unflatten(0, (classes, -1)).mean(0))
            if own.bias is not None:
                self.read.bias.copy_(own.bias.unflatten(0, (classes, -1)).mean(0))
        self._spoken = [spoken]

    def forward(self, values: Tensor) -> Tensor:
        if self._spoken[0].words_PE is None:
            return self.own(values)
        return self.read(values).repeat(*[1] * (values.ndim - 1), self.classes)


def class_layers(build: Callable[[int], nn.Module], classes: int) -> list[str]:
    """Names of the layers in which a network holds its classes: those whose shape hangs on how many there are.

    Args:
        build: number of classes -> the network.
    """
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    one, other = (dict(build(count).named_modules(remove_duplicate=False)) for count in (classes, classes + 1))
    return [
        name
        for name, layer in one.items()
        if isinstance(layer, kinds) and layer.weight.shape != other[name].weight.shape
    ]


def hear(network: nn.Module, names: list[str], classes: int, width: int, spoken: Spoken) -> None:
    """Put layers that read phrases in place of the named ones. Layers that share their weights stay one.

    Raises:
        ConfigError: there is none, or one that fits no pattern.
    """
    if not names:
        raise ConfigError("the network holds no layer of its classes: no phrase can be asked of it")
    made: dict[int, nn.Module] = {}
    held = {name: network.get_submodule(name) for name in names}
    for name, own in held.items():
        parent, _, last = name.rpartition(".")
        layer = made.setdefault(id(own.weight), _heard(own, name, classes, width, spoken))
        setattr(network.get_submodule(parent), last, layer)


def _heard(own: nn.Module, name: str, classes: int, width: int, spoken: Spoken) -> nn.Module:
    if isinstance(own, nn.Embedding):
        return LinkRows(own, width, spoken)
    assert isinstance(own, nn.Linear | nn.Conv2d), name
    times, rest = divmod(_outputs(own), classes)
    if isinstance(own, nn.Linear) and times == 4 and not rest:
        return Shared(own, classes, spoken)
    if rest and _outputs(own) % (classes + 1):
        raise ConfigError(f"layer {name} has {_outputs(own)} outputs, which is no multiple of {classes} classes")
    return LinkScores(own, classes, width, spoken)


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _like(layer: nn.Linear | nn.Conv2d, outputs: int) -> nn.Linear | nn.Conv2d:
    """A layer of the same kind with another number of outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias=layer.bias is not None)
    return nn.Conv2d(
        layer.in_channels, outputs, layer.kernel_size, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation, groups=layer.groups, bias=layer.bias is not None,
    )  # type: ignore[arg-type]  # fmt: skip
