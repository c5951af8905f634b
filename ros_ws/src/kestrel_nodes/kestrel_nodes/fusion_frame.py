# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From the messages that belong together to one SensorFrame in the frame of the vehicle.

This is the work of the worker thread: decoding, lens distortion, transforms, ego motion between sweeps. A
sensor whose data or calibration cannot be used is left out with the reason; the others go on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from kestrel.data.camera_info import CameraInfo, Intrinsics, read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.own_vehicle import NO_BOX, OwnVehicle
from kestrel.data.picture_reader import read_image
from kestrel.data.trajectory import moved
from kestrel.data.transform_buffer import TransformBuffer, invert
from kestrel.data.undistorter import Undistorter
from kestrel.errors import CalibrationError, InputError, KestrelError, describe
from kestrel.pipelines.detector import chosen_sweeps
from kestrel.pipelines.fusion_frame import lidar_takes_part
from kestrel.types import Calibration, Float64Array, Image, PointCloud, SensorFrame
from kestrel_nodes.collector import LIDAR, Collected
from kestrel_nodes.deskew import Deskewed, Deskewer
from kestrel_nodes.picture_watch import PictureWatch
from kestrel_nodes.stamps import NANOSECONDS, stamp_ns

DECODERS: Final = os.cpu_count() or 1
"""Pictures that are decoded at a time, at most."""

UNUSABLE: Final = "all are NaN, infinite, too far or of the vehicle itself"
"""Why none is left of the points of a sweep."""


@dataclass
class BuiltFrame:
    """A frame and what had to be left out of it.

    excluded: by sensor, why it could not take part. no_motion: why earlier sweeps were left out, or None.
    standing: why pictures count as taken where the vehicle is at the stamp of the frame, or None.
    changes: calibrations that are not what they were. notes: what was not understood of the cloud.
    points: counters of points that were left out. deskewed: what became of the motion within the sweep of the
    frame itself, None without one.
    """

    excluded: dict[str, KestrelError] = field(default_factory=dict)
    no_motion: KestrelError | None = None
    standing: KestrelError | None = None
    changes: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    points: Counter[str] = field(default_factory=Counter)
    deskewed: Deskewed | None = None


