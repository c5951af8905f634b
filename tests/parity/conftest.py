# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Collects every fixture below the parity folder and counts what ran."""

from __future__ import annotations

import os

import pytest

from tests.parity.fixture import fixture_names, parity_folder

OUTCOMES = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture_name" not in metafunc.fixturenames:
        return
    folder = parity_folder()
    if not (folder / "load.py").is_file():
        if "KESTREL_PARITY" in os.environ:
            raise pytest.UsageError(f"KESTREL_PARITY: expected a folder with parity fixtures, found {folder}")
        reason = f"no parity fixtures: {folder} does not exist (KESTREL_PARITY names another folder)"
        metafunc.parametrize("fixture_name", [pytest.param("none", marks=pytest.mark.skip(reason=reason))])
        return
    names = fixture_names(folder)
    if not names:
        raise pytest.UsageError(f"parity folder: expected fixtures (*.npz) below {folder}, found none")
    metafunc.parametrize("fixture_name", names)


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> dict[str, str]:
    return request.config.stash[OUTCOMES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash[OUTCOMES]
    if not outcomes:
        return
    groups = {
        outcome: sorted(name for name, found in outcomes.items() if found == outcome)
        for outcome in ("passed", "failed", "missing")
    }
    ran = len(groups["passed"]) + len(groups["failed"])
    terminalreporter.section("parity with the reference implementations")
    terminalreporter.line(
        f"{len(outcomes)} fixtures: {ran} ran, "
        f"{len(groups['failed'])} failed, {len(groups['missing'])} missing"
    )
    for outcome in ("failed", "missing"):
        for name in groups[outcome]:
            terminalreporter.line(f"{outcome}: {name}")
