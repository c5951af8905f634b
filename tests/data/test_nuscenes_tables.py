# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of nuScenes that are not what they should be are refused with their name and what is wrong."""

import pytest

from kestrel.data.nuscenes_scene import scene_messages
from kestrel.errors import InputError
from tests.data.nuscenes_data_set import PICTURE_OFFSET_US, START_US, SWEEP_US, TABLES, VERSION, DataSet


@pytest.fixture
def data_set(tmp_path):
    return DataSet(tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_table_that_is_missing_is_named(data_set, name):
    (data_set.root / VERSION / f"{name}.json").unlink()
    assert (
        data_set.error() == f"{data_set.root / VERSION / name}.json: expected a JSON list, found no such file"
    )


@pytest.mark.parametrize("name", TABLES)
def test_table_without_a_field_is_named_with_what_it_has(data_set, name):
    rows = data_set.tables[name]
    field = "timestamp" if "timestamp" in rows[-1] else "token"
    kept = [key for key in rows[-1] if key != field]
    del rows[-1][field]
    data_set.write(name)
    text = data_set.error()
    assert text.startswith(f"row {len(rows) - 1} of {data_set.root / VERSION / name}.json: expected ")
    expected, found = (part.split(", ") for part in text.split(": expected ")[1].split(", found "))
    assert field in [each.split()[0] for each in expected]
    assert [each.split()[0] for each in found] == kept


def test_field_of_another_type_is_named(data_set):
    data_set.tables["sample"][0]["timestamp"] = "noon"
    data_set.write("sample")
    text = data_set.error()
    assert "timestamp (int)" in text.split(", found ")[0]
    assert "timestamp (str)" in text.split(", found ")[1]


def test_table_that_was_cut_off_is_refused(data_set):
    path = data_set.root / VERSION / "ego_pose.json"
    path.write_text(path.read_text()[:-50])
    assert data_set.error().startswith(f"{path}: expected a complete JSON list, found ")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b'{"a": 1}', "an object"), (b"", "nothing"), (b"[3]", "int"), (b"[\xff]", ""), (b'[{"a" 1}]', "")],
)
def test_table_that_is_no_list_of_rows_is_refused(data_set, content, found):
    path = data_set.root / VERSION / "category.json"
    path.write_bytes(content)
    text = data_set.error()
    assert str(path) in text
    assert found in text.split(", found ")[1]


def test_unknown_scene_is_refused_with_a_few_of_those_there_are(data_set):
    data_set.tables["scene"] += [{"token": f"t{n}", "name": f"scene-{n:04}"} for n in range(1000, 1020)]
    data_set.write("scene")
    with pytest.raises(InputError) as caught:
        data_set.messages("scene-9999")
    expected, found = str(caught.value).split(", found ")
    assert expected.endswith("scene.json: expected scene-9999")
    assert found.startswith("scene-0061, scene-0103, scene-1000, ")
    assert found.endswith("scene-1007 and 12 more")


def test_missing_version_is_refused_with_the_folders_there_are(data_set):
    with pytest.raises(InputError, match=r"v1\.0-trainval, found samples, sweeps, v1\.0-mini"):
        list(scene_messages(data_set.root, version="v1.0-trainval", scene=None))


def test_row_that_is_pointed_to_and_missing_is_named(data_set):
    token = f"a LIDAR_TOP {START_US + SWEEP_US}"
    data_set.tables["ego_pose"].remove(data_set.row("ego_pose", token))
    data_set.write("ego_pose")
    path = data_set.root / VERSION / "ego_pose.json"
    assert data_set.error() == f"{path}: expected a row with token {token}, found none"


def test_sample_without_a_sweep_is_refused(data_set):
    data_set.row("sample_data", f"a LIDAR_TOP {START_US + 500_000}")["is_key_frame"] = False
    data_set.write("sample_data")
    text = data_set.error()
    assert "sample_data.json: expected a LIDAR_TOP key frame for each of the 3 samples of scene-0061" in text
    assert text.endswith("found 2")


def test_scene_without_samples_is_refused(data_set):
    for row in data_set.tables["sample"]:
        row["scene_token"] = "b"
    data_set.write("sample")
    assert data_set.error().endswith("sample.json: expected samples of scene-0061, found none")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("translation", [1.0, 2.0], "3 finite numbers"),
        ("translation", [1.0, 2.0, "x"], "3 finite numbers"),
        ("translation", [1.0, 2.0, "far"], "3 finite numbers"),
        ("rotation", [0.0, 0.0, 0.0, 0.0], "a unit quaternion"),
        ("camera_intrinsic", [], "3 x 3 finite numbers"),
    ],
)
def test_numbers_that_are_no_place_are_refused(data_set, field, value, expected):
    data_set.row("calibrated_sensor", "c CAM_FRONT")[field] = value
    data_set.write("calibrated_sensor")
    text = data_set.error()
    assert text.startswith(f"{field} of c CAM_FRONT in {data_set.root / VERSION / 'calibrated_sensor.json'}")
    assert f"expected {expected}, found {value}" in text


def test_sensor_that_was_calibrated_twice_in_a_scene_is_refused(data_set):
    twice = {**data_set.row("calibrated_sensor", "c CAM_FRONT"), "token": "other"}
    data_set.tables["calibrated_sensor"].append(twice)
    data_set.row("sample_data", f"a CAM_FRONT {START_US - PICTURE_OFFSET_US}")["calibrated_sensor_token"] = (
        "other"
    )
    data_set.write("calibrated_sensor")
    data_set.write("sample_data")
    text = data_set.error()
    assert "calibrated_sensor_token of CAM_FRONT" in text
    assert text.endswith("found c CAM_FRONT and other")


@pytest.mark.parametrize("token", [["at"], {}, 3, None])
def test_an_attribute_whose_token_is_no_text_is_refused(data_set, token):
    data_set.tables["sample_annotation"][0]["attribute_tokens"] = [token]
    data_set.write("sample_annotation")
    assert "attribute.json: expected a row with token" in data_set.error()
