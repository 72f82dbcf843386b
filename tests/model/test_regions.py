"""Regions in the model: what is framed reaches the words and the masks, and nothing a user types does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import Box, Pixels, Point, Polygon, Scribble
from visionllm.core.arrays import object_array
from visionllm.core.errors import CheckpointError, ConfigError, PromptError
from visionllm.core.masks import Mask
from visionllm.core.sample import Sample, Turn
from visionllm.decoders.base import Context
from visionllm.decoders.objects.layout import LEAST_FRAME, buckets, owners, pointed, stack
from visionllm.model import VisionLLM
from visionllm.routing.render import Style, render_question

Make = Callable[..., Any]
OPEN = {"objects": {"threshold": 0.0, "max_boxes": 5}}


@pytest.fixture(scope="module")
def pointing(make_model: Make) -> Any:
    return make_model(mask_width=16, regions={"layers": [1, -1], "channels": 16})


def ellipse(box: np.ndarray, size: tuple[int, int]) -> Mask:
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    x1, y1, x2, y2 = box
    return Mask.of(((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1)


@pytest.fixture
def sample(boxed: Make) -> Sample:
    """Two regions, each on a thing with a mask, beside a question about boxes."""
    made = boxed(phrases=("region 1", "region 2"), boxes=((0, 5, 5, 40, 30), (1, 30, 20, 70, 55)))
    turn = made.turns[0]
    masks = [ellipse(box, (80, 60)) for box in turn.target.boxes_xyxy]
    return made.with_turns(replace(
        turn, task="segmentation", question="segment <region> and <region>", regions=(Box(5, 5, 40, 30), Point(50, 40)),
        target=replace(turn.target, masks=object_array(masks)),
    ))  # fmt: skip


def test_a_region_stands_in_a_picture_position(pointing: Any, sample: Sample) -> None:
    batch = pointing.processor.encode([sample])
    vocabulary = pointing.vocabulary
    words = vocabulary.text(batch.input_ids[0].tolist())
    assert "segment region 1 <IMG_CONTEXT> and region 2 <IMG_CONTEXT><|im_end|>" in words
    assert batch.marks is not None
    assert render_question(sample.turns[0]) == "segment <region> and <region>"
    np.testing.assert_allclose(batch.marks.boxes[0].numpy(), [22.5 / 80, 17.5 / 60, 35 / 80, 25 / 60], atol=1e-6)


def test_typed_placeholders_are_words(pointing: Any, picture: Make) -> None:
    batch = pointing.processor.encode([Sample(pictures=(picture(),), turns=(Turn(question="what is <region>?"),))])
    assert batch.marks is None
    tiles = pointing.mllm.tokens_per_tile * len(batch.tiles)
    assert int((batch.input_ids == pointing.vocabulary.image).sum()) == tiles


def test_embeddings_stand_where_they_are_spoken_of(pointing: Any, sample: Sample, boxed: Make, picture: Make) -> None:
    """In a batch of all sorts each picture position holds its own: the sample alone sees what it sees in company."""
    other = sample.with_turns(replace(sample.turns[0], regions=(Point(10, 10), Scribble([(50, 30), (60, 50)]))))
    wide = replace(other, pictures=(picture(200, 60, seed=4),))
    batch = pointing.processor.encode([sample, boxed(), Sample(turns=(Turn(question="hi"),)), wide])
    with torch.no_grad():
        seen = pointing._see(batch).all
        whole = pointing.mllm.embed(batch.input_ids, seen)
        for row, one in enumerate(batch.samples):
            alone = pointing.processor.encode([one])
            width = alone.input_ids.shape[1]
            expected = pointing.mllm.embed(alone.input_ids, pointing._see(alone).all)
            torch.testing.assert_close(whole[row, -width:], expected[0], atol=1e-5, rtol=1e-5)


def test_other_regions_are_other_embeddings(pointing: Any, sample: Sample) -> None:
    def embedded(*regions: Any) -> torch.Tensor:
        turn = replace(sample.turns[0], regions=regions)
        batch = pointing.processor.encode([sample.with_turns(turn)])
        with torch.no_grad():
            return pointing._see(batch).all[-2:]

    boxes = embedded(Box(5, 5, 40, 30), Box(6, 5, 40, 30))
    again = embedded(Box(5, 5, 40, 30), Pixels(np.pad(np.ones((25, 35), bool), ((5, 30), (5, 40)))))
    torch.testing.assert_close(boxes[0], again[0])
    torch.testing.assert_close(again[0], again[1])  # what is meant counts, not how it was said
    assert float((boxes[0] - boxes[1]).abs().max()) > 1e-3


def test_a_region_always_brings_one_mask(pointing: Any, picture: Make, dictate: Make) -> None:
    vocabulary = pointing.vocabulary
    script = []
    for name in ("region 2", "car", "region 1"):
        script += [vocabulary.control("<ref>"), *vocabulary.plain(name), vocabulary.control("</ref>"),
                   vocabulary.control("[SEG]")]  # fmt: skip
    dictate(pointing, script)
    options = {"objects": {"threshold": 0.999}}
    answer = pointing(
        picture(), "segment <region>, <region>", regions=[Box(5, 5, 40, 30), Point(60, 40)], options=options
    )
    assert answer.masks.phrases == ("region 2", "car", "region 1")
    assert [len(answer.masks.of(name)) for name in answer.masks.phrases] == [1, 0, 1]


def test_a_thing_lies_where_it_was_outlined(pointing: Any, picture: Make) -> None:
    """A box, an outline and a mask say where the thing ends; a point and a scribble do not."""
    masked = np.pad(np.ones((25, 35), bool), ((5, 30), (5, 40)))
    regions = [Box(5, 5, 40, 30), Polygon([(5, 5), (40, 5), (40, 30), (5, 30)]), Pixels(masked), Point(20, 15),
               Scribble([(6, 6), (39, 29)])]  # fmt: skip
    found = list(pointing.segment(picture(), regions=regions).masks)
    assert len(found) == 5
    for result in found[:3]:
        np.testing.assert_allclose(result.boxes_xyxy[0], [5, 5, 40, 30], atol=1e-3)
    for result in found[3:]:
        assert np.abs(result.boxes_xyxy[0] - [5, 5, 40, 30]).max() > 0.5
    for result in found:
        x1, y1, x2, y2 = result.boxes_xyxy[0]
        left, top, right, bottom = result.masks[0].box_xyxy
        if result.masks[0].area:
            assert left >= np.floor(x1)
            assert top >= np.floor(y1)
            assert right <= np.ceil(x2)
            assert bottom <= np.ceil(y2)


@torch.no_grad()
def test_queries_of_words_and_of_regions_do_not_see_each_other(pointing: Any, sample: Sample) -> None:
    """Ordinary queries say what they say without regions, and a region what it says without the others."""
    decoder = pointing.decoders.objects
    batch = pointing.processor.encode([sample])
    links, _ = owners(pointing.links(batch))
    ctx = Context(batch=batch)
    (bucket,) = buckets(links, ctx)
    groups = bucket.groups
    phrases, padding = stack(decoder._phrases(links), groups)
    encoded = decoder.detector.encode(decoder.detector.features(bucket.values, bucket.mask), phrases, padding)
    regions = pointed(groups, links, ctx, encoded)
    assert regions is not None
    assert regions.phrase == [[0, 1]]
    plain, whole = (decoder._decode(bucket.values, encoded, None, given, None)[-1] for given in (None, regions))
    second = replace(
        regions, content_BRC=regions.content_BRC[:, 1:], reference_BR4=regions.reference_BR4[:, 1:], phrase=[[1]]
    )
    alone = decoder._decode(bucket.values, encoded, None, second, None)[-1]
    torch.testing.assert_close(whole.queries(2).boxes_BN4, plain.boxes_BN4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.queries(1, 2).boxes_BN4, alone.queries(0, 1).boxes_BN4, atol=1e-5, rtol=1e-5)
    frames = regions.reference_BR4.sigmoid() * torch.tensor([80.0, 60.0, 80.0, 60.0])
    torch.testing.assert_close(frames[0, 0], torch.tensor([22.5, 17.5, 35.0, 25.0]), atol=1e-2, rtol=1e-3)
    assert float(frames[0, 1, 2]) == pytest.approx(80 * LEAST_FRAME, rel=1e-3)  # a point frames what is around it


def test_losses_reach_the_region_encoder(pointing: Any, sample: Sample, boxed: Make) -> None:
    pointing.train()
    batch = pointing.processor.encode([sample, boxed()])
    sum(pointing(batch).sums.values()).backward()
    missed = [
        n for n, p in pointing.region_encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().max())
    ]
    assert not missed
    # Each region is counted twice: as what its words mean, and inside its frame.
    plain = replace(sample, turns=(replace(sample.turns[0], regions=(), question="segment it"),))
    own, without = (pointing.counts(pointing.processor.encode([one])) for one in (sample, plain))
    assert own["objects/l1"] == 2 * without["objects/l1"]
    assert own["objects/mask"] == 2 * without["objects/mask"]
    pointing.zero_grad()
    pointing.eval()


def test_losses_of_a_batch_are_the_sum_of_its_samples(pointing: Any, sample: Sample, boxed: Make) -> None:
    fewer = sample.with_turns(replace(
        sample.turns[0], phrases=("region 1",), regions=(Box(5, 5, 40, 30),), question="mask <region>",
        target=replace(
            sample.turns[0].target, boxes_xyxy=sample.turns[0].target.boxes_xyxy[:1],
            phrase=sample.turns[0].target.phrase[:1], masks=sample.turns[0].target.masks[:1],
        ),
    ))  # fmt: skip
    samples = [sample, boxed(), fewer]
    with torch.no_grad():
        whole = pointing(pointing.processor.encode(samples)).sums
        parts = [pointing(pointing.processor.encode([one])).sums for one in samples]
    for name, value in whole.items():
        expected = sum(part[name] for part in parts if name in part)
        torch.testing.assert_close(value, expected, atol=2e-3, rtol=2e-4)


def test_a_conversation_counts_its_regions_on(pointing: Any, picture: Make) -> None:
    chat = pointing.chat(picture(), max_new_tokens=2)
    chat.ask("what is <region>?", regions=[Point(10, 10)])
    chat.ask("hello")
    seen: list[Any] = []
    encode = pointing.processor.encode

    def spy(samples: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(encode(samples, *args, **kwargs))
        return seen[-1]

    pointing.processor.encode = spy
    try:
        chat.ask("and <region>?", regions=[Box(10, 10, 50, 50)])
    finally:
        pointing.processor.encode = encode
    words = pointing.vocabulary.text(seen[0].input_ids[0].tolist())
    assert "what is region 1 <IMG_CONTEXT>?" in words
    assert "and region 2 <IMG_CONTEXT>?" in words
    assert len(seen[0].marks.masks) == 2


def test_regions_of_the_second_picture(pointing: Any, picture: Make, dictate: Make) -> None:
    vocabulary = pointing.vocabulary
    dictate(pointing, [vocabulary.control("<ref>"), *vocabulary.plain("region 1"), vocabulary.control("</ref>"),
                       vocabulary.control("[SEG]")])  # fmt: skip
    pictures = [picture(), picture(64, 96, seed=3)]
    answer = pointing(pictures, "segment <region>", regions=[Box(5, 5, 60, 90, picture=1)])
    assert answer.links[0].meta.media == (1,)
    assert answer.on(1).masks.size == (64, 96)


def test_a_verb_takes_regions(pointing: Any, picture: Make, dictate: Make) -> None:
    """The links of the known path are those of the question in words, and regions stand behind the phrases."""
    one, two = Box(5, 5, 40, 30), Point(60, 40)
    known = pointing.segment(picture(), regions=[one])
    vocabulary = pointing.vocabulary
    spoken = [vocabulary.control("<ref>"), *vocabulary.plain("region 1"), vocabulary.control("</ref>"),
              vocabulary.control("[SEG]")]  # fmt: skip
    dictate(pointing, spoken)
    asked = pointing(picture(), "segment <region>", regions=[one])
    assert known.masks.phrases == asked.masks.phrases == ("region 1",)
    np.testing.assert_allclose(known.masks.boxes_xyxy, asked.masks.boxes_xyxy, atol=1e-3)
    both = pointing.segment(picture(), ["car"], regions=[one, two], chunk=2)
    assert both.masks.phrases == ("car", "region 1", "region 2")
    assert [len(both.masks.of(name)) for name in both.masks.phrases[1:]] == [1, 1]


def test_a_verb_with_regions_is_verified(pointing: Any, picture: Make) -> None:
    """An untrained model writes something else than it is asked to; what it writes is the answer."""
    options: dict[str, Any] = {"verify": True, "regions": [Box(5, 5, 40, 30)]}
    assert pointing.segment(picture(), ["car"], **options).prompt == "segment car, <region>"


def test_wrong_regions_are_one_line(pointing: Any, model: Any, picture: Make) -> None:
    with pytest.raises(PromptError, match="says <region> 0 times, and 1 regions are given"):
        pointing(picture(), "segment it", regions=[Point(1, 1)])
    with pytest.raises(PromptError, match=r"regions\[0\]: box: .* reaches out of the picture of 80 x 60"):
        pointing(picture(), "segment <region>", regions=[Box(1, 1, 100, 20)])
    with pytest.raises(PromptError, match="this model takes none"):
        model(picture(), "segment <region>", regions=[Point(1, 1)])
    with pytest.raises(PromptError, match="of picture 0; there are 0"):
        pointing(None, "segment <region>", regions=[Point(1, 1)])
    with pytest.raises(PromptError, match=r"regions\[0\]: box: .* reaches out of the picture of 80 x 60"):
        pointing.segment(picture(), regions=[Box(1, 1, 100, 20)])
    with pytest.raises(PromptError, match="phrases: expected at least one"):
        pointing.segment(picture())
    for alone in (Box(1, 1, 20, 20), None, 5):
        calls = (lambda r: pointing(picture(), "segment <region>", regions=r),
                 lambda r: pointing.segment(picture(), regions=r),
                 lambda r: pointing.chat(picture()).ask("segment <region>", regions=r))  # fmt: skip
        for call in calls:
            with pytest.raises(PromptError, match=r"regions: expected a list such as \[Box\(10, 20, 50, 80\)\], got"):
                call(alone)


def test_regions_join_a_trained_model(model: Any, make_model: Make, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path / "old")
    with pytest.raises(CheckpointError, match="region_encoder"):
        VisionLLM.from_pretrained(tmp_path / "old", regions={})
    grown = VisionLLM.from_pretrained(tmp_path / "old", regions={}, fresh=["region_encoder"])
    grown.save_pretrained(tmp_path / "new")
    again = VisionLLM.from_pretrained(tmp_path / "new")
    assert again.fingerprint == grown.fingerprint
    assert again.processor.regions
    with pytest.raises(ConfigError, match=r"regions\.layers: no layer 9 in a vision tower of 2"):
        make_model(regions={"layers": [9]})
    with pytest.raises(ConfigError, match=r"regions: layer: unknown key"):
        make_model(regions={"layer": [1]})


def test_the_tree_keeps_regions_on_the_trunk(pointing: Any, sample: Sample) -> None:
    batch = pointing.processor.encode([sample], [Style(tree=True)])
    assert batch.marks is not None
    assert len(batch.marks.masks) == 2
    assert pointing.links(batch).states.isfinite().all()


def test_a_phrase_that_names_a_picture_is_answered_there(pointing: Any, picture: Make, dictate: Make) -> None:
    """Among several pictures, each with its number before it; with one, nothing is numbered."""
    vocabulary = pointing.vocabulary
    script = []
    for phrase in ("cars in picture 2", "cars", "the same as region 1 in Picture 2", "dogs in picture 7"):
        script += [vocabulary.control("<ref>"), *vocabulary.plain(phrase), vocabulary.control("</ref>"),
                   vocabulary.control("[SEG]")]  # fmt: skip
    dictate(pointing, script)
    pictures = [picture(), picture(64, 96, seed=3)]
    answer = pointing(pictures, "segment <region>", regions=[Point(9, 9)], options=OPEN)
    assert [link.meta.media for link in answer.links] == [(1,), (0,), (1,), (0,)]
    assert answer.on(1).masks.size == (64, 96)
    assert answer.on(1).masks.phrases == ("cars in picture 2", "the same as region 1 in Picture 2")
    several, one = (
        pointing.processor.encode([Sample(pictures=tuple(some), turns=(Turn(question="?"),))])
        for some in (pictures, pictures[:1])
    )
    words = vocabulary.text(several.input_ids[0].tolist())
    assert words.index("picture 1: <img>") < words.index("picture 2: <img>")
    assert "picture" not in vocabulary.text(one.input_ids[0].tolist())
