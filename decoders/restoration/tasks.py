"""The task of the restoration decoder: a picture with more pixels."""

from __future__ import annotations

from visionllm.core.task import Task, Token, register_task

SUPER_RESOLUTION = register_task(
    Task(
        name="super_resolution",
        tokens=(Token(text="[SR]", queries=4),),
        decoder="restoration",
        result="images",
        verb="upscale",
        templates="super_resolution.yaml",
        metric="sharpness",
        loss_weights={"sharp": 1.0, "aligned": 1.0},
        says="whole",
    )
)
