# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""RViz with everything that the nodes publish.

ros2 launch kestrel_bringup rviz.launch.py use_sim_time:=true
"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from kestrel_nodes.deployment import BOOLEANS, config_folder
from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    layout = DeclareLaunchArgument(
        "layout",
        default_value=str(config_folder() / "rviz" / "kestrel.rviz"),
        description="RViz configuration.",
    )
    clock = DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        description="Follow /clock, as a replay publishes it.",
        choices=BOOLEANS,
    )
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        output="screen",
        arguments=["-d", LaunchConfiguration("layout")],
        parameters=[{"use_sim_time": use_sim_time}],
    )
    return LaunchDescription([layout, clock, rviz])
