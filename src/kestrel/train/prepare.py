# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Simulates drives straight into training data, several at a time."""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kestrel.classes import EVENTS, NO_ATTRIBUTE
from kestrel.errors import InputError, SetupError, describe
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.sim.drive import simulate
from kestrel.sim.rig import Rig, load_rig
from kestrel.sim.samples import CameraSample, LidarSample, Sample
from kestrel.sim.scene import EgoState
from kestrel.sim.semantics import POINT_CLASS_TABLE
from kestrel.sim.splits import DriveSpec
from kestrel.sim.workers import without_interrupts
from kestrel.sim.world import build_world
from kestrel.train import cache, drive_file
from kestrel.types import Float32Array, Float64Array

SWEEP_HZ: Final = 10.0

SWEEPS: Final = 1 + FusionConfig.sweeps
"""Sweeps that a key frame holds, its own among them: what Kestrel-Fusion looks at."""

SWEEP_STEP: Final = round(FusionConfig.sweep_s * SWEEP_HZ)
"""Turns from one of them to the next."""

PICTURE_SIZE: Final = (352, 128)
"""(width, height) of the cached pictures, what the networks see."""

VIDEO_HZ: Final = 10.0


@dataclass(frozen=True)
class Selection:
    """What of a drive is simulated and kept.

    cameras: their names, None for all. every_sweep, burst: every so many-th sweep is made, and so many that
    end with it, SWEEP_STEP apart; all in turn where every sweep is made. frame_every: every so many-th made
    sweep is a key frame, 0 for none. video: whether the front camera is kept at VIDEO_HZ.
    """

    cameras: tuple[str, ...] | None
    every_sweep: int
    burst: int
    frame_every: int
    video: bool

    @property
    def said(self) -> dict[str, float | bool]:
        """What ``drive.json`` says of it.

        frame_hz; of its key frames the seconds from sweep to sweep and their format.
        """
        sweep = {"sweep_s": SWEEP_STEP / SWEEP_HZ, "format": cache.FORMAT} if self.frame_every else {}
        return {"frame_hz": self.frame_hz, **sweep}

    @property
    def frame_hz(self) -> float:
        """Key frames per second."""
        return SWEEP_HZ * self.burst / self.every_sweep / max(1, self.frame_every)


SELECTIONS: Final = {
    "all": Selection(cameras=None, every_sweep=1, burst=1, frame_every=5, video=True),
    "cameras": Selection(cameras=None, every_sweep=5, burst=SWEEPS, frame_every=SWEEPS, video=False),
    "lidar": Selection(cameras=(), every_sweep=10, burst=SWEEPS, frame_every=SWEEPS, video=False),
    "video": Selection(cameras=("front",), every_sweep=50, burst=1, frame_every=0, video=True),
}
"""By the ``sensors`` of a DriveSpec. Drives of less than all are several times cheaper."""


def prepare(drives: list[DriveSpec], out: Path, workers: int) -> None:
    """Simulate ``drives`` into ``out``, one folder each; what is there and would be the same is left alone.

    Args:
        drives: what to simulate.
        out: folder of the split.
        workers: drives at a time.

    Raises:
        InputError: ``out`` cannot be made, or a drive cannot be written; the others are given up too.
        SetupError: a process was killed, for one by the system for want of memory.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(describe("--data", expected="a folder to write to", found=error)) from error
    waiting = [drive for drive in drives if not is_current(drive, out / drive.name)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with _pool(workers) as pool, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("drives", total=len(drives), completed=len(drives) - len(waiting))
        with without_interrupts():
            made = {pool.submit(prepare_drive, drive, out): drive for drive in waiting}
        for future in as_completed(made):
            try:
                future.result()
            except BrokenProcessPool as error:
                expected = "processes that live until their drive is made; fewer --workers need less memory"
                raise SetupError(
                    describe("simulation", expected=expected, found="one that was killed")
                ) from error
            except OSError as error:
                name = f"drive {out / made[future].name}"
                raise InputError(describe(name, expected="a folder to write to", found=error)) from error
            progress.advance(task)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that end at once with an error or Ctrl-C, whatever they have to do.

    By itself a pool would wait until all that was asked for is done, which may take hours.
    """
    others = active_children()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in active_children():
            if process not in others:
                process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: a pool's would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "a process of a pool"

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def is_current(drive: DriveSpec, folder: Path) -> bool:
    """Return whether ``folder`` holds the complete drive with the key frames that it would have now."""
    if not (folder / cache.DONE).exists():
        return False
    try:
        told = drive_file.read(folder)
    except InputError:  # it is damaged
        return False
    said = SELECTIONS[drive.sensors].said
    return drive_file.is_of(drive, told) and all(told.get(name) == value for name, value in said.items())


