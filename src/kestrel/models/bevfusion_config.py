# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""BEVFusion networks from configurations in the format of the released ones, and those themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from torch import nn

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.errors import ConfigError, describe
from kestrel.models.bevfusion import BEVDecoder, BEVFusion, CameraEncoder, LidarEncoder, Voxelization
from kestrel.models.resnet import ResNetFeatures
from kestrel.models.sparse_encoder import SparseEncoder
from kestrel.models.swin import SwinTransformer
from kestrel.nn.bev_decoder import LSSFPN, SECOND, SECONDFPN, ConvFuser, GeneralizedResNet
from kestrel.nn.bev_segmentation_head import BEVSegmentationHead
from kestrel.nn.center_head import CenterHead
from kestrel.nn.lss_fpn import GeneralizedLSSFPN
from kestrel.nn.transfusion_head import TransFusionHead
from kestrel.nn.view_transform import DepthLSSTransform, LSSTransform

Config: TypeAlias = Mapping[str, Any]
Task = Literal["det", "seg"]
Modality = Literal["camera+lidar", "camera", "lidar"]

CENTER_TASKS: Final = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
"""Groups of classes of the camera-only detector."""


def build_bevfusion(config: Config) -> BEVFusion:
    """Build a network.

    Args:
        config: ``encoders``, ``fuser``, ``decoder``, ``heads`` as in the released configuration files;
            entries that concern training alone are ignored.

    Raises:
        ConfigError: a part has a type that does not exist.
    """
    encoders = config["encoders"]
    camera, lidar = encoders.get("camera"), encoders.get("lidar")
    fuser = config.get("fuser")
    decoder = config["decoder"]
    return BEVFusion(
        None if camera is None else _camera_encoder(camera),
        None if lidar is None else _lidar_encoder(lidar),
        None if fuser is None else ConvFuser(fuser["in_channels"], fuser["out_channels"]),
        BEVDecoder(_decoder_backbone(decoder["backbone"]), _decoder_neck(decoder["neck"])),
        {name: _head(head) for name, head in config["heads"].items() if head is not None},
    )


def _choose(part: str, config: Config, builders: Mapping[str, Callable[[Config], Any]]) -> Any:
    kind = config["type"]
    if kind not in builders:
        raise ConfigError(describe(f"type of {part}", expected=sorted(builders), found=kind))
    return builders[kind](config)


def _camera_encoder(config: Config) -> CameraEncoder:
    backbone: nn.Module = _choose(
        "the camera backbone", config["backbone"], {"SwinTransformer": _swin, "ResNet": _resnet}
    )
    neck = config["neck"]
    vtransform: LSSTransform = _choose(
        "the view transform",
        config["vtransform"],
        {kind.__name__: partial(_view_transform, kind) for kind in (LSSTransform, DepthLSSTransform)},
    )
    return CameraEncoder(backbone, GeneralizedLSSFPN(neck["in_channels"], neck["out_channels"]), vtransform)


def _swin(config: Config) -> SwinTransformer:
    names = ("embed_dims", "depths", "num_heads", "window_size", "mlp_ratio", "out_indices")
    return SwinTransformer(**{name: config[name] for name in names if name in config})


def _resnet(config: Config) -> ResNetFeatures:
    return ResNetFeatures(config.get("depth", 50), config.get("out_indices", (1, 2, 3)))


def _view_transform(kind: type[LSSTransform], config: Config) -> LSSTransform:
    return kind(
        config["in_channels"],
        config["out_channels"],
        tuple(config["image_size"]),
        tuple(config["feature_size"]),
        config["xbound"],
        config["ybound"],
        config["zbound"],
        config["dbound"],
        config.get("downsample", 1),
    )


def _strided_paddings(config: Config) -> list[tuple[int, int, int]]:
    paddings = [stage[-1] for stage in config["encoder_paddings"][:-1]]
    return [(value,) * 3 if isinstance(value, int) else tuple(value) for value in paddings]


