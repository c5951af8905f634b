# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The environment of everything that Kestrel starts on ROS: shared memory that is large enough.

The default shared-memory segment of Fast DDS (512 KB) is smaller than one point cloud: best-effort messages
are then lost and reliable ones resent late. The profile here has segments of 64 MB.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final

from kestrel.errors import ConfigError, describe

SHM: Final = Path("/dev/shm")
PROFILE: Final = Path(__file__).with_name("shm_profile.xml")
SEGMENT_VARIABLE: Final = "KESTREL_SHM_SEGMENT_MB"
PROFILE_VARIABLE: Final = "FASTRTPS_DEFAULT_PROFILES_FILE"
RANGE_VARIABLE: Final = "ROS_AUTOMATIC_DISCOVERY_RANGE"
LOCAL: Final = "LOCALHOST"
NAMESPACE: Final = "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"
DEFAULT_SEGMENT_MB: Final = 64
SMALL_SEGMENT_MB: Final = 16
MANY_PARTICIPANTS: Final = 16
"""How many default segments must fit into /dev/shm before smaller ones are taken (docker gives it 64 MB)."""


def environment() -> dict[str, str]:
    """Return the variables to add to the environment of a ROS process; what the user has set stays.

    ``KESTREL_SHM_SEGMENT_MB`` chooses the size of the segment (per process). The discovery range is that of
    ROS 2, the local network, unless ``ROS_AUTOMATIC_DISCOVERY_RANGE`` says otherwise.
    """
    wanted = {"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}
    if sys.prefix != sys.base_prefix:
        wanted["AMENT_PREFIX_PATH"] = sys.prefix
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    if PROFILE_VARIABLE not in os.environ:
        added[PROFILE_VARIABLE] = str(profile(segment_mb(), local=os.environ.get(RANGE_VARIABLE) == LOCAL))
    return added


def keep_local() -> None:
    """Keep this process and those that it starts to this machine, unless the user chose another range."""
    os.environ.setdefault(RANGE_VARIABLE, LOCAL)


def prepare() -> None:
    """Set up this process (before rclpy.init) and remove what crashed processes left in shared memory."""
    os.environ.update(environment())
    remove_stale_segments()


def segment_mb() -> int:
    """Return the size of the shared-memory segment of a process, in MB.

    Raises:
        ConfigError: the environment variable does not hold a size between 1 and 4096.
    """
    text = os.environ.get(SEGMENT_VARIABLE)
    if text is None:
        return DEFAULT_SEGMENT_MB if room_mb() >= DEFAULT_SEGMENT_MB * MANY_PARTICIPANTS else SMALL_SEGMENT_MB
    if not text.isdigit() or not 1 <= int(text) <= 4096:
        raise ConfigError(describe(SEGMENT_VARIABLE, expected="a size in MB, 1 .. 4096", found=text))
    return int(text)


def room_mb() -> int:
    """Return the size of the shared memory of this machine, in MB."""
    return shutil.disk_usage(SHM).total >> 20 if SHM.exists() else 0


def profile(size_mb: int, *, local: bool) -> Path:
    """Return a Fast DDS profile with segments of ``size_mb``; ``local`` keeps UDP on the loopback device."""
    if size_mb == DEFAULT_SEGMENT_MB and local:
        return PROFILE
    ElementTree.register_namespace("", NAMESPACE)
    tree = ElementTree.parse(PROFILE)  # noqa: S314 - shipped with this package
    for descriptor in tree.iter(f"{{{NAMESPACE}}}transport_descriptor"):
        for part in list(descriptor):
            if part.tag.endswith("segment_size"):
                part.text = str(size_mb << 20)
            elif part.tag.endswith("interfaceWhiteList") and not local:
                descriptor.remove(part)
    folder = Path(tempfile.gettempdir()) / f"kestrel-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"shm_{size_mb}mb_{'local' if local else 'network'}.xml"
    partial = target.with_suffix(f".{os.getpid()}")
    tree.write(partial, encoding="utf-8", xml_declaration=True)
    partial.replace(target)
    return target


def remove_stale_segments() -> None:
    """Remove shared-memory segments whose process is gone; those in use are locked and stay."""
    tool = shutil.which(
        "fastdds", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if tool is None or not any(SHM.glob("fastrtps_*")):
        return
    with contextlib.suppress(subprocess.TimeoutExpired):  # they take room, but nothing fails for them
        subprocess.run([tool, "shm", "clean"], capture_output=True, check=False, timeout=20)
