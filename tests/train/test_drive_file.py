# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What manifests say of the data is what the drives say of themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kestrel.errors import InputError
from kestrel.train import cache, drive_file
from kestrel.train.drive_file import Holds


def write(folder: Path, told: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    cache.finish(folder, told)
    return folder.parent


SIMULATED = {"town": "alder", "rig": "kitti", "seed": 3, "seconds": 10.0, "frames": 9}


def test_drives_of_the_simulator_are_told_with_their_towns_rigs_and_seeds(tmp_path: Path) -> None:
    split = write(tmp_path / "train" / "a", SIMULATED)
    write(tmp_path / "train" / "b", {**SIMULATED, "seed": 4, "rig": "nuscenes"})
    assert drive_file.summary([split]) == {
        "source": "kestrel.sim, simulated drives only",
        "splits": ["train"],
        "drives": 2,
        "seconds": 20.0,
        "key_frames": 18,
        "towns": ["alder"],
        "rigs": ["kitti", "nuscenes"],
        "seeds": [3, 4],
    }


def test_rigs_that_seeds_draw_are_told_by_one_name(tmp_path: Path) -> None:
    for seed in (5, 6):
        split = write(tmp_path / "train" / f"{seed}", {**SIMULATED, "seed": seed, "rig": f"drawn:{seed}"})
    told = drive_file.summary([split])
    assert (told["rigs"], told["seeds"]) == (["drawn"], [5, 6])


def test_drives_from_elsewhere_say_where_from_and_need_no_more(tmp_path: Path) -> None:
    split = write(tmp_path / "train_lidar" / "own", {"source": "clouds of mine", "frames": 4})
    found = drive_file.summary([split])
    assert found["source"] == "clouds of mine"
    assert (found["key_frames"], found["rigs"], found["towns"]) == (4, [], [])
    unnamed = write(tmp_path / "validation_lidar" / "own", {"frames": 4})
    assert drive_file.summary([unnamed])["source"] == "unknown"
    write(tmp_path / "train_lidar" / "a", SIMULATED)
    assert drive_file.summary([split])["source"] == "clouds of mine; kestrel.sim, simulated drives only"


@pytest.mark.parametrize("content", ["", "[]", '{"rig": '])
def test_a_damaged_drive_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / cache.DONE).write_text(content)
    with pytest.raises(InputError, match=r"drive\.json: expected a JSON object"):
        drive_file.read(tmp_path)


def test_a_drive_of_sensors_that_none_has_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train_lidar" / "mine", {"sensors": "points"})
    again = "re-import labelled clouds that an earlier version imported"
    expected = f"one of all, cameras, lidar, video ({again}), found points"
    with pytest.raises(InputError, match=rf"sensors of .*mine/drive\.json: expected {re.escape(expected)}"):
        drive_file.held([tmp_path / "train_lidar"])


def test_drives_hold_what_they_say_and_simulated_ones_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = frozenset(Holds)
    assert drive_file.holds(SIMULATED) == everything
    assert drive_file.holds({**SIMULATED, "sensors": "cameras"}) == everything
    assert drive_file.holds({**SIMULATED, "sensors": "lidar"}) == everything - {Holds.PICTURES}
    assert drive_file.holds({"sensors": "lidar", "truth": ["classes of points"]}) == {Holds.POINT_CLASSES}
    boxes = {"sensors": "cameras", "truth": ["boxes"]}
    assert drive_file.holds(boxes) == {Holds.PICTURES, Holds.BOXES}
    split = write(tmp_path / "train_lidar" / "a", boxes)
    with pytest.raises(InputError, match="train_lidar: expected drives with maps, found 1 without"):
        drive_file.drives_with([split], Holds.MAPS)
    write(tmp_path / "train_lidar" / "b", SIMULATED)
    assert drive_file.drives_with([split], Holds.BOXES) == [split / "a", split / "b"]
    assert capsys.readouterr().err == ""
    assert drive_file.drives_with([split], Holds.MAPS) == [split / "b"]
    assert "1 of 2 drives have no maps; they are left out" in capsys.readouterr().err
    assert drive_file.held([split]) == everything
    assert drive_file.summary([split], Holds.MAPS)["drives"] == 1
