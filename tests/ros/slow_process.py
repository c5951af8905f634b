# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A segmentation node as a process, around a network that takes a minute, to load or per cloud.

Usage: python -m tests.ros.slow_process load|answer
"""

from __future__ import annotations

import sys
import time

from kestrel_nodes.main import run

if __name__ == "__main__":
    slow = sys.argv[1]

    def make_node() -> object:
        from tests.ros.stand_ins import HeightSegmenter, Segmentation

        class Slow(Segmentation):
            def load(self, device: str) -> HeightSegmenter:
                if slow == "load":
                    time.sleep(60)
                return super().load(device)

            def segment(self, message: object) -> None:
                time.sleep(60)

        return Slow("segmentation")

    run(make_node)
