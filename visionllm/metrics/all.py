"""Registers every metric of ours."""

from visionllm.metrics import (
    captions,
    features,
    grounded,
    grounding,
    images,
    interactive,
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
    "pose",
    "segmentation",
    "sharpness",
    "shows",
    "words",
]
