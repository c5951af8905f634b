# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the parts of BEVFusion, and all of it, on the parity fixtures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.swin import SwinTransformer
from kestrel.nn.bev_decoder import LSSFPN, SECOND, SECONDFPN, ConvFuser, GeneralizedResNet
from kestrel.nn.bev_segmentation_head import BEVSegmentationHead
from kestrel.nn.boxes import DecodedBoxes
from kestrel.nn.camera_geometry import CameraGeometry, depth_images
from kestrel.nn.center_head import CenterHead
from kestrel.nn.image_augmentation import ImageAugmentation
from kestrel.nn.lss_fpn import GeneralizedLSSFPN
from kestrel.nn.transfusion_head import REGRESSIONS, TransFusionHead
from kestrel.nn.view_transform import DepthLSSTransform, LSSTransform, cells_of
from kestrel.ops import circle_nms
from kestrel.ops.bev_pool import bev_cells, bev_pool
from tests.parity.fixture import Runner, fill, shape_of, tensors

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def cameras_of(inputs: dict[str, torch.Tensor]) -> CameraGeometry:
    return CameraGeometry(
        inputs["camera2lidar"],
        inputs["intrinsics"],
        inputs["lidar2image"],
        inputs["img_aug_matrix"],
        inputs["lidar_aug_matrix"],
    )


def pooling_operator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    bounds = [config[f"{axis}bound"] for axis in "xyz"]
    lower = torch.tensor([bound[0] for bound in bounds], dtype=torch.float32)
    step = torch.tensor([bound[2] for bound in bounds], dtype=torch.float32)
    nx, ny, nz = (cells_of(bound) for bound in bounds)
    cells = bev_cells(inputs["geometry"], lower, step, (nx, ny, nz))
    yield "bev", bev_pool(inputs["features"], cells, config["batch"], (nx, ny, nz))


