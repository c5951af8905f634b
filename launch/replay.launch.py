# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A bag through the perception nodes, with the clock of the bag.

ros2 launch kestrel_bringup replay.launch.py bag:=FOLDER rate:=0.5 rviz:=true
"""

import os
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

import kestrel_nodes
from kestrel_nodes.deployment import BOOLEANS
from launch import LaunchDescription

HERE = Path(__file__).parent
PROFILE = Path(kestrel_nodes.__file__).parent / "transport" / "shm_profile.xml"
"""Shared memory large enough for point clouds; it counts in the process that publishes."""

ARGUMENTS = {
    "bag": (None, "rosbag2 folder."),
    "rate": ("1.0", "Seconds of the bag per second."),
    "delay": ("15.0", "Seconds until the bag starts; the nodes load meanwhile."),
    "nodes": ("video,segmentation,fusion", "Names of the nodes, with commas between."),
    "rig": ("nuscenes", "A name in config/rigs, or the path of a .param.yaml."),
    "config": ("", "Folder with parameters instead of the installed config."),
    "rviz": ("false", "Show everything in RViz."),
}


def include(name: str, **arguments: object) -> IncludeLaunchDescription:
    """Return another launch file of this folder with ``arguments``."""
    source = PythonLaunchDescriptionSource(str(HERE / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=text,
            choices=BOOLEANS if default in BOOLEANS else None,
        )
        for name, (default, text) in ARGUMENTS.items()
    ]
    environment = [
        SetEnvironmentVariable(name, value)
        for name, value in (
            ("FASTRTPS_DEFAULT_PROFILES_FILE", str(PROFILE)),
            ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"),
        )
        if name not in os.environ
    ]
    perception = include(
        "perception.launch.py",
        nodes=LaunchConfiguration("nodes"),
        rig=LaunchConfiguration("rig"),
        config=LaunchConfiguration("config"),
        use_sim_time="true",
    )
    rviz = GroupAction(
        [include("rviz.launch.py", use_sim_time="true")], condition=IfCondition(LaunchConfiguration("rviz"))
    )
    player = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "play", LaunchConfiguration("bag"), "--clock", "100"),
            *("--rate", LaunchConfiguration("rate"), "--delay", LaunchConfiguration("delay")),
            *("--exclude-regex", "/truth/.*", "--wait-for-all-acked", "10000"),
        ],
        output="screen",
    )
    return LaunchDescription([*arguments, *environment, perception, rviz, player])