class FrameBuilder:
    """Builds frames; keeps decoded sweeps and calibrations between them.

    Args:
        transforms: where all transforms come from.
        base_frame: frame of the vehicle: x forward, origin on the ground.
        odom_frame: frame that stands still while the vehicle moves.
        sweeps: how many earlier sweeps a frame holds.
        sweep_s: seconds from one of them to the next.
        sweep_max_age_s: older ones are left out.
        remove_close_m: points of earlier sweeps this close to their sensor, along both axes, are left out.
        rectified: the pictures are rectified already.
        capacity, intensity_max: as in `read_cloud`.
        deskew: undo the vehicle's motion within each sweep.
        own_vehicle: points in it are left out of every sweep.
        watches: by camera, who looks at its pictures.
    """

    def __init__(
        self,
        transforms: TransformBuffer,
        *,
        base_frame: str = "base_link",
        odom_frame: str = "odom",
        sweeps: int = 0,
        sweep_s: float = 0.0,
        sweep_max_age_s: float = 1.0,
        remove_close_m: float = 0.0,
        rectified: bool = False,
        capacity: int | None = None,
        intensity_max: float = 0.0,
        deskew: bool = True,
        own_vehicle: OwnVehicle = NO_BOX,
        watches: Mapping[str, PictureWatch] | None = None,
    ) -> None:
        self.transforms = transforms
        self.deskewer = Deskewer(transforms, odom_frame, enabled=deskew)
        self.own_vehicle = own_vehicle
        self.watches = watches or {}
        self.base_frame, self.odom_frame = base_frame, odom_frame
        self.sweeps, self.sweep_s = sweeps, sweep_s
        self.sweep_max_age_ns = int(sweep_max_age_s * NANOSECONDS)
        self.remove_close_m = remove_close_m
        self.rectified = rectified
        self.capacity, self.intensity_max = capacity, intensity_max
        self.camera_infos: dict[str, CameraInfo] = {}
        """The newest CameraInfo of each camera; filled by the receiving thread."""
        self.undistorter = Undistorter()
        self._intrinsics: dict[str, tuple[CameraInfo, Intrinsics]] = {}
        self._in_use: dict[str, tuple[str, bytes]] = {}
        self._sweeps: dict[int, PointCloud] = {}

    def forget_sweeps(self) -> None:
        """Time was set back: earlier sweeps are of another drive."""
        self._sweeps.clear()

    def build(self, collected: Collected, earlier: Sequence[Any], built: BuiltFrame) -> SensorFrame:
        """Return the frame of ``collected``.

        Args:
            collected: the messages that belong together.
            earlier: PointCloud2 messages of earlier sweeps, newest first.
            built: filled with what had to be left out.

        Raises:
            KestrelError: no sensor is left; the reason is that of the sensor that leads.
        """
        cloud, sweeps = self._lidar(collected, earlier, built)
        images: dict[str, Image] = {}
        calibrations: dict[str, Calibration] = {}
        # Decoders let go of the interpreter while they work.
        with ThreadPoolExecutor(min(DECODERS, max(1, len(collected.images)))) as threads:
            decoded = {name: threads.submit(read_image, image) for name, image in collected.images.items()}
            for name, message in collected.images.items():
                try:
                    images[name], calibrations[name] = self._camera(
                        name, message, decoded[name], collected, built
                    )
                except KestrelError as error:
                    images.pop(name, None)
                    built.excluded[name] = error
        if cloud is None and not images:
            leading = (
                collected.reference if collected.reference in built.excluded else next(iter(built.excluded))
            )
            raise built.excluded[leading]
        pose = self._pose(collected.stamp_ns)
        frame = SensorFrame(collected.stamp_ns, self.base_frame, cloud, images, calibrations, sweeps, pose)
        if cloud is None or lidar_takes_part(frame):
            return frame
        found = "an empty cloud" if built.points["empty_clouds"] else f"none: {UNUSABLE}"
        built.excluded[LIDAR] = InputError(describe("usable points", expected="at least one", found=found))
        return replace(frame, cloud=None, sweeps=())

    def _pose(self, stamp: int) -> Float64Array | None:
        """Return where the vehicle is in the frame that stands still, None without odometry."""
        try:
            return self.transforms.lookup(self.odom_frame, self.base_frame, stamp)
        except CalibrationError:
            return None

    def _lidar(
        self, collected: Collected, earlier: Sequence[Any], built: BuiltFrame
    ) -> tuple[PointCloud | None, tuple[PointCloud, ...]]:
        if collected.cloud is None:
            return None, ()
        usable = self._usable(collected.stamp_ns, earlier)
        try:
            sweep = self._decoded(collected.cloud, built)
            cloud = self._moved(sweep, self._base_from_lidar(sweep))
        except KestrelError as error:
            built.excluded[LIDAR] = error
            return None, ()
        try:
            return cloud, self._earlier(collected.stamp_ns, usable)
        except CalibrationError as error:
            built.no_motion = error
            return cloud, ()

    def _usable(self, now_ns: int, messages: Sequence[Any]) -> list[Any]:
        """Return the earlier sweeps that count, and forget what was decoded and will not count any more."""
        oldest_ns = now_ns - self.sweep_max_age_ns
        stamps = [stamp_ns(message.header.stamp) for message in messages]
        recent = [index for index, stamp in enumerate(stamps) if oldest_ns <= stamp < now_ns]
        chosen = chosen_sweeps(now_ns, [stamps[index] for index in recent], self.sweeps, self.sweep_s)
        usable = [messages[recent[index]] for index in chosen]
        # With all of them in use, what is older than the oldest is not needed again; and none lies between.
        if len(chosen) == self.sweeps:
            oldest_ns = stamps[recent[chosen[-1]]] if chosen else now_ns
        keep = {now_ns, *(stamps[index] for index in recent)}
        self._sweeps = {
            stamp: sweep for stamp, sweep in self._sweeps.items() if stamp in keep and stamp >= oldest_ns
        }
        return usable

    def _earlier(self, now_ns: int, usable: Sequence[Any]) -> tuple[PointCloud, ...]:
        """Return the earlier sweeps where the vehicle now is."""
        if not usable:
            return ()
        base_from_odom = invert(self.transforms.lookup(self.odom_frame, self.base_frame, now_ns))
        sweeps = []
        for message in usable:
            try:
                sweep = self._decoded(message, BuiltFrame())
            except InputError:
                continue  # it was rejected, and said so, when it was the newest
            odom_from_base = self.transforms.lookup(self.odom_frame, self.base_frame, sweep.stamp_ns)
            motion = base_from_odom @ odom_from_base @ self._base_from_lidar(sweep)
            sweeps.append(self._moved(self._without_close(sweep), motion))
        return tuple(sweeps)

    def _decoded(self, message: Any, built: BuiltFrame) -> PointCloud:
        stamp = stamp_ns(message.header.stamp)
        if stamp not in self._sweeps:
            decoded = read_cloud(message, capacity=self.capacity, intensity_max=self.intensity_max)
            own = self.own_vehicle.holds(decoded.cloud, self._base_from_lidar(decoded.cloud))
            built.notes = decoded.notes
            built.points.update(
                invalid_points=decoded.invalid,
                far_points=decoded.far,
                clipped_points=decoded.clipped,
                empty_clouds=int(decoded.total == 0),
                own_points=int(own.sum()),
            )
            measured = decoded.cloud.chosen(~own) if own.any() else decoded.cloud
            self._sweeps[stamp], built.deskewed = self.deskewer(measured)
        return self._sweeps[stamp]

    def _base_from_lidar(self, sweep: PointCloud) -> Float64Array:
        return self.transforms.lookup(self.base_frame, sweep.frame_id, sweep.stamp_ns)

    def _without_close(self, sweep: PointCloud) -> PointCloud:
        if self.remove_close_m == 0:
            return sweep
        return sweep.chosen((np.abs(sweep.points[:, :2]) >= self.remove_close_m).any(axis=1))

    def _moved(self, sweep: PointCloud, base_from_lidar: Float64Array) -> PointCloud:
        return replace(sweep, points=moved(sweep.points, base_from_lidar), frame_id=self.base_frame)

    def _camera(
        self, name: str, message: Any, decoded: Future[Image], collected: Collected, built: BuiltFrame
    ) -> tuple[Image, Calibration]:
        """Return the picture without distortion, and how it shows what is around the vehicle by now."""
        intrinsics = self._checked_info(name)
        frame_id = message.header.frame_id
        if frame_id != intrinsics.frame_id:
            expected = f"{intrinsics.frame_id!r} as in CameraInfo"
            raise CalibrationError(
                describe(f"frame_id of images of {name}", expected=expected, found=frame_id)
            )
        stamp = stamp_ns(message.header.stamp)
        base_from_camera = self.transforms.lookup(self.base_frame, frame_id, stamp)
        picture = decoded.result()
        if name in self.watches:
            self.watches[name].look(stamp, message.data, picture.data)
        clean = self.undistorter(name, picture.data, intrinsics)
        self._note_change(name, intrinsics, base_from_camera, built)
        motion = self._motion(collected.stamp_ns, collected.skews_ns[name], built)
        return Image(clean, stamp, frame_id), intrinsics.calibration(motion @ base_from_camera).pinhole

    def _motion(self, now_ns: int, skew_ns: int, built: BuiltFrame) -> Float64Array:
        """Return where the vehicle was ``skew_ns`` after ``now_ns``, as of where it is then, (4, 4)."""
        if skew_ns == 0:
            return np.eye(4)
        frames = self.odom_frame, self.base_frame
        try:
            then = self.transforms.lookup(*frames, now_ns + skew_ns)
            return invert(self.transforms.lookup(*frames, now_ns)) @ then
        except CalibrationError as error:
            built.standing = error
            return np.eye(4)

    def _checked_info(self, name: str) -> Intrinsics:
        info = self.camera_infos.get(name)
        if info is None:
            raise CalibrationError(
                describe(f"CameraInfo of {name}", expected="a message", found="none so far")
            )
        known = self._intrinsics.get(name)
        if known is None or known[0] is not info:
            known = info, read_camera_info(name, info, rectified=self.rectified)
            self._intrinsics[name] = known
        return known[1]

    def _note_change(
        self, name: str, intrinsics: Intrinsics, base_from_camera: Float64Array, built: BuiltFrame
    ) -> None:
        now = intrinsics.key, np.round(base_from_camera, 9).tobytes()
        before = self._in_use.get(name, now)
        if now[0] != before[0]:
            built.changes.append(f"the intrinsics of {name} changed")
        if now[1] != before[1]:
            built.changes.append(f"the pose of {name} on the vehicle changed")
        self._in_use[name] = now