def _lidar_encoder(config: Config) -> LidarEncoder:
    voxels, backbone = config["voxelize"], config["backbone"]
    return LidarEncoder(
        Voxelization(
            tuple(voxels["voxel_size"]),
            tuple(voxels["point_cloud_range"]),
            voxels["max_num_points"],
            tuple(voxels["max_voxels"]),
        ),
        SparseEncoder(
            backbone["in_channels"],
            tuple(backbone["sparse_shape"]),
            encoder_channels=backbone["encoder_channels"],
            encoder_paddings=_strided_paddings(backbone),
            out_channels=backbone["output_channels"],
        ),
    )


def _decoder_backbone(config: Config) -> nn.Module:
    def second(part: Config) -> SECOND:
        return SECOND(part["in_channels"], part["out_channels"], part["layer_nums"], part["layer_strides"])

    def resnet(part: Config) -> GeneralizedResNet:
        return GeneralizedResNet(part["in_channels"], part["blocks"])

    built: nn.Module = _choose(
        "the decoder's backbone", config, {"SECOND": second, "GeneralizedResNet": resnet}
    )
    return built


def _decoder_neck(config: Config) -> nn.Module:
    def second(part: Config) -> SECONDFPN:
        return SECONDFPN(part["in_channels"], part["out_channels"], part["upsample_strides"])

    def lss(part: Config) -> LSSFPN:
        return LSSFPN(
            tuple(part["in_indices"]),
            tuple(part["in_channels"]),
            part["out_channels"],
            part.get("scale_factor", 1),
        )

    built: nn.Module = _choose("the decoder's neck", config, {"SECONDFPN": second, "LSSFPN": lss})
    return built


def _head(config: Config) -> TransFusionHead | CenterHead | BEVSegmentationHead:
    builders = {
        "TransFusionHead": _transfusion_head,
        "CenterHead": _center_head,
        "BEVSegmentationHead": _segmentation_head,
    }
    built: TransFusionHead | CenterHead | BEVSegmentationHead = _choose("a head", config, builders)
    return built


def _cell_size(coder: Config) -> tuple[float, float]:
    factor = coder["out_size_factor"]
    return factor * coder["voxel_size"][0], factor * coder["voxel_size"][1]


def _transfusion_head(config: Config) -> TransFusionHead:
    coder = config["bbox_coder"]
    return TransFusionHead(
        config["in_channels"],
        config["num_classes"],
        tuple(coder["pc_range"][:2]),
        _cell_size(coder),
        num_proposals=config["num_proposals"],
        hidden_channels=config["hidden_channel"],
        num_decoder_layers=config["num_decoder_layers"],
        num_heads=config["num_heads"],
        ffn_channels=config["ffn_channel"],
        dropout=config.get("dropout", 0.1),
        nms_kernel_size=config["nms_kernel_size"],
        post_center_range=coder["post_center_range"],
        score_threshold=coder.get("score_threshold") or 0.0,
    )


def _center_head(config: Config) -> CenterHead:
    coder, test = config["bbox_coder"], config.get("test_cfg") or {}
    return CenterHead(
        config["in_channels"],
        config["tasks"],
        tuple(coder["pc_range"][:2]),
        _cell_size(coder),
        share_channels=config.get("share_conv_channel", 64),
        post_center_range=coder["post_center_range"],
        score_threshold=coder["score_threshold"],
        max_num=coder["max_num"],
        nms_limit=test.get("post_max_size", 83),
        min_radius=test.get("min_radius", (4, 12, 10, 1, 0.85, 0.175)),
    )


def _segmentation_head(config: Config) -> BEVSegmentationHead:
    grid = config["grid_transform"]
    return BEVSegmentationHead(
        config["in_channels"], len(config["classes"]), grid["input_scope"], grid["output_scope"]
    )


def released_config(task: Task, modality: Modality) -> dict[str, Any]:
    """Return the configuration of a released checkpoint.

    Args:
        task: detection or map segmentation.
        modality: sensors.
    """
    # Detection with LiDAR works on a finer and slightly larger grid than everything else.
    fine = task == "det" and "lidar" in modality
    half, voxel = (54.0, 0.075) if fine else (51.2, 0.1)
    encoders: dict[str, Any] = {}
    if "camera" in modality:
        pooled = 0.3 if fine else 0.4
        depth_aware = task == "det" and "lidar" in modality
        encoders["camera"] = _released_camera(half, pooled, depth_aware=depth_aware)
    if "lidar" in modality:
        encoders["lidar"] = _released_lidar(half, voxel)
    both = modality == "camera+lidar"
    return {
        "encoders": encoders,
        "fuser": {"type": "ConvFuser", "in_channels": [80, 256], "out_channels": 256} if both else None,
        "decoder": _released_decoder(task, modality),
        "heads": _released_heads(task, modality, half, voxel),
    }


