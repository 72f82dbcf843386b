"""The tasks that end in a picture: one drawn from words, and one changed as words say."""

from __future__ import annotations

from visionllm.core.task import Task, Token, register_task

GENERATION = register_task(
    Task(
        name="generation",
        tokens=(Token(text="[GEN]", queries=64, echo=True),),
        decoder="generation",
        result="images",
        verb="generate",
        templates="generation.yaml",
        metric="images",
        loss_weights={"noise": 1.0},
        pictures=0,
        says="picture",
    )
)
EDITING = register_task(
    Task(
        name="editing",
        tokens=(Token(text="[EDIT]", queries=64, like="[GEN]", echo=True),),
        decoder="editing",
        result="images",
        verb="edit",
        templates="editing.yaml",
        metric="images",
        loss_weights={"noise": 1.0},
        says="change",
    )
)
