"""One picture of 64 pixels in 20 steps: our loop and diffusers' pipeline, at equal weights, states and noise.

python tools/bench/pictures.py [PIPELINE]    (a folder in Stable Diffusion's layout; without one, random weights)
"""

import os
import statistics
import sys
import tempfile
import time

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from visionllm.decoders.diffusion.latent import LatentDiffusion

ROUNDS, STEPS, SIDE, GUIDANCE = 9, 20, 64, 5.0


def main(name: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = name or made(folder)
        ours = LatentDiffusion.load(name).eval()
    theirs = StableDiffusionPipeline(
        vae=ours.vae, unet=ours.unet, text_encoder=encoder(ours.width), tokenizer=None,
        scheduler=DDIMScheduler.from_config(ours.schedule), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    side = SIDE // ours.factor
    states, null = torch.randn(2, 1, 77, ours.width).unbind(0)
    noise = torch.randn(1, ours.channels, side, side)

    def draw() -> torch.Tensor:
        return ours.draw(states, null, noise, sampler="ddim", steps=STEPS, guidance=GUIDANCE)

    def pipeline() -> torch.Tensor:
        drawn = theirs(
            prompt_embeds=states, negative_prompt_embeds=null, latents=noise.clone(), height=SIDE, width=SIDE,
            guidance_scale=GUIDANCE, num_inference_steps=STEPS, output_type="pt",
        )  # fmt: skip
        return drawn.images

    size = sum(p.numel() for p in ours.unet.parameters()) / 1e6
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.2f}, UNet {size:.1f} M, {STEPS} steps")
    print(f"greatest difference {float((draw() - pipeline()).abs().max()):.1e}")
    seconds: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for _ in range(ROUNDS):
        for call, run in (("ours", draw), ("diffusers", pipeline)):
            started = time.perf_counter()
            run()
            seconds[call].append(time.perf_counter() - started)
    for call, values in seconds.items():
        print(f"{call:10} min {min(values):6.3f} s   median {statistics.median(values):6.3f} s")
    ratios = sorted(a / b for a, b in zip(seconds["ours"], seconds["diffusers"], strict=True))
    print(f"ratio      min {ratios[0]:6.3f}     median {statistics.median(ratios):6.3f}")


def made(folder: str) -> str:
    """A pipeline of some millions of random weights."""
    UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128, 128), layers_per_block=1,
        norm_num_groups=16, cross_attention_dim=128, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(f"{folder}/unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=16, latent_channels=4,
    ).save_pretrained(f"{folder}/vae")  # fmt: skip
    DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1).save_pretrained(
        f"{folder}/scheduler"
    )
    with open(f"{folder}/model_index.json", "w", encoding="utf-8") as file:
        file.write("{}")
    return folder


def encoder(width: int) -> CLIPTextModel:
    """Never run: the states are given."""
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=1)
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
