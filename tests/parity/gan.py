# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the image generators, discriminators and augmentations on the parity fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kestrel.models.anycost import AnyCostDiscriminator, AnyCostGenerator
from kestrel.models.gan_compression import PatchDiscriminator, ResnetGenerator, SuperResnetGenerator
from kestrel.models.spade import MobileSpadeGenerator
from kestrel.nn import diffaugment
from tests.parity.fixture import Runner, fill, tensors


def augmentation(fixture: Any) -> Iterator[tuple[str, Any]]:
    inputs = tensors(fixture)

    def apply(name: str, x: Tensor, prefix: str = "") -> Tensor:
        operator = getattr(diffaugment, name)
        if name in ("translation", "cutout"):
            kind = "cutout_offset" if name == "cutout" else name
            return operator(x, inputs[f"{prefix}{kind}_x"], inputs[f"{prefix}{kind}_y"])
        return operator(x, inputs[prefix + name])

    operators = ("brightness", "saturation", "contrast", "translation", "cutout")
    for name in operators:
        yield name, apply(name, inputs["x"])
    for policies in (name for name in fixture.outputs if "," in name):
        x = inputs["x"]
        for name in operators:
            if ("color" if name in operators[:3] else name) in policies.split(","):
                x = apply(name, x, "all.")
        yield policies, x


def resnet_generator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, kind = fixture.manifest["config"], fixture.manifest["net"]
    widths = config.get("channels") or [config["ngf"]] * 8
    network = ResnetGenerator(
        widths,
        n_blocks=config.get("n_blocks", 9),
        separable="Mobile" in kind,
        clamp=kind != "MobileResnetGenerator",
    )
    fill(network, fixture)
    x = network.prepare(tensors(fixture)["image"])
    yield from layers(network.model, x, fixture.outputs)


def layers(model: torch.nn.Sequential, x: Tensor, stored: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for index, layer in enumerate(model):
        x = layer(x)
        if (sample := stored.get(f"model{index}.sample")) is not None:
            # Stored are the middle row of the first channels, and the mean over the picture.
            yield f"model{index}.channel_mean", x.mean((2, 3))
            yield f"model{index}.sample", x[:, : sample.shape[1], x.shape[2] // 2].clone()
    yield "image", x


def super_generator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    network = SuperResnetGenerator([config["ngf"]] * 8)
    fill(network, fixture)
    x = tensors(fixture)["image"]
    narrow, weights = network.subnetwork_weights(config["channels"])
    narrow.load_state_dict(weights, assign=True)
    inner = list(layers(narrow.eval().model, narrow.prepare(x), fixture.outputs))
    yield from inner[:-1]
    yield "image", network(x, config["channels"])


def patch_discriminator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    network = PatchDiscriminator(config["input_nc"], config["ndf"], config["n_layers"])
    fill(network, fixture)
    yield from layers(network.model, tensors(fixture)["image"], fixture.outputs)


def spade_generator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, labels = fixture.manifest["config"], tensors(fixture)["label"].long()
    width = config["crop_size"]
    network = MobileSpadeGenerator(
        config["semantic_nc"],
        config["ngf"],
        (round(width / config["aspect_ratio"]), width),
        upsampling=config["num_upsampling_layers"],
        norm="instance" if "instance" in config["norm_G"] else "batch",
    )
    fill(network, fixture)
    one_hot = torch.nn.functional.one_hot(labels, config["semantic_nc"]).float()
    one_hot = one_hot.view(-1, *one_hot.shape[-3:]).permute(0, 3, 1, 2)
    yield from network.features(one_hot)
    yield "image", network(one_hot)


def anycost_generator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    network = AnyCostGenerator(config["resolution"], config["channel_multiplier"])
    fill(network, fixture)
    w = network.map_styles(tensors(fixture)["z"])
    yield "w", w
    for combination in config["combinations"]:
        picture = network(w, combination["target_res"], combination["channel_ratio"])
        name = f"res{combination['target_res']}_ratio{combination['channel_ratio']}"
        step = picture.shape[2] // fixture.outputs[f"{name}.image"].shape[2]
        yield f"{name}.image", picture[:, :, ::step, ::step]
        yield f"{name}.channel_mean", picture.mean((2, 3))
        yield f"{name}.channel_std", picture.std((2, 3))


def anycost_discriminator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, inputs = fixture.manifest["config"], tensors(fixture)
    network = AnyCostDiscriminator(
        config["resolution"],
        config["channel_multiplier"],
        config["n_res"],
        conditioned=config["modulate"],
    )
    fill(network, fixture)
    for name, image in inputs.items():
        if name.startswith("image"):
            yield name.replace("image", "score"), network(image, inputs.get("g_arch"))


RUNNERS: dict[str, Runner] = {
    "DiffAugment operators": augmentation,
    "(MobileResnet|SubMobileResnet|Resnet)Generator": resnet_generator,
    "SuperMobileResnetGenerator": super_generator,
    "NLayerDiscriminator": patch_discriminator,
    "MobileSPADEGenerator": spade_generator,
    "AnyCost generator": anycost_generator,
    "AnyCost .*discriminator": anycost_discriminator,
}
