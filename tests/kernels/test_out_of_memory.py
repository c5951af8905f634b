# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A kernel without memory says which one wanted how much, keeps nothing, and the next answer is right.

They run in processes of their own, which is what such a kernel may end.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.ops.backend import NATIVE

TAKES_NONE = {
    *("available_levels", "dispatch_level", "set_dispatch_level"),
    *("circle_nms", "find_keys", "pack_keys", "pack_weight", "quantize", "trilinear", "weighted_scatter"),
}
"""Functions of the compiled module that work in their arguments alone, or at the start of the process."""

pytestmark = [
    pytest.mark.skipif(NATIVE is None, reason="compiled kernels are not installed"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc gives memory is made use of"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer or an allocator is preloaded"),
]


def run(module: str, **environment: str) -> str:
    command = [sys.executable, "-m", f"tests.kernels.{module}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("what refuses memory needs g++")
    library = tmp_path_factory.mktemp("scarce") / "scarce_memory.so"
    source = Path(__file__).with_name("scarce_memory.cpp")
    subprocess.run(
        [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True
    )
    return library


def test_whichever_block_a_kernel_is_refused_it_says_so_and_answers_the_next_time(scarce: Path) -> None:
    refused = json.loads(run("starved", LD_PRELOAD=str(scarce)))
    assert min(refused.values()) > 0
    functions = {name for name in dir(NATIVE) if callable(getattr(NATIVE, name)) and name[0] != "_"}
    assert set(refused) == functions - TAKES_NONE


def test_a_process_that_may_not_grow_outlives_what_asks_for_more() -> None:
    lines = run("limited").splitlines()
    if lines == ["no limit"]:
        pytest.skip("this system does not limit the memory of a process")
    *kernels, network = lines
    wanted = r"(\w+): MemoryError: kernel \1: expected (\d+) bytes of memory for its work, found less"
    found = [re.fullmatch(wanted, line) for line in kernels]
    assert len(found) == 4
    assert all(match is not None and int(match[2]) > 64 << 20 for match in found), kernels
    assert re.match(r"segmenter: (RuntimeError: .*can't allocate memory|MemoryError: )", network)
