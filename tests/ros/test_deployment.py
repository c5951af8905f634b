# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The folder config/ as the supervisor and the launch files read it, and what the launch files name."""

from __future__ import annotations

import ast
import py_compile
import re
from pathlib import Path

import pytest
import yaml

from kestrel.errors import ConfigError
from kestrel.sim.drive import EVENT_CAMERA
from kestrel.sim.rig import load_rig, rig_names
from kestrel_nodes import NODES
from kestrel_nodes.commands.up import up
from kestrel_nodes.deployment import CAMERA, INPUTS, config_folder, node_config, rigs
from kestrel_nodes.parameter_files import parameters_of
from kestrel_nodes.parameters import build
from tests.ros.fusion_rig import Fusion
from tests.ros.stand_ins import Augment, Segmentation, Video, configured

ROOT = Path(__file__).parents[2]
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))


def remapped(config: Path, node: str, rig: str | None) -> dict[str, str]:
    return dict(node_config(config, node, rig).remappings)


def test_rig_decides_which_cameras_are_connected() -> None:
    config = config_folder()
    kitti, nuscenes = (remapped(config, "fusion", rig) for rig in ("kitti", "nuscenes"))
    assert kitti["~/input/points"] == "/lidar/points"
    assert kitti["~/input/front/image/compressed"] == "/camera/front/image/compressed"
    assert len(nuscenes) - len(kitti) == 5 * 3, (
        "five more cameras with image, compressed image and camera_info"
    )
    assert "~/input/back_left/camera_info" in nuscenes


@pytest.mark.parametrize("rig", rig_names())
def test_cameras_of_a_simulated_rig_are_those_that_its_drives_have(rig: str) -> None:
    parameters = yaml.safe_load((config_folder() / f"rigs/{rig}.param.yaml").read_text())
    named = {node: parameters[node]["ros__parameters"]["cameras"] for node in ("video", "fusion")}
    there = {camera.name for camera in load_rig(rig).cameras}
    assert set(named["fusion"]) == there
    assert named["video"] == [EVENT_CAMERA]
    assert parameters["fusion"]["ros__parameters"]["reference_camera"] in there


def test_own_folder_is_read_before_the_installed_one(tmp_path: Path) -> None:
    (tmp_path / "rigs").mkdir()
    (tmp_path / "rigs" / "mine.param.yaml").write_text("fusion: {ros__parameters: {cameras: [mast]}}")
    (tmp_path / "rigs" / "mine.topics.yaml").write_text('fusion: {"~/input/points": /velodyne}')
    config = node_config(tmp_path, "fusion", "mine")
    assert dict(config.remappings)["~/input/points"] == "/velodyne"
    assert dict(config.remappings)["~/input/mast/image"] == "/camera/mast/image"
    assert [path.name for path in config.parameter_files] == ["fusion.param.yaml", "mine.param.yaml"]


def test_arguments_name_files_topics_and_clock() -> None:
    arguments = node_config(config_folder(), "segmentation", "kitti").arguments(use_sim_time=True)
    assert arguments[0] == "--ros-args"
    assert "~/input/points:=/lidar/points" in arguments
    assert arguments[-1] == "use_sim_time:=true"


@pytest.mark.parametrize(
    ("text", "reason"), [("fusion: [1, 2]", "inputs and topics"), ("a: b: c", "YAML"), ("- a", "mapping")]
)
def test_malformed_topics_are_refused_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "topics.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"topics\.yaml.*{reason}"):
        node_config(tmp_path, "fusion")


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ('segmentation: {"~/input/point": /velodyne}', "~/input/points", "~/input/point"),
        ('segmentation: {"input/points": /velodyne}', "~/input/points", "input/points"),
        ('fusion: {"~/input/{cam}/image": /nose}', "~/input/{camera}/camera_info", "~/input/{cam}/image"),
        ('augment: {"~/input/points": /velodyne}', "~/input/labels", "~/input/points"),
        ('fussion: {"~/input/points": /velodyne}', "video, segmentation, fusion, augment", "fussion"),
    ],
)
def test_a_misspelt_input_is_refused_with_those_there_are(
    tmp_path: Path, text: str, known: str, found: str
) -> None:
    (tmp_path / "topics.yaml").write_text(text)
    node = text.partition(":")[0] if text.startswith(tuple(NODES)) else "fusion"
    with pytest.raises(
        ValueError, match=rf"topics\.yaml.*expected .*{re.escape(known)}.*found .*{re.escape(found)}"
    ):
        node_config(tmp_path, node)


def test_one_camera_outputs_and_transforms_may_have_other_topics(tmp_path: Path) -> None:
    topics = {"~/input/nose/image": "/nose", "~/output/objects": "/objects", "/tf": "/robot/tf"}
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump({"fusion": topics}))
    assert remapped(tmp_path, "fusion", None) == topics


