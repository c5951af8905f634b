# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison itself: a wrong, unknown or forgotten output never passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.fixture import REPOSITORY, Comparison, fixture_names


class Stored:
    """A fixture with a 2 x 3 output, a sampled one and a tolerance of 0.1."""

    def __init__(self, note: str = "") -> None:
        self.manifest: dict[str, Any] = {"note": note}
        self.outputs = {
            "first": np.zeros((2, 3)),
            "second.index": np.array([0, 5]),
            "second.value": np.array([1.0, 6.0]),
        }

    def sampled(self, tensor: np.ndarray, name: str) -> np.ndarray:
        return tensor.reshape(-1)[self.outputs[f"{name}.index"]]

    def compare(self, name: str, value: np.ndarray) -> dict[str, Any]:
        bad = np.abs(value - self.outputs[name]) > 0.1
        return {"ok": not bad.any(), "fraction_bad": bad.mean()}


SECOND = np.arange(1.0, 7.0).reshape(2, 3)


def test_equal_outputs_pass_in_every_stored_form() -> None:
    Comparison(Stored()).check_all({"first": np.full((2, 3), 0.05), "second": SECOND})


def test_first_deviation_is_named_and_stops_the_network() -> None:
    computed = []

    def network() -> Any:
        for name, value in (("first", np.ones((2, 3))), ("second", SECOND)):
            computed.append(name)
            yield name, value

    with pytest.raises(AssertionError, match=r"^first"):
        Comparison(Stored()).check_all(network())
    assert computed == ["first"]


def test_output_that_was_never_computed_fails() -> None:
    with pytest.raises(AssertionError, match=r"second\.value"):
        Comparison(Stored()).check_all({"first": np.zeros((2, 3))})


def test_output_that_the_fixture_does_not_hold_fails() -> None:
    with pytest.raises(AssertionError, match="third"):
        Comparison(Stored()).check("third", np.zeros(1))


def test_only_the_fraction_that_the_manifest_allows_may_deviate() -> None:
    wrong = np.zeros((2, 3))
    wrong[0, 0] = 1
    Comparison(Stored("allow a fraction of 2.0e-01 of the values")).check("first", wrong)
    with pytest.raises(AssertionError):
        Comparison(Stored("allow a fraction of 1.0e-01 of the values")).check("first", wrong)


def test_fixtures_are_found_in_all_folders_below(tmp_path: Path) -> None:
    for name in ("public/a_0.5.npz", "other/deep/b.npz"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert fixture_names(tmp_path) == ["other/deep/b", "public/a_0.5"]


def run_parity(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/parity/test_parity.py"],
        cwd=REPOSITORY,
        env={**os.environ, "KESTREL_PARITY": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_missing_folder_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    result = run_parity(tmp_path / "none")
    assert result.returncode != 0
    assert "KESTREL_PARITY" in result.stdout


def test_fixture_without_a_network_fails_and_is_listed_as_missing(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(
        "import json, pathlib\n"
        "class Fixture:\n"
        "    def __init__(self, path):\n"
        "        self.manifest = json.loads(path.read_text())\n"
        "def load(name):\n"
        "    return Fixture(pathlib.Path(__file__).parent / (name + '.json'))\n"
    )
    (tmp_path / "unheard_of.npz").touch()
    (tmp_path / "unheard_of.json").write_text(json.dumps({"net": "network that nobody built"}))
    result = run_parity(tmp_path)
    assert result.returncode == 1
    assert "unheard_of: no network of Kestrel is known for 'network that nobody built'" in result.stdout
    assert "1 fixtures: 0 ran, 0 failed, 1 missing" in result.stdout
    assert "missing: unheard_of" in result.stdout
