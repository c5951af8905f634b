# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the machine: versions, processor, kernels, GPU, libraries, shared memory, weights."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from kestrel_nodes.doctor.finding import Finding, Level

SYSTEM_LIBRARIES = {"usb-1.0": "libusb-1.0-0", "GL": "libgl1", "gomp": "libgomp1"}
MODULES = {"kestrel-perception": "kestrel", "numpy": "numpy", "torch": "torch", "rosbags": "rosbags"}
"""Module of each distribution that nothing works without."""

WANTED_SHM_BYTES = 512 * 2**20
"""Seven participants (four nodes, replay, recorder, supervisor) with a segment of 64 MiB each."""


def check_machine() -> Iterator[Finding]:
    """Yield the findings about this machine."""
    versions = list(check_versions())
    yield from versions
    yield check_processor()
    usable = not any(each.subject == "torch" and each.level is Level.BROKEN for each in versions)
    if usable:
        yield check_kernels()
        yield check_gpu()
    yield from check_libraries()
    yield from check_shared_memory()
    yield from check_ros_environment()
    if usable:
        yield from check_weights()


def check_versions() -> Iterator[Finding]:
    """Yield the versions of Python, torch and ROS 2."""
    python = platform.python_version_tuple()[:2]
    fits = python in (("3", "11"), ("3", "12"))
    advice = "" if fits else "use Python 3.11 or 3.12: `make setup PYTHON=python3.12`"
    yield Finding(Level.OK if fits else Level.BROKEN, "Python", platform.python_version(), advice)
    for distribution, module in MODULES.items():
        try:
            version = importlib.metadata.version(distribution)
            importlib.import_module(module)
            yield Finding(Level.OK, distribution, version)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(Level.BROKEN, distribution, "not installed", "run `make setup`")
        except Exception as error:  # a library that is missing or of another version fails as it likes
            found = f"{version} cannot be imported: {error}"
            yield Finding(Level.BROKEN, distribution, found, "install it anew: `make setup`")
    try:
        import rclpy

        wheel = next(iter(importlib.metadata.packages_distributions().get("rclpy", [])), "system package")
        yield Finding(Level.OK, "rclpy", f"{Path(rclpy.__file__).parent} ({wheel})")
    except ImportError as error:
        yield Finding(
            Level.BROKEN, "rclpy", str(error), "run `make setup`, or source a ROS 2 Jazzy installation first"
        )


def check_processor() -> Finding:
    """Return what the CPU offers to the kernels."""
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
    there = [flag for flag in known if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return Finding(
        Level.OK, "processor", f"{cores} cores, {platform.machine()}, {' '.join(there) or 'no vectors'}"
    )


def check_kernels() -> Finding:
    """Return which implementation the operators use."""
    from kestrel.ops import backend

    level = backend.dispatch_level()
    if level == backend.TORCH_LEVEL:
        return Finding(
            Level.NOTE,
            "kernels",
            "reference operators (correct, slower)",
            "install a C++ compiler and run `make setup` to build the fast ones",
        )
    return Finding(Level.OK, "kernels", f"compiled, {level}")


def check_gpu() -> Finding:
    """Return whether there is a GPU that torch can use; nothing needs one."""
    import torch

    from kestrel.engine.device import gpu_problem

    gpu = torch.device("cuda", 0)
    problem = gpu_problem(gpu)
    if problem is not None:
        return Finding(
            Level.NOTE, "GPU", f"none that torch can use: {problem}", "none is needed: all runs on the CPU"
        )
    advice = "networks run on the CPU unless a node's `device` names it (docs/install.md)"
    return Finding(Level.NOTE, "GPU", torch.cuda.get_device_name(gpu), advice)


def check_libraries() -> Iterator[Finding]:
    """Yield the system libraries that the simulator's ray caster needs."""
    for library, package in SYSTEM_LIBRARIES.items():
        found = ctypes.util.find_library(library)
        if found:
            yield Finding(Level.OK, f"lib{library}", found)
        else:
            advice = f"`sudo apt-get install {package}` (the simulator does not start without it)"
            yield Finding(Level.BROKEN, f"lib{library}", "missing", advice)


def check_shared_memory() -> Iterator[Finding]:
    """Yield size and leftovers of the shared memory that carries large messages."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding(Level.BROKEN, "/dev/shm", "missing", "large messages need it; mount a tmpfs there")
        return
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
    if usage.free < WANTED_SHM_BYTES:
        advice = "give it more: `docker run --shm-size=1g`, or `mount -o remount,size=1G /dev/shm`"
        yield Finding(Level.BROKEN, "/dev/shm", found, advice)
    else:
        yield Finding(Level.OK, "/dev/shm", found)


def check_ros_environment() -> Iterator[Finding]:
    """Yield the environment variables that decide who hears whom."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET (default)")
    yield Finding(Level.OK, "ROS domain", f"{domain}, discovery range {reach}")
    middleware = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    if middleware != "rmw_fastrtps_cpp":
        yield Finding(
            Level.NOTE,
            "RMW_IMPLEMENTATION",
            middleware,
            "Kestrel's shared-memory profile is for rmw_fastrtps_cpp; configure large messages yourself",
        )
    if os.environ.get("ROS_LOCALHOST_ONLY") == "1":
        yield Finding(
            Level.NOTE,
            "ROS_LOCALHOST_ONLY",
            "1",
            "is deprecated; set ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST",
        )


def check_weights() -> Iterator[Finding]:
    """Yield whether the shipped weights are there and unchanged."""
    from kestrel import weights
    from kestrel.errors import ModelError

    for name in ("kestrel-video", "kestrel-seg", "kestrel-fusion", "kestrel-augment"):
        try:
            _, manifest = weights.load(name)
            yield Finding(Level.OK, f"weights {name}", f"sha256 {manifest.sha256[:12]}")
        except ModelError as error:
            yield Finding(
                Level.BROKEN, f"weights {name}", str(error), "reinstall Kestrel, or train them again"
            )
