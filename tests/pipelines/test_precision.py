# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from kestrel.classes import DETECTION_CLASSES
from kestrel.errors import ConfigError
from kestrel.ops import int8_is_fast
from kestrel.pipelines import BEVFusionDetector, FusionDetector, PointSegmenter, runtime
from kestrel.pipelines.runtime import chosen_precision
from tests.pipelines.conftest import make_frame
from tests.pipelines.test_bevfusion import small_config

needs_int8 = pytest.mark.skipif(not int8_is_fast(), reason="the processor multiplies no bytes")


@pytest.mark.parametrize(
    ("bfloat16", "int8", "dense", "sparse"),
    [
        (False, False, "float32", "float32"),
        (False, True, "int8", "int8"),
        (True, False, "bfloat16", "float32"),
        (True, True, "bfloat16", "int8"),
    ],
)
def test_auto_takes_the_first_that_the_processor_is_fast_with(
    bfloat16: bool, int8: bool, dense: str, sparse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(runtime, "int8_is_fast", lambda: int8)
    assert chosen_precision("auto", ["bfloat16", "int8"]) == dense
    assert chosen_precision("auto", ["int8"]) == sparse
    assert chosen_precision("float32", ["bfloat16", "int8"]) == "float32"
    assert chosen_precision("bfloat16", ["int8"]) == "bfloat16", "torch computes it anywhere"
    if not int8:
        with pytest.raises(ConfigError, match="precision int8: expected a processor with AVX-512 VNNI"):
            chosen_precision("int8", ["int8"])


def test_the_segmentation_has_no_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"precision: expected one of .*float32.* found .?bfloat16"):
        PointSegmenter.untrained(precision="bfloat16")


@needs_int8
def test_in_int8_the_shipped_fusion_finds_what_it_finds_in_float32() -> None:
    exact, rough = (
        FusionDetector(engine="folded", precision=name, score_threshold=0.0) for name in ("float32", "int8")
    )
    assert (exact.precision, rough.precision) == ("float32", "int8")
    (boxes, layers), (found, seen) = exact.detect(make_frame()), rough.detect(make_frame())
    difference = np.abs(seen.probability - layers.probability)
    assert 0 < difference.mean() < 0.005
    np.testing.assert_allclose(found.score[:5], boxes.score[:5], atol=0.02)


@needs_int8
def test_a_bevfusion_is_int8_only_where_that_was_asked_for() -> None:
    config = small_config("det", "camera+lidar")
    asked, default = (
        BEVFusionDetector.untrained(
            config, DETECTION_CLASSES, score_threshold=0.0, precision=name, engine="folded"
        )
        for name in ("int8", "auto")
    )
    assert (asked.precision, default.precision != "int8") == ("int8", True)
    with torch.inference_mode():
        answers = [
            each.engine(each.inputs(make_frame()))["object"]["dense_heatmap"] for each in (asked, default)
        ]
    apart = float((answers[0] - answers[1]).norm() / answers[1].norm())
    assert 0 < apart < 0.1
    # No byte is multiplied there, so that float32 would be a waste.
    parts = asked.engine.parts
    assert parts["camera"].bfloat16 == runtime.has_fast_bfloat16()
    assert not parts["bird's-eye view"].bfloat16
