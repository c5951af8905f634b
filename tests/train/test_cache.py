# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kestrel.errors import InputError
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.sim.rig import load_rig
from kestrel.train import cache, fusion, seg
from kestrel.train.prepare import SELECTIONS, training_rig
from tests.train.conftest import make_cached_frame


def test_a_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    frame = make_cached_frame()
    cache.write(tmp_path / "frame.npz", frame)
    again = cache.read(cache.CachedFrame, tmp_path / "frame.npz")
    assert (again.points == frame.points).all()
    assert (again.semantic(1) == frame.semantic(1)).all()
    assert again.picture(1).shape == (128, 352, 3)
    assert (again.map_truth(6, 200) == frame.map_truth(6, 200)).all()


def test_a_frame_of_before_there_were_gaps_has_none(tmp_path: Path) -> None:
    path = tmp_path / "frame_0000.npz"
    cache.write(path, make_cached_frame())
    with np.load(path) as stored:
        older = {name: stored[name] for name in stored if "labelled" not in name}
    assert len(stored.files) == len(older) + 2
    np.savez(path, **older)
    frame = cache.read(cache.CachedFrame, path)
    assert frame.unlabelled.shape == (0, 7)
    assert frame.labelled_classes.all()
    assert frame.has_map
    assert frame.has_semantics


def test_a_cloud_holds_the_wanted_sweeps_newest_first() -> None:
    frame = make_cached_frame()
    assert len(frame.cloud(0)) == len(frame.label) == 1500
    assert len(frame.cloud()) == 3900
    assert frame.cloud(1)[:, 4].max() == pytest.approx(0.1)
    assert np.abs(frame.cloud(0)[:, :3] - frame.points[:1500] * 0.002).max() < 1e-5


def test_earlier_frames_lie_a_hop_apart_in_the_same_drive(tmp_path: Path) -> None:
    cache.finish(tmp_path, {"frame_hz": 2.0})
    for number in range(6):
        (tmp_path / f"frame_{number:04d}.npz").touch()
    path = tmp_path / "frame_0005.npz"

    def numbers(hop_s: float, count: int, path: Path = path) -> list[int]:
        return [cache.frame_number(each) for each in cache.earlier_frames(path, hop_s, count)]

    assert numbers(0.5, 2) == [3, 4]
    assert numbers(1.0, 2) == [1, 3]
    assert numbers(1.0, 3) == [1, 3]
    assert numbers(0.5, 2, tmp_path / "frame_0000.npz") == []
    assert numbers(0.3, 2) == numbers(0.7, 2) == []
    (tmp_path / "frame_0003.npz").unlink()
    assert numbers(0.5, 3) == [4], "what is before a gap does not lie a hop before the next one"
    (tmp_path / "frame_0004.npz").unlink()
    assert numbers(0.5, 3) == []
    cache.finish(tmp_path, {})
    with pytest.raises(InputError, match=r"drive\.json: expected frame_hz.*found none"):
        numbers(0.5, 2)


def test_key_frames_of_an_earlier_format_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "validation", tmp_path / "validation")
    assert len(cache.frame_files(tmp_path / "validation")) == 2
    told = json.loads((tmp_path / "validation" / "d0" / cache.DONE).read_text())
    cache.finish(tmp_path / "validation" / "d0", {**told, "format": 4})
    expected = rf"d0: expected key frames of format {cache.FORMAT}.*prepare.*found format 4"
    with pytest.raises(InputError, match=expected):
        cache.frame_files(tmp_path / "validation")


def test_earlier_pictures_are_of_the_same_cameras(tmp_path: Path) -> None:
    frame = make_cached_frame()
    cache.write(tmp_path / "frame_0000.npz", frame)
    found = cache.pictures(tmp_path / "frame_0000.npz", frame.base_from_camera)
    assert all((found[number] == frame.picture(number)).all() for number in range(2))
    with pytest.raises(InputError, match=r"cameras of .*frame_0000\.npz: expected the 3 of"):
        cache.pictures(tmp_path / "frame_0000.npz", np.tile(np.eye(4), (3, 1, 1)))


def test_unfinished_drives_are_not_used(data: Path) -> None:
    assert [drive.name for drive in cache.finished_drives(data / "train")] == ["d0"]


def test_no_data_and_damaged_data_are_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="kestrel train prepare"):
        cache.finished_drives(tmp_path)
    with pytest.raises(InputError, match=r"frame_0000\.npz"):
        cache.read(cache.CachedFrame, data / "train" / "d1" / "frame_0000.npz")


