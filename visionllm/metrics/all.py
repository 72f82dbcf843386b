"""Registers every metric of ours."""

from visionllm.metrics import grounding, interactive, pose, segmentation, words

__all__ = ["grounding", "interactive", "pose", "segmentation", "words"]
