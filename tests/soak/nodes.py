# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes, brought up as a supervisor does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from tests.ros.graph import Graph

ROOT: Final = Path(__file__).parents[2]
COMMON: Final = {"latency_warn_ms": "60000.0", "threads": "1"}
"""Late is what every answer is, of a node that gets twice what it can do."""

IMAGES: Final = {"image_reliability": "reliable", "image_depth": "50"}
POINTS: Final = {"points_reliability": "reliable", "points_depth": "50"}
PARAMETERS: Final = {
    "fusion": {"cameras": "[front, back]", "lidar_timeout_s": "2.0", **IMAGES, **POINTS},
    "segmentation": POINTS,
    "video": IMAGES,
    "leaky": IMAGES,
}
LOADED_WITHIN_S: Final = 120.0


@contextmanager
def running(graph: Graph, names: tuple[str, ...], log: Path) -> Iterator[dict[str, int]]:
    """Keep nodes configured and active; yield the id of each one's process."""
    with log.open("w") as sink:
        processes = {name: _start(name, sink) for name in names}
        try:
            for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
                _request(graph, names, transition, log)
            yield {name: process.pid for name, process in processes.items()}
            codes = {name: process.poll() for name, process in processes.items()}
            ended = {name: code for name, code in codes.items() if code is not None}
            assert not ended, f"nodes that ended: {ended}; see {log}"
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _start(name: str, sink: object) -> subprocess.Popen[bytes]:
    module = ["tests.soak.leaky_node"] if name == "leaky" else ["kestrel_nodes", name]
    values = {**COMMON, **PARAMETERS[name]}
    options = [part for key, value in values.items() for part in ("-p", f"{key}:={value}")]
    command = [sys.executable, "-m", *module, "--ros-args", *options]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)


def _request(graph: Graph, names: tuple[str, ...], transition: int, log: Path) -> None:
    """All nodes at once: loading takes most of a core each."""
    clients = {name: graph.node.create_client(ChangeState, f"/{name}/change_state") for name in names}
    graph.until(
        lambda: all(client.service_is_ready() for client in clients.values()),
        f"the life cycle of {names}; see {log}",
        within_s=LOADED_WITHIN_S,
    )
    request = ChangeState.Request(transition=Transition(id=transition))
    futures = {name: client.call_async(request) for name, client in clients.items()}
    graph.until(
        lambda: all(future.done() for future in futures.values()),
        f"transition {transition}; see {log}",
        within_s=LOADED_WITHIN_S,
    )
    failed = [name for name, future in futures.items() if not future.result().success]
    assert not failed, f"nodes that cannot be brought up: {failed}; see {log}"
    for client in clients.values():
        graph.node.destroy_client(client)
