# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files start, as far as it can be told without `ros2 launch`; and the image's Dockerfile."""

from __future__ import annotations

import ast
import os
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from kestrel_nodes import NODES, transport
from tests.ros.launch_recorder import Made, declared, entities, load, recorded_launch

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted(LAUNCH.glob("*.launch.py"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    with recorded_launch():
        yield


def started(**values: str) -> list[Made]:
    """Return what perception.launch.py starts with these launch arguments."""
    module = load(LAUNCH / "perception.launch.py")
    context = {name: value or "" for name, value in declared(module).items()} | values
    (opaque,) = [entity for entity in entities(module) if entity.kind == "OpaqueFunction"]
    return list(opaque.named["function"](context))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_launch_argument_is_explained(path: Path) -> None:
    arguments = [item for item in entities(load(path)) if item.kind == "DeclareLaunchArgument"]
    assert arguments
    assert all(argument.named["description"].endswith(".") for argument in arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_neither_true_nor_false_is_no_choice_of_a_switch(path: Path) -> None:
    """`ros2 launch` refuses what is not among the choices, naming the argument, the value and the choices."""
    for argument in (item for item in entities(load(path)) if item.kind == "DeclareLaunchArgument"):
        switch = argument.named["default_value"] in ("true", "false")
        assert bool(argument.named.get("choices")) == switch, argument.arguments
        if switch:
            assert {choice.lower() for choice in argument.named["choices"]} == {"true", "false"}
            assert argument.named["default_value"] in argument.named["choices"]


@pytest.mark.parametrize("choice", ["true", "false", "True", "False"])
def test_every_choice_of_a_switch_is_understood(choice: str) -> None:
    (node,) = [item for item in started(nodes="video", use_sim_time=choice) if item.kind == "LifecycleNode"]
    assert node.named["parameters"][-1] == {"use_sim_time": choice.lower() == "true"}


def test_a_node_that_crashed_is_forgotten_before_it_starts_again() -> None:
    """Or what configures the new one asks the services of the old one, and waits for ever."""
    lease = ElementTree.parse(transport.PROFILE).find(".//{*}leaseDuration/{*}sec")
    assert lease is not None
    nodes = [item for item in started(nodes="video,fusion") if item.kind == "LifecycleNode"]
    assert len(nodes) == 2
    assert all(node.named["respawn_delay"] > float(lease.text or 0) for node in nodes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_included_launch_files_exist_and_take_what_they_are_given(path: Path) -> None:
    includes = [item for item in entities(load(path)) if item.kind == "IncludeLaunchDescription"]
    expected = {"augment.launch.py": 1, "replay.launch.py": 2}
    assert len(includes) == expected.get(path.name, 0)
    for include in includes:
        included = Path(include.arguments[0].arguments[0])
        assert included.is_file()
        given = {name for name, _ in include.named["launch_arguments"]}
        assert given <= declared(load(included)).keys()


@pytest.mark.parametrize("rig", ["nuscenes", "kitti", "robotaxi"])
def test_every_node_is_a_life_cycle_node_with_its_executable_and_parameters(rig: str) -> None:
    nodes = [item for item in started(nodes=",".join(NODES), rig=rig) if item.kind == "LifecycleNode"]
    assert [node.named["name"] for node in nodes] == list(NODES)
    for node in nodes:
        package, name = node.named["package"], node.named["executable"]
        source = ROOT / "ros_ws" / "src" / package
        assert (source / "resource" / package).exists(), "what setup.py puts into the ament index"
        assert os.access(source / "executables" / name, os.X_OK), "what setup.py puts into lib/PACKAGE"
        *files, overrides = node.named["parameters"]
        assert overrides == {"use_sim_time": False}
        assert len(files) == 2
        assert all("ros__parameters" in str(yaml.safe_load(Path(path).read_text())) for path in files)


def test_an_empty_list_of_the_rig_replaces_that_of_an_earlier_file(tmp_path: Path) -> None:
    rig = tmp_path / "blind.param.yaml"
    rig.write_text("fusion: {ros__parameters: {cameras: []}}")
    (node,) = [item for item in started(nodes="fusion", rig=str(rig)) if item.kind == "LifecycleNode"]
    assert node.named["parameters"][-1] == {"use_sim_time": False, "cameras": [""]}


def test_nodes_are_configured_when_they_start_and_activated_when_they_are_configured() -> None:
    everything = started(nodes="video")
    handlers = [item.arguments[0] for item in everything if item.kind == "RegisterEventHandler"]
    assert [handler.kind for handler in handlers] == ["OnProcessStart", "OnStateTransition"]
    assert everything[-1].kind == "LifecycleNode", "a handler that comes later would miss the start"
    start, configured = (
        handlers[0].named["on_start"][0].named["event"].named["transition_id"],
        handlers[1].named["entities"][0].named["event"].named["transition_id"],
    )
    assert (start, configured) == (1, 3)
    assert handlers[1].named["goal_state"] == "inactive"
    kinds = [item.kind for item in started(nodes="video", autostart="false")]
    assert kinds == ["LifecycleNode"]


def test_inputs_are_those_of_topics_yaml_for_each_camera_of_the_rig() -> None:
    (node,) = [item for item in started(nodes="fusion", rig="kitti") if item.kind == "LifecycleNode"]
    remappings = dict(node.named["remappings"])
    assert remappings["~/input/points"] == "/lidar/points"
    assert [name for name in remappings if name.endswith("camera_info")] == ["~/input/front/camera_info"]


def test_launch_modules_in_use_exist_in_the_real_packages_by_name() -> None:
    """The stand-ins accept any name; these are the ones that launch 3.4 and launch_ros 0.26 (Jazzy) offer."""
    offered = {
        "launch": {"LaunchContext", "LaunchDescription"},
        "launch.actions": {
            *("DeclareLaunchArgument", "EmitEvent", "ExecuteProcess", "GroupAction"),
            *("IncludeLaunchDescription", "OpaqueFunction", "RegisterEventHandler", "SetEnvironmentVariable"),
        },
        "launch.conditions": {"IfCondition"},
        "launch.event_handlers": {"OnProcessStart"},
        "launch.events": {"matches_action"},
        "launch.launch_description_entity": {"LaunchDescriptionEntity"},
        "launch.launch_description_sources": {"PythonLaunchDescriptionSource"},
        "launch.substitutions": {"LaunchConfiguration"},
        "launch_ros.actions": {"LifecycleNode", "Node"},
        "launch_ros.event_handlers": {"OnStateTransition"},
        "launch_ros.events.lifecycle": {"ChangeState"},
        "launch_ros.parameter_descriptions": {"ParameterValue"},
    }
    for path in FILES:
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("launch"):
                assert {name.name for name in statement.names} <= offered[statement.module or ""], path


def test_image_copies_what_exists_and_installs_extras_that_exist() -> None:
    sources = re.findall(r"^COPY (?!--)(\S+) \S+$", DOCKERFILE, re.MULTILINE)
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extras,) = re.findall(r'-e "\.\[([\w,-]+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()


def test_image_holds_every_ros_package_that_the_nodes_and_launch_files_need() -> None:
    """What `ros-base` brings is listed in the variants of ROS (REP-2001 for Jazzy)."""
    base = {
        *("rclpy", "rcl_interfaces", "lifecycle_msgs", "std_msgs", "std_srvs", "geometry_msgs", "nav_msgs"),
        *("sensor_msgs", "diagnostic_msgs", "builtin_interfaces", "rosgraph_msgs", "tf2_msgs", "launch"),
        *("launch_ros", "visualization_msgs", "ament_cmake", "rosidl_default_generators"),
        *("rosidl_default_runtime", "ament_index_python", "rmw_fastrtps_cpp", "ros2bag"),
    }
    installed = {name.replace("-", "_") for name in re.findall(r"ros-jazzy-([a-z0-9-]+)", DOCKERFILE)}
    own = {path.parent.name for path in (ROOT / "ros_ws" / "src").glob("kestrel_*/package.xml")}
    assert own == {"kestrel_bringup", "kestrel_msgs", "kestrel_nodes"}
    for package in own:
        manifest = (ROOT / "ros_ws" / "src" / package / "package.xml").read_text(encoding="utf-8")
        needed = set(re.findall(r"<(?:\w+_)?depend>([a-z0-9_]+)</", manifest))
        assert needed - own - base - installed == set(), package
