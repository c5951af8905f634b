# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels on aarch64: cross-compiled as CMakeLists.txt says, looked at, and run in an emulation."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
HERE = platform.machine() == "aarch64"
COMPILER = shutil.which("g++" if HERE else "aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FUSED = ("fmla", "v"), ("fmadd", "s")
"""Multiplying and adding at once, four numbers and one."""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ for aarch64 is not installed")


def named_in_cmake(pattern: str) -> list[str]:
    """The words of what CMakeLists.txt gives to a command."""
    found = re.search(pattern, (KERNELS / "CMakeLists.txt").read_text())
    assert found, pattern
    return found[1].split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects and assembly of all units but the Python module, which needs headers of Python for aarch64."""
    folder = tmp_path_factory.mktemp("aarch64")
    units = named_in_cmake(r"nanobind_add_module\(native NB_STATIC NOMINSIZE([^)]*)\)")
    units.remove("bindings.cpp")
    flags = named_in_cmake(r"target_compile_options\(native PRIVATE (.*)\)")
    level_flags = named_in_cmake(r"target_compile_options\(level_\$\{name\} PRIVATE (.*) \$\{ARGN\}\)")
    commands = [(unit, flags) for unit in units]
    commands.append(("common/level.cpp", [*level_flags, "-DKESTREL_LEVEL=portable"]))
    commands.append((str(Path(__file__).with_name("aarch64_check.cpp")), flags))
    builds = []
    for unit, options in commands:
        output = folder / unit.replace("/", "_").replace(".cpp", ".o")
        command = [str(COMPILER), "-std=c++17", "-Werror", "-fopenmp", "-fPIC", f"-I{KERNELS}", *options]
        command += ["-save-temps=obj", "-c", str(KERNELS / unit), "-o", str(output)]
        builds.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for build in builds:
        _, said = build.communicate(timeout=300)
        assert build.returncode == 0, said
    return folder


def test_the_compiler_multiplies_vectors(folder):
    assembly = next(folder.glob("*level.s")).read_text()
    vectors, scalars = (len(re.findall(rf"\t{name}\t{kind}\d", assembly)) for name, kind in FUSED)
    assert vectors > 1000
    assert scalars < vectors / 50


@pytest.mark.skipif(not HERE and EMULATOR is None, reason="qemu-user is not installed")
def test_the_kernels_give_what_plain_loops_give(folder):
    program = str(folder / "check")
    objects = map(str, folder.glob("*.o"))
    subprocess.run([str(COMPILER), "-static", "-fopenmp", *objects, "-o", program], check=True)
    command = [program] if HERE else [str(EMULATOR), program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, *values = line.split()
        found.setdefault(name, []).extend(values)
    assert found["levels"] == ["portable"]
    assert len(found["float32"]) == len(found["bfloat16"]) == 5
    assert max(map(float, found["float32"])) < 1e-6
    assert max(map(float, found["bfloat16"])) < 4e-3
    assert float(*found["winograd"]) < 1e-5
    assert found["misplaced"] == ["0"]
    assert found["refused"] == ["2"]
