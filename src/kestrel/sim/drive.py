# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A drive: all sensors of a rig through a world, each at its own rate, in the order of their stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.errors import ConfigError, describe
from kestrel.sim.camera import Camera
from kestrel.sim.caster import WorldCaster
from kestrel.sim.lidar import Lidar
from kestrel.sim.render import Renderer
from kestrel.sim.rig import Rig
from kestrel.sim.samples import EPOCH_NS, CameraSample, ImuSample, LidarSample, OdometrySample, Sample
from kestrel.sim.scene import World
from kestrel.sim.truth import map_layers, object_boxes
from kestrel.types import Float64Array, Image

GRAVITY_M_S2: Final = 9.80665
EVENT_CAMERA: Final = "front"

_ODOMETRY, _IMU, _SWEEPS = range(3)
"""Numbers of sensors; the cameras follow. They seed the noise, and order samples of the same stamp."""


@dataclass(frozen=True)
class Task:
    """One sample to make: when, by which sensor (its number seeds the noise), and how."""

    stamp_ns: int
    sensor: int
    index: int
    make: Callable[[float, int, np.random.Generator], Sample]


def simulate(
    world: World,
    rig: Rig,
    *,
    seconds: float,
    image_size: tuple[int, int] | None = None,
    lidar_hz: float | None = None,
    cameras: tuple[str, ...] | None = None,
    every_sweep: int = 1,
    burst: int = 1,
    burst_step: int = 1,
    seed: int = 0,
) -> Iterator[Sample]:
    """Yield what the sensors of ``rig`` deliver during a drive, in the order of the stamps.

    Args:
        world: The town and its traffic.
        rig: The sensors.
        seconds: Length of the drive. Only whole sweeps are made.
        image_size: (width, height) of the pictures, or None for what the rig delivers.
        lidar_hz: Another rate of the LiDAR, or None for that of the rig.
        cameras: Only these cameras (an empty tuple: none), or None for all.
        every_sweep: Make only every so many-th turn of the LiDAR, which turns as fast as ever.
        burst: Make so many turns, of which that one is the last.
        burst_step: How many turns it is from one of a burst to the next, 1: they follow each other.
        seed: Of all sensor noise.

    Raises:
        ConfigError: The rig has no such camera, or a number makes no sense.
    """
    if every_sweep < 1:
        raise ConfigError(describe("every_sweep", expected="1 or more", found=every_sweep))
    if not 1 <= burst <= every_sweep:
        raise ConfigError(describe("burst", expected=f"1 to every_sweep, {every_sweep}", found=burst))
    if burst_step < 1 or (burst - 1) * burst_step >= every_sweep:
        expected = f"1 or more, so that a burst fits into every_sweep, {every_sweep}"
        raise ConfigError(describe("burst_step", expected=expected, found=burst_step))
    made = frozenset(range(0, burst * burst_step, burst_step))
    drive = Drive(world, rig.select(cameras, lidar_hz), seconds, image_size, every_sweep, made, seed)
    return (drive.make(number) for number in range(len(drive.tasks)))


