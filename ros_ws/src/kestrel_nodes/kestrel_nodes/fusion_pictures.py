# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion node saw, to look at: markers for RViz and Lichtblick, and a picture from above."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray, MeshFile

from kestrel.classes import DETECTION_COLOURS, MAP_COLOURS
from kestrel.types import BevMap, Boxes3D, Calibration, Float64Array, PointCloud, SensorFrame, UInt8Array
from kestrel_nodes.filled import filled
from kestrel_nodes.fusion_messages import PlacedBox, point, vector

WHITE = (255, 255, 255)
BACKGROUND = (24, 24, 28)
POINT_GREY = (120, 120, 125)
ARROW_S = 1.0
"""Arrows show how far an object gets in this time."""

NEAREST_M, FARTHEST_M = 0.5, 60.0
"""Depths of the ends of the colour scale of points in an overlay."""

UNIT_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1]
"""Pairs of UNIT_CORNERS that differ in one axis."""

UPRIGHT, ORIGIN, FOR_EVER, NO_TEXTURE, NO_MESH = (
    Quaternion(),
    Pose(),
    Duration(),
    CompressedImage(),
    MeshFile(),
)
"""Parts of markers that are the same in all."""


def markers_message(boxes: list[PlacedBox], header: Header) -> MarkerArray:
    """Return the boxes as markers: outlines per class, translucent bodies, labels and velocity arrows.

    Markers of one object carry its track id. The first one deletes all earlier ones, so that nothing stays
    where nothing is any more.
    """
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for name in dict.fromkeys(box.class_name for box in boxes):
        markers.append(_outlines([box for box in boxes if box.class_name == name], name, header))
    for place, box in enumerate(boxes):
        index = place if box.track_id < 0 else box.track_id
        colour = _colour(_of(box.class_name), 0.25)
        markers.append(_marker(header, "bodies", index, Marker.CUBE, box.size, colour, pose=box.pose))
        x, y, z = box.center
        above = filled(Pose, position=point((x, y, z + box.size[2] / 2 + 0.6)), orientation=UPRIGHT)
        number = f" #{box.track_id}" if box.track_id >= 0 else ""
        text = f"{box.class_name}{number} {box.score:.2f}"
        size, kind = (0.0, 0.0, 0.7), Marker.TEXT_VIEW_FACING
        markers.append(_marker(header, "labels", index, kind, size, _colour(WHITE), pose=above, text=text))
        if np.hypot(box.velocity[0], box.velocity[1]) > 0.5:
            tip = tuple(c + v * ARROW_S for c, v in zip(box.center, box.velocity, strict=True))
            size, kind, ends = (0.15, 0.35, 0.4), Marker.ARROW, [point(box.center), point(tip)]
            markers.append(_marker(header, "velocities", index, kind, size, _colour(WHITE, 0.9), points=ends))
    return MarkerArray(markers=markers)


def _outlines(boxes: list[PlacedBox], name: str, header: Header) -> Marker:
    ends = []
    for box in boxes:
        corners = UNIT_CORNERS * box.size @ Rotation.from_quat(box.quaternion).as_matrix().T + box.center
        points = [point((x, y, z)) for x, y, z in corners.tolist()]
        ends += [points[end] for edge in EDGES for end in edge]
    size, colour = (0.08, 0.0, 0.0), _colour(_of(name))
    return _marker(header, f"outlines/{name}", 0, Marker.LINE_LIST, size, colour, points=ends)


def _marker(
    header: Header,
    namespace: str,
    number: int,
    kind: int,
    scale: tuple[float, float, float],
    colour: ColorRGBA,
    *,
    pose: Pose = ORIGIN,
    points: Sequence[Point] = (),
    text: str = "",
) -> Marker:
    return filled(
        Marker,
        header=header,
        ns=namespace,
        id=number,
        type=kind,
        action=Marker.ADD,
        pose=pose,
        scale=vector(scale),
        color=colour,
        lifetime=FOR_EVER,
        frame_locked=False,
        points=list(points),
        colors=[],
        texture_resource="",
        texture=NO_TEXTURE,
        uv_coordinates=[],
        text=text,
        mesh_resource="",
        mesh_file=NO_MESH,
        mesh_use_embedded_materials=False,
    )


def _of(class_name: str) -> tuple[int, int, int]:
    return DETECTION_COLOURS.get(class_name, WHITE)


def _colour(rgb: tuple[int, int, int], alpha: float = 1.0) -> ColorRGBA:
    red, green, blue = (channel / 255 for channel in rgb)
    return filled(ColorRGBA, r=red, g=green, b=blue, a=alpha)


