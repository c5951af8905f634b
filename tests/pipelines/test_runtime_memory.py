# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from kestrel.pipelines.runtime import give_memory_back

RESIDENT_WHEN_FREED_AND_GIVEN_BACK = """
import re
from pathlib import Path
from kestrel.pipelines.runtime import give_memory_back, keep_freed_memory

def resident_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

class Held:
    def __init__(self):
        self.blocks, self.circle = [bytearray(1 << 20) for _ in range(200)], self

keep_freed_memory()
before = resident_mib()
held = Held()
after = bytearray(1 << 20)  # what is freed is not the end of the heap
del held
print(resident_mib() - before)
give_memory_back()
print(resident_mib() - before)
"""

PAGES_OF_ONE_ROUND = """
import resource
import numpy as np
from kestrel.pipelines.runtime import keep_freed_memory

keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def answer():
    layers = [np.ones(6 << 20, np.float32) for _ in range(4)]  # 24 MiB each
    del layers

answer()
before = faults()
answer()
print(faults() - before)
"""


asks_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")


def numbers_said_by(program: str, **environment: str) -> list[int]:
    """Return what a program prints in which nobody but ``environment`` has told glibc anything."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return [int(line) for line in answer.stdout.split()]


def pages_fetched(**environment: str) -> int:
    (pages,) = numbers_said_by(PAGES_OF_ONE_ROUND, **environment)
    return pages


@asks_glibc
def test_memory_of_one_answer_serves_the_next_unless_the_user_wants_otherwise() -> None:
    assert pages_fetched() < 100
    assert pages_fetched(MALLOC_TRIM_THRESHOLD_="131072") > 1000


@asks_glibc
def test_what_is_no_longer_held_is_given_back_to_the_system_when_asked() -> None:
    freed, given_back = numbers_said_by(RESIDENT_WHEN_FREED_AND_GIVEN_BACK)
    assert freed > 190
    assert given_back < 10


def test_a_gpu_that_was_lost_has_no_memory_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lost() -> None:
        asked.append("GPU")
        raise torch.AcceleratorError("CUDA error: device lost")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    give_memory_back()
    assert asked == ["GPU"]
