# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters: checked values, and generated files that say what is true."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import yaml

from kestrel.errors import ConfigError
from kestrel_nodes import NODES, parameter_files
from kestrel_nodes.parameters import NodeParameters, build, parameter, specs
from tests.ros.fusion_rig import Fusion
from tests.ros.stand_ins import Augment, Segmentation, Video, configured


@dataclass(frozen=True)
class Example(NodeParameters):
    flag: bool = parameter(False, "A flag.")
    count: int = parameter(2, "A count.", minimum=1, maximum=4)
    ratio: float = parameter(0.5, "A ratio.", minimum=0.0, maximum=1.0)
    mode: str = parameter("slow", "A mode.", choices=("slow", "fast"))
    names: tuple[str, ...] = parameter((), "Names.")
    offsets: tuple[float, ...] = parameter((), "Offsets.", minimum=-1.0, maximum=1.0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("flag", True, True),
        ("count", 4, 4),
        ("ratio", 1, 1.0),
        ("mode", "fast", "fast"),
        ("names", ["a", "b"], ("a", "b")),
        ("names", [""], ()),
        ("names", None, ()),
        ("offsets", [], ()),
        ("offsets", None, ()),
        ("offsets", [""], ()),
        ("offsets", [1, -0.5], (1.0, -0.5)),
    ],
)
def test_a_value_becomes_the_declared_type(name: str, value: object, expected: object) -> None:
    assert getattr(build(Example, {name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", 1),
        ("flag", "true"),
        ("count", 0),
        ("count", 5),
        ("count", 2.0),
        ("count", True),
        ("ratio", 1.1),
        ("ratio", float("nan")),
        ("ratio", "0.5"),
        ("mode", "medium"),
        ("mode", 3),
        ("names", "front"),
        ("names", [1]),
        ("offsets", [2.0]),
        ("offsets", ["a"]),
        ("offsets", ["", "a"]),
        ("flag", None),
        ("count", None),
        ("ratio", None),
        ("mode", None),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        build(Example, {name: value})
    allowed = next(spec.allowed for spec in specs(Example) if spec.name == name)
    assert str(error.value) == f"parameter {name}: expected {allowed}, found {value!r}"


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ConfigError, match="speed"):
        build(Example, {"speed": 1})


@pytest.mark.parametrize("node", sorted(NODES))
def test_every_parameter_is_explained_and_its_default_allowed(node: str) -> None:
    known = specs(parameter_files.parameters_of(node))
    assert known
    for spec in known:
        assert spec.checked(spec.default) == spec.default
        assert spec.description.endswith(".")


def test_the_generated_files_are_up_to_date() -> None:
    stale = [
        str(path) for path, text in parameter_files.files().items()
        if not path.exists() or path.read_text() != text
    ]  # fmt: skip
    assert not stale, "run `python -m kestrel_nodes.parameter_files`"


def schema_of_files() -> jsonschema.Draft202012Validator:
    text = (parameter_files.ROOT / "config" / parameter_files.SCHEMA).read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize(
    "path", sorted((parameter_files.ROOT / "config").rglob("*.param.yaml")), ids=lambda p: p.name
)
def test_a_parameter_file_fits_the_schema_that_it_names(path: Path) -> None:
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.+)$", path.read_text(), re.MULTILINE)
    assert (path.parent / named).resolve() == parameter_files.ROOT / "config" / parameter_files.SCHEMA
    schema_of_files().validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "parameters",
    [
        {"capasity": 9},
        {"capacity": 0},
        {"capacity": 1.5},
        {"engine": "fast"},
        {"cameras": "front"},
        {"track": 1},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_node_refuses(parameters: dict[str, object]) -> None:
    kind = parameter_files.parameters_of("fusion")
    assert not schema_of_files().is_valid({"fusion": {"ros__parameters": parameters}})
    with pytest.raises(ConfigError):
        build(kind, parameters)


@pytest.mark.parametrize("kind", [Video, Segmentation, Augment])
def test_a_parameter_file_gives_the_defaults_with_their_types(kind: type) -> None:
    name = kind.__name__.lower()
    path = parameter_files.ROOT / "config" / f"{name}.param.yaml"
    with configured(kind, "--ros-args", "--params-file", str(path)) as node:
        assert node.params == type(node).parameters_type()


def test_an_empty_list_in_a_parameter_file_is_one(tmp_path: Path) -> None:
    """It has no type in YAML: ROS takes the parameter for one that is not set."""
    file = {"fusion": {"ros__parameters": {"cameras": [], "own_vehicle_box_m": [], "class_remap": []}}}
    schema_of_files().validate(file)
    path = tmp_path / "mine.param.yaml"
    path.write_text(yaml.safe_dump(file))
    with configured(Fusion, "--ros-args", "--params-file", str(path)) as node:
        assert (node.params.cameras, node.params.own_vehicle_box_m, node.params.class_remap) == ((), (), ())
