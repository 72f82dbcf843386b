"""Questions in which every pixel has one owner: masks of all there is, merged, against a panoptic segmentation."""

from __future__ import annotations

from dataclasses import replace

from visionllm.core.errors import AnnotationError, ConfigError, ShapeError
from visionllm.core.panoptic import PanopticTruth, owned
from visionllm.core.sample import Record, Sample
from visionllm.datasets.asking import MaskAsker, register_asker
from visionllm.datasets.formats.reader import Wording


@register_asker("panoptic")
class PanopticAsker(MaskAsker):
    """In training as for masks; in an evaluation everything is asked at once, for all of it competes for the pixels."""

    metric = "panoptic"

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        if chunk is not None and chunk < len(record.names):
            raise ConfigError(f"chunk: all {len(record.names)} names compete for the pixels; leave it out")
        (sample,) = super().every(record, wording)
        if record.masks is None or any(mask is None for mask in record.masks.tolist()):
            raise AnnotationError(f"{record.source}: not everything has a mask; give a data set with panoptic masks")
        # A crowd is nobody's, nor is what no mask covers.
        single = [row for row, crowd in enumerate(record.crowd.tolist()) if not crowd]
        names = [record.names[int(record.labels[row])] for row in single]
        try:
            truth = owned([record.masks[row] for row in single], names, wording.stuff, size=record.picture.size)
        except ShapeError as error:
            raise AnnotationError(f"{record.source}: {error}; give a data set with panoptic masks") from None
        (turn,) = sample.turns
        return (sample.with_turns(replace(turn, target=PanopticTruth(whole=truth, stuff=wording.stuff))),)
