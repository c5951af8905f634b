# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every fixture of a reference implementation runs through Kestrel's own network or operator."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest
import torch

from tests.parity.fixture import Comparison, Runner, loader, parity_folder

MODULES = ("video", "bev", "gan", "points", "metrics")
"""Modules of this folder with RUNNERS: the manifest's network name, or a pattern for it, to its runner."""


def runner_for(network: str) -> Runner | None:
    for name in MODULES:
        if importlib.util.find_spec(f"tests.parity.{name}") is None:
            continue
        runners: dict[str, Runner] = importlib.import_module(f"tests.parity.{name}").RUNNERS
        for pattern, runner in runners.items():
            if network == pattern or re.fullmatch(pattern, network):
                return runner
    return None


def test_network_equals_the_reference(fixture_name: str, outcomes: dict[str, str]) -> None:
    fixture = loader(parity_folder()).load(fixture_name)
    runner = runner_for(fixture.manifest["net"])
    if runner is None:
        outcomes[fixture_name] = "missing"
        pytest.fail(f"{fixture_name}: no network of Kestrel is known for {fixture.manifest['net']!r}")
    outcomes[fixture_name] = "failed"
    with torch.no_grad():
        Comparison(fixture).check_all(runner(fixture))
    outcomes[fixture_name] = "passed"