def draw_from_above(
    boxes: Boxes3D,
    bev_map: BevMap,
    cloud: PointCloud | None,
    *,
    minimum_score: float = 0.0,
    pixels_per_metre: float = 8.0,
) -> UInt8Array:
    """Return a picture (H, W, 3) RGB of map, points and boxes; x points up, y to the left.

    It covers the map's area; everything has to be in the same frame.
    """
    cells = np.array(bev_map.probability.shape[1:])
    canvas = draw_map(bev_map, pixels_per_metre)
    height, width = canvas.shape[:2]
    upper = np.array(bev_map.lower) + cells * bev_map.resolution

    def pixel(xy: Float64Array) -> Float64Array:
        """Return columns and rows of positions (..., 2)."""
        return (upper - xy)[..., ::-1] * pixels_per_metre

    if cloud is not None:
        pixels = np.floor(pixel(cloud.points[:, :2].astype(np.float64)))
        inside = ((pixels >= 0) & (pixels < (width, height))).all(axis=1)
        columns, rows = pixels[inside].astype(np.int64).T
        canvas[rows, columns] = POINT_GREY
    for index in np.argsort(boxes.score)[np.sort(boxes.score) >= minimum_score]:
        _draw_box(canvas, boxes, int(index), pixel)
    arrow = pixel(np.array([[3.0, 0.0], [-1.0, 0.9], [0.0, 0.0], [-1.0, -0.9]]))
    cv2.fillPoly(canvas, [np.round(arrow).astype(np.int32)], WHITE, cv2.LINE_AA)
    return canvas


def draw_map(bev_map: BevMap, pixels_per_metre: float = 8.0) -> UInt8Array:
    """Return all map layers as one picture (H, W, 3) RGB, each in its colour; x points up, y to the left."""
    cells = np.array(bev_map.probability.shape[1:])
    width, height = np.round(cells[::-1] * bev_map.resolution * pixels_per_metre).astype(int).tolist()
    canvas = np.full((*bev_map.probability.shape[1:], 3), BACKGROUND, np.float32)
    for name, layer in zip(bev_map.layer_names, bev_map.probability, strict=True):
        # What a layer is unsure about is left out rather than painted faintly over everything.
        weight = np.clip((layer - 0.3) / 0.4, 0, 1)[..., None] * 0.75
        canvas += weight * (np.array(MAP_COLOURS.get(name, WHITE), np.float32) - canvas)
    turned = np.ascontiguousarray(canvas[::-1, ::-1].astype(np.uint8))
    return np.asarray(cv2.resize(turned, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)


def draw_overlay(
    camera: str, frame: SensorFrame, boxes: Boxes3D, *, minimum_score: float = 0.0
) -> UInt8Array:
    """Return the picture (H, W, 3) RGB of ``camera`` with the LiDAR's points and the boxes projected into it.

    Points are red near by and blue far away. Where they do not lie on what they belong to, the calibration
    or the stamps are wrong.
    """
    # Drawing needs Matplotlib's fonts: loaded only where somebody looks.
    from kestrel.eval.scene import CameraView
    from kestrel.show.camera import annotate

    image, calibration = frame.images[camera], frame.calibrations[camera]
    picture = image.data.copy()
    if frame.cloud is not None:
        _draw_points(picture, frame.cloud, calibration)
    view = CameraView(camera, image.stamp_ns, picture, encoded=None, calibration=calibration, event=None)
    height, width = picture.shape[:2]
    return annotate(view, boxes.chosen(boxes.score >= minimum_score), width, height)


def _draw_points(picture: UInt8Array, cloud: PointCloud, calibration: Calibration) -> None:
    camera_from_base = np.linalg.inv(calibration.reference_from_camera)
    optical = cloud.points[:, :3] @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    depth = optical[:, 2]
    optical, depth = optical[depth > NEAREST_M], depth[depth > NEAREST_M]
    pixels = (optical / depth[:, None] @ calibration.camera_matrix.T)[:, :2]
    inside = ((pixels >= 0) & (pixels < (calibration.width, calibration.height))).all(axis=1)
    columns, rows = pixels[inside].astype(np.int64).T
    near = np.clip(255 * (1 - depth[inside] / FARTHEST_M), 0, 255).astype(np.uint8)[:, None]
    colours = cv2.applyColorMap(near, cv2.COLORMAP_JET)[:, 0, ::-1]
    picture[rows, columns] = colours


def _draw_box(
    canvas: UInt8Array, boxes: Boxes3D, index: int, pixel: Callable[[Float64Array], Float64Array]
) -> None:
    length, width, _ = boxes.size[index].tolist()
    cosine, sine = float(np.cos(boxes.yaw[index])), float(np.sin(boxes.yaw[index]))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    outline = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [0, 0], [1.4, 0]]) * (length / 2, width / 2)
    corners = np.round(pixel(outline @ turn + boxes.center[index, :2]))
    corners = corners.clip(-10_000, 10_000).astype(np.int32)
    colour = _of(boxes.class_names[int(boxes.label[index])])
    cv2.polylines(canvas, [corners[:4]], True, colour, 2, cv2.LINE_AA)
    start, end = corners[4:].tolist()
    cv2.line(canvas, start, end, colour, 2, cv2.LINE_AA)
