# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A Rerun recording of everything, for the viewer in the browser or on the desktop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from kestrel.classes import DETECTION_COLOURS, EVENTS, MAP_COLOURS, POINT_CLASSES, POINT_COLOURS
from kestrel.eval.scene import CameraView, Frame, Scene
from kestrel.files import replacing
from kestrel.show.birdseye import LAYER_OPACITY, MAP_THRESHOLD
from kestrel.show.camera import box_lines
from kestrel.show.compose import shown_boxes
from kestrel.show.draw import BACKGROUND
from kestrel.types import BevMap, Boxes3D

TIMELINE: Final = "sensor_time"
MAP_HEIGHT_M: Final = 0.02
GROUND_SHADE: Final = 40
SERIES: Final = ((255, 178, 66), (0, 207, 191), (250, 112, 154), (120, 160, 255))
MEDIA_TYPES: Final = {b"\xff\xd8\xff": "image/jpeg", b"\x89PN": "image/png"}
"""Of encoded pictures that the viewer shows, by how they begin."""


def write_rerun(scene: Scene, path: Path) -> None:
    """Write the recording to ``path`` (.rrd), with a layout for its viewer; it appears when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    stream = rr.RecordingStream("kestrel", recording_id=path.stem)
    with replacing(path, "Rerun recording") as unfinished:
        stream.save(unfinished, default_blueprint=_layout(scene))
        stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        stream.log("world", _annotations(), static=True)
        for node, colour in zip(scene.nodes, SERIES, strict=False):
            series = rr.SeriesLines(names=node, colors=colour, widths=2)
            stream.log(f"latency_ms/{node}", series, static=True)
        for frame in scene.frames():
            stream.set_time(TIMELINE, duration=frame.seconds)
            _log_frame(stream, frame)
        stream.disconnect()


def _layout(scene: Scene) -> rrb.Blueprint:
    cameras = [
        rrb.Spatial2DView(origin=f"world/camera/{name}", contents="$origin/**", name=name.replace("_", " "))
        for name in scene.cameras
    ]
    plots = rrb.Horizontal(
        rrb.TimeSeriesView(origin="latency_ms", name="latency, ms"),
        rrb.TextLogView(origin="events", name="what goes on"),
    )
    world = rrb.Spatial3DView(
        origin="world",
        contents=["$origin/**", "- /world/camera/*/boxes"],
        name="world (base_link)",
        background=BACKGROUND,
        eye_controls=rrb.EyeControls3D(position=(-24, 0, 20), look_target=(9, 0, 0), eye_up=(0, 0, 1)),
    )
    left = rrb.Vertical(world, plots, row_shares=[3, 1])
    parts = [left, rrb.Grid(*cameras, grid_columns=2 if len(cameras) > 1 else 1)] if cameras else [left]
    return rrb.Blueprint(
        rrb.Horizontal(*parts, column_shares=[3, 2][: len(parts)]),
        rrb.TimePanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        collapse_panels=True,
    )


def _annotations() -> rr.AnnotationContext:
    entries = [(index, name, POINT_COLOURS[name]) for index, name in enumerate(POINT_CLASSES)]
    return rr.AnnotationContext([*entries, (255, "no class", (90, 96, 110))])


def _log_frame(stream: Any, frame: Frame) -> None:
    if frame.points is not None:
        classes = frame.classes
        stream.log(
            "world/points",
            rr.Points3D(frame.points[:, :3], class_ids=classes, radii=rr.Radius.ui_points(1.6)),
        )
    objects = shown_boxes(frame.objects)
    _log_boxes(stream, "world/objects", objects, solid=True)
    _log_boxes(stream, "world/truth", frame.truth, solid=False)
    if frame.bev_map is not None:
        stream.log("world/map", _map_mesh(frame.bev_map))
    for view in frame.cameras:
        _log_camera(stream, view, objects)
    for node, latency in frame.latencies_ms.items():
        stream.log(f"latency_ms/{node}", rr.Scalars(latency))
    for view in frame.cameras:
        if view.event is not None and view.event[0] in EVENTS:
            text = f"{view.name.replace('_', ' ')}: {view.event[0].replace('_', ' ')} ({view.event[1]:.0%})"
            level = "INFO" if view.event[0] == "clear" else "WARN"
            stream.log(f"events/{view.name}", rr.TextLog(text, level=level))


def _log_boxes(stream: Any, path: str, boxes: Boxes3D | None, *, solid: bool) -> None:
    if boxes is None or len(boxes) == 0:
        stream.log(path, rr.Clear(recursive=True))
        return
    names = [boxes.class_names[label] for label in boxes.label]
    grey = (235, 235, 235)
    colours = [DETECTION_COLOURS.get(name, grey) if solid else grey for name in names]
    half = boxes.yaw.astype(np.float64) / 2
    turns = np.stack([0 * half, 0 * half, np.sin(half), np.cos(half)], 1)
    labels = [f"{name} {score:.2f}" for name, score in zip(names, boxes.score, strict=True)]
    stream.log(
        path,
        rr.Boxes3D(
            centers=boxes.center,
            sizes=boxes.size,
            quaternions=turns,
            colors=colours,
            labels=labels if solid else None,
            show_labels=False,
            radii=0.03 if solid else 0.015,
            fill_mode="TransparentFillMajorWireframe" if solid else "MajorWireframe",
        ),
    )
    if solid:
        velocity = np.nan_to_num(boxes.velocity)
        vectors = np.concatenate([velocity, np.zeros((len(boxes), 1), np.float32)], 1)
        stream.log(
            f"{path}/velocity", rr.Arrows3D(origins=boxes.center, vectors=vectors, colors=colours, radii=0.05)
        )


def _map_mesh(bev: BevMap) -> rr.Mesh3D:
    """Return the map as a picture that lies on the ground."""
    cells_x, cells_y = bev.probability.shape[1:]
    picture = np.full((cells_y, cells_x, 3), GROUND_SHADE, np.float32)
    for index, layer in enumerate(bev.layer_names):
        there = (bev.probability[index] >= MAP_THRESHOLD).T[::-1]
        share = LAYER_OPACITY.get(layer, 0.8)
        picture[there] = picture[there] * (1 - share) + np.array(MAP_COLOURS[layer], np.float32) * share
    low, high = bev.lower, (bev.lower[0] + cells_x * bev.resolution, bev.lower[1] + cells_y * bev.resolution)
    spots = [(low[0], high[1]), (high[0], high[1]), (high[0], low[1]), (low[0], low[1])]
    return rr.Mesh3D(
        vertex_positions=[(x, y, MAP_HEIGHT_M) for x, y in spots],
        triangle_indices=[(0, 2, 1), (0, 3, 2)],
        vertex_texcoords=[(0, 0), (1, 0), (1, 1), (0, 1)],
        albedo_texture=picture.astype(np.uint8),
    )


def _log_camera(stream: Any, view: CameraView, objects: Boxes3D | None) -> None:
    path = f"world/camera/{view.name}"
    calibration = view.calibration
    if calibration is not None:
        base_from_camera = calibration.reference_from_camera
        stream.log(path, rr.Transform3D(translation=base_from_camera[:3, 3], mat3x3=base_from_camera[:3, :3]))
        stream.log(
            path,
            rr.Pinhole(
                image_from_camera=calibration.camera_matrix,
                resolution=(calibration.width, calibration.height),
                camera_xyz=rr.ViewCoordinates.RDF,
                image_plane_distance=1.2,
            ),
        )
    encoded = _jpeg(view) if view.encoded is None else view.encoded
    image = rr.EncodedImage(contents=encoded, media_type=MEDIA_TYPES[encoded[:3]])
    stream.log(f"{path}/image", image)
    if calibration is None or objects is None:
        return
    lines = box_lines(objects.at(view.stamp_ns), calibration)
    if not lines:
        stream.log(f"{path}/boxes", rr.Clear(recursive=False))
        return
    grey = (235, 235, 235)
    colours = [DETECTION_COLOURS.get(objects.class_names[objects.label[index]], grey) for index, _ in lines]
    strips = [line.astype(np.float32) for _, line in lines]
    stream.log(f"{path}/boxes", rr.LineStrips2D(strips, colors=colours, radii=rr.Radius.ui_points(1.0)))


def _jpeg(view: CameraView) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(view.picture, cv2.COLOR_RGB2BGR))
    return data.tobytes()
