# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map expansion of nuScenes as true map layers around a vehicle.

A map file has tables: nodes with x and y in metres, polygons and lines of nodes, and layers of these. They
are drawn as BEVFusion's evaluation has them drawn by nuscenes-devkit: on a grid of half metres, corners on
whole cells, dividers two cells wide. Single cells at the edge of an area may differ, since the devkit cuts at
the end of the grid before it draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np

from kestrel.classes import MAP_LAYERS
from kestrel.errors import InputError, describe
from kestrel.types import BevMap, Float64Array, UInt8Array

POLYGONS: Final = {
    name: name for name in ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
}
"""Layers of areas, and their tables."""

LINES: Final = {"divider": ("road_divider", "lane_divider")}
"""Layers of lines, and their tables."""

CELLS: Final = 200
RESOLUTION_M: Final = 0.5
HALF_M: Final = CELLS * RESOLUTION_M / 2
LINE_CELLS: Final = 2
FARTHEST_M: Final = 1e6
"""From the origin of a map; beyond it whole cells would have no number."""


class _Shape(NamedTuple):
    """One polygon, or one line without holes; corners are (N, 2) in metres on the map."""

    corners: Float64Array
    holes: tuple[Float64Array, ...] = ()


class NuScenesMap:
    """One place.

    Args:
        path: maps/expansion/PLACE.json.

    Raises:
        InputError: the file is missing or is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            nodes = {row["token"]: (float(row["x"]), float(row["y"])) for row in content["node"]}
            polygons = {row["token"]: _polygon(row, nodes) for row in content["polygon"]}
            lines = {row["token"]: _Shape(_corners(row["node_tokens"], nodes)) for row in content["line"]}
            self._layers = {
                **{layer: _areas(content[table], polygons) for layer, table in POLYGONS.items()},
                **{
                    layer: [lines[row["line_token"]] for table in tables for row in content[table]]
                    for layer, tables in LINES.items()
                },
            }
        except OSError as error:
            raise InputError(describe(str(path), expected="a map of nuScenes", found=error)) from error
        except (KeyError, TypeError, ValueError) as error:
            expected = "the map expansion of nuScenes"
            raise InputError(describe(str(path), expected=expected, found=repr(error))) from error

    def around(
        self, global_from_center: Float64Array, base_from_center: Float64Array, stamp_ns: int
    ) -> BevMap:
        """Return the layers in base_link, of which each cell is 0 or 1.

        Args:
            global_from_center: (4, 4) of the middle of the grid, with x to the right and y ahead.
            base_from_center: (4, 4) of the same.
            stamp_ns: of the map.
        """
        ahead = {name: np.flip(self._drawn(name, global_from_center), 1) for name in MAP_LAYERS}
        x, y = base_from_center[:2, 3].tolist()
        return BevMap(
            np.stack([ahead[name] for name in MAP_LAYERS]).astype(np.float32),
            MAP_LAYERS,
            (x - HALF_M, y - HALF_M),
            RESOLUTION_M,
            "base_link",
            stamp_ns,
        )

    def _drawn(self, layer: str, global_from_center: Float64Array) -> UInt8Array:
        """Return a layer as a picture: rows ahead, columns to the right."""
        picture = np.zeros((CELLS, CELLS), np.uint8)
        right = global_from_center[:2, 0] / np.linalg.norm(global_from_center[:2, 0])
        axes = np.array([right, [-right[1], right[0]]])
        place = global_from_center[:2, 3]
        for shape in self._layers[layer]:
            corners = ((shape.corners - place) @ axes.T + HALF_M) / RESOLUTION_M
            if not len(corners) or (corners.max(0) < 0).any() or (corners.min(0) > CELLS).any():
                continue
            if layer in LINES:
                cv2.polylines(picture, list(_cut(corners).astype(np.int32)), False, 1, LINE_CELLS)
                continue
            holes = [((hole - place) @ axes.T + HALF_M) / RESOLUTION_M for hole in shape.holes]
            cv2.fillPoly(picture, [corners.round().astype(np.int32)], 1)
            cv2.fillPoly(picture, [hole.round().astype(np.int32) for hole in holes], 0)
        return picture


def _cut(corners: Float64Array) -> Float64Array:
    """Return what of a line (N, 2) is on the grid, as pieces (M, 2, 2) from corner to corner.

    Cells are cut off, not rounded, so that it matters where a piece ends (Liang and Barsky 1984).
    """
    start, way = corners[:-1], np.diff(corners, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack((-start / way, (CELLS - start) / way))  # NaN where it runs along an end of the grid
    first = np.fmax(np.fmin(ends[0], ends[1]).max(1, initial=0.0), 0)
    last = np.fmin(np.fmax(ends[0], ends[1]).min(1, initial=1.0), 1)
    pieces = np.stack((start + first[:, None] * way, start + last[:, None] * way), 1)
    there = (first <= last) & np.isfinite(pieces).all((1, 2))
    return np.asarray(pieces[there], np.float64)


def has_maps(root: Path) -> bool:
    """Return whether a data set comes with the map expansion, which is another download."""
    return (root / "maps" / "expansion").is_dir()


def map_file(root: Path, location: str) -> Path:
    """Return where the map of a place is in a data set."""
    return root / "maps" / "expansion" / f"{location}.json"


def _polygon(row: Mapping[str, Any], nodes: Mapping[str, tuple[float, float]]) -> _Shape:
    holes = (_corners(hole["node_tokens"], nodes) for hole in row["holes"])
    return _Shape(_corners(row["exterior_node_tokens"], nodes), tuple(hole for hole in holes if len(hole)))


def _corners(tokens: Iterable[str], nodes: Mapping[str, tuple[float, float]]) -> Float64Array:
    corners = np.array([nodes[token] for token in tokens], np.float64).reshape(-1, 2)
    if not (np.abs(corners) < FARTHEST_M).all():
        raise ValueError("a corner that is on no map")
    return corners


def _areas(rows: Iterable[Mapping[str, Any]], polygons: Mapping[str, _Shape]) -> list[_Shape]:
    """Return the polygons of a layer; an area to drive on has several, every other one."""
    tokens = (row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]] for row in rows)
    return [polygons[token] for several in tokens for token in several]
