# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kestrel.bench import BENCHMARKS, ROS_BENCHMARKS
from kestrel.bench.peer import PYTHON_VARIABLE, find_python
from kestrel.cli import build_app
from kestrel.errors import ConfigError, ModelError, SetupError
from kestrel.report import Figure


def run(*arguments: str) -> str:
    found = CliRunner().invoke(build_app(), ["bench", *arguments], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_every_name_that_is_listed_leads_to_a_function() -> None:
    listed = run("--list").split()
    assert listed == sorted(BENCHMARKS)
    for name in set(listed) - set(ROS_BENCHMARKS):
        module, function = BENCHMARKS[name].split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_what_does_not_exist_is_refused_and_so_is_int8_where_it_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmark.*voxelize.*no-such"):
        run("no-such")
    with pytest.raises(ConfigError, match=r"benchmark.*voxelize.*found none$"):
        run()
    with pytest.raises(ConfigError, match=r"--int8.*fusion.*voxelize"):
        run("voxelize", "--int8", str(tmp_path))


def test_a_python_for_spconv_that_cannot_be_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = tmp_path / "python"
    plain.touch(mode=0o644)
    for wrong in (tmp_path, plain, tmp_path / "none"):
        monkeypatch.setenv(PYTHON_VARIABLE, str(wrong))
        with pytest.raises(SetupError, match=f"{PYTHON_VARIABLE}: expected the Python of an environment"):
            find_python()


def test_int8_models_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}

    def fusion(**options: Any) -> dict[str, Figure]:
        told.update(options)
        return {"rate": Figure(1.0, "Hz")}

    monkeypatch.setattr("kestrel.bench.fusion.fusion", fusion)
    answer = json.loads(run("fusion", "--int8", str(tmp_path), "--json"))
    assert answer["figures"]["rate"]["value"] == 1.0
    assert told == {"int8": tmp_path}
    told.clear()
    run("fusion")
    assert told == {}


def test_a_wrong_folder_of_int8_models_is_found_before_a_drive_is_simulated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def simulated(_: int) -> None:
        raise AssertionError("simulated a drive")

    monkeypatch.setattr("kestrel.bench.fusion.recorded_drive", simulated)
    with pytest.raises(ModelError, match=r"expected a folder with int8\.json"):
        run("fusion", "--int8", str(tmp_path))
