# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from kestrel.bench import engines
from kestrel.bench.timing import Candidate


def test_a_ratio_above_one_is_a_faster_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    ms = {"eager": 8.0, "folded": 4.0, "compiled": 2.0}

    def medians(candidates: dict[str, Candidate]) -> dict[str, float]:
        assert list(candidates) == list(ms)
        return ms

    monkeypatch.setattr(engines, "medians", medians)
    monkeypatch.setattr(engines, "make_engine", lambda module, *_, **__: module)
    for there in ("has_openvino", "has_onnxruntime"):
        monkeypatch.setattr(engines, there, lambda: False)
    found = engines._race("part", nn.Linear(2, 2), (torch.ones(1, 2),), bfloat16=False)
    figures = {name: found[f"part: {name}"] for name in ms}
    assert {name: figure.value for name, figure in figures.items()} == ms
    assert {name: figure.ratio for name, figure in figures.items()} == {
        "eager": 0.5,
        "folded": 1.0,
        "compiled": 2.0,
    }
    assert {figure.against for figure in figures.values()} == {"folded"}
