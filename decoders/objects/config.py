"""What the objects decoder may be told: how it is built, and per call."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, field_validator

from visionllm.core.config import Config
from visionllm.decoders.objects.tasks import TASKS


class ObjectsConfig(Config):
    """How the objects decoder is built."""

    network: dict[str, Any] = Field(description="keys of a (MM) Grounding DINO configuration, with model_type")
    longest: PositiveInt = Field(800, description="longer side of the pictures, pixels")
    enlarge: float | None = Field(
        None, ge=1, description="how many times as large a picture is made at most; None sets no limit"
    )
    group_norm: PositiveInt | None = Field(None, description="groups, for a backbone trained from scratch")
    denoising: int = Field(100, description="about how many denoising queries a picture; 0 turns it off")
    label_noise: float = Field(0.5, description="share of denoising labels that are swapped, twice over (DINO)")
    box_noise: float = Field(1.0, description="scale of the denoising box noise (DINO)")
    dense: bool = Field(True, description="dense one-to-many supervision of the encoder tokens")
    threshold: float = Field(0.3, ge=0, le=1, description="default score threshold, fixed on training data")
    thresholds: dict[str, float] = Field(default_factory=dict, description="the same, of a task that has its own")
    overlap: float | None = Field(
        None, gt=0, le=1, description="IoU above which the weaker of two boxes of a phrase is dropped; None keeps both"
    )
    mask_width: int | None = Field(
        None, gt=0, multiple_of=8, description="width of a mask embedding; None leaves out the masks and their task"
    )
    looks: bool = Field(False, description="look for what a question speaks of; false leaves out that task")
    mask_cells: int | None = Field(
        None,
        gt=0,
        multiple_of=4,
        description="cells along a side of a box that its mask sees close; None leaves it out",
    )
    area_threshold: float = Field(
        0.5, ge=0, le=1, description="likelihood from which on a pixel belongs to a phrase, fixed on training data"
    )
    pose_layers: int = Field(0, ge=0, description="rounds of looking for keypoints; 0 leaves out poses and their task")
    choice_width: PositiveInt | None = Field(
        None, description="width in which the candidates of a phrase are compared; None leaves out the comparison"
    )
    choice_threshold: float = Field(
        0.5, gt=0, lt=1, description="likelihood from which on a phrase asks for such a choice, fixed on training data"
    )
    phrases_per_pass: PositiveInt = Field(
        16, description="longer lists are answered in several passes over one set of features"
    )
    one_way: bool = Field(
        False,
        description="phrases look at the picture, it takes no notice of them and is encoded once, whatever is asked",
    )
    queries: PositiveInt | None = Field(
        None, description="places of a picture that are looked at in a pass; more than the network's num_queries share "
                          "what was learned for those"
    )  # fmt: skip

    @field_validator("thresholds")
    @classmethod
    def _of_tasks(cls, values: dict[str, float]) -> dict[str, float]:
        known = [task.name for task in TASKS]
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"no task {name!r} (it has: {', '.join(known)})")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        return values


class ObjectsOptions(Config):
    """Per call: boxes below ``threshold`` are dropped, at most ``max_boxes`` a phrase are kept."""

    threshold: float | None = Field(None, ge=0, le=1)
    max_boxes: PositiveInt = 100
