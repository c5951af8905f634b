# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Code that is kept on disk is that of the sources as they are now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.sim import compiled

LOOP = """
import sys
from pathlib import Path
from kestrel.sim import compiled
compiled.SOURCES = Path(sys.argv[1])
from constant import VALUE

@compiled.compiled
def answer() -> int:
    return VALUE

print(answer(), sum(answer.stats.cache_hits.values()))
"""


def run(folder: Path) -> list[str]:
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(folder / "loop.py"), str(folder)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=120
    ).stdout.split()


def test_what_another_file_says_now_counts_and_what_has_not_changed_is_kept(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "constant.py").write_text("VALUE = 1\n")
    assert run(tmp_path) == ["1", "0"]
    assert run(tmp_path) == ["1", "1"]
    (tmp_path / "constant.py").write_text("VALUE = 2\n")
    assert run(tmp_path) == ["2", "0"]
    assert len(list((tmp_path / "__pycache__").glob("compiled-*"))) == 1


def test_without_a_place_to_write_to_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__pycache__").write_text("no folder")
    (tmp_path / "home").write_text("no folder either")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compiled._folder.cache_clear()
    try:
        assert compiled._folder() is None

        @compiled.compiled
        def twice(value: int) -> int:
            return 2 * value

        assert twice(21) == 42
    finally:
        compiled._folder.cache_clear()
