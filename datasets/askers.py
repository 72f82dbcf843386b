"""Registers every asker of ours."""

from visionllm.datasets import pointing, several, speaking

__all__ = ["pointing", "several", "speaking"]
