"""Deformable attention against transformers' module, alternating in one run. python tools/bench/attention.py"""

import os
import statistics
import time

import torch
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MultiScaleDeformableAttention

from visionllm.decoders.objects.attention import DeformableSampling

ROUNDS = 9
SHAPES = [(30, 40), (15, 20), (8, 10)]


def case(queries: int, heads: int = 4, width: int = 32, points: int = 3, batch: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    size = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, size, heads, width, generator=generator, requires_grad=True)
    place = torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=generator, requires_grad=True)
    weight = torch.rand(batch, queries, heads, len(SHAPES), points, generator=generator, requires_grad=True)
    return value, place, weight


def run(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> float:
    value, place, weight = tensors
    started = time.perf_counter()
    module(value, torch.tensor(SHAPES), SHAPES, torch.zeros(3), place, weight, 64).square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.2f}; forward + backward")
    for queries in (100, sum(h * w for h, w in SHAPES)):
        tensors, theirs, ours = case(queries), [], []
        for _ in range(ROUNDS):
            theirs.append(run(MultiScaleDeformableAttention(), tensors))
            ours.append(run(DeformableSampling(), tensors))
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        print(f"{queries:5} queries: "
              f"theirs median {1000 * statistics.median(theirs):7.1f} ms (min {1000 * min(theirs):.1f}), "
              f"ours {1000 * statistics.median(ours):7.1f} ms (min {1000 * min(ours):.1f}), "
              f"ratio median {statistics.median(ratios):.2f}, min {min(ratios):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
