# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A small map in the format of nuScenes' map expansion, and where things in it are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACE = "singapore-onenorth"
EMPTY = ("road_segment", "road_block", "lane", "lane_connector", "traffic_light")
"""Layers that the devkit wants and Kestrel does not read."""

Corners = list[tuple[float, float]]


def square(x: float, y: float, half: float) -> Corners:
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


class MapFile:
    """Collects areas and lines; ``content`` is the file."""

    def __init__(self) -> None:
        lists: dict[str, list[Any]] = {name: [] for name in ("node", "polygon", "line", *EMPTY)}
        layers = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
        lists |= {name: [] for name in (*layers, "road_divider", "lane_divider")}
        others = {"version": "1.3", "canvas_edge": [5000.0, 5000.0], "arcline_path_3": {}, "connectivity": {}}
        self.content: dict[str, Any] = {**lists, **others}

    def _nodes(self, corners: Corners) -> list[str]:
        first = len(self.content["node"])
        tokens = [f"n{first + number}" for number in range(len(corners))]
        pairs = zip(tokens, corners, strict=True)
        self.content["node"] += [{"token": token, "x": x, "y": y} for token, (x, y) in pairs]
        return tokens

    def polygon(self, corners: Corners, *holes: Corners) -> str:
        token = f"p{len(self.content['polygon'])}"
        row = {"token": token, "exterior_node_tokens": self._nodes(corners)}
        row["holes"] = [{"node_tokens": self._nodes(hole)} for hole in holes]
        self.content["polygon"].append(row)
        return token

    def area(self, layer: str, corners: Corners, *holes: Corners) -> None:
        token = self.polygon(corners, *holes)
        row: dict[str, Any] = {"token": f"{layer}{token}", "polygon_token": token}
        if layer == "drivable_area":
            row = {"token": f"{layer}{token}", "polygon_tokens": [token]}
        if layer == "stop_line":
            row["stop_line_type"] = "YIELD"
        self.content[layer].append(row)

    def divider(self, layer: str, corners: Corners) -> None:
        token = f"l{len(self.content['line'])}"
        self.content["line"].append({"token": token, "node_tokens": self._nodes(corners)})
        self.content[layer].append({"token": f"{layer}{token}", "line_token": token})

    def write(self, root: Path) -> Path:
        path = root / "maps" / "expansion" / f"{PLACE}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))
        return path