def test_the_shipped_topics_feed_every_input_of_a_vehicle() -> None:
    shipped = yaml.safe_load((ROOT / "config" / "topics.yaml").read_text())
    vehicle = {node: known for node, known in INPUTS.items() if node != "augment"}
    assert {node: set(topics) for node, topics in shipped.items()} == {
        node: set(known) for node, known in vehicle.items()
    }
    assert INPUTS.keys() == NODES.keys()


@pytest.mark.parametrize("kind", [Video, Segmentation, Fusion, Augment])
def test_what_a_node_takes_may_be_renamed(kind: type) -> None:
    with configured(kind) as node:
        taken = {f"~/input/{name}" for name in node.inputs if not name.startswith("/")}
        cameras = getattr(node.params, "cameras", ("",))
    known = {name.replace(CAMERA, camera) for name in INPUTS[kind.__name__.lower()] for camera in cameras}
    raw = {name for name in known if f"{name}/compressed" in known}
    assert taken == known - raw


def test_unknown_rig_folder_and_node_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"kitti, nuscenes.*found mars"):
        up(rig="mars", config=None, nodes=None)
    with pytest.raises(ConfigError, match="/nowhere"):
        up(rig=None, config=Path("/nowhere"), nodes=None)
    with pytest.raises(ConfigError, match=r"--nodes.*lidar"):
        up(rig=None, config=None, nodes="fusion,lidar")


def test_every_parameter_of_the_rigs_exists_and_may_have_its_value() -> None:
    config = ROOT / "config"
    for rig in rigs(config):
        content = yaml.safe_load((config / "rigs" / f"{rig}.param.yaml").read_text())
        for node, section in content.items():
            build(parameters_of(node), section["ros__parameters"])


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_compiles_and_names_only_what_exists(path: Path, tmp_path: Path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)
    tree = ast.parse(path.read_text())
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = {
        keyword.value.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "executable" and isinstance(keyword.value, ast.Constant)
    }
    executables = {item.name for item in (ROOT / "ros_ws/src/kestrel_nodes/executables").iterdir()}
    assert named <= executables | {"rviz2"}
    for text in strings:
        if text.endswith((".launch.py", ".rviz", ".param.yaml")) and "/" not in text and " " not in text:
            assert list(ROOT.glob(f"launch/{text}")) + list(ROOT.glob(f"config/**/{text}")), text


def test_there_is_an_executable_for_every_node() -> None:
    folder = ROOT / "ros_ws/src/kestrel_nodes/executables"
    assert {item.name for item in folder.iterdir()} == set(NODES)


def test_launch_files_are_there_and_installed() -> None:
    assert {path.name.partition(".")[0] for path in LAUNCH_FILES} >= {
        "perception",
        "replay",
        "augment",
        "rviz",
    }
    build = (ROOT / "ros_ws/src/kestrel_bringup/CMakeLists.txt").read_text()
    for folder in ("launch", "config"):
        assert f"../../../{folder}" in build


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("fusion: {ros__parameters: {cameras: }}", "expected cameras like .* found None"),
        ("fusion: {ros__parameters: {cameras: front}}", "expected cameras like .* found 'front'"),
        ("fusion: {ros__parameters: {cameras: [1]}}", "expected cameras like"),
        ("fusion: [cameras]", "expected ros__parameters"),
    ],
)
def test_cameras_that_are_no_list_of_names_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    rig = tmp_path / "mine.param.yaml"
    rig.write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.param\.yaml, fusion: {reason}"):
        node_config(config_folder(), "fusion", str(rig))


def test_an_empty_list_replaces_that_of_an_earlier_file(tmp_path: Path) -> None:
    """To ROS itself it says nothing, and six cameras without topics would be waited for."""
    (tmp_path / "rigs").mkdir()
    own = "{cameras: [nose], own_vehicle_box_m: [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0]}"
    (tmp_path / "fusion.param.yaml").write_text(f"fusion: {{ros__parameters: {own}}}")
    rig = tmp_path / "rigs" / "mine.param.yaml"
    rig.write_text("fusion: {ros__parameters: {cameras: [], own_vehicle_box_m: []}}")
    config = node_config(tmp_path, "fusion", "mine")
    assert [source for source, _ in config.remappings] == ["~/input/points"]
    assert config.emptied == ("cameras", "own_vehicle_box_m")
    with configured(Fusion, *config.arguments()) as node:
        assert (node.params.cameras, node.params.own_vehicle_box_m) == ((), ())
    rig.write_text("fusion: {ros__parameters: {cameras: [mast]}}")
    assert node_config(tmp_path, "fusion", "mine").emptied == ()
