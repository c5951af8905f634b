# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What recordings are read with is called, and checked, as the fusion node's parameters are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from kestrel.data.rig_parameters import RigParameters, read_rig_parameters
from kestrel_nodes.fusion_parameters import FusionParameters
from kestrel_nodes.parameters import build, specs

RIGS = sorted((Path(__file__).parents[2] / "config" / "rigs").glob("*.param.yaml"))


def test_every_parameter_is_one_of_the_node_with_its_default() -> None:
    known = {spec.name: spec.default for spec in specs(FusionParameters)}
    told = {field.name: field.default for field in fields(RigParameters) if field.name != "cameras"}
    assert told == {name: known[name] for name in told}
    assert "cameras" in known


@pytest.mark.parametrize("path", RIGS, ids=lambda path: path.name)
def test_a_rig_is_told_to_recordings_as_to_the_node(path: Path) -> None:
    values = yaml.safe_load(path.read_text())["fusion"]["ros__parameters"]
    node, recordings = build(FusionParameters, values), read_rig_parameters(path)
    for field in fields(RigParameters):
        assert getattr(recordings, field.name) == getattr(node, field.name)