def view_transform(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    kind = DepthLSSTransform if fixture.manifest["net"] == "DepthLSSTransform" else LSSTransform
    network = kind(
        config["in_channels"],
        config["out_channels"],
        config["image_size"],
        config["feature_size"],
        config["xbound"],
        config["ybound"],
        config["zbound"],
        config["dbound"],
        config["downsample"],
    )
    fill(network, fixture)
    cameras = cameras_of(inputs)
    points = network.points(cameras)
    picked = points.reshape(-1, 3)[torch.from_numpy(fixture.outputs["geometry.index"]).long()]
    yield "geometry.index", fixture.outputs["geometry.index"]
    yield "geometry.value", picked
    yield "geometry.cell", ((picked - (network.bx - network.dx / 2)) / network.dx).int()
    index = network.index(cameras)
    yield "cells_in_range", int(index.runs[:, 2].sum())
    clouds = None
    if isinstance(network, DepthLSSTransform):
        clouds = [inputs["points"]] * config["batch"]
        images = depth_images(clouds, cameras, network.image_size)[:, :, 0]
        yield "depth_map.nonzero", images.nonzero()
        yield "depth_map.value", images[images != 0]
    yield "pooled", network.splat(*network.lift(inputs["x"], cameras, clouds), index)
    yield "bev", network(inputs["x"], cameras, clouds, index)


def segmentation_head(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    network = BEVSegmentationHead(
        config["in_channels"], len(config["classes"]), config["input_scope"], config["output_scope"]
    )
    fill(network, fixture)
    yield "transformed", network.transform(inputs["x"])
    logits = network(inputs["x"])
    yield "logits", logits
    yield "probabilities", logits.sigmoid()


def camera_decoder(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    blocks, indices = config["blocks"], tuple(config["neck in_indices"])
    channels = tuple(blocks[index][1] for index in indices)
    out_channels = shape_of(fixture, "neck.fuse.0.weight")[0]
    network = torch.nn.ModuleDict(
        {
            "backbone": GeneralizedResNet(inputs["x"].shape[1], blocks),
            "neck": LSSFPN(indices, channels, out_channels, config["scale_factor"]),
        }
    )
    fill(network, fixture)
    stages = network["backbone"](inputs["x"])
    for index, stage in enumerate(stages):
        yield f"stage{index}", stage
    yield "neck", network["neck"](stages)


def lidar_decoder(fixture: Any) -> Iterator[tuple[str, Any]]:
    inputs = tensors(fixture)
    channels = (inputs["camera"].shape[1], inputs["lidar"].shape[1])
    fuser = ConvFuser(channels, shape_of(fixture, "fuser.0.weight")[0])
    decoder = torch.nn.ModuleDict({"backbone": SECOND(fuser.out_channels), "neck": SECONDFPN()})
    fill(torch.nn.ModuleDict({"fuser": fuser, "decoder": decoder}), fixture)
    fused = fuser([inputs["camera"], inputs["lidar"]])
    yield "fused", fused
    stages = decoder["backbone"](fused)
    for index, stage in enumerate(stages):
        yield f"second{index}", stage
    yield "neck", decoder["neck"](stages)


def center_head(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    size = config["out_size_factor"]
    network = CenterHead(
        inputs["x"].shape[1],
        config["tasks"],
        tuple(config["pc_range"][:2]),
        (size * config["voxel_size"][0], size * config["voxel_size"][1]),
        post_center_range=config["post_center_range"],
        score_threshold=config["score_threshold"],
        max_num=config["max_num"],
        min_radius=config["min_radius"],
    )
    fill(network, fixture)
    yield from center_outputs(network, network(inputs["x"]))


def center_outputs(
    network: CenterHead, predictions: list[dict[str, torch.Tensor]]
) -> Iterator[tuple[str, Any]]:
    for task, prediction in enumerate(predictions):
        for name in ("reg", "height", "dim", "rot", "vel", "heatmap"):
            yield f"task{task}.{name}", prediction[name]
        found = network.candidates(prediction)[0]
        for name, values in zip(("boxes", "scores", "labels"), found, strict=True):
            yield f"task{task}.{name}", values
        keep = circle_nms(found.boxes[:, :2], found.scores, network.min_radius[task], network.nms_limit)
        yield f"task{task}.circle_keep", keep


def camera_backbone(fixture: Any) -> Iterator[tuple[str, Any]]:
    backbone = SwinTransformer()
    neck = GeneralizedLSSFPN(backbone.out_channels, shape_of(fixture, "neck.fpn_convs.0.conv.weight")[0])
    network = torch.nn.ModuleDict({"backbone": backbone, "neck": neck})
    fill(network, fixture)
    stages = backbone(tensors(fixture)["image"])
    for index, stage in zip(backbone.out_indices, stages, strict=True):
        yield f"swin{index}", stage
    for index, level in enumerate(neck(stages)):
        yield f"neck{index}", level


def transfusion_head(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    size = config["out_size_factor"]
    network = TransFusionHead(
        inputs["x"].shape[1],
        shape_of(fixture, "heatmap_head.1.bias")[0],
        tuple(config["pc_range"][:2]),
        (size * config["voxel_size"][0], size * config["voxel_size"][1]),
        num_proposals=config["num_proposals"],
        post_center_range=config["post_center_range"],
        score_threshold=config["score_threshold"],
    )
    fill(network, fixture)
    proposals = network(inputs["x"])
    yield "dense_heatmap", proposals["dense_heatmap"]
    found = network.decode(proposals)[0]
    decoded = "boxes" in fixture.outputs  # the reference decodes single samples only
    order = same_order(found, fixture.outputs) if decoded else np.arange(network.num_proposals)
    if len(order) == proposals["query_labels"].shape[1]:
        for name in ("query_labels", "query_heatmap_score", *REGRESSIONS, "heatmap"):
            yield name, proposals[name][..., order]
    if decoded:
        for name, values in zip(("boxes", "scores", "labels"), found, strict=True):
            yield name, values[order]


def same_order(found: DecodedBoxes, expected: dict[str, np.ndarray]) -> np.ndarray:
    """Return our boxes' indices in the order of the reference: equal heat lets proposals change places."""
    count = len(expected["labels"])
    if len(found.labels) != count:
        return np.arange(len(found.labels))
    distance = np.linalg.norm(found.boxes.numpy()[None, :, :7] - expected["boxes"][:, None, :7], axis=2)
    other_class = found.labels.numpy()[None] != expected["labels"][:, None]
    _, order = linear_sum_assignment(distance + 1e3 * other_class)
    return order


def image_augmentation(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, image = fixture.manifest["config"], fixture.inputs["image"]
    size = tuple(config["final_dim (h,w)"])
    evaluation = ImageAugmentation.evaluation(
        image.shape[:2], size, config["eval resize"], config["bottom crop"]
    )
    named = {"eval": evaluation}
    for index, train in enumerate(config["train"]):
        named[f"train{index}"] = ImageAugmentation(
            train["resize"], tuple(train["crop"]), size, train["flip"], train["rotate"]
        )
    for name, augmentation in named.items():
        yield f"{name}.image", augmentation.apply(image)
        yield f"{name}.matrix", augmentation.matrix()


def end_to_end(fixture: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the fixture holds: which stages it keeps depends on the sensors and heads."""
    for name, value in stages_of_bevfusion(fixture):
        if name in fixture.outputs or f"{name}.value" in fixture.outputs:
            yield name, value


def stages_of_bevfusion(fixture: Any) -> Iterator[tuple[str, Any]]:
    inputs, network = tensors(fixture), build_bevfusion(fixture.manifest["config"])
    fill(network, fixture)
    clouds = [inputs[name] for name in sorted(inputs) if re.fullmatch(r"points\d+", name)] or None
    maps = {}
    if "lidar" in network.encoders:
        maps["lidar"] = network.encoders["lidar"](clouds)
        yield "lidar_bev", maps["lidar"]
    if "camera" in network.encoders:
        encoder, cameras = network.encoders["camera"], cameras_of(inputs)
        images = (inputs["images"].float() / 255 - MEAN) / STD
        features = encoder.features(images)
        yield "camera_neck0", features.flatten(0, 1)
        transform = encoder.vtransform
        yield (
            "camera_pooled",
            transform.splat(*transform.lift(features, cameras, clouds), transform.index(cameras)),
        )
        maps["camera"] = encoder(images, cameras, clouds)
        yield "camera_bev", maps["camera"]
    fused = network.fuse([maps[name] for name in network.encoders])
    yield "fused", fused
    decoded = network.decoder(fused)
    yield "decoder_neck", decoded
    if "map" in network.heads:
        logits = network.heads["map"](decoded)
        yield "map_logits", logits
        yield "map_probabilities", logits.sigmoid()
    if "object" in network.heads:
        yield from detections(network.heads["object"], decoded, fixture.outputs)


def detections(
    head: torch.nn.Module, decoded: torch.Tensor, expected: dict[str, np.ndarray]
) -> Iterator[tuple[str, Any]]:
    answer = head(decoded)
    boxes = head.decode(answer)[0]
    order = np.arange(len(boxes.labels))
    if isinstance(head, CenterHead):
        yield from center_outputs(head, answer)
    else:
        yield "dense_heatmap", answer["dense_heatmap"]
        if "labels" in expected:  # the reference decodes single samples only
            order = same_order(boxes, expected)
        labels = answer["query_labels"]
        yield "query_labels", labels[:, order] if len(order) == labels.shape[1] else labels
    for name, values in zip(("boxes", "scores", "labels"), boxes, strict=True):
        yield name, values[order]


RUNNERS: dict[str, Runner] = {
    "BEV pooling": pooling_operator,
    "LSSTransform|DepthLSSTransform": view_transform,
    "BEVSegmentationHead": segmentation_head,
    r"GeneralizedResNet \+ LSSFPN.*": camera_decoder,
    r"ConvFuser \+ SECOND \+ SECONDFPN": lidar_decoder,
    "CenterHead.*": center_head,
    r"Swin-T \+ GeneralizedLSSFPN": camera_backbone,
    "TransFusionHead.*": transfusion_head,
    "camera image resize.*": image_augmentation,
    "BEVFusion end to end.*": end_to_end,
}
