"""The UNet under links draws what diffusers' own pipelines draw, and learns what the papers say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionllm.core.errors import ConfigError
from visionllm.decoders.diffusion.latent import SAMPLERS, LatentDiffusion

Make = Callable[..., Any]
PIPELINES = {1: "StableDiffusionPipeline", 2: "StableDiffusionInstructPix2PixPipeline"}


@pytest.fixture(scope="module")
def published(tiny_diffusion: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Any]]:
    """A folder that diffusers saved, and the pipeline in it; ``reads`` 2 is InstructPix2Pix."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    made: dict[tuple[int, str], tuple[Path, Any]] = {}

    def make(reads: int, kind: str = "epsilon") -> tuple[Path, Any]:
        if (reads, kind) in made:
            return made[reads, kind]
        torch.manual_seed(reads)
        keys = tiny_diffusion(reads)
        text = CLIPTextConfig(
            vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=7, projection_dim=16,
        )  # fmt: skip
        # Stable Diffusion 1.5's own schedule, and its class.
        schedule = diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
            set_alpha_to_one=False, prediction_type=kind,
        )  # fmt: skip
        pipeline = getattr(diffusers, PIPELINES[reads])(
            unet=diffusers.UNet2DConditionModel(**keys["unet"]), vae=diffusers.AutoencoderKL(**keys["vae"]),
            text_encoder=CLIPTextModel(text).eval(), tokenizer=None, scheduler=schedule, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(f"published{reads}")
        pipeline.save_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        made[reads, kind] = folder, pipeline
        return made[reads, kind]

    return make


def states_of(pipeline: Any, seed: int) -> Tensor:
    """(1, 7, 16) states of the pipeline's own text encoder."""
    ids = torch.randint(99, (1, 7), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return pipeline.text_encoder(ids)[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_same_picture_as_the_pipeline(published: Make, kind: str, sampler: str, guidance: float) -> None:
    import diffusers

    folder, pipeline = published(1, kind)
    ours = LatentDiffusion.load(str(folder)).eval()
    states, null = states_of(pipeline, 0), states_of(pipeline, 1)
    # As users set one: from the folder, where every key of the schedule stands.
    pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_pretrained(folder, subfolder="scheduler")
    noise = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(5))
    wanted = pipeline(
        prompt_embeds=states, negative_prompt_embeds=null, guidance_scale=guidance, num_inference_steps=6,
        height=24, width=16, latents=noise.clone(), output_type="np",
    ).images  # fmt: skip
    drawn = ours.draw(states, null, noise, sampler=sampler, steps=6, guidance=guidance)
    np.testing.assert_allclose(drawn.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-4)
    assert wanted.std() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scales", [(1.0, 1.5), (4.0, 1.0), (4.0, 2.0)])
def test_the_same_edit_as_the_pipeline(published: Make, scales: tuple[float, float], sampler: str) -> None:
    import diffusers

    folder, pipeline = published(2)
    ours = LatentDiffusion.load(str(folder)).eval()
    states, null = states_of(pipeline, 0), states_of(pipeline, 1)
    pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_pretrained(folder, subfolder="scheduler")
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    source = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(6))
    wanted = pipeline(
        prompt_embeds=states, negative_prompt_embeds=null, image=source, guidance_scale=scales[0],
        image_guidance_scale=scales[1], num_inference_steps=5, latents=noise.clone(), output_type="np",
    ).images  # fmt: skip
    drawn = ours.draw(
        states, null, noise, sampler=sampler, steps=5, guidance=scales[0], source_guidance=scales[1],
        source_BLhw=ours.encode(source * 2 - 1, scaled=False),
    )  # fmt: skip
    np.testing.assert_allclose(drawn.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-4)


def test_an_old_folder_is_read_as_the_pipeline_reads_it(published: Make, tmp_path: Path) -> None:
    """Its first editions clip and start their steps at zero; diffusers mends that, and so do we."""
    import diffusers

    folder, pipeline = published(1)
    old = type(pipeline)(
        **{name: part for name, part in pipeline.components.items() if name != "scheduler"},
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear"), requires_safety_checker=False,
    )  # fmt: skip
    old.set_progress_bar_config(disable=True)
    shutil.copytree(folder, tmp_path / "old")
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "old" / "scheduler")
    ours = LatentDiffusion.load(str(tmp_path / "old")).eval()
    states, noise = states_of(pipeline, 0), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted = old(prompt_embeds=states, guidance_scale=1.0, num_inference_steps=4, height=16, width=16,
                 latents=noise.clone(), output_type="np").images  # fmt: skip
    drawn = ours.draw(states, states, noise, sampler="ddim", steps=4, guidance=1.0)
    np.testing.assert_allclose(drawn.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-4)


def test_a_schedule_is_read_without_a_word(published: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Each of diffusers' schedulers warns of keys that another class has, once a picture."""
    from diffusers.utils import logging

    folder, _ = published(1)
    caplog.clear()
    logging.enable_propagation()
    ours = LatentDiffusion.load(str(folder)).eval()
    assert "skip_prk_steps" in ours.schedule  # a key of its own class
    for sampler in SAMPLERS:
        ours.draw(torch.zeros(1, 7, 16), torch.zeros(1, 7, 16), torch.zeros(1, 4, 4, 4), sampler=sampler, steps=1,
                  guidance=1.0)  # fmt: skip
    logging.disable_propagation()
    assert not caplog.records


def test_a_seed_is_a_picture_whatever_solver_a_folder_names(tiny_diffusion: Make) -> None:
    """This one draws noise of its own at every step."""
    model = LatentDiffusion.build(tiny_diffusion(vae=False, algorithm_type="sde-dpmsolver++")).eval()
    noise, states = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 5, 16)
    one, other = (model.draw(states, states, noise, sampler="dpm", steps=4, guidance=1.0) for _ in range(2))
    assert torch.equal(one, other)


