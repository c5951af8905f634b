# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The collector on a driven clock: what belongs together, how long it waits, what it counts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.errors import ConfigError
from kestrel_nodes.collector import LIDAR, Collected, Collector, CollectorSettings

MS = 1_000_000
START = 1_700_000_000_000 * MS
CAMERAS = ("front", "left", "right")


@dataclass
class Bench:
    """A collector, its clock and everything it released; the message of a sensor is its stamp."""

    options: dict[str, Any] = field(default_factory=dict)
    now_ns: int = 0
    frames: list[Collected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.collector = Collector(
            CollectorSettings(**({"cameras": CAMERAS} | self.options)), lambda: self.now_ns
        )

    def cloud(self, ms: float) -> None:
        stamp = START + int(ms * MS)
        self.frames += self.collector.add_cloud(stamp, stamp)

    def image(self, camera: str, ms: float) -> None:
        stamp = START + int(ms * MS)
        self.frames += self.collector.add_image(camera, stamp, stamp)

    def wait(self, ms: float) -> None:
        self.now_ns += int(ms * MS)
        self.frames += self.collector.poll()

    def images_ms(self, frame: Collected) -> dict[str, float]:
        return {name: (stamp - START) / MS for name, stamp in frame.images.items()}

    def play(self, events: list[tuple[float, str]]) -> None:
        """Deliver each (ms, sensor) at its own stamp in real time."""
        for ms, sensor in sorted(events):
            self.wait(ms - self.now_ns / MS)
            self.cloud(ms) if sensor == LIDAR else self.image(sensor, ms)


def test_frame_is_released_at_once_when_every_camera_has_its_image() -> None:
    bench = Bench()
    bench.cloud(0)
    for camera in CAMERAS:
        assert not bench.frames
        bench.image(camera, 5)
    (frame,) = bench.frames
    assert (frame.stamp_ns, frame.reference, frame.missing) == (START, LIDAR, ())
    assert frame.skews_ns == dict.fromkeys(CAMERAS, 5 * MS)
    assert bench.collector.fused == dict.fromkeys((LIDAR, *CAMERAS), 1)


def test_nearest_image_is_taken_on_either_side() -> None:
    bench = Bench({"cameras": ("front",)})
    for ms in (0, 83, 166):
        bench.image("front", ms)
    bench.cloud(120)
    bench.cloud(150)
    assert [bench.images_ms(frame)["front"] for frame in bench.frames] == [83, 166]


@pytest.mark.parametrize("lidar_hz", [10, 20])
def test_cameras_at_12_hz_give_every_sweep_its_nearest_image(lidar_hz: int) -> None:
    bench = Bench()
    images = {name: [13.0 + 7 * i + k * 1000 / 12 for k in range(26)] for i, name in enumerate(CAMERAS)}
    sweeps = [100 + k * 1000 / lidar_hz for k in range(2 * lidar_hz)]
    bench.play([(t, name) for name, times in images.items() for t in times] + [(t, LIDAR) for t in sweeps])
    assert len(bench.frames) == len(sweeps)
    assert bench.collector.pending == 0
    for frame, sweep in zip(bench.frames, sweeps, strict=True):
        nearest = {name: min(abs(t - sweep) for t in times) for name, times in images.items()}
        assert not frame.missing
        assert frame.skews_ns.keys() == set(CAMERAS)
        for name, skew_ns in frame.skews_ns.items():
            assert abs(skew_ns) / MS == pytest.approx(nearest[name], abs=0.01)


def test_prediction_spares_the_wait_when_the_last_image_is_nearer_than_the_next() -> None:
    bench = Bench({"cameras": ("front",)})
    bench.image("front", 0)
    bench.image("front", 100)
    bench.cloud(120)
    assert len(bench.frames) == 1, "the next image is due at 200 ms and cannot be nearer"
    bench.cloud(180)
    assert len(bench.frames) == 1, "the next image will be nearer"
    bench.image("front", 200)
    assert bench.images_ms(bench.frames[1]) == {"front": 200}


def test_missing_camera_is_named_after_the_timeout() -> None:
    bench = Bench()
    bench.cloud(0)
    bench.image("front", 0)
    bench.image("left", 0)
    bench.wait(199)
    assert not bench.frames
    bench.wait(1)
    assert bench.frames[0].missing == ("right",)
    assert bench.collector.missing_in_a_row["right"] == 1


def test_camera_that_died_is_not_waited_for_and_joins_again() -> None:
    bench = Bench()
    for k in range(20):
        bench.wait(100)
        bench.cloud(100 * k)
        for camera in CAMERAS if k in (0, 15, 16) else CAMERAS[:2]:
            bench.image(camera, 100 * k)
    assert bench.frames[12].missing == ("right",)
    assert bench.frames[16].missing == ()
    assert bench.collector.fused[LIDAR] == 20 - bench.collector.pending
    silent = Bench()
    silent.wait(1000)
    silent.cloud(0)
    assert silent.frames[0].missing == CAMERAS, "all cameras dead for long: no wait at all"


def test_image_from_the_future_is_not_matched() -> None:
    bench = Bench({"cameras": ("front",)})
    bench.image("front", 500)
    bench.cloud(0)
    assert bench.frames[0].missing == ("front",)


def test_offset_of_a_sensor_is_taken_out_before_matching() -> None:
    bench = Bench({"cameras": ("front",), "offsets_s": {"front": 0.3}})
    bench.cloud(0)
    bench.image("front", 310)
    assert bench.frames[0].skews_ns == {"front": 10 * MS}


def test_lidar_alone_needs_no_wait() -> None:
    bench = Bench({"cameras": ()})
    bench.cloud(0)
    assert bench.frames[0].missing == ()


def test_cameras_alone_are_led_by_the_named_camera() -> None:
    bench = Bench({"use_lidar": False, "reference_camera": "left"})
    for camera, ms in (("front", 0), ("left", 10), ("right", 20), ("front", 83)):
        bench.image(camera, ms)
    (frame,) = bench.frames
    assert (frame.reference, frame.stamp_ns, frame.cloud) == ("left", START + 10 * MS, None)
    assert bench.images_ms(frame) == {"front": 0, "left": 10, "right": 20}
    assert frame.missing == ()


def drive(bench: Bench, first_ms: int, last_ms: int, *sensors: str) -> None:
    bench.play([(ms, sensor) for ms in range(first_ms, last_ms, 100) for sensor in sensors])


def test_named_camera_leads_while_the_lidar_is_silent_and_hands_back() -> None:
    bench = Bench({"reference_camera": "left"})
    drive(bench, 0, 1000, LIDAR, *CAMERAS)
    drive(bench, 1000, 4000, *CAMERAS)
    drive(bench, 4000, 5000, LIDAR, *CAMERAS)
    bench.wait(500)
    references = [frame.reference for frame in bench.frames]
    assert references == [LIDAR] * 10 + ["left"] * 21 + [LIDAR] * 9
    assert bench.collector.unused[LIDAR, "older than the last frame"] == 1
    silent = bench.frames[10:31]
    assert all(frame.missing == (LIDAR,) and frame.cloud is None for frame in silent)
    stamps = [frame.stamp_ns for frame in bench.frames]
    assert stamps == sorted(set(stamps)), "outputs never go back in time"


def test_another_camera_leads_when_the_named_one_is_dead_too() -> None:
    bench = Bench({"reference_camera": "left"})
    drive(bench, 0, 3000, "front", "right")
    bench.wait(500)
    assert bench.frames
    assert {frame.reference for frame in bench.frames} == {"front"}
    assert bench.frames[-1].missing == (LIDAR, "left")


def test_a_camera_that_takes_the_lead_does_not_go_back_before_frames_that_wait() -> None:
    bench = Bench(
        {"use_lidar": False, "reference_camera": "left", "lost_after_s": 0.2, "camera_timeout_s": 2.0}
    )
    bench.image("left", 0)
    bench.image("front", 0)
    bench.image("right", 0)
    bench.image("left", 100)
    bench.now_ns += 300 * MS  # the named camera is silent by the clock, its frame still waits
    bench.image("front", 60)
    bench.wait(3000)
    stamps = [frame.stamp_ns for frame in bench.frames]
    assert stamps == sorted(stamps)
    assert len(stamps) == 2


def test_pause_of_the_replay_is_not_the_death_of_the_lidar() -> None:
    bench = Bench()
    drive(bench, 0, 1000, LIDAR, *CAMERAS)
    bench.now_ns += 60_000 * MS
    for camera in CAMERAS:
        bench.image(camera, 1000)
    bench.cloud(1000)
    bench.wait(500)
    assert {frame.reference for frame in bench.frames} == {LIDAR}
    assert len(bench.frames) == 11


def test_slow_replay_keeps_the_lidar_in_the_lead() -> None:
    bench = Bench()
    for k in range(20):
        for sensor in (LIDAR, *CAMERAS):
            bench.wait(400)
            bench.cloud(100 * k) if sensor == LIDAR else bench.image(sensor, 100 * k)
    assert {frame.reference for frame in bench.frames} == {LIDAR}


def test_burst_of_queued_images_does_not_take_the_lead() -> None:
    bench = Bench()
    for ms in range(0, 3000, 100):
        for camera in CAMERAS:
            bench.image(camera, ms)
    bench.cloud(2900)
    assert [frame.reference for frame in bench.frames] == [LIDAR]


def test_jump_back_starts_anew_within_two_periods() -> None:
    bench = Bench()
    drive(bench, 10_000, 13_000, LIDAR, *CAMERAS)
    bench.wait(500)
    before = len(bench.frames)
    generation = bench.frames[-1].generation
    for k in range(3):
        bench.wait(100)
        for camera in CAMERAS:
            bench.image(camera, 100 * k)
        bench.cloud(100 * k)
    after = bench.frames[before:]
    assert (after[0].stamp_ns - START) / MS <= 100
    assert after[0].generation > generation
    assert after[-1].missing == ()
    assert after[-1].generation == after[0].generation


def test_images_that_jump_back_before_the_lidar_does_take_part_in_its_first_frame() -> None:
    bench = Bench()
    drive(bench, 10_000, 11_000, LIDAR, *CAMERAS)
    for ms in (0, 100):
        for camera in CAMERAS:
            bench.image(camera, ms)
    bench.cloud(0)
    assert (bench.frames[-1].stamp_ns, bench.frames[-1].missing) == (START, ())


def test_jump_back_without_lidar_starts_anew() -> None:
    bench = Bench({"use_lidar": False})
    drive(bench, 10_000, 12_000, *CAMERAS)
    bench.wait(200)
    before = len(bench.frames)
    for k in range(3):
        bench.wait(100)
        for camera in CAMERAS:
            bench.image(camera, 100 * k)
    bench.wait(200)
    assert [(frame.stamp_ns - START) / MS for frame in bench.frames[before:]] == [0, 100, 200]
    assert bench.frames[-1].missing == ()


def test_lidar_takes_over_from_cameras_whose_clock_runs_ahead() -> None:
    bench = Bench()
    for k in range(30):
        bench.wait(100)
        for camera in CAMERAS:
            bench.image(camera, 3_600_000 + 100 * k)
    assert bench.frames[-1].reference == "front"
    bench.cloud(3000)
    bench.wait(300)
    assert bench.frames[-1].reference == LIDAR


def test_unordered_duplicate_and_unstamped_messages_are_counted_by_reason() -> None:
    bench = Bench({"cameras": ("front",)})
    bench.cloud(100)
    for ms in (100, 50):
        bench.cloud(ms)
    bench.image("front", 100)
    for ms in (100, 50):
        bench.image("front", ms)
    bench.collector.add_cloud(0, None)
    bench.collector.add_image("front", 0, None)
    assert bench.collector.unused == {
        (sensor, reason): 1
        for sensor in (LIDAR, "front")
        for reason in ("same stamp again", "out of order", "no stamp")
    }
    assert len(bench.frames) == 1


def test_images_that_missed_their_frame_are_counted_by_reason() -> None:
    bench = Bench({"cameras": ("front",), "window_s": 0.04})
    for ms in (0, 30, 60, 90):
        bench.image("front", ms)
    bench.cloud(70)
    bench.cloud(1000)
    bench.wait(1000)
    bench.image("front", 500)
    bench.wait(0)
    assert bench.collector.unused == {
        ("front", "in no window"): 1,
        ("front", "another image was nearer"): 2,
        ("front", "late"): 1,
    }


def test_reset_counts_what_it_forgets() -> None:
    bench = Bench()
    bench.cloud(0)
    bench.image("front", 0)
    bench.collector.reset()
    assert bench.collector.unused == {(LIDAR, "reset"): 1, ("front", "reset"): 1}
    assert bench.collector.pending == bench.collector.buffered == 0


def test_a_leading_camera_that_sets_time_back_begins_a_generation_while_its_frames_wait() -> None:
    bench = Bench({"use_lidar": False})
    for number, ms in enumerate((0, 100_000, 0)):
        bench.frames += bench.collector.add_image("front", START + ms * MS, number)
    bench.wait(10_000)
    order = [(frame.generation, frame.stamp_ns) for frame in bench.frames]
    assert order == sorted(set(order))
    assert bench.frames[-1].images == {"front": 2}


def test_a_sweep_that_sets_time_back_is_not_taken_twice() -> None:
    bench = Bench({})
    bench.collector.add_cloud(START, 0)
    for number in range(1, 5):
        bench.wait(400)
        bench.frames += bench.collector.add_image("front", START + (100_000 + 400 * number) * MS, number)
    bench.frames += bench.collector.add_cloud(START + 50_000 * MS, 8)
    bench.frames += bench.collector.add_cloud(START + 50_000 * MS, 9)
    bench.wait(10_000)
    assert [frame.cloud for frame in bench.frames if frame.cloud is not None] == [0, 8]
    assert bench.collector.unused[LIDAR, "same stamp again"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"cameras": (), "use_lidar": False},
        {"reference_camera": "rear"},
        {"offsets_s": {"rear": 0.1}},
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Bench(options)


EVENT = st.tuples(
    st.sampled_from([LIDAR, *CAMERAS]),
    st.one_of(st.integers(0, 3000), st.integers(100_000, 103_000), st.just(-START // MS)),
    st.integers(0, 400),
)


@given(events=st.lists(EVENT, max_size=120), use_lidar=st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_arrives_every_message_is_used_or_counted_and_memory_is_bounded(
    events: list[tuple[str, int, int]], use_lidar: bool
) -> None:
    bench = Bench({"use_lidar": use_lidar, "pending_limit": 4, "images_limit": 8})
    sent = dict.fromkeys((LIDAR, *CAMERAS), 0)
    token = 0
    for sensor, ms, pause_ms in events:
        bench.wait(pause_ms)
        token += 1
        stamp = START + ms * MS
        if sensor == LIDAR and not use_lidar:
            continue
        sent[sensor] += 1
        collector = bench.collector
        new = (
            collector.add_cloud(stamp, token)
            if sensor == LIDAR
            else collector.add_image(sensor, stamp, token)
        )
        bench.frames += new
        assert collector.pending <= 4
        assert collector.buffered <= 8 * len(CAMERAS)
    bench.wait(10_000)
    assert bench.collector.pending == 0
    waiting = bench.collector.waiting
    clouds = [frame.cloud for frame in bench.frames if frame.cloud is not None]
    assert len(clouds) == len(set(clouds)), "a sweep was fused twice"
    for reset in (False, True):
        if reset:
            bench.collector.reset()
            assert not +bench.collector.waiting
        for sensor in (LIDAR, *CAMERAS):
            images = {frame.images[sensor] for frame in bench.frames if sensor in frame.images}
            lost = sum(count for (name, _), count in bench.collector.unused.items() if name == sensor)
            left = 0 if reset else waiting[sensor]
            assert len(clouds if sensor == LIDAR else images) + lost + left == sent[sensor]
    for before, after in zip(bench.frames, bench.frames[1:], strict=False):
        assert after.stamp_ns > before.stamp_ns or after.generation > before.generation
    for frame in bench.frames:
        assert all(abs(skew) <= 100 * MS for skew in frame.skews_ns.values())


@given(seed=st.integers(0, 10_000), loss=st.floats(0, 0.5), jitter_ms=st.integers(0, 150))
@settings(max_examples=100, deadline=None)
def test_delay_and_loss_on_the_way_never_lose_a_sweep(seed: int, loss: float, jitter_ms: int) -> None:
    shuffle = random.Random(seed)
    sensors = {LIDAR: (50.0, 40), **dict.fromkeys(CAMERAS, (1000 / 12, 24))}
    arrivals = []
    for sensor, (period, count) in sensors.items():
        last = 0.0
        for k in range(count):
            if sensor != LIDAR and shuffle.random() < loss:
                continue
            last = max(last, k * period + shuffle.uniform(0, jitter_ms))
            arrivals.append((last, sensor, k * period))
    bench = Bench()
    for now_ms, sensor, ms in sorted(arrivals):
        bench.wait(max(0.0, now_ms - bench.now_ns / MS))
        bench.cloud(ms) if sensor == LIDAR else bench.image(sensor, ms)
    bench.wait(1000)
    assert [frame.cloud for frame in bench.frames] == [START + int(k * 50 * MS) for k in range(40)]
