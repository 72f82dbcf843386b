"""Registers every asker of ours."""

from visionllm.datasets import drawing, pointing, several, speaking

__all__ = ["drawing", "pointing", "several", "speaking"]
