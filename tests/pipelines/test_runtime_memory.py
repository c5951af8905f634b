# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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


def pages_fetched(**environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", PAGES_OF_ONE_ROUND]
    answer = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return int(answer.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_memory_of_one_answer_serves_the_next_unless_the_user_wants_otherwise() -> None:
    assert pages_fetched() < 100
    assert pages_fetched(MALLOC_TRIM_THRESHOLD_="131072") > 1000
