# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from kestrel.train.drawing import drawing_weights


def test_samples_with_a_rare_class_are_drawn_more_often_and_none_is_left_out() -> None:
    there = np.zeros((100, 3), bool)
    there[:, 0] = True
    there[:4, 1] = True
    there[99] = False
    weights = drawing_weights(there)
    assert weights[:4] == pytest.approx(5.0)
    assert weights[4:] == pytest.approx(1.0, rel=0.01)
