"""The objects decoder: every phrase of a picture in one pass, boxes, masks and presence out.

L = links, Q = queries of a link, D = width of the language model, P = phrases of a picture, C = width of the detector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visionllm.core.arrays import object_array
from visionllm.core.detections import Detections
from visionllm.core.instances import Masks, Poses
from visionllm.core.masks import Mask, SoftMask
from visionllm.core.pixels import PixelSpec
from visionllm.core.poses import Skeleton
from visionllm.core.skeletons import skeleton_of
from visionllm.core.superlink import SuperLinks
from visionllm.core.task import Task
from visionllm.decoders.base import Context, Decoder, register_decoder
from visionllm.decoders.objects import criterion
from visionllm.decoders.objects.choice import ChoiceHead
from visionllm.decoders.objects.config import ObjectsConfig, ObjectsOptions
from visionllm.decoders.objects.detector import Encoded, LayerOutput, LinkDetector
from visionllm.decoders.objects.found import Found, find, in_picture
from visionllm.decoders.objects.layout import (
    LinkTarget,
    Parts,
    Pointed,
    buckets,
    closed_between,
    frame_of,
    owners,
    passes,
    pointed,
    stack,
    target_of,
    things_of,
    truth_of,
)
from visionllm.decoders.objects.masks import MaskHead, cut, mask_losses
from visionllm.decoders.objects.phrases import PhraseHead
from visionllm.decoders.objects.pixels import MAP_WIDTH, Fine, PixelMap
from visionllm.decoders.objects.poses import Points, PoseHead, likeness, pose_losses, to_poses
from visionllm.decoders.objects.tasks import CHOSEN, DETECTION, FINE, LOOKING, MASKED, POSE, POSED, SEGMENTATION, TASKS


@register_decoder("objects")
class ObjectsDecoder(Decoder):
    """Grounding DINO under super links, with masks of its boxes where ``mask_width`` is set, and their keypoints where
    ``pose_layers`` is.

    One link becomes one phrase embedding (``PhraseHead``). All phrases of a picture share one pass in training.
    Answering, a long list is cut into passes of ``phrases_per_pass`` over the same features: phrases of a pass share
    its queries and are fused into one picture, so among 80 each would find fewer of its objects than alone.
    """

    tasks: tuple[Task, ...] = TASKS
    Config = ObjectsConfig
    Options = ObjectsOptions

    def __init__(
        self,
        *,
        network: dict[str, Any],
        link_width: int,
        longest: int = 800,
        enlarge: float | None = None,
        group_norm: int | None = None,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        dense: bool = True,
        threshold: float = 0.3,
        thresholds: Mapping[str, float] | None = None,
        overlap: float | None = None,
        mask_width: int | None = None,
        mask_cells: int | None = None,
        area_threshold: float = 0.5,
        looks: bool = False,
        pose_layers: int = 0,
        choice_width: int | None = None,
        choice_threshold: float = 0.5,
        phrases_per_pass: int = 16,
        one_way: bool = False,
        queries: int | None = None,
    ) -> None:
        super().__init__()
        self.tasks = (
            (DETECTION if choice_width is None else CHOSEN,) + (SEGMENTATION,) * (mask_width is not None)
            + (POSE,) * (pose_layers > 0) + (LOOKING,) * looks
        )  # fmt: skip
        self.detector = LinkDetector(network, group_norm, queries, one_way)
        width = self.detector.width
        self.phrase_head = PhraseHead(DETECTION.tokens[0].queries, link_width, width)
        self.presence_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.pixel_map = PixelMap(width, mask_width or MAP_WIDTH) if mask_width or pose_layers else None
        self.mask_head = None if mask_width is None else MaskHead(width, mask_width, mask_cells)
        self.pose_head = None if not pose_layers else PoseHead(
            link_width=link_width, queries=POSE.tokens[1].queries, width=width, layers=pose_layers,
            heads=self.detector.config.decoder_attention_heads, levels=self.detector.config.num_feature_levels,
            map_width=mask_width or MAP_WIDTH,
        )  # fmt: skip
        self.choice_head = None if choice_width is None else ChoiceHead(
            queries=self.phrase_head.queries, link_width=link_width, width=width, common=choice_width,
            threshold=choice_threshold,
        )  # fmt: skip
        self.presence_weight = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.link_width, self.longest, self.enlarge = link_width, longest, enlarge
        self.denoising, self.label_noise, self.box_noise, self.dense = denoising, label_noise, box_noise, dense
        self.thresholds = {task.name: threshold for task in self.tasks} | dict(thresholds or {})
        self.overlap, self.phrases_per_pass, self.area_threshold = overlap, phrases_per_pass, area_threshold

    @classmethod
    def from_config(cls, config: ObjectsConfig, link_width: int) -> ObjectsDecoder:
        return cls(link_width=link_width, **{name: getattr(config, name) for name in type(config).model_fields})

    @property
    def pixels(self) -> Mapping[str, PixelSpec]:
        return {"source": PixelSpec(longest=self.longest, enlarge=self.enlarge)}

    def loss(self, links: SuperLinks, ctx: Context) -> dict[str, Tensor]:
        total: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=links.states.device))
        links, parts = owners(links)
        phrases, names, asked = self._phrases(links), self._names(parts), self._asked(links)
        for bucket in buckets(links, ctx):
            phrases_BPC, padding_BP = stack(phrases, bucket.groups)
            truth = truth_of(bucket.groups, links, parts, ctx, padding_BP)
            features = self.detector.features(bucket.values, bucket.mask).take(bucket.row_of)
            encoded = self.detector.encode(features, phrases_BPC, padding_BP)
            regions = pointed(bucket.groups, links, ctx, encoded)
            pixels = bucket.values[bucket.row_of]
            asked_BPC = None if asked is None else stack(asked, bucket.groups)[0]
            for name, value in self._bucket_loss(pixels, encoded, truth, names, regions, asked_BPC).items():
                total[name] = total[name] + value
        return dict(total)

    def counts(self, links: SuperLinks, ctx: Context) -> dict[str, float]:
        asked: dict[tuple[int, int], list[LinkTarget]] = defaultdict(list)
        framed: dict[tuple[int, int], list[LinkTarget]] = defaultdict(list)
        links, parts = owners(links)
        for i, meta in enumerate(links.meta):
            owner, target = (meta.sample, meta.media[0]), target_of(links, i, parts, ctx)
            asked[owner].append(target)
            # What a region frames is found twice: as what its words mean, and inside its frame.
            if len(target.boxes) == 1 and frame_of(links, i, ctx) is not None:
                framed[owner].append(target)
        found: list[int] = []
        masks = poses = present = 0
        for owner, targets in asked.items():
            things, _ = things_of(targets)
            present += sum(len(own.boxes) > 0 for own in targets)
            twice = (things, *framed[owner])
            found.append(sum(len(own.boxes) for own in twice))
            masks += sum(mask is not None for own in twice for mask in own.masks)
            poses += sum(pose is not None for pose in things.poses)
        # A picture without any object still teaches what is not there and counts as one box; picture by picture, so
        # that the counts of parts add up to the count of the whole.
        boxes = float(sum(max(1, count) for count in found))
        layers = float(self.detector.config.decoder_layers)
        divisors = {"presence": float(len(links))}
        divisors |= dict.fromkeys(criterion.PARTS, layers * boxes)
        if self.choice_head is not None:
            divisors |= {"choice": float(present), "silence": float(len(links))}
        if self.mask_head is not None:
            divisors |= dict.fromkeys(("mask", "dice"), layers * masks)
        if self.pose_head is not None:
            divisors |= dict.fromkeys(POSE.loss_weights, float(poses))
        if self.dense:
            divisors |= {f"dense_{name}": 4 * boxes for name in criterion.PARTS}
        if self.denoising:
            divisors |= {f"denoise_{name}": layers * boxes for name in criterion.PARTS}
        return divisors

    @torch.no_grad()
    def predict(self, links: SuperLinks, ctx: Context, options: ObjectsOptions) -> list[Detections]:
        results: dict[int, Detections] = {}
        links, parts = owners(links)
        phrases, names = self._phrases(links, observe=False), self._names(parts, observe=False)
        asked = self._asked(links, observe=False)
        for bucket in buckets(links, ctx):
            features = self.detector.features(bucket.values, bucket.mask)
            row_of, groups = passes(bucket.groups, bucket.row_of, self.phrases_per_pass)
            phrases_BPC, padding_BP = stack(phrases, groups)
            encoded = self.detector.encode(features.take(row_of), phrases_BPC, padding_BP)
            regions = pointed(groups, links, ctx, encoded)
            asked_BPC = None if asked is None else stack(asked, groups)[0]
            last = self._decode(bucket.values[row_of], encoded, None, regions, asked_BPC, answering=True)[-1]
            skip = 0 if regions is None else regions.count
            last = last if regions is None else regions.outlined(last)
            presence_BP = self._presence(encoded, last.queries(skip)).sigmoid()
            close: dict[int, Fine] = {}
            for b, group in enumerate(groups):
                picture = ctx.batch.samples[group.owner[0]].pictures[group.owner[1]]
                boxes_xyxy = in_picture(last.boxes_BN4[b], picture)
                tokens = {links.meta[link].token for link in group.links}
                # Where phrases tell a picture nothing, all its passes see it alike.
                fine, seen = None, row_of[b] if self.detector.one_way else b
                if tokens & FINE:
                    fine = close[seen] = close.get(seen) or self._fine(bucket.values[row_of[b]][None], encoded.of([b]))
                found: list[Found] = []
                for p, link in enumerate(group.links):
                    meta, scores_N = links.meta[link], last.logits_BNP[b, :, p].sigmoid()
                    threshold = self.thresholds[meta.task] if options.threshold is None else options.threshold
                    if regions is not None and p in regions.phrase[b]:
                        # One thing was framed: its own query tells it, whatever its score.
                        row = regions.phrase[b].index(p)
                        own = find(
                            meta.phrase, picture, boxes_xyxy, scores_N, float(scores_N[row]), 0.0, 1, None,
                            among=slice(row, row + 1),
                        )  # fmt: skip
                        found.append(replace(own, faint={row: 1.0}))
                    else:
                        found.append(find(
                            meta.phrase, picture, boxes_xyxy, scores_N, float(presence_BP[b, p]), threshold,
                            options.max_boxes, self.overlap, among=slice(skip, None),
                        ))  # fmt: skip
                masked = [own for own, link in zip(found, group.links, strict=True) if links.meta[link].token in MASKED]
                masks = self._masks(encoded.of([b]), fine, last.of([b]), boxes_xyxy, masked, picture.size)
                for own, link in zip(found, group.links, strict=True):
                    meta = links.meta[link]
                    if meta.token in MASKED:
                        area = SoftMask.any_of(
                            (masks[row] for row in own.faint), own.faint.values(), picture.size, self.area_threshold
                        )
                        results[link] = Masks(
                            masks=object_array([masks[row] for row in own.rows.tolist()]), areas=object_array([area]),
                            **own.fields,
                        )  # fmt: skip
                    elif meta.token == POSED:
                        skeleton = skeleton_of(meta.phrase, parts[link].names)
                        asked_KC = names[parts[link].start :][: len(parts[link].names)]
                        results[link] = self._poses(encoded.of([b]), fine, last.of([b]), own, asked_KC, skeleton)
                    else:
                        results[link] = Detections(**own.fields)
        return [results[i] for i in range(len(links))]

    def tables_that_grow(self) -> list[Tensor]:
        return [self.detector.net.query_position_embeddings.weight]

    def operating_point(self, task: str) -> float:
        return self.thresholds[task]

    def idle(self) -> Tensor:
        device = self.presence_weight.device
        side = 64
        nothing = torch.zeros(self.phrase_head.queries, self.link_width, device=device)
        phrases = self.phrase_head(nothing, observe=False)[None]
        pixels = torch.zeros(1, 3, side, side, device=device)
        features = self.detector.features(pixels, torch.ones(1, side, side, dtype=torch.bool, device=device))
        encoded = self.detector.encode(features, phrases, torch.zeros(1, 1, dtype=torch.bool, device=device))
        read = None if self.choice_head is None else self.choice_head.asked(nothing, observe=False)[None]
        layers = self._decode(pixels, encoded, None, None, read)
        tokens = torch.where(encoded.valid_BS[..., None], encoded.logits_BSP, torch.zeros_like(encoded.logits_BSP))
        # Every layer: references are detached, so the last one does not reach the heads before it.
        total = tokens.sum() + encoded.box_logits_BS4.sum() + self._presence(encoded, layers[-1]).sum()
        fine = None if self.pixel_map is None else self.pixel_map(pixels, encoded)
        if self.mask_head is not None and fine is not None:
            total = total + self.mask_head.pixels(fine.map_BMHW).sum() + self.mask_head(layers[-1].hidden_BNC).sum()
            look = self.mask_head.close_all(fine, layers[-1].hidden_BNC[0, :1], layers[-1].boxes_BN4[0, :1])
            total = total + (0.0 if look is None else look.logits_KSS.sum())
        if self.pose_head is not None and fine is not None:
            names = self.pose_head.names(nothing, observe=False)[None, None]
            one = layers[-1].queries(0, 1)
            open_ = names[..., 0] < torch.inf
            rounds, heat = self.pose_head(encoded, fine, one.hidden_BNC, one.boxes_BN4, names, open_)
            total = total + sum(points.places.sum() + points.flags.sum() for points in rounds) + heat.logits.sum()
        return total + torch.stack([layer.logits_BNP.sum() + layer.boxes_BN4.sum() for layer in layers]).sum()

    def _fine(self, pixels_B3HW: Tensor, encoded: Encoded) -> Fine:
        """What masks and poses are read from."""
        assert self.pixel_map is not None, "a link of masks or poses reached a decoder without them"
        return self.pixel_map(pixels_B3HW, encoded)

    def _phrases(self, links: SuperLinks, *, observe: bool = True) -> Tensor:
        """(L, C) phrase embedding of every link."""
        assert set(links.queries) <= {self.phrase_head.queries}, "states of links of other lengths would run together"
        return self.phrase_head(links.states, observe=observe)

    def _names(self, parts: Sequence[Parts], *, observe: bool = True) -> Tensor:
        """(K, C) embeddings of all keypoints, in the order of their places in ``parts``."""
        states = [part.states for part in parts if part.names]
        if self.pose_head is None or not states:
            return torch.zeros(0, self.detector.width, device=self.presence_weight.device)
        return self.pose_head.names(torch.cat(states), observe=observe)

    def _asked(self, links: SuperLinks, *, observe: bool = True) -> Tensor | None:
        """(L, C) what the comparison of candidates reads off every link; None without it."""
        return None if self.choice_head is None else self.choice_head.asked(links.states, observe=observe)

    def _masks(
        self, encoded: Encoded, fine: Fine | None, layer: LayerOutput, boxes_xyxy: np.ndarray, found: list[Found],
        size: tuple[int, int],
    ) -> dict[int, Mask]:  # fmt: skip
        """The masks of all queries of one picture that some phrases found, were it faintly."""
        rows = sorted({row for own in found for row in (*own.rows.tolist(), *own.faint)})
        if not rows:
            return {}
        assert self.mask_head is not None, "a link of masks reached a decoder without them"
        assert fine is not None, "masks are read from pixels"
        hidden, (maps,) = layer.hidden_BNC[0, rows], self.mask_head.pixels(fine.map_BMHW)
        close = self.mask_head.close_all(fine, hidden, layer.boxes_BN4[0, rows])
        masks = cut(maps, encoded.ratios_BL2[0, 0], self.mask_head(hidden), boxes_xyxy[rows], size, close)
        return dict(zip(rows, masks, strict=True))

    def _poses(
        self, encoded: Encoded, fine: Fine | None, layer: LayerOutput, found: Found, names_JC: Tensor,
        skeleton: Skeleton,
    ) -> Poses:  # fmt: skip
        """Keypoints of what one phrase found in one picture."""
        assert self.pose_head is not None, "a link of poses reached a decoder without them"
        assert fine is not None, "poses are read from pixels"
        size, count = found.fields["size"], len(found.rows)
        index = torch.from_numpy(found.rows).to(layer.hidden_BNC.device)
        hidden, boxes = layer.hidden_BNC[:, index], layer.boxes_BN4[:, index]
        if not count or not len(names_JC):
            nothing = boxes.new_zeros(1, count, len(names_JC), 2)
            poses = to_poses(Points(places=nothing, flags=nothing), skeleton, size)
            return Poses(poses=object_array(poses), likeness=np.zeros(count, np.float32), **found.fields)
        asked = names_JC.expand(1, count, -1, -1)
        open_ = torch.ones(asked.shape[:3], dtype=torch.bool, device=asked.device)
        (*_, points), heat = self.pose_head(encoded, fine, hidden, boxes, asked, open_)
        sure = likeness(points, heat, boxes, skeleton, size)
        return Poses(poses=object_array(to_poses(points, skeleton, size)), likeness=sure, **found.fields)

    def _decode(
        self, pixels_B3HW: Tensor, encoded: Encoded, noised: criterion.Denoising | None, regions: Pointed | None,
        asked_BPC: Tensor | None, *, answering: bool = False,
    ) -> list[LayerOutput]:  # fmt: skip
        """Layers of noised queries, those of regions, and the detector's own, in this order. Where candidates are
        compared, the last layer comes twice: as it found them, then scored once more."""
        content, reference = self.detector.select(encoded)
        own = content.shape[1]
        noise = 0 if noised is None else noised.count
        count = 0 if regions is None else regions.count
        if regions is not None:
            content = torch.cat([regions.content_BRC.to(content.dtype), content], 1)
            reference = torch.cat([regions.reference_BR4, reference], 1)
        if noised is not None:
            content = torch.cat([noised.content_BNC.to(content.dtype), content], 1)
            reference = torch.cat([noised.reference_BN4, reference], 1)
        closed = None
        if noise or count:
            closed = closed_between(None if noised is None else noised.closed_NN, noise, count, own, content.device)
        layers = self.detector.decode(encoded, content, reference, closed)
        if self.choice_head is None or asked_BPC is None:
            return layers
        open_ = (asked_BPC, encoded.phrase_padding_BP, noise + count)
        ratios_B2 = encoded.ratios_BL2[:, 0]
        return [*layers, self.choice_head(layers[-1], pixels_B3HW, ratios_B2, *open_, answering=answering)]

    def _bucket_loss(
        self, pixels_B3HW: Tensor, encoded: Encoded, truth: criterion.Truth, names_KC: Tensor, regions: Pointed | None,
        asked_BPC: Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        noised = None
        if self.denoising and self.training:
            noised = criterion.denoise(
                encoded, truth, groups_of=self.denoising, label_noise=self.label_noise, box_noise=self.box_noise,
                queries=min(self.detector.queries, encoded.logits_BSP.shape[1]),
            )  # fmt: skip
        layers = self._decode(pixels_B3HW, encoded, noised, regions, asked_BPC)
        found = layers.pop(-2) if self.choice_head is not None else None
        noise = 0 if noised is None else noised.count
        start = noise + (0 if regions is None else regions.count)
        losses: dict[str, Tensor] = {}
        masked, posed = (any(one is not None for row in rows for one in row) for rows in (truth.masks, truth.poses))
        fine = self._fine(pixels_B3HW, encoded) if masked or posed else None
        maps = self.mask_head.pixels(fine.map_BMHW) if self.mask_head and masked and fine else None
        for layer in layers:
            # What a box shows is dear to look at: only the layer that answers sees it close.
            near = fine if layer is layers[-1] else None
            plain = layer.queries(start)
            pairs = criterion.match(plain, truth)
            _add(losses, "", criterion.paired_loss(plain, truth, pairs, encoded.phrase_padding_BP))
            if self.mask_head is not None:
                _add(losses, "", self._mask_loss(maps, near, encoded, plain, truth, pairs))
            if regions is not None:
                framed, known = regions.opened(layer.queries(noise, start)), regions.pairs(truth)
                _add(losses, "", criterion.paired_loss(framed, truth, known, encoded.phrase_padding_BP))
                if self.mask_head is not None:
                    _add(losses, "", self._mask_loss(maps, near, encoded, regions.outlined(framed), truth, known))
            if noised is not None:
                extra = layer.queries(0, noise)
                part = criterion.paired_loss(extra, truth, noised.positive, encoded.phrase_padding_BP)
                _add(losses, "denoise_", {name: value / noised.groups for name, value in part.items()})
        if found is not None:
            losses["choice"] = criterion.choice_loss(plain, truth, pairs)
            first = found.queries(start)
            losses["silence"] = criterion.silence_loss(first, plain, truth, pairs, encoded.phrase_padding_BP)
        if self.pose_head is not None:
            # Of the last layer alone as well.
            losses |= self._pose_loss(fine, encoded, plain, truth, pairs, names_KC)
        if self.dense:
            _add(losses, "dense_", criterion.dense_loss(encoded, truth))
        presence = self._presence(encoded, layers[-1].queries(start))
        losses["presence"] = criterion.presence_loss(presence, truth, encoded.phrase_padding_BP)
        return losses

    def _mask_loss(
        self,
        maps_BMHW: Tensor | None,
        near: Fine | None,
        encoded: Encoded,
        layer: LayerOutput,
        truth: criterion.Truth,
        pairs: criterion.Pairs,
    ) -> dict[str, Tensor]:
        """Of the matched queries whose targets have a mask; zeros where none has. ``near`` lets them look close."""
        if maps_BMHW is None or self.mask_head is None:
            return dict.fromkeys(("mask", "dice"), layer.boxes_BN4.new_zeros(()))
        queries, boxes, masks, found = [], [], [], []
        for b, (rows, targets) in enumerate(pairs):
            kept = [i for i, target in enumerate(targets.tolist()) if truth.masks[b][target] is not None]
            found.append(rows[kept])
            queries.append(self.mask_head(layer.hidden_BNC[b, rows[kept]]))
            boxes.append(truth.boxes[b][targets[kept]])
            masks.append([mask for mask in (truth.masks[b][i] for i in targets[kept].tolist()) if mask is not None])
        close = None
        if near is not None:
            hidden, own, open_BI = _gathered(layer, found)
            close = self.mask_head.close(near, hidden, own, open_BI)
        return mask_losses(
            maps_BMHW, encoded.ratios_BL2[:, 0], queries, boxes, masks, close=close, random=self.training
        )

    def _pose_loss(
        self, fine: Fine | None, encoded: Encoded, layer: LayerOutput, truth: criterion.Truth, pairs: criterion.Pairs,
        names_KC: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Of the matched queries whose targets have a pose; zeros where none has."""
        assert self.pose_head is not None
        # Pictures with poses: in each, the queries, what they should find and where.
        rows, asked, queries, true_boxes = [], [], [], []
        for b, (found, targets) in enumerate(pairs):
            own = [(q, t, pose) for q, t in zip(found, targets.tolist(), strict=True) if (pose := truth.poses[b][t])]
            if own:
                rows.append(b)
                queries.append(torch.stack([query for query, _, _ in own]))
                true_boxes.append(truth.boxes[b][[target for _, target, _ in own]])
                asked.append([pose for _, _, pose in own])
        if fine is None or not rows:
            return dict.fromkeys(POSE.loss_weights, layer.boxes_BN4.new_zeros(()))
        most, longest = max(map(len, asked)), max(len(pose.flags_J) for poses in asked for pose in poses)
        index = torch.full((len(rows), most, longest), len(names_KC), device=names_KC.device)
        for b, poses in enumerate(asked):
            for i, pose in enumerate(poses):
                count = len(pose.flags_J)
                index[b, i, :count] = torch.arange(pose.start, pose.start + count, device=names_KC.device)
        names = torch.cat([names_KC, names_KC.new_zeros(1, names_KC.shape[1])])[index]
        hidden, boxes, _ = _gathered(layer.of(rows), queries)
        open_ = index < len(names_KC)
        rounds, heat = self.pose_head(encoded.of(rows), fine.of(rows), hidden, boxes, names, open_)
        return pose_losses(rounds, heat, true_boxes, asked)

    def _presence(self, encoded: Encoded, last: LayerOutput) -> Tensor:
        """(B, P) presence logits: what the fused phrase says, plus the best query's score (detached)."""
        best = last.logits_BNP.detach().amax(1).masked_fill(encoded.phrase_padding_BP, 0.0)
        own = self.presence_head(encoded.phrases_BPC.float())[..., 0].float()
        return own + self.presence_weight[0] * best + self.presence_weight[1]


def _gathered(layer: LayerOutput, queries: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, I, C) states and (B, I, 4) boxes of some queries of each picture, padded, and (B, I) True where one is."""
    padded = pad_sequence(queries, batch_first=True)
    hidden, boxes = (
        values.gather(1, padded[..., None].expand(-1, -1, values.shape[-1]))
        for values in (layer.hidden_BNC, layer.boxes_BN4)
    )
    counts = torch.tensor([len(own) for own in queries], device=padded.device)
    return hidden, boxes, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]


def _add(total: dict[str, Tensor], prefix: str, part: dict[str, Tensor]) -> None:
    for name, value in part.items():
        total[prefix + name] = total[prefix + name] + value if prefix + name in total else value
