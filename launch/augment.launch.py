# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The augment node, which makes synthetic camera images.

ros2 launch kestrel_bringup augment.launch.py
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

PERCEPTION = Path(__file__).with_name("perception.launch.py")


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    config = DeclareLaunchArgument(
        "config", default_value="", description="Folder with parameters instead of the installed config."
    )
    chosen = {"nodes": "augment", "rig": "", "config": LaunchConfiguration("config")}
    return LaunchDescription(
        [
            config,
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(PERCEPTION)), launch_arguments=chosen.items()
            ),
        ]
    )
