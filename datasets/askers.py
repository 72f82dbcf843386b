"""Registers every asker of ours."""

from visionllm.datasets import drawing, owning, pointing, several, speaking

__all__ = ["drawing", "owning", "pointing", "several", "speaking"]
