# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The folder config/: which parameter files and which topics belong to which node on which rig.

::

    config/NODE.param.yaml         parameters of a node
    config/topics.yaml             which topic of the vehicle feeds which input of which node
    config/rigs/RIG.param.yaml     what is different on a rig (its cameras)
    config/rigs/RIG.topics.yaml    its topics, where they have other names

`kestrel up` and the launch files read it through this module, which needs nothing but PyYAML.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CAMERA = "{camera}"
"""Stands in topics.yaml for each name in the parameter ``cameras`` of the node."""

INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "video": (f"~/input/{CAMERA}/image", f"~/input/{CAMERA}/image/compressed"),
    "segmentation": ("~/input/points",),
    "fusion": (
        "~/input/points",
        f"~/input/{CAMERA}/image",
        f"~/input/{CAMERA}/image/compressed",
        f"~/input/{CAMERA}/camera_info",
    ),
    "augment": ("~/input/labels",),
}
"""What each node takes. ROS ignores a remapping that matches no topic, so a misspelt one is refused here."""

OTHERS: Final = ("/", "~/output/", "~/debug/", "~/heartbeat", "~/render")
"""Beginnings of what topics.yaml may rename beside inputs."""

EMPTY: Final = [""]
"""What every node takes for an empty list, of strings or of numbers."""

BOOLEANS = ["true", "false", "True", "False"]
"""What a switch of a launch file may be; `ros2 launch` refuses anything else and says so."""


@dataclass(frozen=True)
class NodeConfig:
    """How one node is started: its parameter files (later ones win) and (input, topic) pairs.

    emptied: parameters that the last file to name them sets to ``[]``. That has no type, so that ROS keeps
    the list of an earlier file; ``EMPTY`` replaces it.
    """

    name: str
    parameter_files: tuple[Path, ...]
    remappings: tuple[tuple[str, str], ...]
    emptied: tuple[str, ...] = ()

    def arguments(self, *, use_sim_time: bool = False) -> list[str]:
        """Return the command-line arguments of the process."""
        arguments = ["--ros-args"]
        for path in self.parameter_files:
            arguments += ["--params-file", str(path)]
        for name in self.emptied:
            arguments += ["--param", f"{name}:={json.dumps(EMPTY)}"]
        for source, target in self.remappings:
            arguments += ["--remap", f"{source}:={target}"]
        return [*arguments, "--param", f"use_sim_time:={str(use_sim_time).lower()}"]


def config_folder() -> Path:
    """Return the installed config folder (share/kestrel_bringup), else that of the source tree."""
    prefixes = [
        Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix
    ]
    installed = [prefix / "share" / "kestrel_bringup" / "config" for prefix in prefixes]
    return next(
        (folder for folder in installed if folder.is_dir()), Path(__file__).resolve().parents[4] / "config"
    )


def rigs(folder: Path) -> list[str]:
    """Return the names of the rigs in ``folder``."""
    return sorted(path.name.removesuffix(".param.yaml") for path in (folder / "rigs").glob("*.param.yaml"))


def node_config(folder: Path, node: str, rig: str | None = None) -> NodeConfig:
    """Return how ``node`` is started with the files in ``folder``.

    Args:
        folder: as described above; what is not in it comes from the installed folder.
        node: name of the node.
        rig: name of a rig, or the path of its parameter file.

    Raises:
        ValueError: the folder or the rig does not exist, or a file does not have the form that it should.
    """
    if not folder.is_dir():
        raise ValueError(f"config folder: expected a folder, found {folder}")
    files = [_find(folder, f"{node}.param.yaml")]
    topics = _topics(_find(folder, "topics.yaml"), node)
    if rig is not None:
        overlay = Path(rig) if rig.endswith(".yaml") else _find(folder, f"rigs/{rig}.param.yaml")
        if not overlay.is_file():
            known = sorted({*rigs(folder), *rigs(config_folder())})
            expected = f"one of {', '.join(known)}, a .param.yaml or the name of one in {folder / 'rigs'}"
            raise ValueError(f"rig: expected {expected}, found {rig}")
        files.append(overlay)
        name = overlay.name.removesuffix(".param.yaml")
        topics |= _topics(overlay.with_name(f"{name}.topics.yaml"), node)
    present = tuple(path for path in files if path.is_file())
    parameters = _parameters(present, node)
    cameras = [camera for camera in parameters.get("cameras", []) if camera]
    emptied = tuple(name for name, value in parameters.items() if value == [])
    return NodeConfig(node, present, tuple(_expanded(topics, cameras)), emptied)


def _find(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_file() else config_folder() / name


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, found {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content or {}


def _topics(path: Path, node: str) -> dict[str, str]:
    content = _load(path)
    unknown = [name for name in content if name not in INPUTS]
    if unknown:
        raise ValueError(f"{path}: expected nodes of {', '.join(INPUTS)}, found {unknown}")
    topics = content.get(node) or {}
    if not isinstance(topics, dict) or not all(
        isinstance(name, str) for item in topics.items() for name in item
    ):
        raise ValueError(f"{path}, {node}: expected inputs and topics, found {topics}")
    for source in topics:
        if not source.startswith(OTHERS) and not _is_input(source, node):
            raise ValueError(f"{path}, {node}: expected inputs of {', '.join(INPUTS[node])}, found {source}")
    return dict(topics)


def _is_input(source: str, node: str) -> bool:
    """Return whether ``node`` has this input; the name of a camera may stand for {camera}."""
    camera = re.escape(CAMERA)
    patterns = (re.escape(known).replace(camera, f"({camera}|[^{{}}]+)") for known in INPUTS[node])
    return any(re.fullmatch(pattern, source) for pattern in patterns)


def _parameters(files: tuple[Path, ...], node: str) -> dict[str, Any]:
    """Return the parameters of ``node``, each of the last file that sets it; ``cameras`` are names."""
    merged: dict[str, Any] = {}
    for path in files:
        content = _load(path)
        for section in ("/**", node, f"/{node}"):
            parameters = content.get(section) or {}
            if isinstance(parameters, dict):
                parameters = parameters.get("ros__parameters") or {}
            if not isinstance(parameters, dict):
                raise ValueError(f"{path}, {section}: expected ros__parameters, found {parameters!r}")
            cameras = parameters.get("cameras", [])
            if not isinstance(cameras, list) or not all(isinstance(camera, str) for camera in cameras):
                raise ValueError(f'{path}, {section}: expected cameras like ["front"], found {cameras!r}')
            merged |= parameters
    return merged


def _expanded(topics: Mapping[str, str], cameras: list[str]) -> Iterator[tuple[str, str]]:
    for source, target in topics.items():
        if CAMERA in source:
            for camera in cameras:
                yield source.replace(CAMERA, camera), target.replace(CAMERA, camera)
        else:
            yield source, target
