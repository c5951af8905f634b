# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which images belong to which LiDAR sweep: the collector of the fusion node, pure logic on a given clock.

The LiDAR leads: its stamp is the stamp of the frame, and of every camera the image nearest to it takes part,
before or after it within a window. A frame is released when no better image can come, or at its timeout with
what is there; a dead camera does not delay anything. When the LiDAR falls silent, a named camera leads until
it is back. Sensor stamps decide what belongs together, the steady clock decides how long to wait, so that a
paused or slow replay changes nothing. What is not used is counted by reason; nothing grows without bound.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel.errors import ConfigError, describe

NANOSECONDS = 1_000_000_000
LIDAR = "lidar"


@dataclass(frozen=True)
class CollectorSettings:
    """How the collector matches; all times in seconds.

    reference_camera: leads when there is no LiDAR ("": the first of ``cameras``).
    window_s: largest distance of an image from the frame it takes part in, on both sides.
    lidar_timeout_s: how long a sweep waits for images. camera_timeout_s: how long an image that leads
        waits for the other cameras.
    lost_after_s: a sensor silent for this long is not waited for any more.
    history_s: how long images wait for a sweep that is late (by stamp).
    jump_back_s: an older stamp than the newest of a sensor by more than this means that time was set back.
    offsets_s: by sensor, what its stamp is ahead of the moment it measured.
    """

    cameras: tuple[str, ...]
    use_lidar: bool = True
    reference_camera: str = ""
    window_s: float = 0.1
    lidar_timeout_s: float = 0.2
    camera_timeout_s: float = 0.1
    lost_after_s: float = 1.0
    history_s: float = 0.5
    jump_back_s: float = 1.0
    offsets_s: Mapping[str, float] = field(default_factory=dict)
    pending_limit: int = 8
    images_limit: int = 32

    def __post_init__(self) -> None:
        if not self.cameras and not self.use_lidar:
            raise ConfigError(describe("sensors", expected="use_lidar or at least one camera", found="none"))
        if self.reference_camera and self.reference_camera not in self.cameras:
            raise ConfigError(
                describe("reference_camera", expected=f"one of {self.cameras}", found=self.reference_camera)
            )
        unknown = set(self.offsets_s) - {LIDAR, *self.cameras}
        if unknown:
            raise ConfigError(describe("offsets", expected="names of sensors", found=sorted(unknown)))


@dataclass(frozen=True)
class Collected:
    """The messages of one frame.

    stamp_ns: stamp of the sensor that leads. reference: ``lidar`` or the name of that camera.
    skews_ns: by camera that takes part, how much later than the frame it measured.
    generation: rises with every jump back in time; state from another one is void.
    too_far_ns: by camera that is alive and yet missing, how much later than the frame its nearest image is.
    """

    stamp_ns: int
    reference: str
    cloud: Any | None
    images: Mapping[str, Any]
    skews_ns: Mapping[str, int]
    missing: tuple[str, ...]
    generation: int
    too_far_ns: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Image:
    time_ns: int
    message: Any
    used: bool = False
    considered: bool = False


@dataclass
class _Camera:
    """The recent images of one camera, by rising time, and when it was last heard of."""

    heard_ns: int
    images: deque[_Image] = field(default_factory=deque)
    newest_ns: int | None = None
    periods_ns: deque[int] = field(default_factory=lambda: deque(maxlen=8))

    def nearest(self, time_ns: int, window_ns: int) -> _Image | None:
        inside = [image for image in self.images if abs(image.time_ns - time_ns) <= window_ns]
        return min(inside, key=lambda image: abs(image.time_ns - time_ns), default=None)

    def settled(self, time_ns: int, window_ns: int) -> bool:
        """Whether no image still to come can be nearer to ``time_ns``, judged by the rate so far."""
        if self.newest_ns is None:
            return False
        if self.newest_ns > time_ns + window_ns:
            return True
        if self.nearest(time_ns, window_ns) is None:
            return False
        period_ns = min(self.periods_ns, default=0)
        return self.newest_ns >= time_ns or time_ns - self.newest_ns <= period_ns // 2

    def forget(self) -> None:
        self.images.clear()
        self.periods_ns.clear()
        self.newest_ns = None


