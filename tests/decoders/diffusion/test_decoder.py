"""Pictures out, under the whole model: links steer them, seeds fix them, files remember how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
from visionllm.core.sample import Picture, PictureTarget, Turn
from visionllm.decoders import Context
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]
FAST = {"generation": {"steps": 2}, "editing": {"steps": 2}}


@pytest.fixture(scope="module")
def settings(tiny_settings: Make, tiny_diffusion: Make) -> dict[str, Any]:
    keys = tiny_settings()
    common = {"size": 16, "outputs": 5, "mapper_heads": 4}
    keys["decoders"] |= {
        # Clipped: an untrained UNet goes far beyond what a picture can show, and there roundings count.
        "generation": {"network": tiny_diffusion(vae=False, clip_sample=True), "layout": 2, **common},
        "editing": {"network": tiny_diffusion(2), **common},
    }
    return keys


@pytest.fixture(scope="module")
def drawer(settings: dict[str, Any]) -> VisionLLM:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


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
        ({"steps": 1001}, r"options\.generation\.steps: 1001, but the network was trained on 1000"),
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
    for name, words in (("plain", "no recipe"), ("text", "not a picture"), ("missing", "not a picture")):
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


def sample_of(phrase: str, colour: tuple[int, int, int]) -> Sample:
    pixels = np.full((16, 16, 3), colour, np.uint8)
    pixels[4:12, 4:12] = 255 - np.array(colour, np.uint8)
    turn = Turn(task="generation", phrases=(phrase,), target=PictureTarget(pictures=(Picture(pixels=pixels),)))
    return Sample(turns=(turn,))


@pytest.mark.parametrize(("name", "token"), [("generation", "[GEN]"), ("editing", "[EDIT]")])
def test_losses_reach_the_language_model_and_its_link_queries(drawer: VisionLLM, name: str, token: str) -> None:
    drawer.zero_grad()
    drawer.train()
    sample = sample_of("a red square", (220, 30, 30))
    if name == "editing":
        (turn,) = sample.turns
        sample = replace(sample, pictures=turn.target.pictures, turns=(replace(turn, task=name),))
    losses = drawer(drawer.processor.encode([sample]))
    losses.sums[f"{name}/noise"].backward()
    table = dict(drawer.named_parameters())
    for one in (f"link_queries.tables.{token}", "mllm.net.model.language_model.layers.0.mlp.up_proj.weight",
                f"decoders.{name}.mapper.wanted"):  # fmt: skip
        assert float(table[one].grad.abs().sum()) > 0, one
    drawer.zero_grad()
    drawer.eval()


def test_phrases_left_out_teach_the_null_link(drawer: VisionLLM) -> None:
    decoder = drawer.decoders["generation"]
    batch = drawer.processor.encode([sample_of(f"square {i}", (9 * i, 30, 30)) for i in range(8)])
    losses = []
    for drop in (0.0, 0.999):
        decoder.drop = drop
        drawer.zero_grad()
        drawer.train()
        torch.manual_seed(1)
        drawer(batch).sums["generation/noise"].backward()
        losses.append(
            (
                decoder.null.grad is not None and float(decoder.null.grad.abs().sum()) > 0,
                float(dict(drawer.named_parameters())["link_queries.tables.[GEN]"].grad.abs().sum()) > 0,
            )
        )
    decoder.drop = 0.1
    drawer.zero_grad()
    drawer.eval()
    assert losses == [(False, True), (True, False)]


@pytest.mark.slow
def test_two_pictures_are_learned_by_their_words(settings: dict[str, Any]) -> None:
    """Through the links: the same noise becomes the one or the other, as the phrase says."""
    torch.manual_seed(0)
    keys = settings["decoders"]
    generation = {**keys["generation"], "drop": 0.1}
    generation["network"] = {
        **generation["network"],
        "scheduler": {"prediction_type": "v_prediction", "clip_sample": True},
    }
    model = build_model(ModelConfig(**settings | {"decoders": {"objects": keys["objects"], "generation": generation}}))
    colours = {"a red square": (220, 30, 30), "a blue ring": (20, 40, 230)}
    samples = [sample_of(phrase, colour) for phrase, colour in colours.items()]
    batch = model.processor.encode(samples * 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(240):
        loss = model(batch).sums["generation/noise"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    for phrase in colours:
        options = {"generation": {"steps": 20, "guidance": 1.5}}
        made = model.generate(None, [phrase], options=options).images.pictures[0].pixels.astype(float)
        far = {other: float(np.abs(made - target.turns[0].target.pictures[0].pixels).mean())
               for other, target in zip(colours, samples, strict=True)}  # fmt: skip
        assert far[phrase] < 40 < min(value for other, value in far.items() if other != phrase), (phrase, far)


def test_many_noises_of_a_picture_share_what_is_read(settings: dict[str, Any]) -> None:
    """The UNet sees each picture under so many noises, with early and late steps in every batch; the loss is the mean
    of theirs, and nothing of it stays in a checkpoint."""
    own = {**settings["decoders"]["generation"], "drop": 0.0, "noises": 4}
    model = build_model(ModelConfig(**settings | {"decoders": {"generation": own}})).train()
    decoder = model.decoders["generation"]
    batch = model.processor.encode([sample_of("a red square", (220, 30, 30)), sample_of("a blue ring", (20, 40, 230))])
    assert model.counts(batch)["generation/noise"] == 2
    mapped, seen = [], []
    decoder.mapper.register_forward_hook(lambda module, given, made: mapped.append(len(made)))
    decoder.model.unet.register_forward_pre_hook(
        lambda module, given, named: seen.append((given[0], given[1], named["encoder_hidden_states"])), with_kwargs=True
    )
    model(batch).sums["generation/noise"].backward()
    ((noisy, time, states),) = seen
    assert mapped == [2]
    assert len(noisy) == 8
    assert torch.equal(states[:2], states[2:4])
    assert not torch.equal(states[0], states[1])
    assert (time.sort().values.diff() - 125).abs().max() <= 1
    decoder.model.loss = lambda latents, states, source, **how: latents.flatten(1).mean(1)
    many = model(batch).sums["generation/noise"]
    decoder.noises = 1
    torch.testing.assert_close(many, model(batch).sums["generation/noise"])
    assert "noises" not in decoder.described(own)


def test_steps_lean_to_the_noise(settings: dict[str, Any]) -> None:
    """As likely above shift / (shift + 1) of all steps as below it; nothing of it stays in a checkpoint."""
    own = {**settings["decoders"]["generation"], "drop": 0.0, "noises": 64, "shift": 3.0}
    model = build_model(ModelConfig(**settings | {"decoders": {"generation": own}})).train()
    decoder = model.decoders["generation"]
    batch = model.processor.encode([sample_of("a red square", (220, 30, 30))])
    seen = []
    decoder.model.unet.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    model(batch)
    (time,) = seen
    assert time.max() < 1000
    assert abs(int((time >= 750).sum()) - 32) <= 1
    assert abs(int((time < 250).sum()) - 6) <= 1  # a tenth: u of 3 u / (1 + 2 u) = 1 / 4
    decoder.shift = 1.0
    model(batch)
    assert abs(int((seen[1] >= 750).sum()) - 16) <= 1
    assert "shift" not in decoder.described(own)


def test_the_autoencoder_learns_by_itself(settings: dict[str, Any], tiny_diffusion: Make, tmp_path: Path) -> None:
    """Nothing else does; the latents' spread is kept with it, so that what is drawn later has unit variance."""
    torch.manual_seed(0)
    own = {"network": tiny_diffusion(), "size": 16, "outputs": 5, "mapper_heads": 4}
    config = ModelConfig(**settings | {"decoders": {"generation": {**own, "learn": "autoencoder"}}})
    model = build_model(config).train()
    assert set(model.loss_weights()) >= {"generation/reconstruction"}
    assert "generation/noise" not in model.loss_weights()
    batch = model.processor.encode([sample_of("a", (220, 30, 30)), sample_of("b", (30, 90, 200))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lost = []
    for _ in range(60):
        loss = model(batch).sums["generation/reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert all(name.startswith("decoders.generation.model.vae.") for name in learned), learned
        assert any("encoder" in name for name in learned)
        assert any("decoder." in name for name in learned)
        optimizer.step()
        lost.append(float(loss.detach()))
    assert lost[-1] < 0.4 * lost[0], (lost[0], lost[-1])
    model.zero_grad()
    model.decoders["generation"].idle().backward()
    assert all(p.grad is not None for p in model.decoders["generation"].model.vae.parameters())
    model.eval().save_pretrained(tmp_path)
    again = VisionLLM.from_pretrained(tmp_path)
    decoder = again.decoders["generation"]
    assert not decoder.unlinked
    assert "learn" not in again.config.decoders["generation"]
    assert {"noise"} == set(decoder.tasks[0].loss_weights)
    assert not any(parameter.requires_grad for parameter in decoder.model.vae.parameters())
    pixels = decoder._stack([one.turns[0].target.pictures[0] for one in batch.samples], (16, 16))
    # Measured while they still moved.
    assert float(decoder.model.encode(pixels).std()) == pytest.approx(1, abs=0.35)
    bare = {**own, "network": tiny_diffusion(vae=False), "learn": "autoencoder"}
    with pytest.raises(ConfigError, match="learn: this network has no vae"):
        build_model(ModelConfig(**settings | {"decoders": {"generation": bare}}))


def test_latents_that_stand_become_pixels_better(settings: dict[str, Any], tiny_diffusion: Make) -> None:
    """The autoencoder's decoder learns alone; what a UNet knows of latents, and their scale, stays true."""
    torch.manual_seed(0)
    own = {"network": tiny_diffusion(), "size": 16, "outputs": 5, "mapper_heads": 4, "learn": "pixels"}
    model = build_model(ModelConfig(**settings | {"decoders": {"generation": own}})).train()
    batch = model.processor.encode([sample_of("a", (220, 30, 30)), sample_of("b", (30, 90, 200))])
    decoder = model.decoders["generation"]
    pixels = decoder._stack([one.turns[0].target.pictures[0] for one in batch.samples], (16, 16))
    latents, described = decoder.model.encode(pixels), decoder.model.network
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    lost = []
    for _ in range(60):
        loss = model(batch).sums["generation/reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        learned = {name.split(".")[4] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learned == {"decoder", "post_quant_conv"}
        optimizer.step()
        lost.append(float(loss.detach()))
    assert lost[-1] < 0.85 * lost[0], (lost[0], lost[-1])  # of latents that nobody chose
    assert torch.equal(decoder.model.encode(pixels), latents)
    assert decoder.model.network == described
    model.zero_grad()
    decoder.idle().backward()
    assert all((p.grad is not None) == p.requires_grad for p in decoder.model.vae.parameters())


def test_adapters_change_nothing_at_first_and_learn_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    keys = settings["decoders"]
    models = []
    for more in ({}, {"lora": 2}):
        torch.manual_seed(0)
        decoders = {"generation": {**keys["generation"], "drop": 0.0, **more}}
        models.append(build_model(ModelConfig(**settings | {"decoders": decoders})).eval())
    plain, adapted = models
    state = {name: value for name, value in adapted.state_dict().items() if "lora" not in name}
    assert len(adapted.state_dict()) > len(state) == len(plain.state_dict())
    own = {name.replace(".base_layer", ""): value for name, value in state.items()}
    assert all(torch.equal(value, own[name]) for name, value in plain.state_dict().items() if ".unet." in name)
    # Zero outputs: with the same links and mapper they draw the same.
    adapted.load_state_dict({name: plain.state_dict()[name.replace(".base_layer", "")] for name in state}, strict=False)
    made = adapted.generate(None, ["a"], options={"generation": {"steps": 2}}).images
    assert same(made, plain.generate(None, ["a"], options={"generation": {"steps": 2}}).images)
    adapted.train()
    adapted(adapted.processor.encode([sample_of("a", (220, 30, 30))])).sums["generation/noise"].backward()
    learned = {name for name, p in adapted.named_parameters() if p.grad is not None and ".unet." in name}
    assert learned
    assert all("lora_" in name for name in learned)
    adapted.eval().save_pretrained(tmp_path / "adapted")
    assert same(made, VisionLLM.from_pretrained(tmp_path / "adapted").generate(
        None, ["a"], options={"generation": {"steps": 2}}).images)  # fmt: skip


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and text encoder in a pipeline's layout: five states of width 16."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("text")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=5)
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = CLIPTextConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2, max_position_embeddings=5, projection_dim=16,
                            bos_token_id=52, eos_token_id=53)  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_links_learn_to_say_what_a_text_encoder_says(
    settings: dict[str, Any], text_encoder: Path, learn: Make, tmp_path: Path
) -> None:
    keys = settings["decoders"]["generation"]
    torch.manual_seed(0)
    own = {"generation": {**keys, "drop": 0.0, "align": str(text_encoder)}}
    model = build_model(ModelConfig(**settings | {"decoders": own}))
    batch = model.processor.encode([sample_of("a bus", (9, 30, 30)), sample_of("red", (90, 30, 30))])
    assert model.loss_weights()["generation/align"] == 1.0
    assert model.counts(batch)["generation/align"] == 2.0
    lost = learn(model, batch, "generation/align")
    assert lost[-1] < 0.1 * lost[0], (lost[0], lost[-1])
    # The teacher stays behind.
    model.eval().save_pretrained(tmp_path / "model")
    assert "align" not in json.loads((tmp_path / "model" / "config.json").read_text())["decoders"]["generation"]
    assert VisionLLM.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    for wrong, words in (
        ({"outputs": 6}, "gives 5 states of width 16"),
        ({"align": str(tmp_path)}, "cannot be loaded"),
    ):
        config = ModelConfig(**settings | {"decoders": {"generation": {**own["generation"], **wrong}}})
        with pytest.raises(ConfigError, match=words):
            build_model(config)


def test_what_was_left_out_learns_to_say_nothing(
    settings: dict[str, Any], text_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance goes by the difference of what is said and nothing said, of which the text encoder has a word too."""
    keys = settings["decoders"]["generation"]
    own = {"generation": {**keys, "drop": 0.5, "align": str(text_encoder)}}
    model = build_model(ModelConfig(**settings | {"decoders": own})).train()
    told, batch = model.decoders["generation"], model.processor.encode([sample_of("a bus", (9, 30, 30))])
    links, ctx = model.links(batch), Context(batch=batch)
    wanted = told._teachers[0](["", "a bus"])
    for drawn, said in ((0.0, told.null), (0.9, links.states.reshape_as(told.null))):
        with monkeypatch.context() as only:
            only.setattr(torch, "rand", lambda *size, drawn=drawn, **_: torch.zeros(*size) + drawn)
            lost = told.loss(links, ctx)["align"]
        torch.testing.assert_close(lost, (told.mapper(said[None])[0] - wanted[int(drawn > 0)]).square().mean())