class Drive:
    """The sensors of one drive, and the list of what they measure when.

    Args: as of ``simulate``, with the cameras and the LiDAR rate of ``rig`` chosen; ``burst`` says how many
        turns the ones that are made lie before every so many-th.

    Attributes:
        tasks: All samples in the order of their stamps. Each can be made by itself, in any order and process:
            its noise depends on nothing but the seed, the sensor and its count.
    """

    def __init__(
        self,
        world: World,
        rig: Rig,
        seconds: float,
        image_size: tuple[int, int] | None = None,
        every_sweep: int = 1,
        burst: Set[int] = frozenset({0}),
        seed: int = 0,
    ) -> None:
        if not seconds > 0:
            raise ConfigError(describe("seconds", expected="more than 0", found=seconds))
        if image_size is not None and min(image_size) < 1:
            raise ConfigError(describe("image size", expected="positive", found=image_size))
        self._every_sweep = every_sweep
        self._burst = burst
        self._world = world
        self._rig = rig
        self._seconds = seconds
        self._seed = seed
        caster = WorldCaster(world, seconds)
        renderer = Renderer(caster.table, world.weather)
        self._lidar = Lidar(rig.lidar, caster, world)
        self._cameras = [Camera(spec, image_size, caster, world, renderer) for spec in rig.cameras]
        self._odom_from_map = np.linalg.inv(world.ego(0.0).map_from_base)
        self.tasks = self._all_tasks()

    def make(self, number: int) -> Sample:
        """Return the sample of ``tasks[number]``."""
        task = self.tasks[number]
        rng = np.random.default_rng([self._seed, task.sensor, task.index])
        return task.make((task.stamp_ns - EPOCH_NS) / 1e9, task.stamp_ns, rng)

    def jobs(self) -> list[range]:
        """Return all tasks in runs that are worth a message: each ends with a sweep or a picture."""
        ends = [number + 1 for number, task in enumerate(self.tasks) if task.sensor >= _SWEEPS]
        bounds = [0, *ends, len(self.tasks)]
        return [range(*pair) for pair in pairwise(bounds)]

    def _all_tasks(self) -> list[Task]:
        rig = self._rig
        turn = 1.0 / rig.lidar.hz
        tasks = self._schedule(_ODOMETRY, rig.odometry_hz, 0.0, self._seconds, self._odometry)
        tasks += self._schedule(_IMU, rig.imu_hz, 0.0, self._seconds, self._imu)
        sweeps = self._schedule(_SWEEPS, rig.lidar.hz, rig.lidar.phase_s, self._seconds - turn, self._sweep)
        tasks += [task for task in sweeps if -task.index % self._every_sweep in self._burst]
        for number, camera in enumerate(self._cameras):
            spec = camera.spec
            tasks += self._schedule(
                _SWEEPS + 1 + number, spec.hz, spec.phase_s, self._seconds, self._picture(camera)
            )
        return sorted(tasks, key=lambda task: (task.stamp_ns, task.sensor))

    @staticmethod
    def _schedule(
        sensor: int,
        hz: float,
        phase_s: float,
        last_s: float,
        make: Callable[[float, int, np.random.Generator], Sample],
    ) -> list[Task]:
        count = max(0, int(np.floor((last_s - phase_s) * hz + 1e-6)) + 1)
        stamps = [EPOCH_NS + round((phase_s + index / hz) * 1e9) for index in range(count)]
        return [Task(stamp, sensor, index, make) for index, stamp in enumerate(stamps)]

    def _odom_from_base(self, time_s: float) -> Float64Array:
        pose: Float64Array = self._odom_from_map @ self._world.ego(time_s).map_from_base
        return pose

    def _sweep(self, time_s: float, stamp_ns: int, rng: np.random.Generator) -> LidarSample:
        ego = self._world.ego(time_s)
        sweep = self._lidar.sweep(time_s, stamp_ns, rng)
        return LidarSample(
            stamp_ns=stamp_ns,
            cloud=sweep.cloud,
            semantic=sweep.semantic,
            instance=sweep.instance,
            truth=object_boxes(self._world, ego, time_s, stamp_ns, sweep.instance),
            bev_map=map_layers(self._world, ego, stamp_ns),
            odom_from_base=self._odom_from_map @ ego.map_from_base,
            base_from_lidar=self._rig.lidar.base_from_lidar,
            ego=ego,
        )

    def _picture(self, camera: Camera) -> Callable[[float, int, np.random.Generator], CameraSample]:
        name = camera.spec.name

        def make(time_s: float, stamp_ns: int, rng: np.random.Generator) -> CameraSample:
            picture = camera.take(time_s, rng)
            return CameraSample(
                stamp_ns=stamp_ns,
                name=name,
                image=Image(picture.rgb, stamp_ns, f"camera_{name}_optical"),
                calibration=camera.calibration,
                odom_from_base=self._odom_from_base(time_s),
                semantic=picture.semantic,
                instance=picture.instance,
                event=self._world.event(time_s) if name == EVENT_CAMERA else None,
            )

        return make

    def _odometry(self, time_s: float, stamp_ns: int, rng: np.random.Generator) -> OdometrySample:
        ego = self._world.ego(time_s)
        noise = rng.standard_normal((2, 3))
        return OdometrySample(
            stamp_ns=stamp_ns,
            odom_from_base=self._odom_from_base(time_s),
            velocity=ego.velocity + 0.01 * noise[0] * (ego.velocity != 0),
            angular_velocity=ego.angular_velocity + 0.001 * noise[1] * (ego.angular_velocity != 0),
        )

    def _imu(self, time_s: float, stamp_ns: int, rng: np.random.Generator) -> ImuSample:
        ego = self._world.ego(time_s)
        noise = rng.standard_normal((2, 3))
        imu_from_base = np.linalg.inv(self._rig.base_from_imu)[:3, :3]
        base_from_map = ego.map_from_base[:3, :3].T
        force = ego.acceleration + base_from_map @ np.array([0, 0, GRAVITY_M_S2])
        attitude = self._odom_from_base(time_s)[:3, :3] @ self._rig.base_from_imu[:3, :3]
        return ImuSample(
            stamp_ns=stamp_ns,
            orientation=Rotation.from_matrix(attitude).as_quat(),
            angular_velocity=imu_from_base @ ego.angular_velocity + 0.002 * noise[0],
            linear_acceleration=imu_from_base @ force + 0.03 * noise[1],
        )
