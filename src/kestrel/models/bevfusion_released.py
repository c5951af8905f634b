# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The configurations of the released BEVFusion checkpoints."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final, Literal, get_args

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.errors import ModelError, describe

Task = Literal["det", "seg"]
Modality = Literal["camera+lidar", "camera", "lidar"]
Backbone = Literal["swin-t", "resnet50"]

CENTER_TASKS: Final = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
"""Groups of classes of the camera-only detector."""

CENTER_SUPPRESSION: Final[dict[str, Any]] = {
    "nms_type": ["circle", "rotate", "rotate", "circle", "rotate", "rotate"],
    "nms_scale": [[1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0, 1.0], [2.5, 4.0]],
    "nms_thr": 0.2,
    "min_radius": [4, 12, 10, 1, 0.85, 0.175],
    "pre_max_size": 1000,
    "post_max_size": 83,
}
"""How each of these groups loses what it found twice (configs/nuscenes/det/centerhead/lssfpn/camera)."""

_CAMERA_BACKBONES: Final[dict[Backbone, tuple[dict[str, Any], list[int]]]] = {
    "swin-t": ({"type": "SwinTransformer"}, [192, 384, 768]),
    "resnet50": ({"type": "ResNet", "depth": 50, "out_indices": [1, 2, 3]}, [512, 1024, 2048]),
}
"""What looks at the pictures, and the channels of what the neck is given, finest first."""


def released_config(task: Task, modality: Modality, backbone: Backbone = "swin-t") -> dict[str, Any]:
    """Return the configuration of a released checkpoint.

    Args:
        task: detection or map segmentation.
        modality: sensors.
        backbone: of the cameras; resnet50 is that of CUDA-BEVFusion, alike in all else
            (Lidar_AI_Solution, configs/nuscenes/det/transfusion/secfpn/camera+lidar/resnet50).

    Raises:
        ModelError: there is no such task, modality or backbone.
    """
    asked = {"task": (task, Task), "modality": (modality, Modality), "backbone": (backbone, Backbone)}
    for name, (value, known) in asked.items():
        if value not in get_args(known):
            expected = f"one of {get_args(known)}"
            raise ModelError(describe(f"{name} of a BEVFusion", expected=expected, found=repr(value)))
    # Detection with LiDAR works on a finer and slightly larger grid than everything else.
    fine = task == "det" and "lidar" in modality
    half, voxel = (54.0, 0.075) if fine else (51.2, 0.1)
    encoders: dict[str, Any] = {}
    if "camera" in modality:
        pooled = 0.3 if fine else 0.4
        depth_aware = task == "det" and "lidar" in modality
        encoders["camera"] = _released_camera(half, pooled, backbone, depth_aware=depth_aware)
    if "lidar" in modality:
        encoders["lidar"] = _released_lidar(half, voxel)
    both = modality == "camera+lidar"
    return {
        "encoders": encoders,
        "fuser": {"type": "ConvFuser", "in_channels": [80, 256], "out_channels": 256} if both else None,
        "decoder": _released_decoder(task, modality),
        "heads": _released_heads(task, modality, half, voxel),
    }


def _released_camera(half: float, pooled: float, backbone: Backbone, *, depth_aware: bool) -> dict[str, Any]:
    network, channels = _CAMERA_BACKBONES[backbone]
    return {
        "backbone": dict(network),
        "neck": {"type": "GeneralizedLSSFPN", "in_channels": list(channels), "out_channels": 256},
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
                "test_cfg": deepcopy(CENTER_SUPPRESSION),
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
