# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A managed node that a supervisor can start: `stub_node.py NAME BEHAVIOUR`.

Behaviours: ``good``; ``broken`` (cannot be configured); ``crash`` (ends while active, with exit code 3);
``slow`` (takes a minute to load).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from kestrel.errors import ModelError
from kestrel_nodes import transport
from kestrel_nodes.main import run
from kestrel_nodes.managed import ManagedNode
from kestrel_nodes.parameters import NodeParameters
from kestrel_nodes.supervisor.process import end_with_supervisor

NAME, BEHAVIOUR = sys.argv[1:3]


@dataclass(frozen=True)
class StubParameters(NodeParameters):
    pass


class StubNode(ManagedNode[StubParameters]):
    parameters_type = StubParameters

    def to_configured(self) -> None:
        print(f"configured at {time.monotonic():.6f} as {os.getpid()}", flush=True)
        if BEHAVIOUR == "broken":
            raise ModelError("weights of stub: expected a file, found nothing")
        if BEHAVIOUR == "slow":
            time.sleep(60)

    def to_active(self) -> None:
        print(f"active at {time.monotonic():.6f}", flush=True)
        if BEHAVIOUR == "crash":
            self.create_timer(0.1, lambda: os._exit(3))

    def shut_down(self) -> None:
        print(f"stopped at {time.monotonic():.6f}", flush=True)
        super().shut_down()


end_with_supervisor()
transport.prepare()
run(lambda: StubNode(NAME))
