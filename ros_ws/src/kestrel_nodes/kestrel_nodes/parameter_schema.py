# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of all nodes as a JSON schema, by which editors complete and check parameter files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kestrel_nodes.parameters import NodeParameters, ParameterSpec, specs

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
OF_ROS: Final = {"use_sim_time": {"type": "boolean"}, "qos_overrides": {"type": "object"}}
"""Parameters that every node of ROS 2 has."""

_TYPES: Final[dict[object, str]] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema(kinds: Mapping[str, type[NodeParameters]]) -> dict[str, Any]:
    """Return the schema of a parameter file for nodes of these names; other nodes may have what they like."""
    return {
        "$schema": DRAFT,
        "title": "Parameters of Kestrel's nodes",
        "type": "object",
        "properties": {node: _node(kind) for node, kind in kinds.items()},
    }


def _node(kind: type[NodeParameters]) -> dict[str, Any]:
    own = {spec.name: _property(spec) for spec in specs(kind)}
    parameters = {"type": "object", "properties": {**own, **OF_ROS}, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"ros__parameters": parameters},
        "required": ["ros__parameters"],
        "additionalProperties": False,
    }


def _property(spec: ParameterSpec) -> dict[str, Any]:
    is_list = spec.type not in _TYPES
    limits = {"minimum": spec.minimum, "maximum": spec.maximum, "enum": spec.choices}
    item = {
        "type": "string" if spec.type_name == "string[]" else _TYPES.get(spec.type, "number"),
        **{
            key: list(value) if key == "enum" else value for key, value in limits.items() if value is not None
        },
    }
    default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    return {
        "description": spec.description,
        "default": default,
        **({"type": "array", "items": item} if is_list else item),
    }
