# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every test session has a ROS domain of its own; every test has a graph of its own."""

from __future__ import annotations

import fcntl
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

if importlib.util.find_spec("rclpy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.ros.copier import Rig
    from tests.ros.graph import Graph, participants

FIRST_DOMAIN, LAST_DOMAIN = 1, 100
"""Domain ids whose ports stay below the ephemeral ones of Linux."""

_locks: list[IO[str]] = []


def claim_domain() -> int:
    """Return a domain id that no other test session on this machine uses, until this process ends."""
    for domain in range(FIRST_DOMAIN, LAST_DOMAIN + 1):
        lock = (Path(tempfile.gettempdir()) / f"kestrel-ros-domain-{domain}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        return domain
    raise RuntimeError("all ROS domains are taken by other test sessions")


@pytest.fixture(scope="session", autouse=True)
def ros_domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Keep this session, and the processes that it starts, to a domain of its own on this machine."""
    from kestrel_nodes import transport

    with pytest.MonkeyPatch.context() as patch:
        domain = claim_domain()
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setenv("ROS_LOG_DIR", str(tmp_path_factory.mktemp("ros_log")))
        patch.setenv("KESTREL_SHM_SEGMENT_MB", "16")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, value in transport.environment().items():
            patch.setenv(name, value)
        yield domain


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """Return a ROS graph in this process, whose nodes publish /diagnostics often, to save time."""
    from kestrel_nodes import managed

    monkeypatch.setattr(managed, "DIAGNOSTICS_PERIOD_S", 0.1)
    with Graph() as graph:
        yield graph
    assert participants() == 0, "a participant that outlives its test ends during another one, which may hang"


@pytest.fixture
def rig(graph: Graph) -> Rig:
    """Return a node that copies its input, and what it copied."""
    return Rig(graph)
