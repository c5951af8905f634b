# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""In every engine the shipped Kestrel-Fusion answers as in eager float32, and scores the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import torch

from kestrel.engine import has_onnxruntime, has_openvino
from kestrel.pipelines import FusionDetector
from kestrel.sim.splits import DriveSpec
from kestrel.train import cache
from kestrel.train.calibration import relative_errors
from kestrel.train.fusion_score import Answers, score_rounded
from kestrel.train.prepare import prepare_drive
from kestrel.train.sensor_cases import sensor_frame, stamp_of

TOLERANCE: Final = 1e-5
"""Largest relative error of an output: the norm of its difference to eager float32 over that norm."""

POINTS: Final = 0.1
"""By how many points of a hundred a score may differ from that in eager float32."""

ENGINES: Final = [
    "folded",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(not has_openvino(), reason="the extra openvino is not installed"),
    ),
    pytest.param(
        "onnxruntime",
        marks=pytest.mark.skipif(not has_onnxruntime(), reason="the extra onnxruntime is not installed"),
    ),
]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated drive of which the shipped network finds most."""
    folder = tmp_path_factory.mktemp("drives")
    prepare_drive(DriveSpec("d0", "nuscenes", "urban", "birch", 3, 1.5, "day"), folder)
    return folder


@pytest.fixture(scope="module")
def exact() -> FusionDetector:
    return detector("eager")


def detector(engine: Any) -> FusionDetector:
    return FusionDetector(score_threshold=0.05, engine=engine, precision="float32")


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_and_scores_are_those_of_eager_float32(
    engine: str, exact: FusionDetector, drives: Path
) -> None:
    other = detector(engine)
    answers = [Answers(each.detect, each.sweeps) for each in (exact, other)]
    values = score_rounded(answers[0], answers[1], engine, drives, None)
    assert values["float32/mAP"] > 0.5
    assert values["float32/map_miou"] > 0.3
    lost = {name: value for name, value in values.items() if name.endswith("_lost")}
    assert {f"{engine}/mAP_lost", f"{engine}/NDS_lost", f"{engine}/map_miou_lost"} <= lost.keys()
    assert max(map(abs, lost.values())) <= POINTS, lost
    assert {part.name for part in other.engine.parts.values()} == {engine}

    # The last frame, whose pictures look back on one before.
    path = cache.key_frames(drives / "d0")[-1]
    frame = sensor_frame(cache.read(cache.CachedFrame, path), exact.sweeps, stamp_ns=stamp_of(path))
    with torch.inference_mode():
        inputs = exact.inputs(frame)
        wanted, found = exact.engine(inputs), other.engine(inputs)
        assert any(bool(each.any()) for each in inputs.past)
        errors = relative_errors(found, wanted)
        for number, (one, another) in enumerate(zip(wanted.state, found.state, strict=True)):
            errors[f"state {number}"] = float((another - one).norm() / one.norm())
        evidence = exact.map_evidence(frame)[None]
        maps = [each.engine.refined_map(evidence) for each in (exact, other)]
        errors["map"] = float((maps[1] - maps[0]).norm() / maps[0].norm())
    assert max(errors.values()) < TOLERANCE, errors
