"""Pictures out, under the whole model: links steer them, seeds fix them, files remember how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionllm import Sample, VisionLLM
from visionllm.core.errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    PictureError,
    PromptError,
    UnknownNameError,
)
from visionllm.core.images import Images, Recipe
from visionllm.core.sample import Turn
from visionllm.decoders import Context
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]
FAST = {"generation": {"steps": 2}, "editing": {"steps": 2}}


def pixels_of(images: Images) -> list[np.ndarray]:
    return [picture.pixels for picture in images]


def same(one: Images, other: Images) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels_of(one), pixels_of(other), strict=True))


def test_a_seed_is_a_picture(drawer: VisionLLM) -> None:
    first = drawer.generate(None, ["a red car"], options=FAST).images
    assert [picture.size for picture in first] == [(16, 16)]
    assert same(first, drawer.generate(None, ["a red car"], options=FAST).images)
    other = drawer.generate(None, ["a red car"], options={"generation": {"steps": 2, "seed": 1}}).images
    assert not same(first, other)
    words = drawer.generate(None, ["a blue bus"], options=FAST).images
    assert not same(first, words)
    several = drawer.generate(None, ["a red car"], options={"generation": {"steps": 2, "count": 3}}).images
    assert [recipe.seed for recipe in several.recipes] == [0, 1, 2]
    # Pictures of a batch are those drawn alone, to a rounding of 8 bits.
    for one, alone in zip(pixels_of(several), [*pixels_of(first), *pixels_of(other)], strict=False):
        assert int(np.abs(one.astype(int) - alone).max()) <= 1
    wide = drawer.generate(None, ["a"], options={"generation": {"steps": 2, "size": (24, 8)}}).images
    assert wide.pictures[0].size == (24, 8)


def test_the_second_phrase_takes_the_next_seed(drawer: VisionLLM) -> None:
    both = drawer.generate(None, ["a red car", "a red car"], options=FAST).images
    assert [recipe.seed for recipe in both.recipes] == [0, 1]
    assert not np.array_equal(*pixels_of(both))


def test_an_edit_has_the_shape_of_its_source(drawer: VisionLLM, picture: Make) -> None:
    source = picture(80, 40)
    answer = drawer.edit(source.pixels, ["make it blue"], options=FAST)
    assert answer.images.pictures[0].size == (16, 8)
    recipe = answer.images.recipes[0]
    assert (recipe.task, recipe.phrase, recipe.decoder) == ("editing", "make it blue", "editing")
    # The source is read by the decoder itself, beside what its link says of it.
    decoder, turn = drawer.decoders["editing"], Turn(task="editing", phrases=("make it blue",))
    one, other = (drawer.processor.encode([Sample(pictures=(picture(80, 40, seed=seed),), turns=(turn,))])
                  for seed in (0, 3))  # fmt: skip
    with torch.no_grad():
        links = drawer.links(one)
        made = [decoder.predict(links, Context(batch=batch), decoder.Options(steps=2))[0] for batch in (one, other)]
    assert not same(*made)
    assert answer.draw().size == (80 + 8 + 16, 40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, r"options\.generation: steps: .*greater than 0"),
        ({"guidance": -1}, r"guidance: .*greater than or equal to 0"),
        ({"size": (18, 15)}, r"size: 15 is not a multiple of 2; use 14 or 16"),
        ({"guidance": float("inf")}, r"guidance: .*less than or equal to 100"),
        ({"guidance": float("nan")}, r"guidance: "),
        # One step beyond the last is not in the table of its noise.
        ({"steps": 1000}, r"options\.generation\.steps: 1000, but the network was trained on 1000; give fewer"),
        ({"sampler": "plms"}, r"sampler: .*ddim"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**22}, "seed"),
        ({"source_guidance": 1}, "source_guidance: unknown key"),
    ],
)
def test_wrong_options_are_one_line(drawer: VisionLLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        drawer.generate(None, ["a"], options={"generation": options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source_guidance": -1}, r"options\.editing: source_guidance: .*greater than or equal to 0"),
        ({"source_guidance": 101}, r"source_guidance: .*less than or equal to 100"),
        ({"guidance": -1}, r"options\.editing: guidance: .*greater than or equal to 0"),
        ({"steps": 0}, r"options\.editing: steps: .*greater than 0"),
        ({"size": (16, 18)}, r"options\.editing\.size: 18 is not a multiple of 4; use 16 or 20"),
    ],
)
def test_wrong_options_of_an_edit(drawer: VisionLLM, picture: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        drawer.edit(picture(80, 40).pixels, ["make it blue"], options={"editing": options})


def test_most_steps_and_one(drawer: VisionLLM) -> None:
    """Any number of steps below those it was trained on is drawn, and no other."""
    decoder = drawer.decoders["generation"]
    schedule = {"num_train_timesteps": 12, "steps_offset": 1, "timestep_spacing": "leading"}
    before, decoder.model = decoder.model, type(decoder.model).build({**decoder.model.network, "scheduler": schedule})
    for sampler in ("ddim", "dpm", "euler"):
        for steps in (1, 7, 11):
            made = drawer.generate(None, ["a"], options={"generation": {"steps": steps, "sampler": sampler}}).images
            assert made.pictures[0].size == (16, 16)
    with pytest.raises(ConfigError, match="12, but the network was trained on 12; give fewer"):
        drawer.generate(None, ["a"], options={"generation": {"steps": 12}})
    decoder.model = before


def test_an_edit_needs_a_picture(drawer: VisionLLM) -> None:
    with pytest.raises(PromptError, match="at least one"):
        drawer.edit(None, ["make it blue"])
    with pytest.raises(PromptError, match="phrases"):
        drawer.generate(None, [])


def test_progress_and_cancelling(drawer: VisionLLM) -> None:
    seen: list[tuple[int, int]] = []
    options = {"generation": {"steps": 3, "count": 20, "progress": lambda done, all_: seen.append((done, all_))}}
    drawer.generate(None, ["a"], options=options)
    assert seen == [(i, 6) for i in range(1, 7)]  # 16 and 4 pictures
    with pytest.raises(Cancelled, match="step 1"):
        drawer.generate(None, ["a"], options={"generation": {"progress": lambda done, all_: False}})


def test_a_file_remembers_how_it_was_made(drawer: VisionLLM, tmp_path: Path, picture: Make) -> None:
    options = {"generation": {"steps": 2, "count": 2, "seed": 7}}
    made = drawer.generate(None, ["a red car", "a bus"], options=options).images
    made[3].save(tmp_path / "bus.png")
    recipe = Recipe.read(tmp_path / "bus.png")
    assert (recipe.phrase, recipe.seed, recipe.place, recipe.model) == ("a bus", 10, 3, drawer.fingerprint)
    again = drawer.replay(tmp_path / "bus.png")
    assert int(np.abs(pixels_of(again)[0].astype(int) - made.pictures[3].pixels).max()) <= 1
    with Image.open(tmp_path / "bus.png") as image:
        assert np.array_equal(np.asarray(image), made.pictures[3].pixels)
    source = picture(80, 40).pixels
    edit = drawer.edit(source, ["make it blue"], options=FAST).images
    assert same(edit, drawer.replay(edit.recipes[0], source))
    for other in (source[:, ::-1], None, [source, source]):
        with pytest.raises(PromptError, match="of other pictures than"):
            drawer.replay(edit.recipes[0], other)
    with pytest.raises(CheckpointError, match="made by the model 0123"):
        drawer.replay(recipe.model_copy(update={"model": "0123"}))
    with pytest.raises(PromptError, match="conversation"):
        drawer.replay(recipe.model_copy(update={"turn": 1}))
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (("plain", "no recipe"), ("text", "not a picture"), ("missing", "no such file")):
        with pytest.raises(PictureError, match=words):
            Recipe.read(tmp_path / f"{name}.png")


def test_one_reply_may_find_draw_and_edit(drawer: VisionLLM, picture: Make) -> None:
    """Every part typed, in reading order, from one pass."""
    source = picture(80, 60)
    turns = (
        Turn(task="detection", phrases=("car",), question="find the car, then draw a red bus and make it night"),
        Turn(task="generation", phrases=("a red bus",), question="", joined=True),
        Turn(task="editing", phrases=("make it night",), question="", joined=True),
    )
    sample = Sample(pictures=(source,), turns=turns)
    batch = drawer.processor.encode([sample])
    with torch.no_grad():
        found = drawer._decode(drawer.links(batch), batch, FAST)[0]
    assert [link.meta.task for link in found] == ["detection", "generation", "editing"]
    assert [picture.size for link in found[1:] for picture in link.result] == [(16, 16), (16, 12)]


def test_saved_from_a_published_pipeline_it_needs_no_second_file(
    settings: dict[str, Any], tiny_diffusion: Make, tmp_path: Path
) -> None:
    import diffusers

    keys = tiny_diffusion()
    torch.manual_seed(3)
    diffusers.UNet2DConditionModel(**keys["unet"]).save_pretrained(tmp_path / "sd" / "unet")
    diffusers.AutoencoderKL(**keys["vae"]).save_pretrained(tmp_path / "sd" / "vae")
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "sd" / "scheduler")
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    own = {"pretrained": str(tmp_path / "sd"), "size": 16, "outputs": 5, "mapper_heads": 4}
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings | {"decoders": {**settings["decoders"], "generation": own}})).eval()
    made = model.generate(None, ["a"], options=FAST).images
    model.save_pretrained(tmp_path / "saved")
    # Over a checkpoint that has the decoder it comes with settings of its own.
    fresh = ["decoders.generation", "link_queries.tables.[GEN]"]
    over = VisionLLM.from_pretrained(tmp_path / "saved", fresh=fresh, decoders={
        "generation": {"pretrained": str(tmp_path / "sd"), "size": 32, "mapper_heads": 4}})  # fmt: skip
    assert over.generate(None, ["a"], options=FAST).images.pictures[0].size == (32, 32)
    assert over.config.decoders["generation"].get("outputs") is None
    for path in sorted((tmp_path / "sd").rglob("*.*")):
        path.unlink()
    again = VisionLLM.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
    assert same(made, again.generate(None, ["a"], options=FAST).images)
    broken = {**settings["decoders"], "editing": {"network": keys, "size": 16, "mapper_heads": 4}}
    config = ModelConfig(**settings | {"decoders": broken})
    with pytest.raises(ConfigError, match=r"decoders\.editing: its unet reads 4 channels, editing has 8"):
        build_model(config)


def test_what_else_is_loaded_changes_no_word_and_no_box(tiny_diffusion: Make, root: Path) -> None:
    street = root / "examples" / "street.jpg"
    plain = VisionLLM.from_pretrained()
    config = {"network": tiny_diffusion(vae=False), "size": 16, "outputs": 5, "mapper_heads": 4}
    torch.manual_seed(0)
    with_more = VisionLLM.from_pretrained(
        decoders={"generation": config}, fresh=["decoders.generation", "link_queries.tables.[GEN]"]
    )
    for prompt in ("detect all cars", "how many trees are there?"):
        one, other = plain(street, prompt), with_more(street, prompt)
        assert one.text == other.text
        np.testing.assert_array_equal(one.detections.boxes_xyxy, other.detections.boxes_xyxy)
        np.testing.assert_array_equal(one.detections.scores, other.detections.scores)
    assert with_more.generate(None, ["a red car"]).images.pictures[0].size == (16, 16)
    fewer = plain.without("generation", "editing", "restoration")
    one, other = plain.detect(street, ["car"]).detections, fewer.detect(street, ["car"]).detections
    np.testing.assert_array_equal(one.scores, other.scores)
    assert plain(street, "detect all cars").text == fewer(street, "detect all cars").text


def test_a_decoder_is_left_out(drawer: VisionLLM, picture: Make, tmp_path: Path) -> None:
    """What is left does what it did, on disk too, and nobody writes the token."""
    source = picture(80, 60)
    left = drawer.without("editing", "generation")
    assert list(left.decoders) == ["objects"]
    assert list(drawer.decoders) == ["objects", "generation", "editing"]
    left.save_pretrained(tmp_path)
    names = {name for name in VisionLLM.from_pretrained(tmp_path).state_dict() if "GEN" in name or "generation" in name}
    assert not names
    for one in (left, VisionLLM.from_pretrained(tmp_path)):
        found, before = (model.detect(source, ["car"]).detections for model in (one, drawer))
        np.testing.assert_array_equal(found.boxes_xyxy, before.boxes_xyxy)
        kept = [task.name for task in one.tasks]
        assert (
            one.ask(source, "what?", max_new_tokens=8).text
            == drawer.ask(source, "what?", max_new_tokens=8, allow=kept).text
        )
        assert drawer.vocabulary.control("[GEN]") in one.vocabulary.banned()
    with pytest.raises(UnknownNameError, match="no decoder 'painter'"):
        drawer.without("painter")
