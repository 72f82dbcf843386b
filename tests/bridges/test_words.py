"""Layers that read phrases in place of classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionllm.core.errors import ConfigError
from visionllm.decoders.bridges.words import SHUT, LinkRows, LinkScores, Shared, Spoken, class_layers, hear


class Net(nn.Module):
    """Two layers that share their scores, a table, boxes of each class, and what has nothing to do with classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        one = nn.Linear(8, classes + 1)
        self.scores = nn.ModuleList([one, nn.Linear(8, classes + 1)])
        self.again = nn.ModuleList([one])
        self.dense = nn.Conv2d(8, 3 * classes, 3, padding=1)
        self.rows, self.boxes = nn.Embedding(classes + 1, 8), nn.Linear(8, 4 * classes)


def heard(classes: int = 5, width: int = 4) -> tuple[Net, Spoken]:
    torch.manual_seed(0)
    net, spoken = Net(classes), Spoken()
    hear(net, class_layers(Net, classes), classes, width, spoken)
    return net, spoken


def test_what_changes_its_shape_holds_classes() -> None:
    found = class_layers(Net, 5)
    assert sorted(found) == ["again.0", "boxes", "dense", "rows", "scores.0", "scores.1"]
    net, _ = heard()
    assert isinstance(net.scores[0], LinkScores)
    assert net.again[0] is net.scores[0]
    assert isinstance(net.rows, LinkRows)
    assert isinstance(net.boxes, Shared)
    assert isinstance(net.body, nn.Linear)


def test_without_phrases_all_is_as_it_was() -> None:
    torch.manual_seed(0)
    plain = Net(5)
    net, _ = heard()
    x, pixels = torch.randn(3, 8), torch.randn(1, 8, 4, 4)
    assert torch.equal(net.scores[0](x), plain.scores[0](x))
    assert torch.equal(net.boxes(x), plain.boxes(x))
    assert torch.equal(net.dense(pixels), plain.dense(pixels))
    assert torch.equal(net.rows(torch.tensor([0, 5])), plain.rows(torch.tensor([0, 5])))


def test_phrases_take_the_places_of_classes() -> None:
    net, spoken = heard()
    words = torch.randn(2, 4)
    x, pixels = torch.randn(3, 8), torch.randn(1, 8, 4, 4)
    with spoken.speaking(words):
        logits, dense = net.scores[0](x), net.dense(pixels)
        rows, boxes = net.rows(torch.tensor([0, 1, 2, 5])), net.boxes(x)
    assert logits.shape == (3, 6)
    assert dense.shape == (1, 15, 4, 4)
    assert boxes.shape == (3, 20)
    assert (logits[:, 2:5] == SHUT).all()
    assert (logits[:, [0, 1, 5]] != SHUT).all()
    # Anchors stand outside, classes inside.
    by_anchor = dense.unflatten(1, (3, 5))
    assert (by_anchor[:, :, 2:] == SHUT).all()
    assert (by_anchor[:, :, :2] != SHUT).all()
    assert (rows[2:] == 0).all()
    assert (rows[:2] != 0).any()
    assert torch.equal(boxes[:, :4], boxes[:, 4:8])
    # A phrase says the same wherever it stands.
    with spoken.speaking(words.flip(0)):
        assert torch.allclose(net.scores[0](x)[:, :2], logits[:, :2].flip(1))
    assert spoken.words_PE is None


def test_layers_of_a_sequence_may_have_names() -> None:
    net = nn.Sequential()
    net.add_module("body", nn.Linear(6, 8))
    net.add_module("predictor", nn.Linear(8, 5))
    hear(net, ["predictor"], 5, 4, Spoken())
    assert [type(layer) for layer in net] == [nn.Linear, LinkScores]


def test_an_error_ends_the_speaking() -> None:
    _, spoken = heard()
    with pytest.raises(ValueError, match="stop"), spoken.speaking(torch.zeros(1, 4)):
        raise ValueError("stop")
    assert spoken.words_PE is None


def test_the_gradient_reaches_the_phrases_and_not_the_classes() -> None:
    net, spoken = heard()
    words = torch.randn(2, 4, requires_grad=True)
    with spoken.speaking(words):
        net.scores[0](torch.randn(3, 8)).sum().backward()
    assert words.grad is not None
    assert (words.grad != 0).all()
    assert net.scores[0].own.weight.grad is None
    assert not net.scores[0].own.weight.requires_grad


def test_a_network_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of its classes"):
        hear(nn.Linear(2, 2), [], 5, 4, Spoken())
