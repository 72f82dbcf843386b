"""The smallest networks of other toolboxes, by their own keys: what checks and tests of the bridges are made on."""

from __future__ import annotations

from typing import Any

CLASSES = 80
_RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
_BACKBONE: dict[str, Any] = {
    "type": "ResNet", "depth": 18, "num_stages": 4, "base_channels": 8, "norm_cfg": {"type": "BN"}, "norm_eval": True,
    "style": "pytorch",
}  # fmt: skip
_FFN = {"embed_dims": 32, "feedforward_channels": 32, "ffn_drop": 0.0}
_MATCH = [
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
_BOX_LOSSES = {
    "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
    "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
}
_ANCHORS = {"type": "AnchorGenerator", "scales": [4], "ratios": [0.5, 1.0, 2.0]}
_CODER = {"type": "DeltaXYWHBBoxCoder"}


def _pyramid(levels: int, start: int = 0, **extra: Any) -> dict[str, Any]:
    return {"type": "FPN", "in_channels": [8, 16, 32, 64][start:], "out_channels": 32, "num_outs": levels, **extra}


def mmdet_retinanet() -> dict[str, Any]:
    """One stage, dense, several anchors a place."""
    return {
        "type": "RetinaNet",
        "data_preprocessor": {"type": "DetDataPreprocessor", **_RGB, "pad_size_divisor": 32},
        "backbone": {**_BACKBONE, "out_indices": [0, 1, 2, 3]},
        "neck": _pyramid(5, 1, add_extra_convs="on_input") | {"start_level": 0, "in_channels": [8, 16, 32, 64]},
        "bbox_head": {
            "type": "RetinaHead", "num_classes": CLASSES, "in_channels": 32, "stacked_convs": 1, "feat_channels": 32,
            "anchor_generator": {
                "type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 1, "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": _CODER,
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "train_cfg": {
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0,
                         "ignore_iof_thr": -1},
            "sampler": {"type": "PseudoSampler"}, "allowed_border": -1, "pos_weight": -1, "debug": False,
        },
        "test_cfg": {"nms_pre": 1000, "min_bbox_size": 0, "score_thr": 0.0, "max_per_img": 100,
                     "nms": {"type": "nms", "iou_threshold": 0.5}},
    }  # fmt: skip


def mmdet_rcnn(*, masks: bool = False) -> dict[str, Any]:
    """Two stages with boxes of every class: Faster R-CNN, or Mask R-CNN."""
    head: dict[str, Any] = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _regions(7),
        "bbox_head": {
            "type": "Shared2FCBBoxHead", "in_channels": 32, "fc_out_channels": 64, "roi_feat_size": 7,
            "num_classes": CLASSES, "reg_class_agnostic": False,
            "bbox_coder": {**_CODER, "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }  # fmt: skip
    if masks:
        head |= {
            "mask_roi_extractor": _regions(14),
            "mask_head": {
                "type": "FCNMaskHead", "num_convs": 1, "in_channels": 32, "conv_out_channels": 32,
                "num_classes": CLASSES,
                "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
            },
        }  # fmt: skip
    near = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3,
            "match_low_quality": True, "ignore_iof_thr": -1}  # fmt: skip
    return {
        "type": "MaskRCNN" if masks else "FasterRCNN",
        "data_preprocessor": {"type": "DetDataPreprocessor", **_RGB, "pad_mask": masks, "pad_size_divisor": 32},
        "backbone": {**_BACKBONE, "out_indices": [0, 1, 2, 3]},
        "neck": _pyramid(5),
        "rpn_head": {
            "type": "RPNHead", "in_channels": 32, "feat_channels": 32,
            "anchor_generator": {**_ANCHORS, "strides": [4, 8, 16, 32, 64]}, "bbox_coder": _CODER,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": head,
        "train_cfg": {
            "rpn": {
                "assigner": near,
                "sampler": {"type": "RandomSampler", "num": 64, "pos_fraction": 0.5, "neg_pos_ub": -1,
                            "add_gt_as_proposals": False},
                "allowed_border": -1, "pos_weight": -1, "debug": False,
            },
            "rpn_proposal": {"nms_pre": 200, "max_per_img": 100, "nms": {"type": "nms", "iou_threshold": 0.7},
                             "min_bbox_size": 0},
            "rcnn": {
                "assigner": {**near, "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5,
                             "match_low_quality": masks},
                "sampler": {"type": "RandomSampler", "num": 64, "pos_fraction": 0.25, "neg_pos_ub": -1,
                            "add_gt_as_proposals": True},
                "mask_size": 28, "pos_weight": -1, "debug": False,
            },
        },
        "test_cfg": {
            "rpn": {"nms_pre": 200, "max_per_img": 50, "nms": {"type": "nms", "iou_threshold": 0.7},
                    "min_bbox_size": 0},
            "rcnn": {"score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 50,
                     "mask_thr_binary": 0.5},
        },
    }  # fmt: skip


def mmdet_dino(width: int = 256) -> dict[str, Any]:
    """A transformer with two stages and denoising queries; MMDetection codes places for a width of 256 alone."""
    attention = {"embed_dims": width, "num_heads": 2, "dropout": 0.0}
    fine, forward = {**attention, "num_levels": 4}, {"embed_dims": width, "feedforward_channels": 32, "ffn_drop": 0.0}
    return {
        "type": "DINO",
        "data_preprocessor": {"type": "DetDataPreprocessor", **_RGB, "pad_size_divisor": 1},
        "num_queries": 20, "with_box_refine": True, "as_two_stage": True, "num_feature_levels": 4,
        "backbone": {**_BACKBONE, "out_indices": [1, 2, 3]},
        "neck": {"type": "ChannelMapper", "in_channels": [16, 32, 64], "kernel_size": 1, "out_channels": width,
                 "act_cfg": None, "norm_cfg": {"type": "GN", "num_groups": 4}, "num_outs": 4},
        "encoder": {"num_layers": 1, "layer_cfg": {"self_attn_cfg": fine, "ffn_cfg": forward}},
        "decoder": {
            "num_layers": 2, "return_intermediate": True,
            "layer_cfg": {"self_attn_cfg": attention, "cross_attn_cfg": fine, "ffn_cfg": forward},
            "post_norm_cfg": None,
        },
        "positional_encoding": {"num_feats": width // 2, "normalize": True, "offset": 0.0, "temperature": 20},
        "bbox_head": {
            "type": "DINOHead", "num_classes": CLASSES, "embed_dims": width, "sync_cls_avg_factor": False,
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            **_BOX_LOSSES,
        },
        "dn_cfg": {"label_noise_scale": 0.5, "box_noise_scale": 1.0,
                   "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": 10}},
        "train_cfg": {"assigner": {"type": "HungarianAssigner",
                                   "match_costs": [{"type": "FocalLossCost", "weight": 2.0}, *_MATCH]}},
        "test_cfg": {"max_per_img": 20},
    }  # fmt: skip


def mmdet_grounding() -> dict[str, Any]:
    """Grounding DINO: phrases take the place of its words."""
    base = mmdet_dino()
    cross = {"embed_dims": 256, "num_heads": 2, "dropout": 0.0}
    forward = {"embed_dims": 256, "feedforward_channels": 32, "ffn_drop": 0.0}
    return {
        **base,
        "type": "GroundingDINO",
        "language_model": {"type": "BertModel", "name": "bert-base-uncased"},
        "encoder": {
            "num_layers": 1, "num_cp": 0,
            "layer_cfg": base["encoder"]["layer_cfg"],
            "text_layer_cfg": {"self_attn_cfg": cross, "ffn_cfg": forward},
            "fusion_layer_cfg": {"v_dim": 256, "l_dim": 256, "embed_dim": 32, "num_heads": 2, "init_values": 1e-4},
        },
        "decoder": {
            "num_layers": 2, "return_intermediate": True,
            "layer_cfg": {**base["decoder"]["layer_cfg"], "cross_attn_text_cfg": cross}, "post_norm_cfg": None,
        },
        "bbox_head": {**base["bbox_head"], "type": "GroundingDINOHead",
                      "contrastive_cfg": {"max_text_len": 256, "log_scale": "auto", "bias": True}},
        "train_cfg": {"assigner": {"type": "HungarianAssigner",
                                   "match_costs": [{"type": "BinaryFocalLossCost", "weight": 2.0}, *_MATCH]}},
    }  # fmt: skip


def mmdet_mask2former() -> dict[str, Any]:
    """Masks by classifying queries."""
    width = {"embed_dims": 32, "num_heads": 2, "dropout": 0.0, "batch_first": True}
    return {
        "type": "Mask2Former",
        "data_preprocessor": {"type": "DetDataPreprocessor", **_RGB, "pad_size_divisor": 32, "pad_mask": True,
                              "mask_pad_value": 0, "pad_seg": False},
        "backbone": {**_BACKBONE, "out_indices": [0, 1, 2, 3]},
        "panoptic_head": {
            "type": "Mask2FormerHead", "in_channels": [8, 16, 32, 64], "strides": [4, 8, 16, 32],
            "feat_channels": 32, "out_channels": 32, "num_things_classes": CLASSES, "num_stuff_classes": 0,
            "num_queries": 20, "num_transformer_feat_level": 3,
            "pixel_decoder": {
                "type": "MSDeformAttnPixelDecoder", "num_outs": 3, "norm_cfg": {"type": "GN", "num_groups": 4},
                "act_cfg": {"type": "ReLU"},
                "encoder": {"num_layers": 1, "layer_cfg": {
                    "self_attn_cfg": {"embed_dims": 32, "num_heads": 2, "num_levels": 3, "num_points": 4,
                                      "dropout": 0.0, "batch_first": True},
                    "ffn_cfg": {**_FFN, "num_fcs": 2, "act_cfg": {"type": "ReLU", "inplace": True}}}},
                "positional_encoding": {"num_feats": 16, "normalize": True},
            },
            "enforce_decoder_input_project": False, "positional_encoding": {"num_feats": 16, "normalize": True},
            "transformer_decoder": {
                "return_intermediate": True, "num_layers": 2,
                "layer_cfg": {"self_attn_cfg": width, "cross_attn_cfg": width,
                              "ffn_cfg": {**_FFN, "num_fcs": 2, "act_cfg": {"type": "ReLU", "inplace": True}}},
                "init_cfg": None,
            },
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 2.0, "reduction": "mean",
                         "class_weight": [1.0] * CLASSES + [0.1]},
            "loss_mask": {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "mean", "loss_weight": 5.0},
            "loss_dice": {"type": "DiceLoss", "use_sigmoid": True, "activate": True, "reduction": "mean",
                          "naive_dice": True, "eps": 1.0, "loss_weight": 5.0},
        },
        "panoptic_fusion_head": {"type": "MaskFormerFusionHead", "num_things_classes": CLASSES, "num_stuff_classes": 0,
                                 "loss_panoptic": None, "init_cfg": None},
        "train_cfg": {
            "num_points": 256, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75,
            "assigner": {"type": "HungarianAssigner", "match_costs": [
                {"type": "ClassificationCost", "weight": 2.0},
                {"type": "CrossEntropyLossCost", "weight": 5.0, "use_sigmoid": True},
                {"type": "DiceCost", "weight": 5.0, "pred_act": True, "eps": 1.0}]},
            "sampler": {"type": "MaskPseudoSampler"},
        },
        "test_cfg": {"panoptic_on": False, "semantic_on": False, "instance_on": True, "max_per_image": 100,
                     "iou_thr": 0.8, "filter_low_score": True},
    }  # fmt: skip


def _regions(size: int) -> dict[str, Any]:
    return {"type": "SingleRoIExtractor", "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
            "out_channels": 32, "featmap_strides": [4, 8, 16, 32]}  # fmt: skip


def mmpose_heatmap(joints: int = 17) -> dict[str, Any]:
    """Heat maps over a crop, as ViTPose and HRNet have them."""
    codec = {"type": "MSRAHeatmap", "input_size": [64, 64], "heatmap_size": [16, 16], "sigma": 1}
    return {
        "type": "TopdownPoseEstimator",
        "data_preprocessor": {"type": "PoseDataPreprocessor", **_RGB},
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "stem_channels": 8, "norm_cfg": {"type": "BN"}},
        "head": {
            "type": "HeatmapHead", "in_channels": 64, "out_channels": joints, "deconv_out_channels": [32, 32, 32],
            "deconv_kernel_sizes": [4, 4, 4], "loss": {"type": "KeypointMSELoss", "use_target_weight": True},
            "decoder": codec,
        },
        "test_cfg": {"flip_test": False},
    }  # fmt: skip


def mmpose_simcc(joints: int = 17) -> dict[str, Any]:
    """Two lines of bins for each keypoint, as RTMPose has them."""
    codec = {"type": "SimCCLabel", "input_size": [48, 64], "sigma": [4.9, 5.66], "simcc_split_ratio": 2.0,
             "normalize": False, "use_dark": False}  # fmt: skip
    return {
        **mmpose_heatmap(joints),
        "head": {
            "type": "RTMCCHead", "in_channels": 64, "out_channels": joints, "input_size": [48, 64],
            "in_featuremap_size": [2, 2], "simcc_split_ratio": 2.0, "final_layer_kernel_size": 1,
            "gau_cfg": {"hidden_dims": 32, "s": 16, "expansion_factor": 2, "dropout_rate": 0.0, "drop_path": 0.0,
                        "act_fn": "SiLU", "use_rel_bias": False, "pos_enc": False},
            "loss": {"type": "KLDiscretLoss", "use_target_weight": True, "beta": 10.0, "label_softmax": True},
            "decoder": codec,
        },
    }  # fmt: skip


def detectron2_retinanet() -> dict[str, Any]:
    """One stage, dense; Detectron2's defaults elsewhere."""
    return {
        "MODEL": {
            "META_ARCHITECTURE": "RetinaNet",
            **_detectron2_body("build_retinanet_resnet_fpn_backbone", ["res3", "res4", "res5"]),
            "RETINANET": {"NUM_CLASSES": CLASSES, "NUM_CONVS": 1, "SCORE_THRESH_TEST": 0.0},
        },
    }  # fmt: skip


def detectron2_rcnn(*, masks: bool = False, stuff: bool = False) -> dict[str, Any]:
    """Two stages with boxes of every class: Faster R-CNN, or Mask R-CNN; with ``stuff``, panoptic FPN."""
    levels = ["p2", "p3", "p4", "p5"]
    return {
        "MODEL": {
            "META_ARCHITECTURE": "PanopticFPN" if stuff else "GeneralizedRCNN", "MASK_ON": masks,
            **_detectron2_body("build_resnet_fpn_backbone", ["res2", "res3", "res4", "res5"]),
            "RPN": {"IN_FEATURES": [*levels, "p6"], "BATCH_SIZE_PER_IMAGE": 64,
                    "PRE_NMS_TOPK_TRAIN": 200, "POST_NMS_TOPK_TRAIN": 100,
                    "PRE_NMS_TOPK_TEST": 200, "POST_NMS_TOPK_TEST": 50},
            "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": levels, "NUM_CLASSES": CLASSES,
                          "BATCH_SIZE_PER_IMAGE": 64, "SCORE_THRESH_TEST": 0.0},
            "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 64, "POOLER_RESOLUTION": 7},
            "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 32},
            "SEM_SEG_HEAD": {"NUM_CLASSES": 54, "CONVS_DIM": 32},
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 50},
    }  # fmt: skip


def detectron2_mask2former() -> dict[str, Any]:
    """Mask2Former of its own package, which builds on Detectron2: with all keys of its own that it reads."""
    stages = ["res2", "res3", "res4", "res5"]
    body = _detectron2_body("build_resnet_backbone", stages)
    del body["FPN"], body["ANCHOR_GENERATOR"]
    return {
        "MODEL": {
            "META_ARCHITECTURE": "MaskFormer", "MASK_ON": True, **body,
            "SEM_SEG_HEAD": {
                "NAME": "MaskFormerHead", "NUM_CLASSES": CLASSES, "IN_FEATURES": stages, "CONVS_DIM": 32,
                "MASK_DIM": 32, "NORM": "GN", "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
                "TRANSFORMER_ENC_LAYERS": 1, "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": stages[1:],
            },
            "MASK_FORMER": {
                "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
                "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder", "HIDDEN_DIM": 32, "NHEADS": 2, "DROPOUT": 0.0,
                "DIM_FEEDFORWARD": 32, "DEC_LAYERS": 3, "PRE_NORM": False, "ENFORCE_INPUT_PROJ": False,
                "NUM_OBJECT_QUERIES": 20, "SIZE_DIVISIBILITY": 32, "DEEP_SUPERVISION": True, "NO_OBJECT_WEIGHT": 0.1,
                "CLASS_WEIGHT": 2.0, "MASK_WEIGHT": 5.0, "DICE_WEIGHT": 5.0, "TRAIN_NUM_POINTS": 256,
                "OVERSAMPLE_RATIO": 3.0, "IMPORTANCE_SAMPLE_RATIO": 0.75,
                "TEST": {
                    "SEMANTIC_ON": False, "PANOPTIC_ON": False, "INSTANCE_ON": True, "OBJECT_MASK_THRESHOLD": 0.0,
                    "OVERLAP_THRESHOLD": 0.0, "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": True,
                },
            },
        },
        "DATASETS": {"TRAIN": ["nothing"]},
        "TEST": {"DETECTIONS_PER_IMAGE": 100},
    }  # fmt: skip


def _detectron2_body(name: str, stages: list[str]) -> dict[str, Any]:
    """Group normalisation: it needs no statistics, and Detectron2 takes it in 32 groups."""
    return {
        "BACKBONE": {"NAME": name, "FREEZE_AT": 0},
        "RESNETS": {"DEPTH": 50, "STEM_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 32, "RES2_OUT_CHANNELS": 32, "NORM": "GN",
                    "OUT_FEATURES": stages},
        "FPN": {"IN_FEATURES": stages, "OUT_CHANNELS": 32, "NORM": "GN"},
        "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]]},
    }  # fmt: skip
