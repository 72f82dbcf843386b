"""Samples to a batch: text, tiles, decoder pixels, links. One for training and use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from visionllm.core.batch import Batch, LinkLayout, Marks, on_pictures
from visionllm.core.errors import PromptError
from visionllm.core.geometry import Geometry
from visionllm.core.pixels import Pixels, PixelSpec
from visionllm.core.sample import Picture, Sample
from visionllm.core.superlink import LinkMeta, owned
from visionllm.routing.findings import told
from visionllm.routing.gazes import gazes_of
from visionllm.routing.readout import echo
from visionllm.routing.render import Piece, Style, render
from visionllm.routing.sights import sights_of
from visionllm.routing.vocabulary import IMAGE, Vocabulary


@dataclass(kw_only=True, slots=True, frozen=True)
class Tiling:
    """How pictures reach the language model; plain functions, so that the processor knows no model.

    Args:
        count: (width, height) -> number of tiles.
        make: (H, W, 3) uint8 -> (tiles, 3, S, S).
        tokens_per_tile: positions of one tile in the text.
    """

    count: Callable[[tuple[int, int]], int]
    make: Callable[[np.ndarray], Tensor]
    tokens_per_tile: int


@dataclass(kw_only=True, slots=True)
class _Row:
    """One encoded sample before padding."""

    ids: list[int]
    branch: list[int]
    position: list[int]
    labels: list[int]
    free: list[bool]
    links: list[tuple[int, LinkMeta]]


class Processor:
    """Encodes samples.

    Args:
        vocabulary: text to ids.
        tiling: pictures to tiles.
        pixels: ``decoder/role`` -> how that decoder wants its pictures.
        context_length: longest text the language model takes.
        regions: whether the model takes regions as input.
    """

    def __init__(
        self, vocabulary: Vocabulary, tiling: Tiling, pixels: Mapping[str, PixelSpec], context_length: int, *,
        regions: bool = False,
    ) -> None:  # fmt: skip
        self.vocabulary = vocabulary
        self.tiling = tiling
        self.pixels = dict(pixels)
        self.context_length = context_length
        self.regions = regions

    def encode(
        self,
        samples: Sequence[Sample],
        styles: Sequence[Style] | None = None,
        *,
        reply: bool = True,
        multiple: int = 1,
        sights: bool = False,
        plain: bool = False,
    ) -> Batch:
        """Render and encode.

        Args:
            styles: wording of each sample; canonical without.
            reply: include the last reply (training, known task) or stop where the model goes on (generation).
            multiple: pad the texts to a multiple of this; kernels that are compiled per shape then see few shapes.
            sights: say what is where in the pictures, as far as the samples know, and where the text is to look.
            plain: say also what phrases mean that mean others (``Batch.plain``).

        Raises:
            PromptError: a text is longer than the context, or speaks of regions to a model that takes none.
        """
        styles = styles or [Style()] * len(samples)
        samples = [
            told(sample, regions=self.regions, rng=style.rng) for sample, style in zip(samples, styles, strict=True)
        ]
        rows = [
            self._row(sample, i, style, reply) for i, (sample, style) in enumerate(zip(samples, styles, strict=True))
        ]
        # One picture object is prepared once, whoever asks about it.
        pictures = {id(picture): picture for sample in samples for picture in sample.pictures}
        tiles = {name: self.tiling.make(picture.pixels) for name, picture in pictures.items()}
        first, count = {}, 0
        for name, own in tiles.items():
            first[name], count = count, count + len(own)
        order, marks = self._seen(samples, tiles, first, count)
        batch = self._pad(
            rows, torch.cat([*tiles.values()]) if tiles else None, order, marks,
            self._decoder_pixels(samples, pictures), tuple(samples), multiple,
            0 if reply else _shared(rows, samples, self.vocabulary.control(IMAGE)),
        )  # fmt: skip
        if plain and (meant := [one for sample in samples if (one := sample.plain()) is not None]):
            reader = Processor(self.vocabulary, self.tiling, {}, self.context_length, regions=self.regions)
            batch = replace(batch, plain=reader.encode(meant, multiple=multiple))
        if not sights:
            return batch
        whole = {name: first[name] + len(own) - 1 for name, own in tiles.items()}
        known = sights_of(samples, whole, self.vocabulary, self.tiling.tokens_per_tile, count)
        gazes = gazes_of(
            batch.input_ids, batch.labels, order, known, picture_id=self.vocabulary.control(IMAGE),
            tiled=count * self.tiling.tokens_per_tile,
        )  # fmt: skip
        return replace(batch, sights=known, gazes=gazes)

    def _row(self, sample: Sample, index: int, style: Style, reply: bool) -> _Row:
        counts = [self.tiling.count(picture.size) * self.tiling.tokens_per_tile for picture in sample.pictures]
        pieces = render(sample, counts, index=index, style=style, reply=reply)
        row = _Row(ids=[], branch=[], position=[], labels=[], free=[], links=[])
        trunk, next_position = 0, 0
        for piece in pieces:
            ids = self._ids(piece)
            if piece.branch and (not row.branch or piece.branch != row.branch[-1]):
                next_position = trunk
            row.ids += ids
            row.branch += [piece.branch] * len(ids)
            row.position += range(next_position, next_position + len(ids))
            row.labels += ids if piece.supervised else [-100] * len(ids)
            row.free += [piece.supervised and piece.free] * len(ids)
            next_position += len(ids)
            trunk = next_position if piece.branch == 0 else trunk
            if piece.link is not None:
                row.links.append((len(row.ids) - 1, piece.link))
        longest = max(row.position, default=0) + 1
        if longest > self.context_length:
            raise PromptError(
                f"the prompt takes {longest} positions, {sum(counts)} of them pictures; "
                f"the model reads {self.context_length}: shorten it or ask for fewer things at once"
            )
        return row

    def _ids(self, piece: Piece) -> list[int]:
        if piece.ids:
            return list(piece.ids)
        if piece.control:
            return [self.vocabulary.control(piece.text)] * piece.repeat
        return self.vocabulary.plain(piece.text)

    def _seen(
        self, samples: Sequence[Sample], tiles: Mapping[int, Tensor], first: Mapping[int, int], count: int
    ) -> tuple[Tensor, Marks | None]:
        """What stands in the picture positions, in reading order, and the regions.

        Args:
            tiles: of each picture.
            first: number of the first tile of each.
            count: of all tiles.
        """
        per_tile = self.tiling.tokens_per_tile
        order: list[int] = []
        whole, masks, boxes = [], [], []
        for sample in samples:
            for picture in sample.pictures:
                start = first[id(picture)]
                order += range(start * per_tile, (start + len(tiles[id(picture)])) * per_tile)
            for region in sample.regions:
                picture = sample.pictures[region.picture]
                own, mask = tiles[id(picture)], region.mask(picture.size)
                box = mask.box_xyxy / np.tile(np.array(picture.size, np.float32), 2)
                boxes.append(np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]))
                whole.append(first[id(picture)] + len(own) - 1)  # the last tile shows all of it
                side = int(own.shape[-1])
                masks.append(cv2.resize(mask.dense().astype(np.float32), (side, side), interpolation=cv2.INTER_AREA))
                order.append(count * per_tile + len(masks) - 1)
        if not masks:
            return torch.tensor(order, dtype=torch.long), None
        if not self.regions:
            raise PromptError("regions: this model takes none; leave them out, or load one that was trained with them")
        marks = Marks(
            tile=torch.tensor(whole), masks=torch.from_numpy(np.stack(masks)),
            boxes=torch.from_numpy(np.stack(boxes)).float(),
        )  # fmt: skip
        return torch.tensor(order, dtype=torch.long), marks

    def _pad(self, rows: list[_Row], tiles: Tensor | None, order: Tensor, marks: Marks | None,
             pixels: dict[str, tuple[Pixels, ...]], samples: tuple[Sample, ...], multiple: int, shared: int
             ) -> Batch:  # fmt: skip
        width = -(-max(len(row.ids) for row in rows) // multiple) * multiple
        table = torch.zeros(6, len(rows), width, dtype=torch.long)
        table[0], table[1], table[4] = self.vocabulary.pad, -1, -100
        links: list[tuple[int, int, LinkMeta]] = []
        for i, row in enumerate(rows):
            place = torch.arange(len(row.ids))
            place[shared:] += width - len(row.ids)
            owner = [i] * len(row.ids)
            table[:, i, place] = torch.tensor([row.ids, owner, row.branch, row.position, row.labels, row.free])
            links += [(i, int(place[column]), meta) for column, meta in row.links]
        tokens = [self.vocabulary.tokens[meta.token][1] for _, _, meta in links]
        layout = LinkLayout(
            row=tuple(i for i, _, _ in links),
            column=tuple(column for _, column, _ in links),
            queries=tuple(token.queries for token in tokens),
            meta=on_pictures(owned([meta for _, _, meta in links], [token.parent for token in tokens]), samples),
            echo=tuple(
                echo(table[0, i, :column].tolist(), token, self.vocabulary)
                for (i, column, _), token in zip(links, tokens, strict=True)
            ),
        )
        ids, owners, branch, position, labels, free = table
        return Batch(
            input_ids=ids, owner=owners, branch=branch, position_ids=position, labels=labels, free=free.bool(),
            tiles=tiles, order=order, links=layout, pixels=pixels, samples=samples, marks=marks, shared=shared,
        )  # fmt: skip

    def _decoder_pixels(
        self, samples: Sequence[Sample], pictures: Mapping[int, Picture]
    ) -> dict[str, tuple[Pixels, ...]]:
        owners: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, sample in enumerate(samples):
            for k, picture in enumerate(sample.pictures):
                owners[id(picture)].append((i, k))
        asked = [(tuple(owners[name]), picture) for name, picture in pictures.items()]
        # Equal specs share one preparation.
        made = {spec: _prepare(asked, spec) for spec in set(self.pixels.values())}
        return {name: made[spec] for name, spec in self.pixels.items()}


def _shared(rows: Sequence[_Row], samples: Sequence[Sample], image: int) -> int:
    """How many ids at their start all rows have in common, where they are about the same pictures: ``image`` stands for
    one or the other, and for regions, which are no part of it. Every row keeps an id of its own."""
    shown = {tuple(map(id, sample.pictures)) for sample in samples}
    if len(rows) < 2 or shown == {()} or len(shown) > 1:
        return 0
    seen = rows[0].ids.count(image) - len(samples[0].regions)
    most, count = min(len(row.ids) for row in rows) - 1, 0
    for ids in zip(*(row.ids[:most] for row in rows), strict=True):
        seen -= ids[0] == image
        if len(set(ids)) > 1 or seen < 0:
            break
        count += 1
    return count


def _prepare(pictures: list[tuple[tuple[tuple[int, int], ...], Picture]], spec: PixelSpec) -> tuple[Pixels, ...]:
    """Resize and normalise; pictures of one padded size share a bucket, so nobody's padding depends on company."""
    buckets: dict[tuple[int, int], list[tuple[tuple[tuple[int, int], ...], Geometry, np.ndarray]]] = defaultdict(list)
    for owners, picture in pictures:
        size = spec.resized(picture.size)
        geometry = Geometry.resize(picture.size, size)
        padded = (-(-size[1] // spec.multiple) * spec.multiple, -(-size[0] // spec.multiple) * spec.multiple)
        buckets[padded].append((owners, geometry, geometry.picture(picture.pixels)))
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    found = []
    for (height, width), entries in buckets.items():
        values = torch.zeros(len(entries), 3, height, width)
        mask = torch.zeros(len(entries), height, width, dtype=torch.bool)
        for i, (_, _, small) in enumerate(entries):
            h, w = small.shape[:2]
            values[i, :, :h, :w] = (torch.from_numpy(small).permute(2, 0, 1).float() / 255 - mean) / std
            mask[i, :h, :w] = True
        found.append(
            Pixels(
                values=values,
                mask=mask,
                geometry=tuple(g for _, g, _ in entries),
                owners=tuple(o for o, _, _ in entries),
            )
        )
    return tuple(found)