def test_training_simulates_only_what_it_uses() -> None:
    rig = training_rig(load_rig("nuscenes"), SELECTIONS["all"])
    assert {camera.name: camera.hz for camera in rig.cameras}["front"] == 10
    assert {camera.hz for camera in rig.cameras if camera.name != "front"} == {2}
    assert all(0 <= camera.phase_s < 0.05 for camera in rig.cameras)


def test_a_file_that_is_cut_off_or_empty_is_named(tmp_path: Path) -> None:
    frame = make_cached_frame()
    path = tmp_path / "frame_0000.npz"
    cache.write(path, frame)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"frame_0000\.npz: expected a CachedFrame"):
            cache.read(cache.CachedFrame, path)
        with pytest.raises(InputError, match=r"frame_0000\.npz: expected a CachedFrame"):
            cache.pictures(path, frame.base_from_camera)


@pytest.mark.parametrize("method", [b"\x09\x00", b"\x08\x00"], ids=["unknown", "deflated"])
def test_a_file_that_is_said_to_be_compressed_and_is_not_is_named(tmp_path: Path, method: bytes) -> None:
    path = tmp_path / "frame_0000.npz"
    cache.write(path, make_cached_frame())
    whole = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = whole.find(mark) + place
        whole[at : at + 2] = method
    whole[whole.find(b"\x93NUMPY")] = 255  # begins nothing that was deflated
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"frame_0000\.npz: expected a CachedFrame"):
        cache.read(cache.CachedFrame, path)


def test_a_file_of_one_array_is_named(tmp_path: Path) -> None:
    with (tmp_path / "frame_0000.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"frame_0000\.npz: expected a CachedFrame"):
        cache.read(cache.CachedFrame, tmp_path / "frame_0000.npz")


@pytest.fixture
def splits(data: Path, tmp_path: Path) -> Path:
    """Data that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_frame_that_is_cut_off_ends_a_training_with_its_name_and_what_to_do(
    splits: Path, tmp_path: Path, left: float
) -> None:
    path = splits / "train" / "d0" / "frame_0001.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    assert_refused(splits, tmp_path, r"frame_0001\.npz: expected .* \(to have it again, remove the folder")


def test_a_drive_file_that_is_cut_off_ends_a_training_with_its_name(splits: Path, tmp_path: Path) -> None:
    path = splits / "train" / "d0" / cache.DONE
    path.write_text(path.read_text()[:30])
    assert_refused(splits, tmp_path, r"drive\.json: expected a JSON object")
    for told in (cache.key_frames, cache.frame_hz):
        for text in ('{"frame_hz": ', "[1]", "\xff"):
            path.write_text(text, encoding="latin1")
            with pytest.raises(InputError, match=r"drive\.json: expected a JSON object \(to have it again"):
                told(path.parent)


@pytest.mark.parametrize("told", ['"2"', "null", "NaN", "[]"])
def test_a_rate_of_key_frames_that_is_none_is_named(tmp_path: Path, told: str) -> None:
    (tmp_path / cache.DONE).write_text(f'{{"frame_hz": {told}}}')
    with pytest.raises(InputError, match=r"drive\.json: expected frame_hz"):
        cache.frame_hz(tmp_path)


def test_a_frame_with_a_wrong_byte_is_named_by_who_looks_for_its_classes(splits: Path) -> None:
    path = splits / "train" / "d0" / "frame_0001.npz"
    whole = bytearray(path.read_bytes())
    whole[whole.find(b"label.npy") + 300] ^= 255  # behind the name and numpy's header: within the classes
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"frame_0001\.npz: expected a CachedFrame .*found Bad CRC-32"):
        seg.SweepSource(cache.frame_files(splits / "train"))


def assert_refused(splits: Path, out: Path, match: str) -> None:
    """Check that neither Kestrel-Seg nor Kestrel-Fusion is trained on damaged data."""
    plans = fusion.Plans(*[seg.PLAN] * 6)
    for start in (
        lambda: seg.train(splits, out, seg.PLAN, resume=False),
        lambda: fusion.train(splits, out, plans, FusionConfig(), resume=False),
    ):
        with pytest.raises(InputError, match=match):
            start()


@pytest.mark.parametrize("cells", [100, 199, 400])
def test_the_truth_of_a_map_of_another_size_is_refused(cells: int) -> None:
    expected = rf"cached map: expected 6 layers of {cells} x {cells} cells, found 240000 cells"
    with pytest.raises(InputError, match=expected):
        make_cached_frame().map_truth(6, cells)


def test_a_drive_whose_mark_was_interrupted_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    drive = tmp_path / "d0"
    drive.mkdir()
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        cache.finish(drive, {"frame_hz": 2.0})
    with pytest.raises(InputError, match="found none"):
        cache.finished_drives(tmp_path)
