# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points that a LiDAR measures on the vehicle that carries it: roof, mirrors, mast.

The networks have seen no such points in training and take them for an obstacle where the vehicle is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.data.trajectory import moved
from kestrel.errors import ConfigError, describe
from kestrel.types import Float64Array, PointCloud

FIELDS: Final = "x_min, y_min, z_min, x_max, y_max, z_max"


class OwnVehicle:
    """A box that is fixed to the vehicle.

    Args:
        box_m: ``x_min, y_min, z_min, x_max, y_max, z_max`` in the frame of the vehicle; empty for no box.

    Raises:
        ConfigError: not six numbers, or a box without a volume.
    """

    def __init__(self, box_m: tuple[float, ...]) -> None:
        self._low = np.array(box_m[:3], np.float32)
        self._high = np.array(box_m[3:], np.float32)
        if box_m and not (len(box_m) == 6 and (self._low < self._high).all()):
            expected = f"nothing, or {FIELDS} with each min below its max"
            raise ConfigError(describe("parameter own_vehicle_box_m", expected=expected, found=box_m))

    def holds(self, sweep: PointCloud, base_from_lidar: Float64Array) -> NDArray[np.bool_]:
        """Return which points of ``sweep``, in the frame of its LiDAR, are the vehicle's own (N,).

        To be asked before motion within the sweep is undone: these points move with the vehicle.
        """
        if not self._low.size:
            return np.zeros(len(sweep), np.bool_)
        inside = np.ones(len(sweep), np.bool_)
        # Axis by axis: whether all of three values are so, numpy asks point by point.
        columns = moved(sweep.points, base_from_lidar).T[:3]
        for values, low, high in zip(columns, self._low, self._high, strict=True):
            inside &= (values >= low) & (values <= high)
        return inside


NO_BOX: Final = OwnVehicle(())
"""All points count."""
