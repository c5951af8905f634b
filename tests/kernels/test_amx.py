# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The AMX level on any x86-64 machine with AVX2: its compiled tile instructions, trapped and emulated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
FLAGS = ("-std=c++17", "-O1", "-fopenmp", "-mavx2", "-mfma", f"-I{KERNELS}")


def amx_in_cpuinfo() -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "amx_bf16" in flags


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What the emulation prints, split into words."""
    compiler = shutil.which("g++")
    if platform.machine() != "x86_64" or compiler is None:
        pytest.skip("the emulation of tile instructions needs g++ and an x86-64 machine")
    if amx_in_cpuinfo():
        pytest.skip("this machine has tile instructions: nothing traps, test_levels runs them")
    folder = tmp_path_factory.mktemp("amx")
    builds = []
    for name, source, *defined in (
        ("amx", KERNELS / "common/level.cpp", "-DKESTREL_LEVEL=amx_bf16", "-DKESTREL_AMX"),
        ("portable", KERNELS / "common/level.cpp", "-DKESTREL_LEVEL=portable"),
        ("dispatch", KERNELS / "common/dispatch.cpp"),
        ("memory", KERNELS / "common/memory.cpp"),
        ("emulation", Path(__file__).with_name("amx_emulation.cpp")),
    ):
        command = [compiler, *FLAGS, *defined, "-c", str(source), "-o", str(folder / f"{name}.o")]
        builds.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for build in builds:
        _, said = build.communicate(timeout=120)
        assert build.returncode == 0, said
    program = str(folder / "emulation")
    subprocess.run([compiler, "-fopenmp", *map(str, folder.glob("*.o")), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_the_tile_instructions_compute_the_convolution(lines):
    errors = {
        (int(cin), int(cout)): float(error) for kind, cin, cout, error in lines[:5] if kind == "forward"
    }
    assert set(errors) == {(64, 64), (4, 32), (33, 130), (5, 3), (96, 17)}
    assert max(errors.values()) < 4e-3


def test_the_check_at_start_up_accepts_right_products_and_refuses_wrong_ones(lines):
    assert [words[1] for words in lines if words[0] == "accepted"] == ["1", "0"]
