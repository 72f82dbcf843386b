"""Registers every metric of ours."""

from visionllm.metrics import grounding, pose, segmentation, words

__all__ = ["grounding", "pose", "segmentation", "words"]
