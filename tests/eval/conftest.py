# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny nuScenes, and its first scene as a recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.nuscenes_data_set import DataSet
from tests.eval.stand import imported


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    """Return the tiny nuScenes, which the test may change before it is imported."""
    return DataSet(tmp_path / "nuscenes")


@pytest.fixture
def bag(data_set: DataSet, tmp_path: Path) -> Path:
    """Return the first scene of the tiny nuScenes, imported as it is."""
    return imported(data_set, tmp_path / "bag")