def prepare_drive(drive: DriveSpec, out: Path) -> None:
    """Simulate one drive into its folder; what an interrupted run left there is replaced."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = out / drive.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    world = build_world(drive.scene, drive.town, drive.seed, drive.seconds, drive.weather)
    selection = SELECTIONS[drive.sensors]
    samples = simulate(
        world,
        training_rig(load_rig(drive.rig), selection),
        seconds=drive.seconds,
        image_size=PICTURE_SIZE,
        every_sweep=selection.every_sweep,
        burst=selection.burst,
        burst_step=SWEEP_STEP if selection.burst > 1 else 1,
        seed=drive.seed,
    )
    frames, video = 0, _Video()
    for frame in _frames(samples, video, selection):
        cache.write(folder / f"frame_{frames:04d}.npz", frame)
        frames += 1
    if selection.video:
        cache.write(folder / "video.npz", video.cached())
    found = {"weather": world.weather.name, "frames": frames, **selection.said}
    cache.finish(folder, {**asdict(drive), **found})


def training_rig(rig: Rig, selection: Selection) -> Rig:
    """Return ``rig`` with rates at which nothing is simulated that training does not use.

    Its cameras have no lens distortion: the nodes undo it before a network sees a picture.
    """
    cameras = tuple(
        replace(
            camera,
            hz=VIDEO_HZ if selection.video and camera.name == "front" else selection.frame_hz,
            phase_s=camera.phase_s % 0.05,
            distortion_model="none",
            distortion=np.zeros(0),
        )
        for camera in rig.select(selection.cameras).cameras
    )
    return replace(
        rig, cameras=cameras, lidar=replace(rig.lidar, hz=SWEEP_HZ, phase_s=0.0), odometry_hz=1, imu_hz=1
    )


class _Video:
    """Collects the front camera."""

    def __init__(self) -> None:
        self._samples: list[CameraSample] = []

    def add(self, sample: CameraSample) -> None:
        self._samples.append(sample)

    def cached(self) -> cache.CachedVideo:
        pictures, ends = cache.encode([sample.image.data for sample in self._samples], ".jpg")
        return cache.CachedVideo(
            pictures,
            ends,
            np.array([sample.stamp_ns for sample in self._samples], np.int64),
            np.array([EVENTS.index(sample.event or EVENTS[0]) for sample in self._samples], np.uint8),
        )


def _frames(samples: Iterator[Sample], video: _Video, selection: Selection) -> Iterator[cache.CachedFrame]:
    """Yield the key frames of a stream of samples: sweeps with the pictures taken right after their stamp."""
    step = SWEEP_STEP if selection.burst == 1 else 1  # a burst has no others between
    sweeps: deque[LidarSample] = deque(maxlen=(SWEEPS - 1) * step + 1)
    waiting: tuple[LidarSample, ...] = ()
    pictures: dict[str, CameraSample] = {}
    count = 0
    for sample in samples:
        if isinstance(sample, CameraSample):
            if sample.name == "front":
                video.add(sample)
            pictures.setdefault(sample.name, sample)
        elif isinstance(sample, LidarSample):
            if waiting:
                yield _frame(waiting, list(pictures.values()))
                waiting = ()
            sweeps.append(sample)
            if selection.frame_every and count % selection.frame_every == 0 and len(sweeps) == sweeps.maxlen:
                waiting = tuple(sweeps)[::-step]
            pictures.clear()
            count += 1


def _frame(sweeps: tuple[LidarSample, ...], pictures: list[CameraSample]) -> cache.CachedFrame:
    """Pack the current sweep (first) with earlier ones and the pictures."""
    now = sweeps[0]
    clouds, label = [], np.zeros(0, np.uint8)
    for index, sample in enumerate(sweeps):
        moved = _in_base(sample, now)
        kept = np.abs(moved[:, :3]).max(1, initial=0) < cache.REACH_M
        if index == 0:
            label = POINT_CLASS_TABLE[sample.semantic[kept]]
        clouds.append(moved[kept])
    cloud = np.concatenate(clouds)
    points, intensity = cache.pack_points(cloud)
    boxes, base_from_odom = now.truth, np.linalg.inv(now.odom_from_base)
    jpeg, jpeg_ends = cache.encode([sample.image.data for sample in pictures], ".jpg")
    png, png_ends = cache.encode([sample.semantic for sample in pictures], ".png")
    return cache.CachedFrame(
        points=points,
        intensity=intensity,
        sweep=np.repeat(np.arange(len(clouds), dtype=np.uint8), [len(points) for points in clouds]),
        ages=np.array([(now.stamp_ns - sample.stamp_ns) * 1e-9 for sample in sweeps], np.float32),
        label=label,
        boxes=np.concatenate((boxes.center, boxes.size, boxes.yaw[:, None], boxes.velocity), 1),
        box_label=boxes.label,
        box_points=boxes.num_points if boxes.num_points is not None else np.full(len(boxes), -1),
        box_attribute=boxes.attribute if boxes.attribute is not None else np.full(len(boxes), NO_ATTRIBUTE),
        map_bits=np.packbits(now.bev_map.probability > 0.5),
        pictures=jpeg,
        picture_ends=jpeg_ends,
        semantics=png,
        semantic_ends=png_ends,
        matrices=_stack([sample.calibration.camera_matrix for sample in pictures], (3, 3)),
        base_from_camera=_stack([sample.calibration.reference_from_camera for sample in pictures], (4, 4)),
        base_from_picture=_stack([base_from_odom @ sample.odom_from_base for sample in pictures], (4, 4)),
        odom_from_base=now.odom_from_base,
    )


def _stack(matrices: list[Float64Array], shape: tuple[int, int]) -> Float64Array:
    return np.array(matrices, np.float64).reshape(-1, *shape)


def _in_base(sample: LidarSample, now: LidarSample) -> Float32Array:
    """Return the sweep (N, 4) in base_link at the stamp of ``now``, as the ego motion tells."""
    cloud = sample.cloud
    seen = cloud.points[:, :3] @ sample.base_from_lidar[:3, :3].T + sample.base_from_lidar[:3, 3]
    still = seen if cloud.time_s is None else at_stamp(seen, cloud.time_s, sample.ego)
    now_from_then = np.linalg.inv(now.odom_from_base) @ sample.odom_from_base
    moved = still @ now_from_then[:3, :3].T + now_from_then[:3, 3]
    return np.concatenate((moved, cloud.points[:, 3:]), 1).astype(np.float32)


def at_stamp(points: Float64Array, delay: Float32Array, ego: EgoState) -> Float64Array:
    """Return points (N, 3) in base_link at the stamp, which were measured ``delay`` (N,) seconds after it.

    The nodes undo the motion within a sweep as well. Left in, it moves what stands by up to a tenth of a
    second's way, of which nothing in a turned and mirrored sweep tells.
    """
    angle = ego.angular_velocity[2] * delay
    cosine, sine = np.cos(angle), np.sin(angle)
    way = ego.velocity * delay[:, None].astype(np.float64)
    turned = np.stack(
        (
            cosine * points[:, 0] - sine * points[:, 1],
            sine * points[:, 0] + cosine * points[:, 1],
            points[:, 2],
        ),
        1,
    )
    return turned + way
