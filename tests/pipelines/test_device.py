# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every pipeline on another device: the answers of the CPU, and nothing forgotten there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.classes import MAP_LAYERS
from kestrel.pipelines import Augmenter, BEVFusionDetector, FusionDetector, PointSegmenter, VideoUnderstanding
from kestrel.pipelines.segmentation import SweepViews
from kestrel.types import SensorFrame
from tests.models.test_bevfusion import small_config
from tests.pipelines.conftest import make_cloud, make_frame, make_image
from tests.pipelines.test_bevfusion import classes_of, dense
from tests.second_device import second_device

Answers = list[np.ndarray]


@pytest.fixture(params=["second", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device that is not the CPU: a GPU if there is one, else that of tests.second_device."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if request.param == "second" and torch.cuda.is_available():
        pytest.skip("a GPU shows what is forgotten on the CPU")
    on_gpu = torch.backends.cudnn.flags(allow_tf32=False)  # which rounds what is compared
    with second_device() if request.param == "second" else on_gpu:
        yield "cuda:0"


def test_video_is_that_of_the_cpu(device: str) -> None:
    def answers(where: str) -> Answers:
        pipeline = VideoUnderstanding(device=where)
        stamps = [0, 100_000_000, 200_000_000, 400_000_000]
        return [pipeline.step(make_image(number, stamp)).probability for number, stamp in enumerate(stamps)]

    assert_same(answers("cpu"), answers(device))


@pytest.mark.parametrize("views", [None, SweepViews(2, mirror=True)])
def test_segmentation_is_that_of_the_cpu(device: str, views: SweepViews | None) -> None:
    cloud = make_cloud(800)
    cpu, other = (
        PointSegmenter("kestrel-seg", None, views, "float32", where).segment(cloud)
        for where in ("cpu", device)
    )
    assert_same([cpu.probability], [other.probability])
    assert (cpu.label == other.label).mean() > 0.99
    assert len(np.unique(cpu.label)) > 1


def test_a_synthetic_picture_is_that_of_the_cpu(device: str) -> None:
    labels = np.random.default_rng(0).integers(0, 20, (32, 64), np.uint8)
    cpu, other = (Augmenter(device=where).render(labels, 3) for where in ("cpu", device))
    assert np.abs(cpu.astype(int) - other.astype(int)).max() <= 1
    assert len(np.unique(cpu)) > 10


def frames() -> list[SensorFrame]:
    """Frames of all sensors and of one, of a vehicle that moves, pictures half a second apart."""
    found = []
    kinds = make_frame(), make_frame(lidar=False), make_frame(cameras=0), make_frame()
    for number, frame in enumerate(kinds):
        pose = np.eye(4)
        pose[0, 3] = 3.0 * number
        later = 500_000_000 * number
        images = {
            name: replace(image, stamp_ns=image.stamp_ns + later) for name, image in frame.images.items()
        }
        stamp = frame.stamp_ns + later
        found.append(replace(frame, stamp_ns=stamp, images=images, fixed_from_reference=pose))
    return found


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_fusion_with_its_memories_is_that_of_the_cpu(device: str, engine: Any) -> None:
    def answers(where: str) -> Answers:
        chosen = "folded" if where == "cpu" else engine
        detector = FusionDetector(engine=chosen, precision="float32", score_threshold=0.0, device=where)
        assert str(detector.device) == where
        found = []
        for boxes, layers in (detector.detect(frame) for frame in frames()):
            by_place = np.argsort(boxes.center[:, 0])  # of boxes with the same score either comes first
            found += [layers.probability, boxes.score[by_place], boxes.center[by_place]]
        return found

    assert_same(answers("cpu"), answers(device), tolerance=2e-3)


@pytest.mark.parametrize(
    ("task", "sensors", "engine"),
    [
        *(("det", sensors, "folded") for sensors in ("camera", "camera+lidar")),
        ("seg", "camera+lidar", "eager"),
    ],
)
def test_a_released_bevfusion_is_that_of_the_cpu(device: str, task: Any, sensors: Any, engine: Any) -> None:
    def answers(where: str) -> Answers:
        detector = BEVFusionDetector.untrained(
            small_config(task, sensors),
            classes_of(task, sensors),
            1,
            0.0,
            engine,
            "float32",
            device=where,
        )
        found = []
        for frame in (make_frame(), make_frame(cameras=0), make_frame(lidar=False)):
            if sensors in ("camera+lidar", frame.modality) or frame.modality == "camera+lidar":
                boxes, layers = detector.detect(frame)
                assert (len(boxes) > 0) == (task == "det")
                # Which proposals follow from a map of random weights hangs on ties.
                with torch.inference_mode():
                    cells = dense(detector.engine(detector.inputs(frame)))
                found += [cells.cpu().numpy(), layers.probability]
        return found

    assert_same(answers("cpu"), answers(device), tolerance=1e-3)


def assert_same(expected: Answers, found: Answers, tolerance: float = 1e-4) -> None:
    assert expected, "something to compare"
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)


def test_on_a_gpu_that_multiplies_bfloat16_dense_parts_are_in_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("this is about the device of tests.second_device")
    with second_device(bfloat16=True):
        fusion = FusionDetector.untrained(1, 0.0, "auto", device="cuda")
        assert fusion.precision == "bfloat16"
        found = fusion.detect(make_frame())[1].probability
        bev = BEVFusionDetector.untrained(small_config("seg", "camera+lidar"), MAP_LAYERS, 1, device="cuda")
        assert bev.precision == "bfloat16"
        layers = bev.detect(make_frame())[1].probability
        assert PointSegmenter.untrained(1, device="cuda").precision == "float32"
    exact = FusionDetector.untrained(1, 0.0, precision="float32").detect(make_frame())[1].probability
    assert 0 < np.abs(found - exact).mean() < 0.02
    assert np.isfinite(layers).all()
