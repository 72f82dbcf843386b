"""Task decoders: what turns super links and pictures into results. Each imports ``visionllm.core`` and nothing else."""

from visionllm.core.registry import Registry
from visionllm.decoders.base import DECODERS, Context, Decoder, register_decoder
from visionllm.decoders.objects import decoder as _objects

__all__ = ["DECODERS", "Context", "Decoder", "Registry", "register_decoder"]
_ = _objects
