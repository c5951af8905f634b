# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The layouts of RViz and Lichtblick show topics that exist, and only panels that they define."""

import json
from pathlib import Path

import pytest
import yaml

from kestrel.classes import MAP_LAYERS

CONFIG = Path(__file__).parents[2] / "config"
CAMERAS = ("front", "front_right", "back_right", "back", "back_left", "front_left")
TOPICS = {
    "/lidar/points",
    "/segmentation/output/points_coloured",
    "/fusion/output/markers",
    "/fusion/output/bev_image",
    "/augment/output/image",
    "/video/output/front/event",
    "/diagnostics",
    *(f"/fusion/output/map/{layer}" for layer in MAP_LAYERS),
    *(f"/camera/{name}/{kind}" for name in CAMERAS for kind in ("image/compressed", "camera_info")),
    *(f"/{node}/debug/pipeline_latency_ms" for node in ("video", "segmentation", "fusion")),
}
MUST_BE_SHOWN = {
    "/segmentation/output/points_coloured",
    "/fusion/output/markers",
    "/fusion/output/bev_image",
    "/augment/output/image",
    *(f"/fusion/output/map/{layer}" for layer in MAP_LAYERS),
    *(f"/camera/{name}/image/compressed" for name in CAMERAS),
}


def strings(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def topics(value):
    names = {text.split(".")[0] for text in strings(value) if text.startswith("/")}
    return {name for name in names if not name.endswith("_updates")}


@pytest.fixture
def rviz():
    return yaml.safe_load((CONFIG / "rviz" / "kestrel.rviz").read_text())


@pytest.fixture
def lichtblick():
    return json.loads((CONFIG / "lichtblick" / "kestrel.json").read_text())


@pytest.mark.parametrize("layout", ["rviz", "lichtblick"])
def test_layout_shows_what_the_stack_publishes_and_nothing_else(layout, request):
    shown = topics(request.getfixturevalue(layout))
    assert shown >= MUST_BE_SHOWN
    assert shown <= TOPICS


def test_rviz_displays_have_names_of_their_own_and_end_in_base_link(rviz):
    manager = rviz["Visualization Manager"]
    names = [display["Name"] for display in manager["Displays"]]
    assert len(set(names)) == len(names)
    assert manager["Global Options"]["Fixed Frame"] == "base_link"


def test_lichtblick_layout_places_every_panel_once(lichtblick):
    def panels(node):
        return [node] if isinstance(node, str) else panels(node["first"]) + panels(node["second"])

    placed = panels(lichtblick["layout"])
    assert sorted(placed) == sorted(lichtblick["configById"])
