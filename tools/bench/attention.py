"""Deformable attention against transformers' module, and ways to compute the language model's in bf16, alternating in
one run. python tools/bench/attention.py"""

import os
import statistics
import time

import torch
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MultiScaleDeformableAttention

from visionllm.decoders.objects.attention import DeformableSampling
from visionllm.mllm.attention import matmul_attention

ROUNDS = 9
# Levels of a training picture of 320 x 240 and of one of 640 x 480 to answer about, and pictures at a time.
TRAINING, ANSWERING = ([(30, 40), (15, 20), (8, 10)], 4), ([(60, 80), (30, 40), (15, 20)], 1)
Shapes = list[tuple[int, int]]


def case(shapes: Shapes, batch: int, queries: int, heads: int = 4, width: int = 32, points: int = 3
         ) -> tuple[torch.Tensor, ...]:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    size = sum(h * w for h, w in shapes)
    value = torch.randn(batch, size, heads, width, generator=generator, requires_grad=True)
    place = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator, requires_grad=True)
    weight = torch.rand(batch, queries, heads, len(shapes), points, generator=generator, requires_grad=True)
    return value, place, weight


def run(module: torch.nn.Module, shapes: Shapes, tensors: tuple[torch.Tensor, ...], learn: bool) -> float:
    value, place, weight = tensors
    started = time.perf_counter()
    with torch.set_grad_enabled(learn):
        out = module(value, torch.tensor(shapes), shapes, torch.zeros(3), place, weight, 64)
    if learn:
        out.square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.2f}")
    for (shapes, batch), learn in ((TRAINING, True), (ANSWERING, False)):
        print("forward + backward" if learn else "answering")
        for queries in (100, sum(h * w for h, w in shapes)):
            measure(shapes, batch, queries, learn)
    for width in (128, 448):
        texts(width)


def measure(shapes: Shapes, batch: int, queries: int, learn: bool) -> None:
    tensors, theirs, ours = case(shapes, batch, queries), [], []
    for _ in range(ROUNDS):
        theirs.append(run(MultiScaleDeformableAttention(), shapes, tensors, learn))
        ours.append(run(DeformableSampling(), shapes, tensors, learn))
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    print(f"{queries:5} queries: "
          f"theirs median {1000 * statistics.median(theirs):7.1f} ms (min {1000 * min(theirs):.1f}), "
          f"ours {1000 * statistics.median(ours):7.1f} ms (min {1000 * min(ours):.1f}), "
          f"ratio median {statistics.median(ratios):.2f}, min {min(ratios):.2f}")  # fmt: skip


def texts(width: int, rows: int = 24, heads: int = 5) -> None:
    """Causal attention of a training step of the nano model."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(rows, heads, width, 32, generator=generator, dtype=torch.bfloat16, requires_grad=True)
              for _ in range(3)]  # fmt: skip
    shut = torch.finfo(torch.bfloat16).min
    mask = torch.full((rows, 1, width, width), shut, dtype=torch.bfloat16).triu(1)
    module = torch.nn.Module()
    ways = {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask),
        "eager": lambda: eager(*states, mask),
        "matmul": lambda: matmul_attention(module, *states, mask)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way().sum().backward()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(seconds["sdpa"], own, strict=True)]
        middle = 1000 * statistics.median(own)
        print(f"{width:5} positions, {name:6}: median {middle:7.1f} ms (min {1000 * min(own):.1f}), sdpa takes "
              f"{statistics.median(ratios):.2f} x (min {min(ratios):.2f})")  # fmt: skip


def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As transformers computes it."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


if __name__ == "__main__":
    main()
