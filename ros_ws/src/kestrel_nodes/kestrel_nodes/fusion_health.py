# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion node says about its sensors in /diagnostics: which took part, which did not, and why."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from kestrel.errors import CalibrationError
from kestrel.types import SensorFrame
from kestrel_nodes.collector import LIDAR, Collected, Collector
from kestrel_nodes.fusion_frame import UNUSABLE, BuiltFrame
from kestrel_nodes.health import Health, Level
from kestrel_nodes.ports import Input
from kestrel_nodes.stamps import stamp_ns

REMEMBERED: Final = 32
"""Messages of a sensor of which it is known that they were counted: more than frames that share one."""


class FusionHealth:
    """Reports each frame to the concerns ``sync``, ``calibration`` and those of the inputs.

    Args:
        health: the concerns of the node.
        sources: by sensor, its input.
        max_missing_cameras: more missing ones are an error.
    """

    def __init__(self, health: Health, sources: Mapping[str, Input], max_missing_cameras: int) -> None:
        self._sync, self._calibration = health["sync"], health["calibration"]
        self._sources = sources
        self._max_missing = max_missing_cameras
        self._frames: Counter[tuple[str, str]] = Counter()
        self._missing_in_a_row = dict.fromkeys(sources, 0)
        self._counted: dict[str, deque[tuple[int, int]]] = {}
        self._counting = threading.Lock()

    def report(self, collected: Collected, frame: SensorFrame | None, built: BuiltFrame) -> None:
        """Say what took part in ``frame`` (None: nothing was left) and why the rest did not."""
        there = () if frame is None else sensors_in(frame)
        for sensor, port in self._sources.items():
            if sensor in there:
                port.accept()
            self._say_calibration(sensor, sensor in there, collected, built)
            self._say_missing(sensor, sensor in there, built, collected.too_far_ns.get(sensor))
        self._say_modality(collected, there)
        self._say_points(frame, built)
        self._calibration.check(
            "motion", None if built.no_motion is None else f"earlier sweeps are left out: {built.no_motion}"
        )
        standing = f"motion between sweep and pictures is not undone: {built.standing}"
        self._calibration.check("pictures", None if built.standing is None else standing)
        self._calibration.count("changes", len(built.changes))

    def count_answers(self, collected: Collected, frame: SensorFrame) -> None:
        """Count the messages that took part in ``frame``, which was answered."""
        for sensor in sensors_in(frame):
            if self._is_new(sensor, collected):
                self._sources[sensor].answered()

    def count_superseded(self, collected: Collected) -> None:
        """Count the messages of a frame that gave way to a newer one."""
        for port in self._new(collected):
            port.superseded()

    def count_unwanted(self, collected: Collected) -> None:
        """Count the messages of a frame in which nobody is interested."""
        for port in self._new(collected):
            port.unwanted()

    def count_failure(self, collected: Collected, error: Exception) -> None:
        """Count the messages of a frame without an answer; the one that leads it is told as the reason."""
        for port in self._new(collected):
            port.reject(error, blamed=port is self._sources[collected.reference])

    def _new(self, collected: Collected) -> list[Input]:
        return [port for sensor, port in self._sources.items() if self._is_new(sensor, collected)]

    def _is_new(self, sensor: str, collected: Collected) -> bool:
        """Whether there is a message of ``sensor`` that was not counted: an image may serve many sweeps."""
        message = collected.cloud if sensor == LIDAR else collected.images.get(sensor)
        if message is None:
            return False
        # After a jump back in time the same stamps may come again.
        key = collected.generation, stamp_ns(message.header.stamp)
        with self._counting:  # in the worker, and where frames are superseded
            counted = self._counted.setdefault(sensor, deque(maxlen=REMEMBERED))
            if key in counted:
                return False
            counted.append(key)
        return True

    def _say_calibration(self, sensor: str, there: bool, collected: Collected, built: BuiltFrame) -> None:
        error = built.excluded.get(sensor)
        if isinstance(error, CalibrationError):
            self._calibration.error(sensor, str(error))
        elif there:
            self._calibration.clear(sensor)
        if error is not None and self._is_new(sensor, collected):
            self._sources[sensor].reject(error)

    def _say_missing(self, sensor: str, there: bool, built: BuiltFrame, too_far_ns: int | None) -> None:
        row = 0 if there else self._missing_in_a_row[sensor] + 1
        self._missing_in_a_row[sensor] = row
        self._frames[sensor, "fused" if there else "missing"] += 1
        for outcome in ("fused", "missing"):
            self._sync.set(f"{sensor}: {outcome}", self._frames[sensor, outcome])
        why = "unusable" if sensor in built.excluded else "no matching message"
        if too_far_ns is not None:
            why = f"no matching message (the nearest image is {too_far_ns / 1e6:+.0f} ms away)"
        self._sync.check(sensor, None if there else f"{sensor}: {why} for {row} frames")

    def _say_modality(self, collected: Collected, there: tuple[str, ...]) -> None:
        cameras = [sensor for sensor in self._sources if sensor != LIDAR]
        missing = [camera for camera in cameras if camera not in there]
        many = (
            f"{len(missing)} of {len(cameras)} cameras are missing"
            if len(missing) > self._max_missing
            else None
        )
        self._sync.check("cameras", many, level=Level.ERROR)
        degraded = None
        if not there:
            degraded = "no sensor is usable"
        elif LIDAR in self._sources and LIDAR not in there:
            degraded = f"cameras alone (no LiDAR), stamped by {collected.reference}"
        elif cameras and len(missing) == len(cameras):
            degraded = "LiDAR alone (no camera)"
        self._sync.check("modality", degraded, level=Level.WARN if there else Level.ERROR)
        self._sync.set("modality", degraded or "as configured")
        self._sync.set("reference", collected.reference)
        for camera, skew_ns in collected.skews_ns.items():
            self._sync.set(f"{camera}_skew_ms", f"{skew_ns / 1e6:+.1f}")

    def _say_points(self, frame: SensorFrame | None, built: BuiltFrame) -> None:
        if LIDAR not in self._sources:
            return
        concern = self._sources[LIDAR].concern
        for reason, times in built.points.items():
            if times:
                concern.count(reason, times)
        clipped = built.points["clipped_points"]
        concern.check("capacity", f"{clipped} points beyond the capacity are left out" if clipped else None)
        unusable = (
            frame is not None
            and frame.cloud is not None
            and not len(frame.cloud)
            and not built.points["empty_clouds"]
        )
        concern.check("unusable", f"no usable point: {UNUSABLE}" if unusable else None)
        concern.check("layout", "; ".join(built.notes) or None)

    def show_unused(self, collector: Collector) -> None:
        """Publish how many messages took part in no frame, by sensor and reason, and how many still may."""
        for (sensor, reason), count in collector.unused.items():
            self._sync.set(f"{sensor}: {reason}", count)
        for sensor, count in collector.waiting.items():
            self._sync.set(f"{sensor}: waiting", count)


def sensors_in(frame: SensorFrame) -> tuple[str, ...]:
    """Return the names of the sensors that take part in ``frame``."""
    return (*((LIDAR,) if frame.cloud is not None else ()), *frame.images)
