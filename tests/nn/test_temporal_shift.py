# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The temporal shift: what moves where, its gradient, and the two networks built on it agreeing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kestrel.errors import InputError
from kestrel.nn.temporal_shift import TemporalShift
from kestrel.ops.temporal_shift import temporal_shift, temporal_shift_step


def clips() -> torch.Tensor:
    """Value of every channel is its frame's number plus one; two clips of three frames, 8 channels."""
    frame = torch.arange(6.0).view(6, 1, 1, 1) + 1
    return frame.expand(6, 8, 2, 2).contiguous()


def test_bidirectional_shift_moves_one_fold_each_way_and_pads_with_zeros() -> None:
    shifted = temporal_shift(clips(), n_segment=3, fold_div=4)[:, :, 0, 0]
    assert shifted[:, 0].tolist() == [2, 3, 0, 5, 6, 0]
    assert shifted[:, 2].tolist() == [0, 1, 2, 0, 4, 5]
    assert shifted[:, 4].tolist() == [1, 2, 3, 4, 5, 6]


def test_unidirectional_shift_only_looks_back() -> None:
    shifted = temporal_shift(clips(), n_segment=3, fold_div=4, bidirectional=False)[:, :, 0, 0]
    assert shifted[:, 1].tolist() == [0, 1, 2, 0, 4, 5]
    assert shifted[:, 2].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_gradient_is_that_of_the_permutation(bidirectional: bool) -> None:
    x = torch.randn(6, 8, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: temporal_shift(v, 3, 4, bidirectional=bidirectional), x)


def test_input_is_not_changed() -> None:
    x = clips()
    temporal_shift(x, n_segment=3)
    assert torch.equal(x, clips())


def test_single_frame_clip_loses_its_shifted_channels() -> None:
    shifted = temporal_shift(clips(), n_segment=1, fold_div=4)
    assert not shifted[:, :4].any()
    assert torch.equal(shifted[:, 4:], clips()[:, 4:])


def test_frames_that_fill_no_clip_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        temporal_shift(clips(), n_segment=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert temporal_shift(clips().to(dtype), n_segment=3).dtype == dtype


def test_stepping_through_a_clip_equals_the_unidirectional_shift() -> None:
    x = torch.randn(5, 16, 3, 3)
    state, steps = None, []
    for frame in x:
        shifted, state = temporal_shift_step(frame[None], state)
        steps.append(shifted)
    assert torch.equal(torch.cat(steps), temporal_shift(x, 5, bidirectional=False))
    assert state is not None
    assert state.shape == (1, 2, 3, 3)


def test_state_is_what_the_frame_was_before_the_shift() -> None:
    frame, past = torch.randn(1, 8, 2, 2), torch.randn(1, 1, 2, 2)
    _, state = temporal_shift_step(frame, past)
    assert torch.equal(state, frame[:, :1])


def test_layer_shifts_in_front_of_its_convolution() -> None:
    conv = nn.Conv2d(8, 4, 1)
    layer = TemporalShift(conv, n_segment=3, fold_div=4)
    x = torch.randn(6, 8, 2, 2)
    torch.testing.assert_close(layer(x), conv(temporal_shift(x, 3, 4)))
    assert set(layer.state_dict()) == {"net.weight", "net.bias"}


def test_a_state_of_another_stream_or_layer_is_refused() -> None:
    x = torch.randn(2, 8, 3, 3)
    for wrong in (torch.zeros(2, 2, 3, 3), torch.zeros(1, 1, 3, 3), torch.zeros(2, 1, 4, 3)):
        with pytest.raises(InputError, match="state of a temporal shift"):
            temporal_shift_step(x, wrong)
    for fold_div in (0, -8):
        with pytest.raises(InputError, match="fold_div >= 1"):
            temporal_shift_step(x, None, fold_div)
        with pytest.raises(InputError, match="fold_div >= 1"):
            temporal_shift(x, 2, fold_div)
    with pytest.raises(InputError, match="temporal shift"):
        temporal_shift(torch.zeros(4), 2)
