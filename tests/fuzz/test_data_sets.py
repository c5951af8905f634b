# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of KITTI and nuScenes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.data import kitti_files
from kestrel.data.kitti_recordings import tracking_recording
from kestrel.data.nuscenes_tables import read_scene
from kestrel.errors import InputError
from tests.data.kitti_lines import CAR, OXTS
from tests.data.nuscenes_data_set import VERSION, DataSet
from tests.fuzz.cases import answer, cases, damaged, damaged_text

ROW: Final = " ".join(f"{value:.6e}" for value in range(1, 13))
VALUES: Final = (
    f"calib_time: 09-Jan-2012 14:00:15\nP2: {ROW}\nR: 1 0 0 0 1 0 0 0 1\nT: 1 2 3\nTr_velo_to_cam {ROW}\n"
)
STAMPS: Final = "2011-09-26 13:02:25.964389445\n2011-09-26 13:02:26.064389445\n"
LABELS: Final = "".join(f"{frame} {frame} {CAR}\n" for frame in range(3))
CALIBRATION: Final = (
    "P2: 721.5 0 609.5 44.8 0 721.5 172.8 0.2 0 0 1 0.002\nR_rect 1 0 0 0 1 0 0 0 1\n"
    "Tr_velo_cam 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27\nTr_imu_velo 1 0 0 -0.81 0 1 0 0.32 0 0 1 -0.8\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kitti")


@cases(2)
@given(text=damaged_text([VALUES]))
def test_no_calibration_of_kitti_raises_anything_but_an_input_error(folder: Path, text: bytes) -> None:
    path = folder / "calib.txt"
    path.write_bytes(text)
    values = answer(lambda: kitti_files.read_values(path), InputError)
    if values is not None:
        answer(lambda: kitti_files.named(path, values, "P2", 3, 4), InputError)
        answer(lambda: kitti_files.rigid(path, values), InputError)
        answer(lambda: kitti_files.rigid(path, values, "Tr_velo_cam"), InputError)


@cases(2)
@given(text=damaged_text([STAMPS]))
def test_no_stamps_of_kitti_raise_anything_but_an_input_error(folder: Path, text: bytes) -> None:
    (folder / "timestamps.txt").write_bytes(text)
    answer(lambda: kitti_files.read_stamps(folder / "timestamps.txt"), InputError)


@cases(2)
@given(rows=st.lists(damaged_text([OXTS]).map(lambda raw: raw.decode(errors="replace")), max_size=3))
def test_no_poses_of_kitti_raise_anything_but_an_input_error(rows: list[str]) -> None:
    moments = answer(
        lambda: kitti_files.read_oxts({f"line {n}": row for n, row in enumerate(rows)}), InputError
    )
    assert moments is None or all(np.isfinite(moment.pose).all() for moment in moments)


@cases(2)
@given(text=damaged_text([LABELS]))
def test_no_labels_of_kitti_raise_anything_but_an_input_error(folder: Path, text: bytes) -> None:
    (folder / "label_02.txt").write_bytes(text)
    answer(lambda: kitti_files.read_labels(folder / "label_02.txt"), InputError)


def packed() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, xyz_5mm=np.zeros((4, 3), np.int16), intensity=np.zeros(4, np.uint8))
    return stream.getvalue()


@cases(2)
@given(suffix=st.sampled_from([".bin", ".npz"]), data=st.data())
def test_no_sweep_of_kitti_raises_anything_but_an_input_error(
    folder: Path, suffix: str, data: st.DataObject
) -> None:
    path = folder / f"000000{suffix}"
    whole = packed() if suffix == ".npz" else np.linspace(0, 1, 24, dtype="<f4").tobytes()
    path.write_bytes(data.draw(damaged([whole])))
    cloud = answer(lambda: kitti_files.read_sweep(path, 0), InputError)
    assert cloud is None or cloud.points.shape == (len(cloud), kitti_files.POINT_COLUMNS)


@cases(1)
@given(
    name=st.sampled_from(["calib", "oxts", "label_02"]),
    data=st.data(),
)
def test_no_sequence_of_kitti_raises_anything_but_an_input_error(
    folder: Path, name: str, data: st.DataObject
) -> None:
    good = {"calib": CALIBRATION, "oxts": f"{OXTS}\n{OXTS}\n", "label_02": LABELS}
    good[name] = data.draw(damaged_text([good[name]]).map(lambda raw: raw.decode(errors="replace")))
    for part, text in good.items():
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "0000.txt").write_text(text)
    (folder / "velodyne" / "0000").mkdir(parents=True, exist_ok=True)
    (folder / "velodyne" / "0000" / "000000.bin").write_bytes(bytes(32))
    answer(lambda: tracking_recording(folder, "0000"), InputError)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return DataSet(tmp_path_factory.mktemp("nuscenes"))


VALUES_OF_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@cases(1)
@given(data=st.data())
def test_no_table_of_nuscenes_raises_anything_but_an_input_error(
    data_set: DataSet, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(data_set.tables)))
    path = data_set.root / VERSION / f"{name}.json"
    rows = [dict(row) for row in data_set.tables[name]]
    if data.draw(st.booleans()):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES_OF_JSON)
        changed = json.dumps(rows).encode()
    else:
        changed = data.draw(damaged([json.dumps(rows[:3]).encode(), json.dumps(rows).encode()]))
    path.write_bytes(changed)
    try:
        answer(lambda: read_scene(data_set.root, VERSION, "scene-0061"), InputError)
    finally:
        data_set.write(name)
