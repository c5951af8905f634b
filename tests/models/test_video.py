# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Video networks: the stream equals the clip, state is explicit, sizes are arguments."""

from __future__ import annotations

import pytest
import torch

from kestrel.errors import ConfigError, InputError
from kestrel.models.decision import DecisionSmoother
from kestrel.models.kestrel_video import PlacedClassifier
from kestrel.models.mobilenetv2 import MobileNetV2, OnlineTSMMobileNetV2, Stage
from kestrel.models.resnet import ResNet
from kestrel.models.tsm import TSM

STAGES = (Stage(1, 8, 1, 1), Stage(4, 16, 2, 2), Stage(4, 24, 3, 2))


def online(**changes: object) -> OnlineTSMMobileNetV2:
    torch.manual_seed(0)
    arguments = {"stages": STAGES, "last_channels": 32, **changes}
    return OnlineTSMMobileNetV2(5, **arguments).eval()  # type: ignore[arg-type]


def test_stream_equals_the_unidirectional_clip() -> None:
    stream = OnlineTSMMobileNetV2(7).eval()
    clip = TSM("mobilenetv2", 7, n_segment=3, bidirectional=False).eval()
    renamed = {
        key.removeprefix("base_model.").replace(".net.", ".").replace("new_fc", "classifier"): key
        for key in clip.state_dict()
    }
    clip.load_state_dict({key: stream.state_dict()[name] for name, key in renamed.items()})
    frames = torch.randn(1, 3, 3, 64, 64)
    state, logits = None, []
    with torch.no_grad():
        for frame in frames[0]:
            scores, state = stream(frame[None], state)
            logits.append(scores)
        expected = clip.frame_logits(frames)[0]
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-5)


def test_state_remembers_and_none_forgets() -> None:
    network, frames = online(), torch.randn(2, 1, 3, 32, 48)
    with torch.no_grad():
        _, state = network(frames[0])
        remembering, _ = network(frames[1], state)
        forgetful, _ = network(frames[1])
        zeros, _ = network(frames[1], network.initial_state(1, 32, 48))
    assert not torch.allclose(remembering, forgetful)
    assert torch.equal(forgetful, zeros)


def test_one_network_serves_several_streams() -> None:
    network, frames = online(), torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        _, both = network(frames[0])
        together, _ = network(frames[1], both)
        _, single = network(frames[0, 1:2])
        alone, _ = network(frames[1, 1:2], single)
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("size", [(32, 32), (50, 37)])
def test_initial_state_fits_any_picture_size(size: tuple[int, int]) -> None:
    network = online()
    initial = network.initial_state(2, *size)
    with torch.no_grad():
        _, state = network(torch.randn(2, 3, *size))
    assert [value.shape for value in initial] == [value.shape for value in state]
    assert len(initial) == network.num_shifts == 3


def test_state_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="3 tensors"):
        online()(torch.randn(1, 3, 32, 32), (torch.zeros(1, 2, 8, 8),))


def test_backbone_returns_every_stage() -> None:
    network = online(last_channels=0)
    outputs, state = network.step_features(torch.randn(1, 3, 64, 64))
    assert [value.shape[1] for value in outputs] == list(network.stage_channels()) == [8, 16, 24]
    assert [value.shape[2] for value in outputs] == [32, 16, 8]
    assert len(state) == network.num_shifts
    plain = MobileNetV2(0, stages=STAGES, last_channels=0, width_multiplier=0.5)
    assert [value.shape[1] for value in plain.forward_features(torch.randn(1, 3, 64, 64))] == [8, 8, 16]


def test_gradients_flow_back_through_time() -> None:
    network = online().train()
    frames = torch.randn(2, 2, 3, 32, 32, requires_grad=True)
    _, state = network(frames[0])
    logits, _ = network(frames[1], state)
    logits.sum().backward()
    assert frames.grad is not None
    assert frames.grad[0].abs().sum() > 0
    assert all(value.grad is not None for value in network.parameters())


def test_clip_score_is_the_mean_over_its_frames() -> None:
    network = TSM("resnet50", 4, n_segment=2, non_local=True).eval()
    clips = torch.randn(2, 2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(clips), network.frame_logits(clips).mean(dim=1))


