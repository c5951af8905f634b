# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The environment of ROS processes: large shared memory, local discovery, no leftovers of crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from kestrel.errors import ConfigError
from kestrel_nodes import transport

SHM = Path("/dev/shm")

VARIABLES = (
    transport.SEGMENT_VARIABLE,
    transport.PROFILE_VARIABLE,
    transport.RANGE_VARIABLE,
    "RMW_IMPLEMENTATION",
    "AMENT_PREFIX_PATH",
)

HOLD = """
import os, sys
from rclpy.context import Context
from rclpy.node import Node
context = Context()
context.init()
node = Node("holder", context=context)
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def segment_size(path: Path) -> int:
    sizes = [part.text for part in ElementTree.parse(path).iter() if part.tag.endswith("segment_size")]
    assert len(sizes) == 1
    return int(sizes[0] or 0)


def has_whitelist(path: Path) -> bool:
    return any(part.tag.endswith("interfaceWhiteList") for part in ElementTree.parse(path).iter())


def test_nothing_that_the_user_has_set_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES[1:]:
        monkeypatch.setenv(name, "mine")
    assert transport.environment() == {}


def test_the_default_leaves_discovery_to_ros_and_makes_the_segment_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "room_mb", lambda: 8000)
    added = transport.environment()
    assert transport.RANGE_VARIABLE not in added
    profile = Path(added[transport.PROFILE_VARIABLE])
    assert segment_size(profile) == 64 << 20
    assert not has_whitelist(profile)


@pytest.mark.parametrize("chosen", [None, "SUBNET"])
def test_what_is_kept_local_uses_the_loopback_device_alone_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.setenv(transport.RANGE_VARIABLE, chosen or "")
    if chosen is None:
        monkeypatch.delenv(transport.RANGE_VARIABLE)
    transport.keep_local()
    assert os.environ[transport.RANGE_VARIABLE] == (chosen or "LOCALHOST")
    assert has_whitelist(Path(transport.environment()[transport.PROFILE_VARIABLE])) == (chosen is None)


def test_the_segment_is_smaller_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "room_mb", lambda: 64)
    assert transport.segment_mb() == 16
    assert segment_size(Path(transport.environment()[transport.PROFILE_VARIABLE])) == 16 << 20


def test_the_size_of_the_segment_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(transport.SEGMENT_VARIABLE, "32")
    assert segment_size(Path(transport.environment()[transport.PROFILE_VARIABLE])) == 32 << 20


@pytest.mark.parametrize("value", ["0", "-5", "large", "99999", ""])
def test_a_size_that_is_not_allowed_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(transport.SEGMENT_VARIABLE, value)
    with pytest.raises(ConfigError, match=transport.SEGMENT_VARIABLE):
        transport.environment()


def test_cleaning_that_takes_too_long_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **options: object) -> None:
        asked.append(command[1:])
        raise subprocess.TimeoutExpired(command, 20)

    (tmp_path / "fastrtps_1").touch()
    monkeypatch.setattr(transport, "SHM", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    transport.remove_stale_segments()
    assert asked == [["shm", "clean"]]


def test_segments_of_a_crashed_process_are_removed_and_those_in_use_stay(ros_domain: int) -> None:
    def start() -> tuple[subprocess.Popen[str], set[Path]]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        mapped = {line.split()[-1] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()}
        return process, {
            path for path in SHM.glob("fastrtps_*") if str(path) in mapped and "port" not in path.name
        }

    crashed, left_over = start()
    crashed.kill()
    crashed.communicate()
    living, in_use = start()
    try:
        assert any(path.exists() for path in left_over), "a killed process leaves its segment"
        transport.remove_stale_segments()
        assert not any(path.exists() for path in left_over)
        assert in_use
        assert all(path.exists() for path in in_use)
    finally:
        living.communicate("")
        transport.remove_stale_segments()
