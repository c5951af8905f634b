# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and shapes of every reference network are those of Kestrel's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import nn

from kestrel.models.anycost import AnyCostDiscriminator, AnyCostGenerator
from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.bevfusion_released import released_config
from kestrel.models.gan_compression import ResnetGenerator
from kestrel.models.minkunet import MinkUNet, scaled_channels
from kestrel.models.mobilenetv2 import OnlineTSMMobileNetV2
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.models.tsm import TSM
from tests.parity.fixture import parity_folder

FOLDER: Final = parity_folder().parent / "reference" / "state_dict_keys"
CONFIGURATION: Final = ".config"
"""Ending of the names of files that say how a network is built, not what keys it has."""


def fusion(task: Any, modality: str) -> nn.Module:
    return build_bevfusion(released_config(task, modality.removesuffix("-only")))  # type: ignore[arg-type]


def searched() -> nn.Module:
    config = json.loads((FOLDER / f"spvnas_example_net{CONFIGURATION}.json").read_text())
    return SPVNAS(config, 19)


def uniform(width: str, *, separable: bool) -> nn.Module:
    return ResnetGenerator([int(width)] * 8, separable=separable)


NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {
    r"anycost_discriminator_multires_(\d+)_cond": lambda size: AnyCostDiscriminator(int(size)),
    r"anycost_generator_(\d+)": lambda size: AnyCostGenerator(int(size)),
    r"bevfusion_(det|seg)_(.+)": fusion,
    r"ganc_mobile_resnet_9blocks_ngf(\d+)": lambda width: uniform(width, separable=True),
    r"ganc_resnet_9blocks_ngf(\d+)": lambda width: uniform(width, separable=False),
    r"ganc_sub_([\d_]+)": lambda widths: ResnetGenerator([int(width) for width in widths.split("_")]),
    r"minkunet_cr([\d.]+)": lambda ratio: MinkUNet(19, channels=scaled_channels(float(ratio))),
    r"spvcnn_cr([\d.]+)": lambda ratio: SPVCNN(19, channels=scaled_channels(float(ratio))),
    r"spvnas_determinized_random_example": searched,
    r"spvnas_supernet": lambda: SPVNASSuperNet(19),
    r"stylegan2_discriminator_(\d+)": lambda size: AnyCostDiscriminator(
        int(size), n_res=1, conditioned=False
    ),
    r"tsm_(mobilenetv2|resnet50)_kinetics": lambda base: TSM(base, 400),
    r"tsm_online_mobilenetv2_jester": lambda: OnlineTSMMobileNetV2(27),
    r"tsm_resnet50_nl_kinetics": lambda: TSM("resnet50", 400, non_local=True),
}
"""By pattern of the file's name, what builds the network from the parts of the name."""


def in_reference(name: str, key: str) -> str:
    """Return the reference's name of a key: StyleGAN2 counts the first layer and the blocks through."""
    if not name.startswith("stylegan2_discriminator"):
        return key
    return re.sub(r"^blocks\.(\d+)", lambda match: f"convs.{int(match[1]) + 1}", key)


def network_of(name: str) -> nn.Module:
    """Return the network that a key list is of, without values."""
    for pattern, build in NETWORKS.items():
        if match := re.fullmatch(pattern, name):
            with torch.device("meta"):
                return build(*match.groups())
    raise AssertionError(f"{name}: no network of Kestrel is known for this key list")


def key_lists() -> list[Any]:
    names = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.endswith(CONFIGURATION))
    reason = f"no key lists: {FOLDER} does not exist"
    return list(names) or [pytest.param("none", marks=pytest.mark.skip(reason=reason))]


@pytest.mark.parametrize("name", key_lists())
def test_keys_and_shapes_are_those_of_the_reference(name: str) -> None:
    state = network_of(name).state_dict()
    found = {in_reference(name, key): list(value.shape) for key, value in state.items()}
    assert found == json.loads((FOLDER / f"{name}.json").read_text())["keys"]


def test_a_key_list_of_a_network_that_is_not_known_fails_by_name() -> None:
    with pytest.raises(AssertionError, match="resnet101_moments: no network"):
        network_of("resnet101_moments")
