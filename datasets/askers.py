"""Registers every asker of ours."""

from visionllm.datasets import pointing, speaking

__all__ = ["pointing", "speaking"]
