"""The real architecture at the smallest size: what checks and tests build models of."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from visionllm.core.resources import config_folder
from visionllm.core.sample import BoxTarget, Picture, Sample, Turn


def tiny_network(kind: str = "mm-grounding-dino", **changes: Any) -> dict[str, Any]:
    """Keys of the smallest (MM) Grounding DINO, some of them replaced."""
    return {
        "model_type": kind, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_n_points": 2,
        "decoder_n_points": 2, "num_queries": 20, "num_feature_levels": 3, "dropout": 0.0, "fusion_droppath": 0.0,
        "backbone_config": {
            "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
        },
        **changes,
    }  # fmt: skip


_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}  # fmt: skip


def tiny_rt_detr(**changes: Any) -> dict[str, Any]:
    """Keys of the smallest RT-DETR, some of them replaced."""
    return {
        "model_type": "rt_detr", "num_labels": 80, "encoder_hidden_dim": 32, "encoder_in_channels": [12, 16, 24],
        "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "d_model": 32, "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "num_queries": 20,
        "num_denoising": 12, "anchor_image_size": None, "initializer_range": 0.2, "eval_size": None,
        "hidden_expansion": 0.5,
        "backbone_config": {
            **_RESNET, "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 24],
            "out_features": ["stage2", "stage3", "stage4"],
        },
        **changes,
    }  # fmt: skip


def tiny_d_fine() -> dict[str, Any]:
    """Keys of the smallest D-FINE."""
    kept = {key: value for key, value in tiny_rt_detr().items() if key != "initializer_range"}
    return {**kept, "model_type": "d_fine", "depth_mult": 0.34}


def tiny_detr(kind: str = "detr") -> dict[str, Any]:
    """Keys of the smallest DETR, or Deformable DETR (``deformable_detr``) of one stage: transformers' own loss does not
    reach the heads of a second."""
    levels = ["stage4"] if kind == "detr" else ["stage2", "stage3", "stage4"]
    fine = {"num_feature_levels": 3, "with_box_refine": True}
    return {
        "model_type": kind, "num_labels": 80, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "num_queries": 20, "dropout": 0.0, "backbone_config": {**_RESNET, "out_features": levels},
        **(fine if kind != "detr" else {}),
    }  # fmt: skip


def tiny_rf_detr() -> dict[str, Any]:
    """Keys of the smallest RF-DETR."""
    return {
        "model_type": "rf_detr", "num_labels": 80, "d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2,
        "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "decoder_n_points": 2,
        "num_queries": 20, "group_detr": 2, "num_feature_levels": 1, "dropout": 0.0,
        "backbone_config": {
            "model_type": "rf_detr_dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "num_windows": 2, "out_features": ["stage2", "stage4"],
        },
    }  # fmt: skip


def tiny_mask2former(**changes: Any) -> dict[str, Any]:
    """Keys of the smallest Mask2Former, some of them replaced."""
    return {
        "model_type": "mask2former", "num_labels": 80, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
        "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2,
        "dim_feedforward": 32, "num_queries": 20, "train_num_points": 256,
        "backbone_config": {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        **changes,
    }  # fmt: skip


def tiny_owlv2() -> dict[str, Any]:
    """Keys of the smallest OWLv2."""
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return {
        "model_type": "owlv2", "projection_dim": 32,
        "text_config": {**size, "hidden_size": 32, "vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1},
        "vision_config": {**size, "hidden_size": 32, "image_size": 96, "patch_size": 16},
    }  # fmt: skip


def tiny_sam2() -> dict[str, Any]:
    """Keys of the smallest SAM 2: pictures of 64 pixels, 4 x 4 cells."""
    widths = [8, 16, 32, 64]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": widths, "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 4, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    return {
        "model_type": "sam2",
        "vision_config": {
            "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    }  # fmt: skip


def tiny_sam3() -> dict[str, Any]:
    """Keys of the smallest tracker of SAM 3: its mask decoder is SAM 2's, its encoder a plain transformer."""
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 64,
    }  # fmt: skip
    same = {key: tiny_sam2()[key] for key in ("prompt_encoder_config", "mask_decoder_config")}
    return {
        **same,
        "model_type": "sam3_tracker",
        "vision_config": {
            "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
    }  # fmt: skip


def tiny_vitpose(joints: int = 17) -> dict[str, Any]:
    """Keys of the smallest ViTPose: crops of 64 pixels."""
    backbone = {
        "model_type": "vitpose_backbone", "image_size": [64, 64], "patch_size": [16, 16], "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "part_features": 8,
    }  # fmt: skip
    return {"backbone_config": backbone, "num_labels": joints, "use_simple_decoder": True}


def tiny_settings(
    kind: str = "mm-grounding-dino", context: int = 1024, regions: dict[str, Any] | None = None, **objects: Any
) -> dict[str, Any]:
    """The model section of a training config at test size: 0.2 M parameters, tiles of 64 pixels, four tokens a tile."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
              "image_size": [64, 64], "patch_size": [16, 16], "attention_bias": True, "norm_type": "layer_norm",
              "layer_scale_init_value": 1.0}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
            "max_position_embeddings": context, "tie_word_embeddings": True}  # fmt: skip
    return {
        "tokenizer": str(config_folder("models") / "nano" / "tokenizer.json"),
        "max_tiles": 4,
        "regions": regions,
        "mllm": {"image_token_id": 0, "image_seq_length": 4, "downsample_ratio": 0.5, "tie_word_embeddings": True,
                 "vision_config": vision, "text_config": text},
        "decoders": {"objects": {"longest": 96, "group_norm": 4, "network": tiny_network(kind), **objects}},
    }  # fmt: skip


def noise(width: int = 80, height: int = 60, seed: int = 0) -> Picture:
    """A picture of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Picture(pixels=cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), name=f"noise {seed}")


def tiny_diffusion(reads: int = 1, vae: bool = True, **scheduler: Any) -> dict[str, Any]:
    """Keys of the smallest UNet and autoencoder: latents half as large as pictures."""
    channels = 4 if vae else 3
    unet = {
        "sample_size": 8, "in_channels": reads * channels, "out_channels": channels, "block_out_channels": [8, 16],
        "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }  # fmt: skip
    made = {
        "block_out_channels": [8, 8], "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
        "sample_size": 16,
    }  # fmt: skip
    return {"unet": unet, "vae": made if vae else None, "scheduler": scheduler}


def boxed(
    phrases: tuple[str, ...] = ("car", "dog"),
    boxes: tuple[tuple[float, ...], ...] = ((0, 5, 5, 40, 30), (0, 30, 20, 70, 55), (1, 10, 30, 30, 50)),
    size: tuple[int, int] = (80, 60),
    seed: int = 0,
    question: str | None = None,
) -> Sample:
    """A training sample of boxes; ``boxes`` are (phrase, x1, y1, x2, y2)."""
    table = np.array(boxes, np.float32).reshape(-1, 5)
    target = BoxTarget(boxes_xyxy=table[:, 1:], phrase=table[:, 0].astype(np.int64))
    turn = Turn(task="detection", phrases=phrases, target=target, question=question)
    return Sample(pictures=(noise(*size, seed=seed),), turns=(turn,))
