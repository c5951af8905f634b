# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Draws map layers with nuscenes-devkit as BEVFusion's evaluation does; there is no Kestrel here.

Reads the folder of the data set, the place of the LiDAR (x, y), the direction to its right in degrees and the
.npy file to write from the command line.
"""

import sys

import numpy as np
from nuscenes.map_expansion.map_api import NuScenesMap

LAYERS = (
    *("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider"),
    "lane_divider",
)


def main(root: str, x: float, y: float, degrees: float, out: str) -> None:
    """Write (6, rows ahead, columns to the right); both kinds of dividers are one."""
    masks = NuScenesMap(root, "singapore-onenorth").get_map_mask(
        (x, y, 100.0, 100.0), degrees, list(LAYERS), (200, 200)
    )
    np.save(out, np.concatenate((masks[:5], masks[5:].max(0, keepdims=True))))


if __name__ == "__main__":
    main(sys.argv[1], *(float(value) for value in sys.argv[2:5]), sys.argv[5])
