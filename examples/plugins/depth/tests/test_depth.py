"""All that a decoder owes, a test each; `visionllm check-decoder depth` prints the same as a table."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation
from visionllm_depth import DepthDecoder, contract_case

from visionllm import open_dataset
from visionllm.core.errors import CheckpointError
from visionllm.metrics import METRICS
from visionllm.testing import CHECKS, Bench, Case
from visionllm.testing.report import run


@pytest.mark.decoder("depth")
def test_conformance(decoder_check: Callable[[], None]) -> None:
    decoder_check()


def test_the_truth_of_a_scene() -> None:
    """Nearer things have lower ranks, the sky is beyond, and a mirror moves all of it."""
    from visionllm.core.geometry import Geometry

    (sample,) = open_dataset("scenes", "val", task="depth").ask_all(0)
    target = sample.turns[0].target
    assert target.ranks.shape == sample.pictures[0].pixels.shape[:2] == target.ground.shape
    assert {1, 2} <= set(np.unique(target.ranks).tolist())
    moved = target.transform(Geometry.hflip(sample.pictures[0].size))
    assert np.array_equal(moved.ranks, target.ranks[:, ::-1])
    assert np.array_equal(moved.ground, target.ground[:, ::-1])


def test_the_score_by_hand() -> None:
    from visionllm_depth import OrderMetric, OrderTarget
    from visionllm_depth.result import Depths

    ranks = np.repeat(np.array([[255, 2, 1, 0]], np.uint8), 4, 0)
    turn = SimpleNamespace(target=OrderTarget(ranks=ranks, ground=np.zeros((4, 4), bool)))
    for near, share in (([0.0, 0.5, 1.0, 0.2], 1.0), ([0.5, 0.0, 1.0, 0.2], 2 / 3), ([1.0, 0.5, 0.0, 0.2], 0.0)):
        metric = OrderMetric()
        found = Depths(phrases=("picture",), maps=(np.repeat(np.array([near], np.float32), 4, 0),))
        metric.add(turn, SimpleNamespace(results={"depth": found}), key=0)
        assert metric.compute() == {"order": pytest.approx(share), "pairs": 3}
    metric = OrderMetric()
    metric.add(turn, SimpleNamespace(results={}), key=0)
    assert metric.compute()["order"] == 0


TINY_ANYTHING = {
    "backbone_config": {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14, "out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False,
    },
    "reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "head_hidden_size": 8,
}  # fmt: skip


@cache
def bench_of_anything() -> Bench:
    return Bench("depth", Case(**vars(contract_case(network=TINY_ANYTHING))))


@pytest.mark.parametrize("check", CHECKS)
def test_conformance_of_a_depth_anything(check: str) -> None:
    outcome = run(check, bench_of_anything())
    assert outcome.error is None, f"{outcome.what}: {outcome.error}"


@pytest.mark.parametrize(("kind", "most"), [("relative", 1), ("metric", 20)])
def test_no_link_is_what_transformers_gives(kind: str, most: int, tmp_path: Path) -> None:
    """Of published weights, in their own layout."""
    torch.manual_seed(0)
    keys = DepthAnythingConfig(**TINY_ANYTHING, depth_estimation_type=kind, max_depth=most)
    net = DepthAnythingForDepthEstimation(keys).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(tmp_path)
    config = DepthDecoder.Config(pretrained=str(tmp_path))
    ours = DepthDecoder.from_config(config, 24).eval()
    pixels = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        seen, wanted = ours.network(pixels, None), net(pixel_values=pixels).predicted_depth
        back = torch.sigmoid(-seen) * most if kind == "metric" else torch.relu(seen)
        assert torch.equal(back, wanted)
        assert wanted.std() > 0
        other = ours.network(pixels, torch.randn(2, 4, 24))
        assert not torch.equal(other, seen)
        assert torch.allclose(other, seen, atol=0.1 * float(seen.std())), "it begins with what it has learned"
    # A checkpoint of ours needs the folder no more.
    described = ours.described(config.model_dump())
    assert described["network"]["depth_estimation_type"] == kind
    assert described.get("pretrained") is None
    again = DepthDecoder.from_config(DepthDecoder.Config(**described), 24)
    again.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval().network(pixels, None), seen)


def test_eight_scenes_by_heart() -> None:
    """Depth Anything from scratch, by order alone; no thing stands before one that is nearer in nine pairs of ten."""
    data = open_dataset("scenes", "train", task="depth")
    samples = [data.ask_all(index)[0] for index in range(8)]
    config = {"longest": 112, "network": {**TINY_ANYTHING, "fusion_hidden_size": 32, "neck_hidden_sizes": [32] * 4}}
    bench = Bench("depth", Case(config=config, sample=lambda *_, **__: samples[0]))
    torch.manual_seed(0)
    decoder = bench.built(stirred=0.0).train()
    made = bench.stage(samples, decoder)
    link = torch.nn.Parameter(torch.randn(len(made.links.states) // 8, made.links.states.shape[1]))
    learned = [link, *(p for p in decoder.parameters() if p.requires_grad)]
    learns = torch.optim.AdamW(learned, lr=2e-3)
    for _ in range(120):
        made.links = replace(made.links, states=link.repeat(8, 1))
        learns.zero_grad()
        made.loss()["order"].div(8).backward()
        assert link.grad is not None
        assert link.grad.abs().sum() > 0
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        learns.step()
    metric = METRICS["depth"](())
    decoder.eval()
    for sample, found in zip(samples, made.predict(), strict=True):
        metric.add(sample.turns[0], SimpleNamespace(results={"depth": found}), key=0)
    order = metric.compute()["order"]
    print(f"order {order:.3f}")
    assert order > 0.9


def test_where_it_comes_from_is_told_once_and_rightly() -> None:
    with pytest.raises(ValueError, match="either pretrained or network"):
        DepthDecoder.Config(pretrained="a/b", network={})
    with pytest.raises(CheckpointError, match=r"decoders\.depth\.pretrained: nowhere"):
        DepthDecoder.from_config(DepthDecoder.Config(pretrained="nowhere"), 24)


def test_a_tall_picture_is_compared_where_it_is() -> None:
    """Its sides are no multiples of the network's: what pads it must not shift what is compared."""
    bench = Bench("depth", Case(**vars(contract_case())))
    sample = bench.case.sample(("picture",), size=(30, 48))
    decoder = bench.built(stirred=0.0).eval()
    made = bench.stage([sample], decoder)
    ranks = sample.turns[0].target.ranks

    class Truth(torch.nn.Module):
        """Says what is so, and nonsense where the picture is padded."""

        multiple = 32

        def __init__(self) -> None:
            super().__init__()
            self.like = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixels: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
            near = torch.full((1, *pixels.shape[-2:]), 99.0)
            near[0, :48, :30] = -50.0 * torch.from_numpy(ranks.astype(np.float32))
            return near + self.like

    decoder.network = Truth()
    assert decoder.loss(made.links, made.ctx)["order"].item() < 1e-6
