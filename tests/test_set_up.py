# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`make setup` goes on where it was interrupted, and never silently keeps another interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "set_up.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the tool with its environment elsewhere, and with steps that do nothing."""
    spec = importlib.util.spec_from_file_location("set_up", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, path in (
        ("VENV", venv),
        ("PYTHON", venv / "bin" / "python"),
        ("STAMPS", venv / "kestrel-setup.json"),
        ("LOG", venv / "kestrel-setup.log"),
    ):
        monkeypatch.setattr(module, name, path)
    for name in ("pip", "colcon"):
        monkeypatch.setattr(module, name, lambda *_: None)
    # Whatever this machine has left.
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100e9))
    return module


def test_an_environment_that_was_interrupted_before_pip_is_made_again(tool: ModuleType) -> None:
    without_pip = [sys.executable, "-m", "venv", "--without-pip", str(tool.VENV)]
    subprocess.run(without_pip, check=True)
    tool.make_environment("torch")
    assert (tool.VENV / "bin" / "pip").exists()


def test_an_environment_of_another_interpreter_is_refused(tool: ModuleType) -> None:
    tool.VENV.mkdir()
    (tool.VENV / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.2\n")
    with pytest.raises(tool.SetUpError, match=r"expected Python 3\.\d+, found 3\.9\.2"):
        tool.make_environment("torch")


def test_a_disk_without_room_is_said_before_anything_is_installed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda _: SimpleNamespace(free=600e6))
    with pytest.raises(tool.SetUpError, match=r"expected 4\.5 GB free for \.venv, found 0\.6 GB"):
        tool.make_environment("torch")
    assert not tool.VENV.exists()
    tool.VENV.mkdir()
    tool.STAMPS.write_text("{}")
    tool.check_disk()  # what is there already needs no more room


def test_steps_are_repeated_where_their_record_was_cut_off(tool: ModuleType) -> None:
    tool.VENV.mkdir()
    tool.STAMPS.write_text('{"pip": "12')
    assert tool.read_stamps() == {}


def python(tool: ModuleType, answer: int) -> None:
    """Put a Python into the environment that ends with ``answer``, and a pip."""
    (tool.VENV / "bin").mkdir(parents=True, exist_ok=True)
    for path in (tool.PYTHON, tool.VENV / "bin" / "pip"):
        path.write_text(f"#!/bin/sh\necho traceback >&2\necho 'no compiler' >&2\nexit {answer}\n")
        path.chmod(0o755)


def test_kernels_that_were_not_built_are_said_and_tried_again(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        python(tool, 1)
        tool.make_environment("torch")
        told = capsys.readouterr().out
        assert "kernels: failed" in told
        assert "not built (no compiler)" in told
        assert "reference operators" in told
        assert "tries again" in told
        assert "kernels: done" not in told
        assert "kernels" not in tool.read_stamps()
        assert "ROS 2 nodes" in tool.read_stamps()
    python(tool, 0)
    tool.make_environment("torch")
    assert "kernels: done" in capsys.readouterr().out
    tool.make_environment("torch")
    assert "kernels" not in capsys.readouterr().out


def test_more_extras_are_installed_when_they_are_asked_for(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tool, "pip", lambda *arguments: asked.append(arguments[-1]))
    python(tool, 0)
    for more in ("", "gpu", "gpu"):
        tool.make_environment("torch", more)
    library = [each for each in asked if each.startswith(f"{tool.ROOT}[")]
    assert [each.endswith(",dev]") for each in library] == [True, False]
    assert library[1].endswith(",dev,gpu]")


def test_any_other_step_that_fails_ends_the_set_up(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: str) -> None:
        raise tool.SetUpError("no network")

    python(tool, 0)
    monkeypatch.setattr(tool, "pip", failed)
    with pytest.raises(tool.SetUpError, match="no network"):
        tool.make_environment("torch")
