"""Registers every metric of ours."""

from visionllm.metrics import grounding, segmentation, words

__all__ = ["grounding", "segmentation", "words"]
