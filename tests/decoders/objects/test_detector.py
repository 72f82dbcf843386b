"""Our forward pass of Grounding DINO, against the owner's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection
from transformers.models.grounding_dino import modeling_grounding_dino as gdino
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm_gdino

from visionllm.core.config import validate
from visionllm.core.errors import ConfigError
from visionllm.decoders.objects.attention import DeformableSampling, sum_of_rows
from visionllm.decoders.objects.config import ObjectsConfig
from visionllm.decoders.objects.decoder import ObjectsDecoder
from visionllm.decoders.objects.detector import LinkDetector

Make = Callable[..., Any]
KINDS = {
    "grounding-dino": (GroundingDinoForObjectDetection, gdino),
    "mm-grounding-dino": (MMGroundingDinoForObjectDetection, mm_gdino),
}


def stirred(module: nn.Module, seed: int = 0, noise: float = 0.1) -> Any:
    """No parameter stays at the zero or one it starts from."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * noise)
    return module.eval()


# --- deformable attention -------------------------------------------------------------------------------------------

SHAPES = [(7, 9), (4, 5), (2, 3)]


def sampling_inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (outside the map too, never on the edge of a cell, where the gradient jumps), weights."""
    random = torch.Generator().manual_seed(seed)
    value = torch.randn(2, sum(h * w for h, w in SHAPES), 3, 5, generator=random)
    place = torch.rand(2, 11, 3, 3, 4, 2, generator=random) * 1.4 - 0.2
    for level, (height, width) in enumerate(SHAPES):
        pixels = place[:, :, :, level] * torch.tensor([width, height]) - 0.5
        pixels = pixels.floor() + (pixels - pixels.floor()).clamp(1e-3, 1 - 1e-3)
        place[:, :, :, level] = (pixels + 0.5) / torch.tensor([width, height])
    weights = torch.rand(2, 11, 3, 3, 4, generator=random)
    return value, place, weights / weights.sum((-1, -2), keepdim=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("owner", [gdino.MultiScaleDeformableAttention, mm_gdino.MultiScaleDeformableAttention])
def test_sampling_equals_transformers(owner: Any, seed: int) -> None:
    outputs = []
    upstream = torch.randn(2, 11, 15, generator=torch.Generator().manual_seed(seed))
    for module in (owner(), DeformableSampling()):
        inputs = [tensor.clone().requires_grad_() for tensor in sampling_inputs(seed)]
        shapes = torch.tensor(SHAPES)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        out = module(inputs[0], shapes, SHAPES, starts, inputs[1], inputs[2], 64)
        out.backward(upstream)
        outputs.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for theirs, ours in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        again = DeformableSampling()(inputs[0], shapes, SHAPES, starts, inputs[1], inputs[2], 64)
    torch.testing.assert_close(again, outputs[0][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_points_far_outside_read_nothing_and_no_number_stays_none() -> None:
    """Whichever the row of the batch: the first row's last cell lies next to the second row's first."""
    value, place, weights = sampling_inputs(0)
    far = value + 10
    for outside in (-1e6, -0.5, 1.5, 1e6, float("inf")):
        for axis in (0, 1):
            moved = place.clone()
            moved[..., axis] = outside
            assert not sum_of_rows(far, SHAPES, moved, weights).any(), (outside, axis)
    place[0, 3, 1, 2, 0, 1] = float("nan")
    out = sum_of_rows(value, SHAPES, place, weights)
    assert out[0, 3, 5:10].isnan().all()
    assert out.isnan().sum() == 5


# --- the whole network ----------------------------------------------------------------------------------------------


class GivenText(nn.Module):
    """In the place of BERT: the phrase embeddings themselves."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.features)


@pytest.fixture(params=[(kind, *how) for kind in KINDS for how in product((True, False), (True, False))], ids=str)
def pair(request: pytest.FixtureRequest, tiny_network: Make) -> tuple[Any, LinkDetector, Any]:
    """(their model, ours with their weights, their module); fused one way, theirs is told nothing by phrases."""
    kind, share, one_way = request.param
    changes = {"decoder_bbox_embed_share": share}
    if kind.startswith("mm"):
        changes["decoder_cls_embed_share"] = share
    ours = LinkDetector(tiny_network(kind, num_queries=8, **changes), one_way=one_way).eval()
    cls, module = KINDS[kind]
    theirs = cls(ours.config)
    # Heads that are not shared must differ, or the test could not tell one from the next.
    stirred(theirs)
    if not share:
        theirs.model.decoder.bbox_embed = theirs.bbox_embed
    copy_weights(theirs, ours)
    for layer in theirs.model.encoder.layers if one_way else ():
        layer.fusion_layer.vision_param.data.zero_()
    return theirs.eval(), ours, module


