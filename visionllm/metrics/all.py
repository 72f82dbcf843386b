"""Registers every metric of ours."""

from visionllm.metrics import captions, grounding, interactive, pose, segmentation, words

__all__ = ["captions", "grounding", "interactive", "pose", "segmentation", "words"]