def _released_camera(half: float, pooled: float, *, depth_aware: bool) -> dict[str, Any]:
    return {
        "backbone": {"type": "SwinTransformer"},
        "neck": {"type": "GeneralizedLSSFPN", "in_channels": [192, 384, 768], "out_channels": 256},
        "vtransform": {
            "type": "DepthLSSTransform" if depth_aware else "LSSTransform",
            "in_channels": 256,
            "out_channels": 80,
            "image_size": [256, 704],
            "feature_size": [32, 88],
            "xbound": [-half, half, pooled],
            "ybound": [-half, half, pooled],
            "zbound": [-10.0, 10.0, 20.0],
            "dbound": [1.0, 60.0, 0.5],
            "downsample": 2,
        },
    }


def _released_lidar(half: float, voxel: float) -> dict[str, Any]:
    cells = round(2 * half / voxel)
    return {
        "voxelize": {
            "max_num_points": 10,
            "point_cloud_range": [-half, -half, -5.0, half, half, 3.0],
            "voxel_size": [voxel, voxel, 0.2],
            "max_voxels": [120000, 160000] if voxel < 0.1 else [90000, 120000],
        },
        "backbone": {
            "type": "SparseEncoder",
            "in_channels": 5,
            "sparse_shape": [cells, cells, 41],
            "output_channels": 128,
            "encoder_channels": [[16, 16, 32], [32, 32, 64], [64, 64, 128], [128, 128]],
            "encoder_paddings": [[0, 0, 1], [0, 0, 1], [0, 0, [1, 1, 0]], [0, 0]],
        },
    }


def _released_decoder(task: Task, modality: Modality) -> dict[str, Any]:
    if modality != "camera":
        return {
            "backbone": {
                "type": "SECOND",
                "in_channels": 256,
                "out_channels": [128, 256],
                "layer_nums": [5, 5],
                "layer_strides": [1, 2],
            },
            "neck": {
                "type": "SECONDFPN",
                "in_channels": [128, 256],
                "out_channels": [256, 256],
                "upsample_strides": [1, 2],
            },
        }
    width = 128 if task == "det" else 160
    return {
        "backbone": {
            "type": "GeneralizedResNet",
            "in_channels": 80,
            "blocks": [[2, width, 2], [2, 2 * width, 2], [2, 4 * width, 1]],
        },
        "neck": {
            "type": "LSSFPN",
            "in_indices": [-1, 0],
            "in_channels": [4 * width, width],
            "out_channels": 256,
            "scale_factor": 2,
        },
    }


def _released_heads(task: Task, modality: Modality, half: float, voxel: float) -> dict[str, Any]:
    in_channels = 256 if modality == "camera" else 512
    if task == "seg":
        scope = {"input_scope": [[-half, half, 8 * voxel]] * 2, "output_scope": [[-50.0, 50.0, 0.5]] * 2}
        return {
            "map": {
                "type": "BEVSegmentationHead",
                "in_channels": in_channels,
                "grid_transform": scope,
                "classes": list(MAP_LAYERS),
            }
        }
    coder = {
        "pc_range": [-half, -half],
        "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        "out_size_factor": 8,
        "voxel_size": [voxel, voxel],
    }
    if modality == "camera":
        return {
            "object": {
                "type": "CenterHead",
                "in_channels": in_channels,
                "tasks": [list(task) for task in CENTER_TASKS],
                "share_conv_channel": 64,
                "bbox_coder": {**coder, "max_num": 500, "score_threshold": 0.1},
            }
        }
    return {
        "object": {
            "type": "TransFusionHead",
            "in_channels": in_channels,
            "num_classes": len(DETECTION_CLASSES),
            "num_proposals": 200,
            "hidden_channel": 128,
            "num_decoder_layers": 1,
            "num_heads": 8,
            "ffn_channel": 256,
            "nms_kernel_size": 3,
            "bbox_coder": {**coder, "score_threshold": 0.0},
        }
    }
