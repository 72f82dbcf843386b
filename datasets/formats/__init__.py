"""One reader per annotation format. A data set is a card; only a new format is code."""

from visionllm.datasets.formats.coco import CocoReader
from visionllm.datasets.formats.mpii import MpiiReader
from visionllm.datasets.formats.panoptic import PanopticReader
from visionllm.datasets.formats.phrases import PhrasesReader
from visionllm.datasets.formats.reader import FORMATS, Place, Reader, Wording, register_format
from visionllm.datasets.formats.scenes import ScenesReader
from visionllm.datasets.formats.voc import VocReader
from visionllm.datasets.formats.zoom import ZoomReader

__all__ = [
    "FORMATS",
    "CocoReader",
    "MpiiReader",
    "PanopticReader",
    "PhrasesReader",
    "Place",
    "Reader",
    "ScenesReader",
    "VocReader",
    "Wording",
    "ZoomReader",
    "register_format",
]
