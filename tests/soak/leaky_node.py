# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The video node as a process that leaks: memory with every answer, now and then a thread and a file.

Beside the real nodes it shows that the soak would see a leak in one of them. Usage: like kestrel_nodes.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from kestrel_nodes.main import run

LEAK_MB_PER_MIN = 24.0
LEAK_EVERY_S = 4.0
"""How often a thread and an open file stay behind."""


def make_node() -> Any:
    from kestrel_nodes.video import VideoNode

    class Leaky(VideoNode):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(name, **options)
            self.kept: list[bytes] = []
            self.began = time.monotonic()

        def understand(self, *arguments: Any) -> None:
            # By the clock, so that it leaks as fast on a busy machine.
            passed_s = time.monotonic() - self.began
            due = int(LEAK_MB_PER_MIN * 1e6 / 60 * passed_s) - sum(map(len, self.kept))
            self.kept.append(os.urandom(due))
            if threading.active_count() < 2 + passed_s / LEAK_EVERY_S:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
                os.dup(0)
            super().understand(*arguments)

    return Leaky("leaky")


if __name__ == "__main__":
    run(make_node)
