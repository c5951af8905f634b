# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.spatial.transform import Rotation

from kestrel.errors import InputError, SetupError
from kestrel.sim.rig import load_rig
from kestrel.sim.scene import EgoState
from kestrel.sim.splits import DriveSpec
from kestrel.sim.world import build_world
from kestrel.train import cache
from kestrel.train.prepare import at_stamp, is_current, prepare, prepare_drive


@pytest.mark.parametrize(("sensors", "pictures", "frames"), [("cameras", 6, 3), ("lidar", 0, 1)])
def test_a_drive_without_video_becomes_key_frames_of_three_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sensors: str, pictures: int, frames: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # prepare_drive sets it; other tests shall not see it
    drive = DriveSpec("d", "nuscenes", "suburban", "alder", 1, 2.0, "day", sensors)
    prepare_drive(drive, tmp_path)
    files = cache.frame_files(tmp_path)
    assert [path.name for path in files] == [f"frame_{number:04d}.npz" for number in range(frames)]
    assert not (tmp_path / "d" / "video.npz").exists()
    told = json.loads((tmp_path / "d" / cache.DONE).read_text())
    assert (told["frames"], told["frame_hz"]) == (frames, 2.0 if pictures else 1.0)
    frame = cache.read(cache.CachedFrame, files[0])
    np.testing.assert_allclose(frame.ages, [0, 0.2, 0.4], atol=1e-6)
    assert np.unique(frame.sweep).tolist() == [0, 1, 2]
    assert len(frame.label) == (frame.sweep == 0).sum() > 5000
    assert len(frame.picture_ends) == len(frame.semantic_ends) == len(frame.matrices) == pictures
    if pictures:
        ego = build_world("suburban", "alder", 1, 2.0, "day").ego
        rig = {camera.name: camera for camera in load_rig("nuscenes").cameras}
        for place, mount in enumerate(frame.base_from_camera):
            camera = next(each for each in rig.values() if np.array_equal(each.base_from_camera, mount))
            then, now = (ego(0.5 + late).map_from_base for late in (camera.phase_s % 0.05, 0.0))
            np.testing.assert_allclose(frame.base_from_picture[place], np.linalg.inv(now) @ then, atol=1e-6)
        assert np.abs(frame.base_from_picture - np.eye(4)).max() > 0.1
        assert frame.picture(0).shape == (128, 352, 3)
        assert len(np.unique(frame.semantic(0))) > 3


def test_a_drive_is_made_again_where_it_is_not_complete_or_would_be_another(tmp_path: Path) -> None:
    drive = DriveSpec("d", "nuscenes", "suburban", "alder", 1, 2.0, None, "cameras")
    assert not is_current(drive, tmp_path)
    told = {
        **asdict(drive),
        "weather": "rain",
        "frames": 3,
        "frame_hz": 2.0,
        "sweep_s": 0.2,
        "format": cache.FORMAT,
    }
    cache.finish(tmp_path, told)
    assert is_current(drive, tmp_path)
    assert not is_current(replace(drive, seed=2), tmp_path)
    assert not is_current(replace(drive, weather="day"), tmp_path)
    cache.finish(tmp_path, {**told, "frame_hz": 1.0})
    assert not is_current(drive, tmp_path)
    cache.finish(tmp_path, {**told, "sweep_s": 0.1})
    assert not is_current(drive, tmp_path)
    cache.finish(tmp_path, {**told, "format": cache.FORMAT - 1})
    assert not is_current(drive, tmp_path)
    del told["frame_hz"]
    cache.finish(tmp_path, told)
    assert not is_current(drive, tmp_path)
    for damaged in ('{"name": "d", "ri', "", "[]"):
        (tmp_path / cache.DONE).write_text(damaged)
        assert not is_current(drive, tmp_path)


def test_motion_within_a_sweep_is_undone() -> None:
    """A pole ahead, seen through a tenth of a second by a vehicle that drives and turns."""
    ego = EgoState(np.eye(4), np.array([12.0, 0, 0]), np.array([0, 0, 0.4]), np.zeros(3))
    pole = np.array([20.0, 5.0, 1.0])
    delay = np.linspace(0, 0.1, 11, dtype=np.float32)
    turn = Rotation.from_rotvec(delay[:, None] * ego.angular_velocity)
    # Driving along an arc: the integral of the velocity, which turns with the vehicle.
    angle = 0.4 * delay
    way = 12 / 0.4 * np.stack((np.sin(angle), 1 - np.cos(angle), 0 * angle), 1)
    seen = turn.inv().apply(pole - way)
    assert np.abs(seen[-1] - pole).max() > 1
    np.testing.assert_allclose(at_stamp(seen, delay, ego), np.tile(pole, (11, 1)), atol=0.03)


def test_where_no_folder_can_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(InputError, match="--data: expected a folder to write to"):
        prepare([], tmp_path / "data" / "train", 1)


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kestrel.train.prepare.prepare_drive", _killed)
    drive = DriveSpec("d", "nuscenes", "suburban", "alder", 1, 2.0, "day", "lidar")
    with pytest.raises(SetupError, match="found one that was killed"):
        prepare([drive], tmp_path, 1)


def _full_disk_or_long(drive: DriveSpec, out: Path) -> None:
    if drive.name == "fails":
        raise OSError(28, "No space left on device")
    threading.Event().wait(20)
    (out / f"{drive.name} is made").touch()


def test_a_drive_that_cannot_be_written_is_named_and_nothing_that_waits_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kestrel.train.prepare.prepare_drive", _full_disk_or_long)
    names = ("first", "fails", "third", "fourth")
    drives = [DriveSpec(name, "nuscenes", "suburban", "alder", 1, 2.0, "day", "lidar") for name in names]
    before = set(active_children())
    with pytest.raises(
        InputError, match=r"drive .*/fails: expected a folder to write to, found .*No space left"
    ):
        prepare(drives, tmp_path, 2)
    assert not [*tmp_path.glob("* is made")]
    assert not set(active_children()) - before


def test_how_far_it_is_goes_where_no_results_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare([], tmp_path, 1)
    told = capsys.readouterr()
    assert not told.out
    assert "drives" in told.err


def test_ctrl_c_ends_all_that_was_to_be_made_without_a_word_of_the_processes(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--split", "train_video", "--drives", "16", "--workers", "2"]
    # A shell lets what it runs in the background ignore it.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeding}; from kestrel.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "train", "prepare", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, where all of them are told
    ) as command:
        workers = _workers(command)
        os.killpg(command.pid, signal.SIGINT)
        try:
            _, told = command.communicate(timeout=60)
        finally:
            command.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert command.returncode == 130
    assert "Traceback" not in told
    assert not [*tmp_path.rglob(cache.DONE)]


def _workers(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a command that makes drives, as soon as there are two."""
    started = psutil.Process(command.pid)
    while len(workers := [each for each in started.children() if "spawn_main" in str(each.cmdline())]) < 2:
        assert command.poll() is None, "it ended before it started them"
        time.sleep(0.1)
    return workers


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--split", "train_video", "--drives", "4", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "kestrel", "train", "prepare", *options], text=True
    ) as command:
        workers = _workers(command)
        command.terminate()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert len(gone) == 2
