"""A UNet, the autoencoder whose latents it draws, and the noise schedule; all three are diffusers' own.

B = pictures, L = latent channels, H x W = pixels, h x w = latents, O = states the UNet attends to, C = their width.
Pixels are RGB in [-1, 1]. Without an autoencoder the latents are the pixels (Ho et al. 2020, "Denoising diffusion
probabilistic models").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionllm.core.errors import ConfigError

# Sampler -> scheduler of diffusers: Song et al. 2021 (DDIM), Lu et al. 2022 (DPM-Solver++), Karras et al. 2022 (Euler).
SAMPLERS = {"ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
# The one whose noise is learned, and those that published folders of Stable Diffusion and InstructPix2Pix name.
_TRAINED, _PUBLISHED = "DDPMScheduler", ("PNDMScheduler", "EulerAncestralDiscreteScheduler")
# Weight of the divergence of a latent, against the mean difference of pixels.
_DIVERGENCE = 1e-4
# Of the squared differences against the absolute ones.
_SQUARES = 5.0
# Of what is wrong with a colour beyond its brightness: small things are told by it, and few pixels say it.
_COLOURS = 2.0
# Stable Diffusion's: what a schedule is where nothing is said.
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


class LatentDiffusion(nn.Module):
    """Draws pictures under states that a UNet attends to.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        vae: diffusers' ``AutoencoderKL``, or None; it stands still.
        schedule: keys of a diffusers scheduler configuration.
    """

    def __init__(self, unet: nn.Module, vae: nn.Module | None, schedule: Mapping[str, Any]) -> None:
        super().__init__()
        more = unet.config.addition_embed_type  # type: ignore[union-attr]
        if more is not None:
            raise ConfigError(
                f"unet: addition_embed_type {more!r} is not supported; take a UNet that reads states alone"
            )
        self.unet = unet
        self.vae = None if vae is None else vae.requires_grad_(False)
        # Keys that a given schedule leaves out mean diffusers' own defaults, as they do in its pipelines.
        self.schedule = _public(schedule) or dict(SCHEDULE)
        self._made_new = False  # whether the latents themselves are being learned
        self._spread: float | None = None  # of the latents, where they are being learned
        self._train_schedule = _scheduler(_TRAINED, self.schedule)
        kind = self._train_schedule.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(f"scheduler: prediction_type: {kind!r} is not supported; use epsilon or v_prediction")

    @classmethod
    def build(cls, network: Mapping[str, Any]) -> LatentDiffusion:
        """From keys: ``unet``, and where they are wanted ``vae`` and ``scheduler``, each as diffusers writes them.

        Raises:
            ConfigError: a key is unknown or missing, or a value does not fit.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel

        unknown = sorted(set(network) - {"unet", "vae", "scheduler"})
        if unknown or "unet" not in network:
            raise ConfigError(f"network: {f'unknown key {unknown[0]!r}' if unknown else 'unet: missing'}; "
                              "it has unet, vae and scheduler")  # fmt: skip
        schedule = network.get("scheduler") or {}
        if not isinstance(schedule, Mapping):
            raise ConfigError(f"network.scheduler: expected keys and values, got {type(schedule).__name__}")
        unknown = sorted(set(_public(schedule)) - _schedule_keys())
        if unknown:
            raise ConfigError(f"network.scheduler: unknown key {unknown[0]!r}; it has keys of diffusers' schedulers, "
                              "such as beta_schedule and prediction_type")  # fmt: skip
        unet = _made(UNet2DConditionModel, network["unet"], "network.unet")
        vae = None if network.get("vae") is None else _made(AutoencoderKL, network["vae"], "network.vae")
        return cls(unet, vae, schedule)

    @classmethod
    def load(cls, name: str) -> LatentDiffusion:
        """From a folder or hub id in the layout of a Stable Diffusion pipeline. Only safetensors are read.

        Raises:
            ConfigError: it is not there, or not in that layout.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel

        folder = Path(name)
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            raise ConfigError(
                f"pretrained: {name}: no model_index.json; give the folder of a Stable Diffusion pipeline"
            )
        try:
            unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", use_safetensors=True)
            vae = AutoencoderKL.from_pretrained(name, subfolder="vae", use_safetensors=True)
            schedule = _scheduler_config(name)
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise ConfigError(f"pretrained: {name}: cannot be loaded ({str(error).splitlines()[0]})") from None
        return cls(unet, vae, schedule)

    @property
    def steps(self) -> int:
        """Steps of the noise it was trained on. A sampler takes fewer: with all it may step beyond the last."""
        return int(self._train_schedule.config.num_train_timesteps)

    def adapt(self, rank: int) -> None:
        """Adapters on the queries, keys, values and outputs of the UNet's attention (Hu et al. 2022, "LoRA"), which
        change nothing at first; all else of the UNet stands still."""
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        self.unet.requires_grad_(False)
        self.unet.add_adapter(config)  # type: ignore[operator]

    def attend(self, kind: str) -> None:
        """Choose how the UNet computes attention: ``sdpa`` (torch), or anything else for plain products of matrices,
        whose gradient is the faster one on a CPU."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.unet.set_attn_processor(AttnProcessor2_0() if kind == "sdpa" else AttnProcessor())  # type: ignore

    def learn_autoencoder(self, *, latents: bool) -> None:
        """The autoencoder learns, and the UNet stands still.

        Args:
            latents: all of it learns, for what the UNet will draw is not yet there. Else its decoder alone, so that a
                UNet that knows these latents draws on.

        Raises:
            ConfigError: there is none.
        """
        if self.vae is None:
            raise ConfigError("learn: this network has no vae; leave learn out, or give network.vae")
        self.vae.requires_grad_(True)
        self.unet.requires_grad_(False)
        if not latents:
            for part in (self.vae.encoder, self.vae.quant_conv):
                if part is not None:
                    part.requires_grad_(False)
        self._made_new = latents

    @property
    def network(self) -> dict[str, Any]:
        """The keys that build it anew."""
        vae = None if self.vae is None else _public(self.vae.config)  # type: ignore[arg-type]
        if vae is not None and self._spread is not None:
            vae["scaling_factor"] = round(1 / self._spread, 4)
        return {"unet": _public(self.unet.config), "vae": vae, "scheduler": dict(self.schedule)}  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        """L."""
        return 3 if self.vae is None else int(self.vae.config.latent_channels)  # type: ignore[union-attr, arg-type]

    @property
    def factor(self) -> int:
        """Pixels of a latent, along each side."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)  # type: ignore

    @property
    def multiple(self) -> int:
        """Both sides of a picture are multiples of this."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Channels of each of the UNet's levels going down, and how many times as small as the latents its map is where
        something may be added: a level that attends takes it before it shrinks, another one behind."""
        kinds, channels = self.unet.config.down_block_types, self.unet.config.block_out_channels  # type: ignore
        last = len(kinds) - 1
        behind = ["CrossAttn" not in kind and i < last for i, kind in enumerate(kinds)]
        return tuple((channels[i], 2 ** (i + behind[i])) for i in range(len(kinds)))

    @property
    def width(self) -> int:
        """C."""
        return int(self.unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor, *, scaled: bool = True, sample: bool = False) -> Tensor:
        """Pixels -> (B, L, h, w).

        Args:
            scaled: to unit variance, as what is drawn; the source of an edit is not (InstructPix2Pix).
            sample: draw from the autoencoder's posterior; else its mode.
        """
        if self.vae is None:
            return pixels_B3HW
        posterior = self.vae.encode(pixels_B3HW).latent_dist  # type: ignore[operator]
        latents = posterior.sample() if sample else posterior.mode()
        return latents * self.vae.config.scaling_factor if scaled else latents  # type: ignore[union-attr, operator]

    def reconstruction(self, pixels_B3HW: Tensor) -> Tensor:
        """(B,) how far the autoencoder's pictures are from these: absolute and squared differences of pixels, for a
        thing of the wrong colour is worse than many soft edges, those of their colours beside them, and a little of the
        divergence from unit normal latents (Rombach et al. 2022, "High-resolution image synthesis with latent diffusion
        models", without its critic)."""
        assert self.vae is not None
        posterior = self.vae.encode(pixels_B3HW).latent_dist  # type: ignore[operator]
        latents = posterior.sample()
        if self._made_new:
            self._spread = float(latents.detach().float().std())
        lost_B3HW = self.vae.decode(latents).sample.float() - pixels_B3HW.float()  # type: ignore[operator]
        colour_B3HW = lost_B3HW - lost_B3HW.mean(1, keepdim=True)
        apart_B = sum(
            weight * (lost.abs() + _SQUARES * lost.square()).flatten(1).mean(1)
            for weight, lost in ((1.0, lost_B3HW), (_COLOURS, colour_B3HW))
        )
        return apart_B + _DIVERGENCE * posterior.kl().float() / latents[0].numel()

    def idle_autoencoder(self) -> Tensor:
        """A number that hangs on every weight of the autoencoder that learns, from the smallest picture."""
        assert self.vae is not None
        nothing = torch.zeros(1, 3, self.multiple, self.multiple, device=next(self.vae.parameters()).device)
        posterior = self.vae.encode(nothing).latent_dist  # type: ignore[operator]
        return self.vae.decode(posterior.mode()).sample.sum() + posterior.logvar.sum()  # type: ignore[operator]

    @torch.no_grad()
    def decode(self, latents_BLhw: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, 3, H, W) in [0, 1]."""
        if self.vae is not None:
            latents_BLhw = self.vae.decode(latents_BLhw / self.vae.config.scaling_factor).sample  # type: ignore
        return (latents_BLhw / 2 + 0.5).clamp(0, 1)

    def predict(self, read_BLhw: Tensor, time: Tensor, states_BOC: Tensor, layout: Sequence[Tensor] = ()) -> Tensor:
        """(B, L, h, w) what the UNet makes of noisy latents."""
        # A list of its own: levels are taken off it one by one.
        more = {"down_intrablock_additional_residuals": list(layout)} if layout else {}
        return self.unet(read_BLhw, time, encoder_hidden_states=states_BOC, **more).sample

    def loss(
        self, latents_BLhw: Tensor, states_BOC: Tensor, source_BLhw: Tensor | None, *, min_snr: float | None,
        shift: float = 1.0, layout: Sequence[Tensor] = (),
    ) -> Tensor:  # fmt: skip
        """(B,) mean squared error of what the UNet is to predict (the noise, or v), at a step drawn for each picture.

        The steps of a batch lie at equal distances from a first one that is drawn, so that every batch has early and
        late ones (Kingma et al. 2021, "Variational diffusion models", appendix I.1). In evaluation mode step and noise
        of a picture are always the same, so that two such losses compare.

        Args:
            source_BLhw: latents of the pictures to be changed, read beside the noise (Brooks et al. 2023,
                "InstructPix2Pix").
            min_snr: weights of Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy".
            shift: how the steps drawn lean to noise: as likely to be above ``shift / (shift + 1)`` of all as below it
                (Esser et al. 2024, "Scaling rectified flow transformers", section 5.3.2); 1 draws all alike.
            layout: what is added to each level of the UNet.
        """
        schedule, device = self._train_schedule, latents_BLhw.device
        most = schedule.config.num_train_timesteps
        if self.training:
            noise = torch.randn_like(latents_BLhw)
            apart_B = torch.randperm(len(latents_BLhw)) / len(latents_BLhw)
            even_B = (torch.rand(()) + apart_B) % 1
            time_B = (shift * even_B / (1 + (shift - 1) * even_B) * most).long().clamp(max=most - 1).to(device)
        else:
            one = torch.randn(latents_BLhw.shape[1:], generator=torch.Generator().manual_seed(0))
            noise = one.to(latents_BLhw).expand_as(latents_BLhw)
            time_B = torch.full((len(latents_BLhw),), most // 2, device=device)
        noisy = schedule.add_noise(latents_BLhw, noise, time_B)
        read = noisy if source_BLhw is None else torch.cat([noisy, source_BLhw], 1)
        predicted = self.predict(read, time_B, states_BOC, layout)
        velocity = schedule.config.prediction_type == "v_prediction"
        wanted = schedule.get_velocity(latents_BLhw, noise, time_B) if velocity else noise
        lost_B = (predicted.float() - wanted.float()).square().flatten(1).mean(1)
        if min_snr is None:
            return lost_B
        share_B = schedule.alphas_cumprod.to(device)[time_B]
        ratio_B = share_B / (1 - share_B)
        weight_B = ratio_B.clamp(max=min_snr) / (ratio_B + 1 if velocity else ratio_B)
        return weight_B * lost_B

    @torch.no_grad()
    def draw(
        self, states_BOC: Tensor, null_BOC: Tensor, noise_BLhw: Tensor, *, sampler: str, steps: int, guidance: float,
        source_BLhw: Tensor | None = None, source_guidance: float = 1.0, layout: Sequence[Tensor] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, 3, H, W) in [0, 1].

        Args:
            null_BOC: the states of no words, for guidance (Ho and Salimans 2022, "Classifier-free diffusion guidance").
            noise_BLhw: what the drawing begins with, of unit variance.
            guidance: how many times the step from no words to the words is taken; 1 or less is without guidance.
            source_BLhw: as in ``loss``; unscaled latents.
            source_guidance: the same of the picture (InstructPix2Pix, two scales); below 1 is without either.
            layout: as in ``loss``; part of the words.
            progress: told (steps done, steps) after each.
        """
        # A folder may name another solver, one that draws noise of its own: then a seed would be no picture.
        scheduler = _scheduler(SAMPLERS[sampler], {**self.schedule, "algorithm_type": "dpmsolver++"})
        scheduler.set_timesteps(steps, device=noise_BLhw.device)
        latents = noise_BLhw * scheduler.init_noise_sigma
        guided = guidance > 1 and (source_BLhw is None or source_guidance >= 1)
        states, sources = states_BOC, source_BLhw
        if guided and source_BLhw is None:
            states = torch.cat([null_BOC, states_BOC])
            layout = [torch.cat([torch.zeros_like(level), level]) for level in layout]
        elif guided and source_BLhw is not None:
            states = torch.cat([states_BOC, null_BOC, null_BOC])
            layout = [torch.cat([level, torch.zeros_like(level), torch.zeros_like(level)]) for level in layout]
            sources = torch.cat([source_BLhw, source_BLhw, torch.zeros_like(source_BLhw)])
        for done, time in enumerate(scheduler.timesteps, 1):
            read = torch.cat([latents] * (len(states) // len(latents)))
            read = scheduler.scale_model_input(read, time)
            read = read if sources is None else torch.cat([read, sources], 1)
            predicted = self.predict(read, time, states, layout)
            if guided and source_BLhw is None:
                without, with_words = predicted.chunk(2)
                predicted = without + guidance * (with_words - without)
            elif guided:
                with_words, with_source, without = predicted.chunk(3)
                predicted = (without + guidance * (with_words - with_source)
                             + source_guidance * (with_source - without))  # fmt: skip
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
            if progress is not None:
                progress(done, len(scheduler.timesteps))
        return self.decode(latents)


def _made(cls: Any, keys: Any, source: str) -> Any:
    """A module of diffusers out of plain keys."""
    if not isinstance(keys, Mapping):
        raise ConfigError(f"{source}: expected keys and values, got {type(keys).__name__}")
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in keys.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {str(error).splitlines()[0]}") from None


def _scheduler(kind: str, keys: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers out of those keys that it has: each class lacks some of the others'.

    Raises:
        ConfigError: a value does not fit.
    """
    import diffusers

    cls = getattr(diffusers, kind)
    known = signature(cls.__init__).parameters
    try:
        return cls(**{name: value for name, value in keys.items() if name in known})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"scheduler: {kind}: {str(error).splitlines()[0]}") from None


def _schedule_keys() -> set[str]:
    """Keys that a schedule may have."""
    import diffusers

    kinds = (_TRAINED, *_PUBLISHED, *SAMPLERS.values())
    return {name for kind in kinds for name in signature(getattr(diffusers, kind)).parameters}


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of diffusers as plain values, without what it notes about itself."""
    kept = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return json.loads(json.dumps(kept))


def _scheduler_config(name: str) -> dict[str, Any]:
    from diffusers import DDPMScheduler

    keys = dict(DDPMScheduler.load_config(name, subfolder="scheduler"))
    # What diffusers' own pipeline mends in folders of its first editions.
    mended = {"steps_offset": 1, "clip_sample": False}
    # Further keys of a class that is not used here would do nothing.
    kept = {name: value for name, value in keys.items() if name in _schedule_keys()}
    return kept | {name: value for name, value in mended.items() if name in kept}
