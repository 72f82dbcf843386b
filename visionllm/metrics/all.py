"""Registers every metric of ours."""

from visionllm.metrics import (
    captions,
    features,
    grounded,
    grounding,
    images,
    interactive,
    panoptic,
    pose,
    segmentation,
    sharpness,
    shows,
    words,
)

__all__ = [
    "captions",
    "features",
    "grounded",
    "grounding",
    "images",
    "interactive",
    "panoptic",
    "pose",
    "segmentation",
    "sharpness",
    "shows",
    "words",
]
