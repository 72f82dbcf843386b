"""Registers every metric of ours."""

from visionllm.metrics import captions, grounded, grounding, images, interactive, pose, segmentation, words

__all__ = ["captions", "grounded", "grounding", "images", "interactive", "pose", "segmentation", "words"]