@pytest.mark.parametrize("shape", [(1, 4, 3, 32, 32), (2, 1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 2, 32, 32)])
def test_clips_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    network = TSM("mobilenetv2", 4, n_segment=2)
    with pytest.raises(InputError, match=r"clips of a TSM network: expected shape \(B, 2, 3, H, W\), found"):
        network(torch.zeros(shape))


def test_no_clips_give_no_scores() -> None:
    assert TSM("mobilenetv2", 4, n_segment=2).eval()(torch.zeros(0, 2, 3, 32, 32)).shape == (0, 4)


def test_keys_of_the_non_local_network_are_the_released_ones() -> None:
    with torch.device("meta"):
        keys = TSM("resnet50", 400, non_local=True).state_dict().keys()
    assert len(keys) == 385
    assert {"base_model.layer2.0.block.conv1.net.weight", "base_model.layer3.4.nl.W.1.running_var"} <= keys


def test_deep_resnet_shifts_every_second_block() -> None:
    with torch.device("meta"):
        keys = TSM("resnet101", 10).state_dict().keys()
    assert "base_model.layer3.2.conv1.net.weight" in keys
    assert "base_model.layer3.1.conv1.weight" in keys


def test_unknown_base_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="vgg16"):
        TSM("vgg16")


def test_resnet_stages_halve_the_resolution() -> None:
    network = ResNet((1, 1, 1, 1), num_classes=0, width=8)
    outputs = network.forward_features(torch.randn(1, 3, 64, 64))
    assert [(value.shape[1], value.shape[2]) for value in outputs] == [(32, 16), (64, 8), (128, 4), (256, 2)]


def one_hot(label: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(label), 27).float()


def test_decision_changes_only_after_it_was_steady() -> None:
    smoother = DecisionSmoother(window=1)
    labels = (2, 2, 9, 10, 10, 10)
    # 9 is accepted after a steady 2; 10 has to wait until 9 was decided twice.
    assert [smoother.step(one_hot(label)) for label in labels] == [2, 2, 9, 9, 10, 10]


def test_masked_classes_repeat_and_merged_ones_are_replaced() -> None:
    smoother = DecisionSmoother(window=1)
    assert [smoother.step(one_hot(label)) for label in (9, 9, 7, 0, 0)] == [9, 9, 9, 2, 2]


def test_window_sums_the_last_frames_and_reset_forgets_them() -> None:
    smoother = DecisionSmoother(window=3)
    assert [smoother.window_class(one_hot(label)) for label in (5, 5, 9, 9, 9)] == [5, 5, 5, 9, 9]
    smoother.reset()
    assert smoother.window_class(one_hot(4)) == 4


def test_cells_count_alike_until_it_is_learned_where_to_look() -> None:
    head = PlacedClassifier(16, 3, (2, 5))
    features = torch.randn(4, 16, 2, 5)
    with torch.no_grad():
        mean = head.evidence(features.mean((2, 3), keepdim=True)).flatten(1)
        torch.testing.assert_close(head(features), mean)
        head.place[1, 0, 3] = 30.0
        one = head.evidence(features[:, :, :1, 3:4]).flatten(1)
        torch.testing.assert_close(head(features)[:, 1], one[:, 1])
        torch.testing.assert_close(head(features)[:, ::2], mean[:, ::2])


def test_where_to_look_is_learned_from_what_is_there() -> None:
    """The class is told by one cell, anywhere, of which the mean shows next to nothing."""
    torch.manual_seed(0)
    head = PlacedClassifier(4, 2, (3, 9))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(300):
        features, label = torch.randn(64, 4, 27), torch.randint(2, (64,))
        cell = torch.randint(27, (64,))
        features[torch.arange(64), 0, cell] = 6.0
        features[torch.arange(64), 1, cell] = 2.0 * label - 1
        loss = torch.nn.functional.cross_entropy(head(features.view(64, 4, 3, 9)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[:20]) / 20 > 0.5
    assert sum(losses[-20:]) / 20 < 0.25