def test_it_is_built_anew_from_its_keys(published: Make) -> None:
    folder, _ = published(2)
    loaded = LatentDiffusion.load(str(folder))
    keys = json.loads(json.dumps(loaded.network))
    again = LatentDiffusion.build(keys)
    again.load_state_dict(loaded.state_dict())
    assert again.network == loaded.network
    assert loaded.schedule["beta_schedule"] == "scaled_linear"
    assert (loaded.channels, loaded.factor, loaded.multiple, loaded.width) == (4, 2, 4, 16)


def known_model(tiny_diffusion: Make, answer: Callable[[Tensor], Tensor], **schedule: Any) -> LatentDiffusion:
    """In pixel space, its UNet's prediction replaced."""
    torch.manual_seed(0)
    model = LatentDiffusion.build(tiny_diffusion(vae=False, **schedule)).eval()

    class Known(torch.nn.Module):
        config = model.unet.config

        def forward(self, read: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Any:
            return type("Out", (), {"sample": answer(read)})

    model.unet = Known()
    return model


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_by_hand(tiny_diffusion: Make, kind: str) -> None:
    """Evaluation takes the middle step and known noise; a UNet that says nothing is wrong by what it should say."""
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    model = known_model(tiny_diffusion, torch.zeros_like, prediction_type=kind, **schedule)
    pixels, states = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 5, 16)
    noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    share = float(torch.cumprod(1 - betas, 0)[500])
    wanted = noise if kind == "epsilon" else share**0.5 * noise - (1 - share) ** 0.5 * 0.5
    expected = float(wanted.square().mean())
    plain = model.loss(pixels, states, None, min_snr=None)
    assert plain.tolist() == pytest.approx([expected] * 2, rel=1e-4)
    ratio = share / (1 - share)
    for bound in (0.1, 5.0):
        weight = min(ratio, bound) / (ratio + (kind == "v_prediction"))
        assert model.loss(pixels, states, None, min_snr=bound).tolist() == pytest.approx([weight * expected] * 2)
    assert 0.1 < ratio < 5  # one of the bounds bites, the other does not


def test_a_wrong_colour_is_worse_than_a_wrong_brightness(tiny_diffusion: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far off in every channel: one way all of them, which is brightness, or each its own way, which is a colour."""
    model = LatentDiffusion.build(tiny_diffusion()).eval()
    pixels, off = torch.zeros(1, 3, 16, 16), torch.tensor([0.2, 0.2, 0.2])[None, :, None, None]

    def lost(error: Tensor) -> float:
        decoded = type("Out", (), {"sample": pixels + error})
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(model.vae, "decode", lambda latents: decoded)
            return float(model.reconstruction(pixels))

    nothing, bright, colour = (lost(off * sign) for sign in (0.0, 1.0, torch.tensor([1.0, -1.0, 0.0])[:, None, None]))
    assert bright - nothing == pytest.approx(0.2 + 5 * 0.04, abs=1e-5)
    assert colour - nothing == pytest.approx(3 * 2 / 3 * (0.2 + 5 * 0.04), abs=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_who_knows_the_noise_draws_the_picture(tiny_diffusion: Make, sampler: str) -> None:
    """A UNet that knows one picture ends there, up to the noise that the last step of the schedule leaves; guidance
    between equals changes nothing."""
    picture = torch.linspace(-0.9, 0.9, 3 * 64).reshape(1, 3, 8, 8)
    model = LatentDiffusion.build(tiny_diffusion(vae=False)).eval()
    shares = model._train_schedule.alphas_cumprod

    class Oracle(torch.nn.Module):
        config = model.unet.config

        def forward(self, read: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Any:
            # Euler's inputs are scaled to the same variance as the others' before they come here.
            low = int(time)
            share = torch.lerp(shares[low], shares[min(low + 1, 999)], float(time) - low)
            return type("Out", (), {"sample": (read - share.sqrt() * picture) / (1 - share).sqrt()})

    model.unet = Oracle()
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []
    states = torch.zeros(1, 5, 16)
    drawn = model.draw(states, states, noise, sampler=sampler, steps=12, guidance=3.0,
                       progress=lambda done, steps: seen.append((done, steps)))  # fmt: skip
    torch.testing.assert_close(drawn, picture / 2 + 0.5, atol=0.06, rtol=0)
    assert seen == [(i, 12) for i in range(1, 13)]


def test_a_wrong_network_is_one_line(tiny_diffusion: Make, tmp_path: Path) -> None:
    keys = tiny_diffusion()
    for wrong, words in (
        ({}, "unet: missing"),
        ({**keys, "text": {}}, "unknown key 'text'"),
        ({"unet": 3}, "network.unet: expected keys and values"),
        ({"unet": {**keys["unet"], "no_such": 1}}, "network.unet: .*no_such"),
        ({**keys, "scheduler": {"prediction_type": "sample"}}, "prediction_type: 'sample'"),
        ({**keys, "scheduler": {"beta_strt": 0.1}}, "network.scheduler: unknown key 'beta_strt'"),
        ({**keys, "scheduler": {"beta_schedule": "round"}}, "scheduler: DDPMScheduler: round is not implemented"),
        ({**keys, "scheduler": "ddim"}, "network.scheduler: expected keys and values, got str"),
        (
            {
                "unet": {
                    **keys["unet"],
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 64,
                }
            },
            "addition_embed_type 'text_time'",
        ),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            LatentDiffusion.build(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        LatentDiffusion.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        LatentDiffusion.load(str(tmp_path))
    assert "\n" not in str(caught.value)
