# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The perception nodes on a vehicle or a replay.

ros2 launch kestrel_bringup perception.launch.py rig:=nuscenes use_sim_time:=true
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from kestrel_nodes.deployment import BOOLEANS, EMPTY, NodeConfig, config_folder, node_config
from launch import LaunchContext, LaunchDescription

RESPAWN_DELAY_S = 12.0
"""Until then the services of a process that crashed are still there (lease of shm_profile.xml: 10 s): what
configures the new one would ask them, and wait for ever."""

ARGUMENTS = {
    "nodes": ("video,segmentation,fusion", "Names of the nodes, with commas between."),
    "rig": ("nuscenes", "A name in config/rigs, or the path of a .param.yaml."),
    "config": ("", "Folder with parameters instead of the installed config."),
    "use_sim_time": ("false", "Follow /clock, as a replay publishes it."),
    "autostart": ("true", "Configure and activate every node when its process starts."),
    "respawn": ("true", "Start a process that ended again."),
    "log_level": ("info", "Level of the nodes' log."),
}


def is_true(text: str) -> bool:
    """Return one of BOOLEANS as a truth value."""
    return text.lower() == "true"


def autostart(node: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Return the handlers that configure and activate ``node`` whenever its process starts."""

    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        )

    on_start = OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    on_configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return [RegisterEventHandler(on_start), RegisterEventHandler(on_configured)]


def lifecycle_node(config: NodeConfig, values: dict[str, str]) -> LifecycleNode:
    """Return the action that runs one node."""
    overrides = {"use_sim_time": is_true(values["use_sim_time"]), **dict.fromkeys(config.emptied, EMPTY)}
    return LifecycleNode(
        package="kestrel_nodes",
        executable=config.name,
        name=config.name,
        namespace="",
        output="screen",
        parameters=[*map(str, config.parameter_files), overrides],
        remappings=list(config.remappings),
        arguments=["--ros-args", "--log-level", values["log_level"]],
        respawn=is_true(values["respawn"]),
        respawn_delay=RESPAWN_DELAY_S,
    )


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the nodes; the handlers come first, so that they see the processes start."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    folder = Path(values["config"]) if values["config"] else config_folder()
    nodes, handlers = [], []
    for name in values["nodes"].split(","):
        node = lifecycle_node(node_config(folder, name.strip(), values["rig"] or None), values)
        nodes.append(node)
        if is_true(values["autostart"]):
            handlers += autostart(node)
    return [*handlers, *nodes]


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
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
