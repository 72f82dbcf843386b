"""The tasks of the objects decoder: boxes, masks, keypoints and looks, all from one pass over a picture."""

from __future__ import annotations

from dataclasses import replace

from visionllm.core.task import Task, Token, register_task

DETECTION = register_task(
    Task(
        name="detection",
        tokens=(Token(text="[DET]", queries=4),),
        decoder="objects",
        result="detections",
        verb="detect",
        templates="detection.yaml",
        metric="detection",
        loss_weights={
            "class": 1.0, "contrast": 0.5, "l1": 5.0, "giou": 2.0,
            "dense_class": 1.0, "dense_contrast": 0.5, "dense_l1": 5.0, "dense_giou": 2.0,
            "denoise_class": 1.0, "denoise_contrast": 0.5, "denoise_l1": 5.0, "denoise_giou": 2.0,
            "presence": 1.0,
        },
    )
)  # fmt: skip
SEGMENTATION = register_task(
    Task(
        name="segmentation",
        tokens=(Token(text="[SEG]", queries=4, like="[DET]"),),
        decoder="objects",
        result="masks",
        verb="segment",
        templates="segmentation.yaml",
        metric="segmentation",
        loss_weights={"mask": 5.0, "dice": 5.0},
    )
)
POSE = register_task(
    Task(
        name="pose",
        tokens=(
            Token(text="[POSE]", queries=4, like="[DET]"),
            Token(text="[KPT]", queries=4, parent="[POSE]", like="[DET]"),
        ),
        decoder="objects",
        result="poses",
        verb="pose",
        templates="pose.yaml",
        metric="pose",
        loss_weights={"points": 2.0, "oks": 4.0, "flags": 1.0, "heat": 1.0},
    )
)
# Boxes that a question is about, not those that a user wants: they are told, and answered with.
LOOKING = register_task(
    Task(
        name="looking",
        tokens=(Token(text="[FIND]", queries=4, like="[DET]"),),
        decoder="objects",
        result="detections",
        verb=None,
        templates="looking.yaml",
        metric="detection",
        loss_weights={},
        told=True,
    )
)
# Where candidates of a phrase are compared.
CHOSEN = replace(DETECTION, loss_weights={**DETECTION.loss_weights, "choice": 1.0, "silence": 0.1})
TASKS = (DETECTION, SEGMENTATION, POSE, LOOKING)
MASKED = {token.text for token in SEGMENTATION.tokens}
POSED, POINT = (token.text for token in POSE.tokens)
# What is read from the map of pixels, beyond the boxes.
FINE = MASKED | {POSED}