@dataclass(frozen=True)
class _Pending:
    stamp_ns: int
    time_ns: int
    reference: str
    cloud: Any | None
    deadline_ns: int


class Collector:
    """Builds frames from messages as they arrive; each method returns the frames that became ready."""

    def __init__(self, settings: CollectorSettings, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.settings = settings
        self._clock = clock
        self._window_ns = int(settings.window_s * NANOSECONDS)
        self._lost_ns = int(settings.lost_after_s * NANOSECONDS)
        self._jump_ns = int(settings.jump_back_s * NANOSECONDS)
        now_ns = clock()
        self._cameras = {name: _Camera(now_ns) for name in settings.cameras}
        self._pending: deque[_Pending] = deque()
        self._lidar_heard_ns = now_ns
        self._lidar_newest_ns: int | None = None
        self._released_ns: int | None = None
        self._silent_since_ns: int | None = None
        self.lidar_leads = settings.use_lidar
        self.generation = 0
        self.fused: Counter[str] = Counter()
        """By sensor, in how many frames it took part."""
        self.missing_in_a_row: Counter[str] = Counter()
        """By sensor, for how many frames in a row it has been missing."""
        self.unused: Counter[tuple[str, str]] = Counter()
        """How many messages took part in no frame, by (sensor, reason)."""

    @property
    def pending(self) -> int:
        """How many frames wait for more images."""
        return len(self._pending)

    @property
    def buffered(self) -> int:
        """How many images are kept."""
        return sum(len(camera.images) for camera in self._cameras.values())

    @property
    def waiting(self) -> Counter[str]:
        """By sensor, how many messages have taken part in no frame so far and still may."""
        count = Counter(
            {name: sum(not image.used for image in own.images) for name, own in self._cameras.items()}
        )
        count[LIDAR] = sum(pending.cloud is not None for pending in self._pending)
        return count

    def add_cloud(self, stamp_ns: int, message: Any) -> list[Collected]:
        """Take a LiDAR sweep."""
        time_ns = self._time(LIDAR, stamp_ns)
        if not self._in_order(LIDAR, stamp_ns, time_ns, self._lidar_newest_ns):
            return []
        if self._lidar_newest_ns is not None and time_ns < self._lidar_newest_ns:
            self._restart(time_ns)
        ready = []
        while not self.lidar_leads and self._pending:
            ready.append(self._build(self._pending.popleft()))
        self.lidar_leads = True
        self._expect(LIDAR, stamp_ns, message, self.settings.lidar_timeout_s)
        # Not before: where time was set back, everything is forgotten, but the next sweep follows this one.
        self._lidar_newest_ns, self._lidar_heard_ns, self._silent_since_ns = time_ns, self._clock(), None
        return ready + self.poll()

    def add_image(self, name: str, stamp_ns: int, message: Any) -> list[Collected]:
        """Take an image of camera ``name``."""
        camera, time_ns = self._cameras[name], self._time(name, stamp_ns)
        if not self._in_order(name, stamp_ns, time_ns, camera.newest_ns):
            return []
        camera.heard_ns = self._clock()
        jumped = camera.newest_ns is not None and time_ns < camera.newest_ns
        if jumped:
            self._discard(name, "before a jump back", len(camera.images))
            camera.forget()
        leads = name == self.leading_camera() and self._lidar_is_silent(time_ns)
        if leads and (jumped or time_ns < self._oldest_useful_ns() - self._jump_ns):
            self._restart(time_ns)
        if self._is_late(time_ns):
            self.unused[name, "late"] += 1
            return self.poll()
        if camera.newest_ns is not None:
            camera.periods_ns.append(time_ns - camera.newest_ns)
        camera.newest_ns = time_ns
        camera.images.append(_Image(time_ns, message))
        if leads:
            self._expect(name, stamp_ns, None, self.settings.camera_timeout_s)
        return self.poll()

    def poll(self) -> list[Collected]:
        """Return the frames that are complete or have waited long enough."""
        now_ns = self._clock()
        ready = []
        while self._pending and (
            self._complete(self._pending[0], now_ns)
            or now_ns >= self._pending[0].deadline_ns
            or self.pending > self.settings.pending_limit
        ):
            ready.append(self._build(self._pending.popleft()))
        self._drop_old_images()
        return ready

    def reset(self) -> None:
        """Forget all messages; counters stay."""
        self._give_up_pending("reset")
        for name, camera in self._cameras.items():
            self._discard(name, "reset", len(camera.images))
            camera.forget()
            camera.heard_ns = self._clock()
        self._lidar_heard_ns = self._clock()
        self._released_ns = self._lidar_newest_ns = self._silent_since_ns = None
        self.lidar_leads = self.settings.use_lidar
        self.generation += 1

    def leading_camera(self) -> str:
        """Return the camera that leads without LiDAR: the named one, or the first that is alive."""
        named = self.settings.reference_camera or self.settings.cameras[0]
        now_ns = self._clock()
        alive = [
            name for name in (named, *self._cameras) if now_ns - self._cameras[name].heard_ns < self._lost_ns
        ]
        return alive[0] if alive else named

    def _time(self, sensor: str, stamp_ns: int) -> int:
        return stamp_ns - int(self.settings.offsets_s.get(sensor, 0.0) * NANOSECONDS)

    def _lidar_is_silent(self, time_ns: int) -> bool:
        """Decide whether cameras lead, when the leading camera measured at ``time_ns``.

        Silence counts on the steady clock and by the stamps of the camera: a pause of a replay is none by
        stamp, a burst of queued images is none by the clock.
        """
        if self._silent_since_ns is None or time_ns < self._silent_since_ns:
            self._silent_since_ns = time_ns
        by_stamp_ns, by_clock_ns = time_ns - self._silent_since_ns, self._clock() - self._lidar_heard_ns
        if min(by_stamp_ns, by_clock_ns) >= self._lost_ns:
            self.lidar_leads = False
        return not self.lidar_leads

    def _in_order(self, sensor: str, stamp_ns: int, time_ns: int, newest_ns: int | None) -> bool:
        """Return whether a message can be used; one that is older by more than the limit is a jump back."""
        reason = None
        if stamp_ns <= 0:
            reason = "no stamp"
        elif newest_ns is not None and time_ns == newest_ns:
            reason = "same stamp again"
        elif newest_ns is not None and newest_ns - self._jump_ns <= time_ns < newest_ns:
            reason = "out of order"
        if reason is not None:
            self.unused[sensor, reason] += 1
        return reason is None

    def _expect(self, reference: str, stamp_ns: int, cloud: Any | None, timeout_s: float) -> None:
        time_ns = self._time(reference, stamp_ns)
        newest_ns = self._pending[-1].time_ns if self._pending else self._released_ns
        if newest_ns is not None and time_ns < newest_ns - self._jump_ns:
            self._restart(time_ns)
        elif newest_ns is not None and time_ns <= newest_ns:
            # The lead went from one sensor to another: outputs never go back in time.
            if reference == LIDAR:
                self.unused[LIDAR, "older than the last frame"] += 1
            return
        deadline_ns = self._clock() + int(timeout_s * NANOSECONDS)
        self._pending.append(_Pending(stamp_ns, time_ns, reference, cloud, deadline_ns))

    def _complete(self, pending: _Pending, now_ns: int) -> bool:
        return all(
            name == pending.reference
            or now_ns - camera.heard_ns >= self._lost_ns
            or camera.settled(pending.time_ns, self._window_ns)
            for name, camera in self._cameras.items()
        )

    def _build(self, pending: _Pending) -> Collected:
        chosen: dict[str, _Image] = {}
        for name, camera in self._cameras.items():
            nearest = camera.nearest(pending.time_ns, self._window_ns)
            if nearest is not None:
                nearest.used = True
                chosen[name] = nearest
            for image in camera.images:
                image.considered |= abs(image.time_ns - pending.time_ns) <= self._window_ns
        there = {LIDAR: pending.cloud is not None} if self.settings.use_lidar else {}
        there |= {name: name in chosen for name in self._cameras}
        for sensor, took_part in there.items():
            self.fused[sensor] += took_part
            self.missing_in_a_row[sensor] = 0 if took_part else self.missing_in_a_row[sensor] + 1
        self._released_ns = pending.time_ns
        return Collected(
            stamp_ns=pending.stamp_ns,
            reference=pending.reference,
            cloud=pending.cloud,
            images={name: image.message for name, image in chosen.items()},
            skews_ns={name: image.time_ns - pending.time_ns for name, image in chosen.items()},
            missing=tuple(sensor for sensor, took_part in there.items() if not took_part),
            generation=self.generation,
            too_far_ns=self._too_far(pending.time_ns, chosen),
        )

    def _too_far(self, time_ns: int, chosen: Mapping[str, _Image]) -> dict[str, int]:
        """Return how far the nearest images of missing cameras are: a wrong clock or offset."""
        now_ns = self._clock()
        found = {}
        for name, camera in self._cameras.items():
            if name in chosen or camera.newest_ns is None or now_ns - camera.heard_ns >= self._lost_ns:
                continue
            times = [image.time_ns for image in camera.images] or [camera.newest_ns]
            found[name] = min((time - time_ns for time in times), key=abs)
        return found

    def _restart(self, time_ns: int) -> None:
        """Begin again at ``time_ns``, earlier than what was seen; keep images that are new already."""
        self._give_up_pending("before a jump back")
        for name, camera in self._cameras.items():
            if camera.newest_ns is not None and camera.newest_ns > time_ns + self._jump_ns:
                self._discard(name, "before a jump back", len(camera.images))
                camera.forget()
        self._released_ns = self._lidar_newest_ns = self._silent_since_ns = None
        self.generation += 1

    def _give_up_pending(self, reason: str) -> None:
        """Forget the frames that wait; an image that leads one is still kept, and counted, as an image."""
        self.unused[LIDAR, reason] += sum(pending.reference == LIDAR for pending in self._pending)
        self._pending.clear()

    def _oldest_useful_ns(self) -> int:
        if self._pending:
            return self._pending[0].time_ns
        return self._released_ns if self._released_ns is not None else 0

    def _is_late(self, time_ns: int) -> bool:
        """Whether no frame still to come can use an image of ``time_ns``.

        One that is older by more than a jump is early in a new time, of which the LiDAR has not told yet.
        """
        useful_ns = self._oldest_useful_ns()
        return useful_ns - self._jump_ns <= time_ns < useful_ns - self._window_ns

    def _drop_old_images(self) -> None:
        history_ns = int(self.settings.history_s * NANOSECONDS)
        for name, camera in self._cameras.items():
            images = camera.images
            while images and (
                self._is_late(images[0].time_ns)
                or images[0].time_ns < images[-1].time_ns - history_ns
                or len(images) > self.settings.images_limit
            ):
                self._discard(name, "in no window", 1)

    def _discard(self, name: str, reason: str, count: int) -> None:
        """Remove the oldest images; those in no frame are counted, a nearer neighbour being no loss."""
        for _ in range(count):
            image = self._cameras[name].images.popleft()
            if not image.used:
                self.unused[name, "another image was nearer" if image.considered else reason] += 1
