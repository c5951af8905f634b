# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel's ROS 2 nodes: each converts messages and calls one pipeline of the library."""

from __future__ import annotations

from typing import Final

NODES: Final[dict[str, str]] = {
    "video": "kestrel_nodes.video:VideoNode",
    "segmentation": "kestrel_nodes.segmentation:SegmentationNode",
    "fusion": "kestrel_nodes.fusion:FusionNode",
    "augment": "kestrel_nodes.augment:AugmentNode",
}
"""Node name to its class, in the order in which they are brought up."""
