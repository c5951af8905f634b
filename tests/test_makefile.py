# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`make` commands that call a tool several times, with a tool that only writes down how it was called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def bench(folder: Path, wrong: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run `make bench` with benchmarks one, two and three, of which ``wrong`` fail; return what was run."""
    tool, calls = folder / "kestrel", folder / "calls"
    tool.write_text(
        f"""#!/bin/sh
case "$2" in --list) printf 'one\\ntwo\\nthree\\n';; *) echo "$2" >> {calls};; esac
case " {wrong} " in *" $2 "*) exit 2;; esac
"""
    )
    tool.chmod(0o755)
    command = ["make", "-C", str(ROOT), "bench", f"BIN={folder}", "PYTHON=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, calls.read_text().split() if calls.exists() else []


@pytest.mark.parametrize("wrong", ["", "one", "three", "one two"])
def test_every_benchmark_runs_and_those_that_failed_are_named(tmp_path: Path, wrong: str) -> None:
    done, calls = bench(tmp_path, wrong)
    assert calls == ["one", "two", "three"]
    assert (done.returncode != 0) == bool(wrong)
    assert (f"bench: failed: {wrong}\n" in done.stderr) == bool(wrong)


def test_training_goes_on_only_where_it_has_begun(tmp_path: Path) -> None:
    tool, calls, runs = tmp_path / "kestrel", tmp_path / "calls", tmp_path / "runs"
    tool.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n')
    tool.chmod(0o755)
    for folder in ("video", "fusion-lidar"):
        (runs / folder / "checkpoints").mkdir(parents=True)
        (runs / folder / "checkpoints" / "last.ckpt").touch()
    command = ["make", "-C", str(ROOT), "train", f"BIN={tmp_path}", "PYTHON=true", f"RUNS={runs}"]
    assert subprocess.run(command, check=False).returncode == 0
    assert calls.read_text().splitlines() == [
        "train prepare --split train",
        "train prepare --split validation",
        f"train seg --out {runs}",
        f"train fusion --out {runs} --resume",
        f"train video --out {runs} --resume",
        f"train augment --out {runs}",
    ]


@pytest.mark.parametrize(
    ("target", "setting", "expected"),
    [
        ("soak", "MINUTES=7", "7- -s tests/soak"),
        ("soak", "", "30- -s tests/soak"),
        ("fuzz", "CASES=500", "-500 --timeout=0 tests/fuzz"),
        ("fuzz", "", "-100000 --timeout=0 tests/fuzz"),
    ],
)
def test_soak_and_fuzzing_are_told_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, setting: str, expected: str
) -> None:
    for name in ("KESTREL_SOAK_MINUTES", "KESTREL_FUZZ_CASES"):
        monkeypatch.delenv(name, raising=False)
    tool = tmp_path / "pytest"
    tool.write_text('#!/bin/sh\necho "$KESTREL_SOAK_MINUTES-$KESTREL_FUZZ_CASES $*"\n')
    tool.chmod(0o755)
    settings = [f"BIN={tmp_path}", "PYTHON=true", *filter(None, [setting])]
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), target, *settings], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected}\n"


def test_without_a_list_of_benchmarks_nothing_succeeds(tmp_path: Path) -> None:
    done, calls = bench(tmp_path, "--list")
    assert done.returncode != 0
    assert not calls
