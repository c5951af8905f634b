# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Installs the nodes as an ament_python package, with pip as well as with colcon."""

from setuptools import find_packages, setup

PACKAGE = "kestrel_nodes"
NODES = ("video", "segmentation", "fusion", "augment")

setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={f"{PACKAGE}.transport": ["*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"lib/{PACKAGE}", [f"executables/{node}" for node in NODES]),
    ],
    license="Apache-2.0",
    description="Life-cycle nodes for video, point cloud segmentation, camera-LiDAR fusion and augmentation.",
    maintainer="The Kestrel Authors",
    maintainer_email="maintainers@kestrel-perception.org",
    python_requires=">=3.11",
    zip_safe=False,
    entry_points={
        "kestrel.commands": [
            "up = kestrel_nodes.commands.up:up",
            "replay = kestrel_nodes.commands.replay:replay",
            "demo = kestrel_nodes.commands.demo:demo",
            "doctor = kestrel_nodes.commands.doctor:doctor",
        ],
    },
)
