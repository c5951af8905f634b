# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Build BEVFusion networks from configurations in the format of the released ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, cast

from torch import Tensor, nn

from kestrel.errors import ConfigError, ModelError, describe
from kestrel.models.bevfusion import BEVDecoder, BEVFusion, CameraEncoder, LidarEncoder, Voxelization
from kestrel.models.bevfusion_released import released_config
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

_CANNOT_BUILD: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What building from sizes that cannot be raises, besides errors of Kestrel."""


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


def config_of(manifest: Config) -> Config:
    """Return the configuration of weights from the ``config`` of their manifest.

    Args:
        manifest: ``task`` and ``modality`` of a released network, ``backbone`` unless it is Swin-T; where the
            sizes are others, ``network`` with all of the configuration.

    Raises:
        ModelError: there is no such released network, or ``network`` is no configuration.
    """
    if "network" in manifest:
        _check_parts(manifest["network"])
        return cast(Config, manifest["network"])
    return released_config(manifest["task"], manifest["modality"], manifest.get("backbone", "swin-t"))


def network_of(manifest: Config, source: object) -> tuple[Config, BEVFusion]:
    """Return the configuration of weights and the network that it describes, with random weights.

    Args:
        manifest: as for config_of.
        source: where it is from, named in errors.

    Raises:
        ModelError: nothing can be built from it.
        ConfigError: as of build_bevfusion.
    """
    name = f"{source} config"
    try:
        config = config_of(manifest)
        return config, build_bevfusion(config)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    except KeyError as error:
        raise ModelError(describe(name, expected=f"an entry {error}", found="none")) from error
    except _CANNOT_BUILD as error:
        expected = "what builds a BEVFusion"
        raise ModelError(describe(name, expected=expected, found=repr(error))) from error


def check_constants(state: Mapping[str, Tensor], manifest: Config) -> None:
    """Look at the constants of the view transform among converted weights, without building all the network.

    Args:
        state: of the whole network, by its keys.
        manifest: as for config_of.

    Raises:
        ModelError: they are of another grid, depths or size of pictures than the configuration.
    """
    camera = config_of(manifest)["encoders"].get("camera")
    if camera is not None:
        _configured_view(camera).check_constants(state, "encoders.camera.vtransform.")


def _check_parts(network: object) -> None:
    """Raise ModelError unless all parts of a configuration are where build_bevfusion looks for them."""
    parts = {"network": network}
    if isinstance(network, Mapping):
        parts |= {f"network: {name}": network.get(name) for name in ("encoders", "decoder", "heads")}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            expected = "an object with its parts"
            raise ModelError(describe(f"config of a BEVFusion, {name}", expected=expected, found=repr(part)))
    for name, known in (("encoders", ("camera", "lidar")), ("heads", ("object", "map"))):
        given = {key: part for key, part in cast(Config, network)[name].items() if part is not None}
        if not given or not given.keys() <= set(known) or not all(map(_is_object, given.values())):
            expected = f"an object for {' or '.join(known)}, or for both"
            found = repr(cast(Config, network)[name])
            where = f"config of a BEVFusion, network: {name}"
            raise ModelError(describe(where, expected=expected, found=found))


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _choose(part: str, config: Config, builders: Mapping[str, Callable[[Config], Any]]) -> Any:
    kind = config["type"]
    if kind not in builders:
        raise ConfigError(describe(f"type of {part}", expected=sorted(builders), found=kind))
    return builders[kind](config)


def _camera_encoder(config: Config) -> CameraEncoder:
    backbone: nn.Module = _choose(
        "the camera backbone", config["backbone"], {"SwinTransformer": _swin, "ResNet": _resnet}
    )
    neck, view = config["neck"], _configured_view(config)
    return CameraEncoder(backbone, GeneralizedLSSFPN(neck["in_channels"], neck["out_channels"]), view)


def _configured_view(config: Config) -> LSSTransform:
    view: LSSTransform = _choose(
        "the view transform",
        config["vtransform"],
        {kind.__name__: partial(_view_transform, kind) for kind in (LSSTransform, DepthLSSTransform)},
    )
    return view


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
    tasks, kind, scale = config["tasks"], test.get("nms_type", "circle"), test.get("nms_scale") or 1.0
    return CenterHead(
        config["in_channels"],
        tasks,
        tuple(coder["pc_range"][:2]),
        _cell_size(coder),
        share_channels=config.get("share_conv_channel", 64),
        post_center_range=coder["post_center_range"],
        score_threshold=coder["score_threshold"],
        max_num=coder["max_num"],
        nms_type=[kind] * len(tasks) if isinstance(kind, str) else kind,
        nms_limit=test.get("post_max_size", 83),
        min_radius=test.get("min_radius", (4, 12, 10, 1, 0.85, 0.175)),
        nms_threshold=test.get("nms_thr", 0.2),
        nms_scale=scale if isinstance(scale, list | tuple) else [[scale] * len(task) for task in tasks],
        pre_max_size=test.get("pre_max_size", 1000),
    )


def _segmentation_head(config: Config) -> BEVSegmentationHead:
    grid = config["grid_transform"]
    return BEVSegmentationHead(
        config["in_channels"], len(config["classes"]), grid["input_scope"], grid["output_scope"]
    )
