# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What pipelines are given from Python: units and frames that are not theirs are refused, not guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kestrel.errors import ConfigError, InputError
from kestrel.pipelines import FusionDetector
from kestrel.types import PointCloud, SensorFrame


@pytest.mark.parametrize("intensity", [255.0, -0.5])
def test_intensity_in_other_units_is_refused(intensity: float) -> None:
    points = np.array([[5, 0, 1, 0.5], [6, 0, 1, intensity]], np.float32)
    with pytest.raises(InputError, match=r"intensity of a cloud: expected 0 \.\. 1"):
        PointCloud(points, 1, "base_link")


@pytest.mark.parametrize("place", ["cloud", "sweeps"])
def test_points_in_another_frame_than_their_sensor_frame_are_refused(place: str) -> None:
    points = np.array([[5, 0, 1, 0.5]], np.float32)
    good, bad = PointCloud(points, 1, "base_link"), PointCloud(points, 1, "velodyne")
    clouds = {"cloud": bad} if place == "cloud" else {"cloud": good, "sweeps": (bad,)}
    with pytest.raises(InputError, match="'base_link', found 'velodyne'"):
        SensorFrame(stamp_ns=1, frame_id="base_link", images={}, calibrations={}, **clouds)


@pytest.mark.parametrize("precision", ["float16", "bf16", ""])
def test_a_precision_that_there_is_not_is_refused(precision: Any) -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        FusionDetector.untrained(precision=precision)
