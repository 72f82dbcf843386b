"""How decoders that draw are taught: losses reach the links; null links, adapters, autoencoders, a text encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import Sample, VisionLLM
from visionllm.core.errors import ConfigError
from visionllm.core.images import Images
from visionllm.core.sample import Picture, PictureTarget, Turn
from visionllm.decoders import Context
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]


def pixels_of(images: Images) -> np.ndarray:
    return np.stack([picture.pixels for picture in images])


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


def test_source_pictures_are_left_out_too(drawer: VisionLLM) -> None:
    """In training alone, and each by itself: guidance by the picture goes by what is drawn without it."""
    decoder = drawer.decoders["editing"]
    samples = []
    for i in range(8):
        sample = sample_of(f"make it {i}", (9 * i + 60, 30, 30))
        (turn,) = sample.turns
        samples.append(replace(sample, pictures=turn.target.pictures, turns=(replace(turn, task="editing"),)))
    batch, seen = drawer.processor.encode(samples), []
    hook = decoder.model.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 4:]))
    for drop, training in ((0.0, True), (0.5, True), (0.999, True), (0.5, False)):
        decoder.drop = drop
        torch.manual_seed(1)
        with torch.no_grad():
            drawer.train(training)(batch)
    hook.remove()
    decoder.drop = 0.1
    drawer.eval()
    shown = [int(source.flatten(1).any(1).sum()) for source in seen]
    assert (shown[0], shown[2], shown[3]) == (8, 0, 8)
    assert 0 < shown[1] < 8


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_bound_of_the_signal_weighs_the_loss(drawer: VisionLLM, kind: str) -> None:
    """``min_snr`` of the decoder: in evaluation every picture is at the middle step, where all are weighed alike."""
    decoder = drawer.decoders["editing"]
    sample = sample_of("a red square", (220, 30, 30))
    (turn,) = sample.turns
    sample = replace(sample, pictures=turn.target.pictures, turns=(replace(turn, task="editing"),))
    batch, before = drawer.processor.encode([sample]), decoder.model
    decoder.model = type(before).build({**before.network, "scheduler": {**before.schedule, "prediction_type": kind}})
    decoder.model.load_state_dict(before.state_dict())
    drawer.eval()
    lost = []
    for bound in (None, 0.01):
        decoder.min_snr = bound
        with torch.no_grad():
            lost.append(float(drawer(batch).sums["editing/noise"]))
    share = float(decoder.model._train_schedule.alphas_cumprod[500])
    ratio = share / (1 - share)
    decoder.min_snr, decoder.model = None, before
    assert lost[1] == pytest.approx(lost[0] * 0.01 / (ratio + (kind == "v_prediction")), rel=1e-4)


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

    def far(phrase: str, shown: Sample) -> float:
        options = {"generation": {"steps": 20, "guidance": 1.5}}
        made = model.generate(None, [phrase], options=options).images.pictures[0].pixels.astype(float)
        return float(np.abs(made - shown.turns[0].target.pictures[0].pixels).mean())

    for _ in range(3):  # how many steps it takes hangs on the processor
        model.train()
        for _ in range(240):
            loss = model(batch).sums["generation/noise"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        table = np.array([[far(phrase, shown) for shown in samples] for phrase in colours])
        if table.diagonal().max() < 40 < min(table[0, 1], table[1, 0]):
            return
    raise AssertionError(table)


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
    once = plain.generate(None, ["a"], options={"generation": {"steps": 2}}).images
    np.testing.assert_array_equal(pixels_of(made), pixels_of(once))
    adapted.train()
    adapted(adapted.processor.encode([sample_of("a", (220, 30, 30))])).sums["generation/noise"].backward()
    learned = {name for name, p in adapted.named_parameters() if p.grad is not None and ".unet." in name}
    assert learned
    assert all("lora_" in name for name in learned)
    adapted.eval().save_pretrained(tmp_path / "adapted")
    again = VisionLLM.from_pretrained(tmp_path / "adapted")
    once = again.generate(None, ["a"], options={"generation": {"steps": 2}}).images
    np.testing.assert_array_equal(pixels_of(made), pixels_of(once))


@pytest.fixture(scope="module")
def text_encoder(tiny_diffusion: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline, saved by diffusers; its text encoder has five states of width 16."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("text")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=5)
    torch.manual_seed(0)
    config = CLIPTextConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2, max_position_embeddings=5, projection_dim=16,
                            bos_token_id=52, eos_token_id=53)  # fmt: skip
    keys = tiny_diffusion()
    diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**keys["unet"]), vae=diffusers.AutoencoderKL(**keys["vae"]),
        text_encoder=CLIPTextModel(config).eval(), tokenizer=tokenizer, scheduler=diffusers.PNDMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")  # fmt: skip
    return folder / "pipeline"


def test_a_whole_pipeline_draws_and_teaches(settings: dict[str, Any], text_encoder: Path) -> None:
    """One folder for all: its UNet under adapters, and its text encoder, whose states are the pipeline's own."""
    import diffusers

    own = {"pretrained": str(text_encoder), "align": str(text_encoder), "size": 16, "outputs": 5, "mapper_heads": 4,
           "lora": 2, "drop": 0.0}  # fmt: skip
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings | {"decoders": {"generation": own}})).train()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(text_encoder, safety_checker=None)
    phrases = ["a bus", "red"]
    theirs, nothing = pipeline.encode_prompt(phrases, "cpu", 1, True)
    teacher = model.decoders["generation"]._teachers[0]
    torch.testing.assert_close(teacher(phrases), theirs)
    torch.testing.assert_close(teacher([""]), nothing[:1])
    losses = model(model.processor.encode([sample_of(phrase, (9, 30, 30)) for phrase in phrases])).sums
    (losses["generation/noise"] + losses["generation/align"]).backward()
    table = dict(model.named_parameters())
    assert float(table["link_queries.tables.[GEN]"].grad.abs().sum()) > 0
    learned = {name for name, p in table.items() if p.grad is not None and ".unet." in name}
    assert learned
    assert all("lora_" in name for name in learned)
    assert model.eval().generate(None, ["a"], options={"generation": {"steps": 2}}).images.pictures[0].size == (16, 16)


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
