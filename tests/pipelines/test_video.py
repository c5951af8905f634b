# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from kestrel.classes import EVENTS
from kestrel.errors import ModelError
from kestrel.models.kestrel_video import KestrelVideo
from kestrel.pipelines import VideoUnderstanding
from kestrel.road_view import crop_to_road
from tests.pipelines.conftest import make_image

HOP_NS = 200_000_000


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> VideoUnderstanding:
    """A random network whose norms fit its activations, else nothing but the last bias would show."""
    torch.manual_seed(1)
    network = KestrelVideo().requires_grad_(False)
    for _ in range(20):
        network(torch.rand(2, 3, *network.config.image_size))
    return untrained(network.eval(), monkeypatch)


def untrained(network: KestrelVideo, monkeypatch: pytest.MonkeyPatch) -> VideoUnderstanding:
    monkeypatch.setattr("kestrel.pipelines.video.untrained_network", lambda *_: network)
    return VideoUnderstanding.untrained()


def play(video: VideoUnderstanding, stamps: list[int], camera: str = "front") -> np.ndarray:
    answers = [
        video.step(make_image(seed=number, stamp_ns=stamp, frame_id=camera))
        for number, stamp in enumerate(stamps)
    ]
    return answers[-1].probability


def test_scores_are_probabilities_of_the_events(video: VideoUnderstanding) -> None:
    scores = video.step(make_image(stamp_ns=5))
    assert scores.class_names == EVENTS
    assert scores.probability.sum() == pytest.approx(1, abs=1e-4)
    assert scores.stamp_ns == 5


def test_the_past_has_a_say_until_a_reset(video: VideoUnderstanding) -> None:
    alone = video.step(make_image(seed=3, stamp_ns=0)).probability
    video.reset()
    after_others = play(video, [0, HOP_NS, 2 * HOP_NS, 3 * HOP_NS])
    video.reset()
    again = video.step(make_image(seed=3, stamp_ns=0)).probability
    assert (after_others != alone).any()
    assert (again == alone).all()


def test_cameras_do_not_disturb_each_other(video: VideoUnderstanding) -> None:
    stamps = [0, HOP_NS, 2 * HOP_NS]
    expected = play(video, stamps)
    video.reset()
    for number, stamp in enumerate(stamps):
        mine = video.step(make_image(seed=number, stamp_ns=stamp, frame_id="front"))
        video.step(make_image(seed=50 + number, stamp_ns=stamp, frame_id="back"))
    assert (mine.probability == expected).all()


def test_resetting_one_camera_leaves_the_other(video: VideoUnderstanding) -> None:
    expected = play(video, [0, HOP_NS, 2 * HOP_NS])
    video.reset()
    play(video, [0, HOP_NS])
    play(video, [0, HOP_NS], camera="back")
    video.reset("back")
    assert (
        video.step(make_image(seed=2, stamp_ns=2 * HOP_NS, frame_id="front")).probability == expected
    ).all()


@pytest.mark.parametrize("stamp", [-HOP_NS, 10 * HOP_NS, HOP_NS])
def test_a_jump_back_or_a_long_gap_starts_anew(video: VideoUnderstanding, stamp: int) -> None:
    alone = video.step(make_image(seed=9, stamp_ns=0)).probability
    video.reset()
    play(video, [0, HOP_NS])
    assert (video.step(make_image(seed=9, stamp_ns=stamp, frame_id="front")).probability == alone).all()


def test_the_state_advances_with_sensor_time_not_with_frames(video: VideoUnderstanding) -> None:
    slow = play(video, [0, HOP_NS, 2 * HOP_NS])
    video.reset()
    for number, stamp in ((0, 0), (70, HOP_NS // 2), (1, HOP_NS), (71, HOP_NS * 3 // 2)):
        video.step(make_image(seed=number, stamp_ns=stamp, frame_id="front"))
    fast = video.step(make_image(seed=2, stamp_ns=2 * HOP_NS, frame_id="front")).probability
    assert (fast == slow).all()


def test_it_is_warm_once_the_memory_is_full(video: VideoUnderstanding) -> None:
    warm = [video.step(make_image(stamp_ns=number * HOP_NS)).warm for number in range(12)]
    memory = video.network.memory
    assert warm == [number >= memory for number in range(12)]


def test_clips_in_training_see_what_a_stream_sees() -> None:
    network = KestrelVideo().eval()
    clip = torch.rand(1, 3, 3, *network.config.image_size)
    with torch.inference_mode():
        together = network.clip(clip)
        state, answers = None, []
        for frame in clip.unbind(1):
            logits, state = network(frame, state)
            answers.append(logits)
    torch.testing.assert_close(together, torch.stack(answers, 1))


def test_cropping_keeps_the_road() -> None:
    tall = np.zeros((900, 1600, 3), np.uint8)
    tall[-50:] = 255
    assert crop_to_road(tall, (128, 352))[-1].min() == 255
    wide = np.zeros((100, 800, 3), np.uint8)
    wide[:, 390:410] = 255
    assert crop_to_road(wide, (128, 352))[:, 172:180].min() == 255


def test_non_finite_output_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = KestrelVideo().eval().requires_grad_(False)
    bias = network.head.evidence.bias
    assert bias is not None
    bias.fill_(torch.inf)
    broken = untrained(network, monkeypatch)
    with pytest.raises(ModelError, match="not finite"):
        broken.step(make_image())


def test_the_pipeline_answers_what_the_network_does(video: VideoUnderstanding) -> None:
    images = [make_image(seed=number, stamp_ns=number * HOP_NS) for number in range(3)]
    state = None
    for image in images:
        with torch.inference_mode():
            logits, state = video.network(video._picture(image.data), state)
        answered = torch.from_numpy(video.step(image).probability)
        torch.testing.assert_close(answered, logits[0].softmax(0), atol=1e-5, rtol=1e-4)
