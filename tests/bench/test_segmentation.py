# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the segmentation benchmarks measure is a whole answer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kestrel.bench.segmentation import CLOUD, answer, draw, scan_message
from kestrel.data.bag import deserialize
from kestrel.data.cloud_layout import cloud_fields
from kestrel.pipelines.segmentation import PointSegmenter


def test_answer_to_a_scan_has_every_point_with_its_class() -> None:
    raw = scan_message(30)
    labels, answered = answer(PointSegmenter.untrained(), raw)
    scan, found = (cloud_fields(deserialize(each, CLOUD)) for each in (raw, answered))
    for axis in "xyz":
        np.testing.assert_array_equal(found[axis], scan[axis])
    np.testing.assert_array_equal(found["class_id"], labels.label)
    assert (found["probability"] > 0).all()


def test_curve_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curve.png"
    draw(np.array([1e4, 5e4, 1e5]), np.array([30.0, 60.0, 100.0]), 0.0008, 22.0, path)
    assert cv2.imread(str(path)).std() > 1
