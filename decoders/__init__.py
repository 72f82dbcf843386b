"""Task decoders: what turns super links and pictures into results. Each imports ``visionllm.core`` and nothing else."""

from visionllm.decoders.base import DECODERS, Context, Decoder, register_decoder
from visionllm.decoders.bridges.detectron2 import Detectron2Decoder
from visionllm.decoders.bridges.heads import TransformersDecoder
from visionllm.decoders.bridges.mmdet import MMDetDecoder
from visionllm.decoders.bridges.mmpose import MMPoseDecoder
from visionllm.decoders.bridges.vitpose import VitPoseDecoder
from visionllm.decoders.diffusion.decoder import EditingDecoder, GenerationDecoder
from visionllm.decoders.objects.decoder import ObjectsDecoder
from visionllm.decoders.restoration.decoder import RestorationDecoder

__all__ = [
    "DECODERS", "Context", "Decoder", "Detectron2Decoder", "EditingDecoder", "GenerationDecoder", "MMDetDecoder",
    "MMPoseDecoder", "ObjectsDecoder", "RestorationDecoder", "TransformersDecoder",
    "VitPoseDecoder", "register_decoder",
]  # fmt: skip
