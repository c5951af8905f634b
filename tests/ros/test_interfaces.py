# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The re-declared interface packages are wire-compatible with the originals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

get_package_share_directory = pytest.importorskip("ament_index_python").get_package_share_directory

UPSTREAM_HASHES = {
    "vision_msgs/msg/Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "vision_msgs/msg/Detection3D": "ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b",
    "vision_msgs/msg/BoundingBox3D": "bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc"
    ),
    "vision_msgs/msg/ObjectHypothesis": "51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90",
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
}
"""RIHS01 hashes of the packages that a full ROS 2 Jazzy installation brings."""


def installed_hash(type_name: str) -> str:
    package, folder, message = type_name.split("/")
    description = Path(get_package_share_directory(package)) / folder / f"{message}.json"
    hashes = {
        entry["type_name"]: entry["hash_string"]
        for entry in json.loads(description.read_text())["type_hashes"]
    }
    return hashes[type_name].removeprefix("RIHS01_")


@pytest.mark.parametrize("type_name", sorted(UPSTREAM_HASHES))
def test_type_hash_equals_upstream(type_name: str) -> None:
    assert installed_hash(type_name) == UPSTREAM_HASHES[type_name]
