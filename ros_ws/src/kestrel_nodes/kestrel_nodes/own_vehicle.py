# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The parameter that every node with a LiDAR has."""

from __future__ import annotations

from typing import Any

from kestrel.data.own_vehicle import FIELDS
from kestrel_nodes.parameters import parameter


def own_vehicle_parameter() -> Any:
    """Return the box of the vehicle's own points, see `kestrel.data.own_vehicle`."""
    text = f"Box in base_frame whose points are removed as the vehicle's own, metres: {FIELDS}; empty: none."
    return parameter((), text, minimum=-100.0, maximum=100.0)