def copy_weights(theirs: Any, ours: LinkDetector) -> None:
    gone = (
        "text_backbone.",
        "text_projection.",
        "decoder.bbox_embed.",
        "decoder.class_embed.",
        "encoder_output_class_embed.",
    )
    state = {n: v for n, v in theirs.model.state_dict().items() if not n.startswith(gone)}
    ours.net.load_state_dict(state)
    for own, other in zip(ours.box_heads, theirs.bbox_embed, strict=False):
        own.load_state_dict(other.state_dict())
    with torch.no_grad():
        for own, other in zip(ours.class_biases, theirs.class_embed, strict=False):
            own.copy_(getattr(other, "bias", torch.zeros(())))
        ours.encoder_bias.copy_(getattr(theirs.model.encoder_output_class_embed, "bias", torch.zeros(())))


def run_theirs(theirs: Any, module: Any, pixels: Tensor, mask: Tensor, phrases: Tensor, padding: Tensor,
               monkeypatch: pytest.MonkeyPatch) -> Any:  # fmt: skip
    """Their forward pass, phrases in the place of words: each sees itself only, all at position 0."""
    count = phrases.shape[1]

    def alone(input_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        eye = torch.eye(count, dtype=torch.bool).expand(len(input_ids), count, count)
        return eye, torch.zeros(len(input_ids), count, dtype=torch.long)

    monkeypatch.setattr(module, "generate_masks_with_special_tokens_and_transfer_map", alone)
    theirs.model.text_backbone, theirs.model.text_projection = GivenText(phrases), nn.Identity()
    return theirs(
        pixel_values=pixels, input_ids=torch.zeros(len(phrases), count, dtype=torch.long),
        attention_mask=(~padding).long(), pixel_mask=mask, return_dict=True,
    )  # fmt: skip


def inputs(padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, 96, 64, generator=random)
    mask = torch.ones(2, 96, 64, dtype=torch.bool)
    padding = torch.zeros(2, 3, dtype=torch.bool)
    padding[1, 2] = True
    if padded:
        mask[0, 80:] = False
        mask[1, :, 40:] = False
    return pixels * mask[:, None], mask, torch.randn(2, 3, 32, generator=random), padding


@torch.no_grad()
def test_equals_the_owners_implementation(pair: tuple[Any, LinkDetector, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, module = pair
    pixels, mask, phrases, padding = inputs(padded=False)
    expected = run_theirs(theirs, module, pixels, mask, phrases, padding, monkeypatch)
    encoded = ours.encode(ours.features(pixels, mask), phrases, padding)
    assert bool(encoded.valid_BS.all())
    torch.testing.assert_close(encoded.memory_BSC, expected.encoder_last_hidden_state_vision, atol=1e-5, rtol=1e-5)
    seen = ~padding
    torch.testing.assert_close(
        encoded.phrases_BPC[seen], expected.encoder_last_hidden_state_text[seen], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(encoded.logits_BSP, expected.enc_outputs_class[..., :3], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(encoded.box_logits_BS4, expected.enc_outputs_coord_logits, atol=1e-4, rtol=1e-5)
    layers = ours.decode(encoded, *ours.select(encoded), None)
    assert len(layers) == 2
    torch.testing.assert_close(layers[-1].logits_BNP, expected.logits[..., :3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layers[-1].boxes_BN4, expected.pred_boxes, atol=1e-5, rtol=1e-4)
    assert layers[-1].boxes_BN4.std() > 0.01


@torch.no_grad()
def test_the_encoder_equals_the_owners_under_padding(
    pair: tuple[Any, LinkDetector, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their selection may take tokens of the padding, ours never does; up to there both are the same."""
    theirs, ours, module = pair
    pixels, mask, phrases, padding = inputs(padded=True)
    expected = run_theirs(theirs, module, pixels, mask, phrases, padding, monkeypatch)
    encoded = ours.encode(ours.features(pixels, mask), phrases, padding)
    valid = encoded.valid_BS
    assert not bool(valid.all())
    assert not bool((valid & encoded.padding_BS).any())
    memory = expected.encoder_last_hidden_state_vision
    torch.testing.assert_close(encoded.memory_BSC[valid], memory[valid], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        encoded.box_logits_BS4[valid], expected.enc_outputs_coord_logits[valid], atol=1e-4, rtol=1e-5
    )
    assert bool(torch.isfinite(encoded.box_logits_BS4).all())
    assert bool((encoded.logits_BSP[~valid] == float("-inf")).all())


@torch.no_grad()
def test_padding_is_not_felt(tiny_network: Make) -> None:
    """Neither pixels behind the mask nor embeddings of phrases that a picture does not have."""
    ours = stirred(LinkDetector(tiny_network(), 4))
    pixels, mask, phrases, padding = inputs(padded=True)

    def run(phrases: Tensor) -> tuple[Tensor, Tensor]:
        encoded = ours.encode(ours.features(pixels, mask), phrases, padding)
        last = ours.decode(encoded, *ours.select(encoded), None)[-1]
        return last.logits_BNP, last.boxes_BN4

    changed = phrases.clone()
    changed[padding] = 50.0
    for one, other in zip(run(phrases), run(changed), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert bool((run(phrases)[0][1, :, 2] == float("-inf")).all())


@torch.no_grad()
def test_phrases_do_not_meet_before_the_picture(tiny_network: Make) -> None:
    """Their order is theirs alone: permuted phrases give permuted scores."""
    ours = stirred(LinkDetector(tiny_network(), 4))
    pixels, mask, phrases, _ = inputs(padded=False)
    padding = torch.zeros(2, 3, dtype=torch.bool)
    order = torch.tensor([2, 0, 1])
    outputs = []
    for given in (phrases, phrases[:, order]):
        encoded = ours.encode(ours.features(pixels, mask), given, padding)
        outputs.append(ours.decode(encoded, *ours.select(encoded), None)[-1])
    torch.testing.assert_close(outputs[1].logits_BNP, outputs[0].logits_BNP[..., order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[1].boxes_BN4, outputs[0].boxes_BN4, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_more_queries_than_were_learned_look_at_more_places(tiny_network: Make) -> None:
    """Neighbours in rank share what was learned; the places are the next best ones, and weights stay what they were."""
    few = stirred(LinkDetector(tiny_network(), 4))
    learned = int(few.config.num_queries)
    many = LinkDetector(tiny_network(), 4, queries=3 * learned).eval()
    many.load_state_dict(few.state_dict())
    pixels, mask, phrases, padding = inputs(padded=False)
    encoded = few.encode(few.features(pixels, mask), phrases, padding)
    content, places = few.select(encoded)
    content_of_many, places_of_many = many.select(encoded)
    assert content_of_many.shape[1] == 3 * learned
    assert torch.equal(places_of_many[:, :learned], places)
    assert torch.equal(content_of_many, content.repeat_interleave(3, 1))
    last = many.decode(encoded, content_of_many, places_of_many, None)[-1]
    assert last.boxes_BN4.shape[1] == 3 * learned
    same = LinkDetector(tiny_network(), 4, queries=learned).eval()
    same.load_state_dict(few.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(same.select(encoded), (content, places), strict=True))


@torch.no_grad()
def test_one_encoding_serves_every_question(tiny_network: Make) -> None:
    """Fused one way, what is made of a picture does not hang on the phrases, nor one phrase on the others."""
    ours = stirred(LinkDetector(tiny_network(), 4, one_way=True))
    pixels, mask, phrases, _ = inputs(padded=True)
    features = ours.features(pixels, mask)
    none = torch.zeros(2, 3, dtype=torch.bool)
    together = ours.encode(features, phrases, none)
    for number in range(3):
        alone = ours.encode(features, phrases[:, number : number + 1], none[:, :1])
        assert alone.memory_BSC is together.memory_BSC
        its, valid = slice(number, number + 1), alone.valid_BS
        torch.testing.assert_close(alone.phrases_BPC, together.phrases_BPC[:, its], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            alone.logits_BSP[valid], together.logits_BSP[..., its][valid], atol=1e-4, rtol=1e-5
        )
    # One picture for several passes is held once.
    one = ours.features(pixels[:1], mask[:1])
    again = one.take([0, 0, 0])
    assert again.encoded is not None
    assert again.encoded.memory_BSC.data_ptr() == one.encoded.memory_BSC.data_ptr()  # type: ignore[union-attr]
    torch.testing.assert_close(
        ours.encode(again, phrases[:1].transpose(0, 1), none[:1].transpose(0, 1)).phrases_BPC[:, 0],
        ours.encode(one, phrases[:1], none[:1]).phrases_BPC[0], atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_picture_is_read_once_for_all_its_rows(tiny_network: Make, kind: str) -> None:
    """What is asked of one picture in several rows is what is asked in rows of copies; so is what is learned."""
    ours = stirred(LinkDetector(tiny_network(kind), 4, one_way=True))
    pixels, mask, phrases, _ = inputs(padded=True)
    rows: list[int] = []
    first = ours.net.decoder.layers[0].encoder_attn.value_proj
    first.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    asked, none = phrases[:1].transpose(0, 1), torch.zeros(3, 1, dtype=torch.bool)
    last, learned = [], []
    for copied in (False, True):
        encoded = ours.encode(ours.features(pixels[1:], mask[1:]).take([0, 0, 0]), asked, none)
        if copied:
            encoded = replace(encoded, memory_BSC=encoded.memory_BSC.clone(), padding_BS=encoded.padding_BS.clone())
        assert bool(encoded.padding_BS.any())
        out = ours.decode(encoded, *ours.select(encoded), None)[-1]
        ours.zero_grad()
        (out.boxes_BN4 * torch.arange(1.0, 4.0)[:, None, None]).sum().backward()
        last.append(out)
        learned.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert rows == [1, 3]
    for name in ("logits_BNP", "boxes_BN4", "hidden_BNC"):
        once, each = (getattr(out, name) for out in last)
        assert not torch.allclose(each[0], each[1], atol=1e-3), "rows that ask different things are told apart"
        torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-5)
    once, each = learned
    assert once.keys() == each.keys()
    for name, value in each.items():
        torch.testing.assert_close(once[name], value, atol=1e-5 + 1e-4 * float(value.abs().max()), rtol=1e-4)


# --- learning and settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_parameter_learns(tiny_network: Make, boxed: Make, make_model: Make, kind: str, one_way: bool) -> None:
    """The proposal head too, which transformers' own loss leaves alone."""
    model = make_model(kind=kind, denoising=12, one_way=one_way).train()
    losses = model(model.processor.encode([boxed(), boxed(size=(60, 90), seed=1)]))
    sum(value for name, value in losses.sums.items() if "/" in name).backward()
    named = dict(model.decoders["objects"].named_parameters())
    dead = {n for n, p in named.items() if p.grad is None or not bool(p.grad.abs().max() > 0)}
    # A phrase that sees itself only has nothing to choose: who asks and who answers there is not felt.
    free = {n for n in named if "text_enhancer_layer.self_attn" in n and (".query." in n or ".key." in n)}
    # A bias of the keys moves all scores of a query alike.
    free |= {n for n in named if n.endswith(("k_proj.bias", "key.bias"))}
    free |= {n for n, p in named.items() if not p.requires_grad} if one_way else set()
    assert dead <= free, sorted(dead - free)
    assert any("encoder_output_bbox_embed" in n for n in named)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "detr"}, "model_type: expected one of grounding-dino, mm-grounding-dino, got 'detr'"),
        ({"model_type": None}, "model_type"),
        ({"num_querys": 3}, "num_querys"),
        ({"two_stage": False}, "two_stage"),
        ({"embedding_init_target": False}, "embedding_init_target"),
        ({"num_queries": "many"}, "num_queries"),
        ({"backbone_config": {"model_type": "no such"}}, "backbone_config"),
        ({"backbone_config": {"depths": [1]}}, "backbone_config"),
        ({"backbone_config": {"model_type": "resnet", "dephts": [1]}}, "dephts"),
    ],
)
def test_a_wrong_network_is_one_line(tiny_network: Make, changes: dict[str, Any], words: str) -> None:
    config = validate(ObjectsConfig, {"network": {**tiny_network(), **changes}}, source="x")
    with pytest.raises(ConfigError, match=words) as caught:
        ObjectsDecoder.from_config(config, 32)
    assert "\n" not in str(caught.value)


def test_group_norm_frees_the_backbone(tiny_network: Make) -> None:
    frozen = LinkDetector(tiny_network()).net.backbone
    assert any("running_mean" in name for name, _ in frozen.named_buffers())
    free = LinkDetector(tiny_network(), 4).net.backbone
    assert not [name for name, _ in free.named_buffers() if "running" in name]
    assert all(parameter.requires_grad for parameter in free.parameters())
