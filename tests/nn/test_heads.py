# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection and map heads: what a peak decodes to, suppression, ranges, grids."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.engine.folded import FoldedEngine
from kestrel.errors import ConfigError
from kestrel.nn.bev_segmentation_head import BEVGridTransform, BEVSegmentationHead
from kestrel.nn.boxes import DecodedBoxes, standard_boxes
from kestrel.nn.center_head import CenterHead
from kestrel.nn.transfusion_head import PositionEmbedding, TransFusionHead, WideConv1d

TASKS = (("car",), ("truck", "bus"))


def center_head(**changes: object) -> CenterHead:
    torch.manual_seed(0)
    arguments = {"max_num": 20, "min_radius": (1.0, 1.0), **changes}
    return CenterHead(8, TASKS, (-4.0, -6.0), (0.5, 0.5), **arguments).eval()  # type: ignore[arg-type]


def prediction(classes: int, peaks: dict[tuple[int, int, int], float]) -> dict[str, Tensor]:
    """Maps of 16 x 24 cells with logits at (class, row, column) and the same box everywhere."""
    maps = {
        "heatmap": torch.full((1, classes, 16, 24), -9.0),
        "reg": torch.full((1, 2, 16, 24), 0.5),
        "height": torch.full((1, 1, 16, 24), 1.0),
        "dim": torch.tensor([2.0, 4.0, 1.6]).log().view(1, 3, 1, 1).expand(1, 3, 16, 24),
        "rot": torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24),
        "vel": torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24),
    }
    for (label, row, column), logit in peaks.items():
        maps["heatmap"][0, label, row, column] = logit
    return maps


def test_center_head_decodes_a_peak_to_the_box_at_its_cell() -> None:
    empty = prediction(1, {})
    (found,) = center_head().decode([empty, prediction(2, {(1, 10, 4): 2.0})])
    assert found.labels.tolist() == [2]
    assert found.scores[0] == pytest.approx(1 / (1 + math.exp(-2)))
    expected = [10.5 * 0.5 - 4, 4.5 * 0.5 - 6, 1.0 - 0.8, 2.0, 4.0, 1.6, math.pi / 2, 3.0, -1.0]
    assert found.boxes[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert center_head().class_names == ("car", "truck", "bus")


def test_center_head_drops_the_weaker_of_two_close_boxes() -> None:
    peaks = {(0, 5, 5): 2.0, (0, 5, 6): 1.0, (0, 5, 12): 0.5}
    (found,) = center_head().decode([prediction(1, peaks), prediction(2, {})])
    assert found.boxes[:, 1].tolist() == pytest.approx([5.5 * 0.5 - 6, 12.5 * 0.5 - 6])


def test_center_head_drops_boxes_out_of_range() -> None:
    head = center_head(post_center_range=(-4, -6, -5, 0, 6, 5))
    (found,) = head.decode([prediction(1, {(0, 2, 3): 2.0, (0, 15, 3): 2.0}), prediction(2, {})])
    assert len(found.boxes) == 1
    assert found.boxes[0, 0] < 0


def test_center_head_finds_nothing_in_an_empty_map() -> None:
    (found,) = center_head().decode([prediction(1, {}), prediction(2, {})])
    assert found.boxes.shape == (0, 9)
    assert found.labels.shape == (0,)


def candidates(*boxes: tuple[float, ...], labels: tuple[int, ...] = (0, 0)) -> DecodedBoxes:
    """Boxes x, y, width, length, yaw as of the released checkpoints, the best first."""
    wide = torch.tensor([[x, y, 0.0, width, length, 1.6, yaw, 0, 0] for x, y, width, length, yaw in boxes])
    return DecodedBoxes(wide, torch.tensor([0.9, 0.8]), torch.tensor(labels))


@pytest.mark.parametrize("heading", [0.0, 0.4, math.pi / 4, 2.0, -1.3])
def test_center_head_keeps_two_trucks_side_by_side(heading: float) -> None:
    """Within the radius of their task (3.46 m), but with 0.8 m of air between them."""
    across = 3.3 * math.cos(heading + math.pi / 2), 3.3 * math.sin(heading + math.pi / 2)
    yaw = -heading - math.pi / 2
    trucks = candidates((1, 2, 2.5, 8, yaw), (1 + across[0], 2 + across[1], 2.5, 8, yaw))
    assert center_head(nms_type=("circle", "rotate")).suppress(1, trucks).tolist() == [0, 1]
    # The same cabin found twice, a metre apart along the truck.
    along = math.cos(heading), math.sin(heading)
    twice = candidates((1, 2, 2.5, 8, yaw), (1 + along[0], 2 + along[1], 2.5, 8, yaw), labels=(0, 1))
    assert center_head(nms_type=("circle", "rotate")).suppress(1, twice).tolist() == [0]
    circles = center_head(min_radius=(4, 12))
    assert circles.suppress(1, trucks).tolist() == [0]


def test_center_head_widens_small_boxes_to_find_them_twice() -> None:
    """A pedestrian found again 0.6 m beside himself, farther than the radius of his task (0.42 m)."""
    twice = candidates((0, 0, 0.7, 0.7, 0.3), (0.6, 0, 0.7, 0.7, 0.3))
    scale = {"nms_scale": [[1.0], [2.5, 4.0]], "nms_type": ["circle", "rotate"]}
    assert center_head(**scale).suppress(1, twice).tolist() == [0]
    assert center_head(**{**scale, "nms_scale": None}).suppress(1, twice).tolist() == [0, 1]
    # Each class has its own scale.
    apart = candidates((0, 0, 0.4, 0.4, 0), (1.0, 0, 0.4, 0.4, 0))
    assert center_head(**scale).suppress(1, apart).tolist() == [0, 1]
    cones = apart._replace(labels=torch.tensor([1, 1]))
    assert center_head(**scale).suppress(1, cones).tolist() == [0]
    assert center_head(**scale, nms_threshold=0.3).suppress(1, cones).tolist() == [0, 1]
    assert center_head(**scale, pre_max_size=1).suppress(1, apart).tolist() == [0]
    assert center_head(**scale, nms_limit=1).suppress(1, apart).tolist() == [0]


def test_center_head_decodes_by_the_suppression_of_each_task() -> None:
    """Boxes that are 2 m wide along y, 1.5 m apart there: within the circle, but overlapping little."""
    peaks = {(0, 5, 5): 2.0, (0, 5, 8): 1.0}
    for kind, kept in (("circle", 1), ("rotate", 2)):
        head = center_head(nms_type=(kind, "circle"), min_radius=(3.0, 1.0))
        (found,) = head.decode([prediction(1, peaks), prediction(2, {})])
        assert len(found.boxes) == kept
        closer = {**peaks, (0, 5, 7): 1.5}
        (found,) = head.decode([prediction(1, closer), prediction(2, {})])
        assert found.boxes[:, 1].tolist()[:1] == pytest.approx([5.5 * 0.5 - 6])
        assert len(found.boxes) == kept, "1 m apart they overlap enough"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nms_type": ["circle"]}, r"nms_type: expected for each of 2 tasks.*found \('circle',\)"),
        ({"nms_type": ["circle", "soft"]}, r"one of \('circle', 'rotate'\), found .*soft"),
        ({"nms_scale": [[1.0], [1.0]]}, r"nms_scale: expected one number for each class.*found"),
        ({"min_radius": [1.0]}, r"min_radius: expected 2 numbers, found \(1.0,\)"),
    ],
)
def test_center_head_refuses_a_suppression_that_does_not_fit_its_tasks(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        center_head(**changes)


def test_center_head_decodes_bfloat16_to_the_centimetre() -> None:
    head = CenterHead(8, TASKS, (-54.0, -54.0), (0.6, 0.6), min_radius=(1.0, 1.0))
    shown = [prediction(1, {(0, 2, 3): 2.0}), prediction(2, {})]
    far = [{name: F.pad(maps, (150, 0, 150, 0), value=-9.0) for name, maps in task.items()} for task in shown]
    narrow = [{name: maps.bfloat16() for name, maps in task.items()} for task in far]
    (wanted,), (found,) = head.decode(far), head.decode(narrow)
    assert wanted.boxes[0, :2].tolist() == pytest.approx([152.5 * 0.6 - 54, 153.5 * 0.6 - 54], abs=1e-4)
    torch.testing.assert_close(found.boxes[:, :3], wanted.boxes[:, :3], rtol=0, atol=0.01)


def transfusion_head(**changes: object) -> TransFusionHead:
    torch.manual_seed(0)
    arguments = {
        "num_proposals": 6,
        "hidden_channels": 16,
        "num_heads": 2,
        "ffn_channels": 32,
        "single_cell_classes": (2,),
        **changes,
    }
    return TransFusionHead(8, 3, (-4.0, -6.0), (0.5, 0.5), **arguments).eval()  # type: ignore[arg-type]


def test_transfusion_peaks_are_local_maxima_away_from_the_border() -> None:
    heat = torch.zeros(1, 3, 6, 6)
    heat[0, 0, 2, 2], heat[0, 0, 2, 3], heat[0, 0, 0, 5] = 0.9, 0.8, 0.7
    heat[0, 2, 2, 2], heat[0, 2, 2, 3], heat[0, 2, 0, 5] = 0.6, 0.5, 0.4
    peaks = transfusion_head()._peaks(heat)
    assert peaks[0, 0].nonzero().tolist() == [[2, 2]]
    assert peaks[0, 2].nonzero().tolist() == [[0, 5], [2, 2], [2, 3]]


def test_transfusion_answers_have_one_proposal_per_peak() -> None:
    head = transfusion_head(num_decoder_layers=2)
    with torch.no_grad():
        proposals = head(torch.randn(2, 8, 10, 12))
        boxes = head.decode(proposals)
    assert proposals["center"].shape == (2, 2, 12)
    assert proposals["dense_heatmap"].shape == (2, 3, 10, 12)
    assert proposals["query_labels"].shape == (2, 6)
    assert [found.boxes.shape for found in boxes] == [(6, 9), (6, 9)]
    assert all((found.scores >= 0).all() and (found.scores <= 1).all() for found in boxes)


def test_transfusion_threshold_keeps_better_boxes_only() -> None:
    x = torch.randn(1, 8, 10, 12)
    with torch.no_grad():
        everything = transfusion_head()
        proposals = everything(x)
        (all_boxes,) = everything.decode(proposals)
        limit = float(all_boxes.scores.sort().values[3])
        (kept,) = transfusion_head(score_threshold=limit).decode(proposals)
    assert len(kept.scores) == 2
    assert (kept.scores > limit).all()


def test_transfusion_gradients_reach_every_parameter() -> None:
    head = transfusion_head().train()
    proposals = head(torch.randn(2, 8, 10, 12))
    names = ("center", "height", "dim", "rot", "vel", "heatmap", "dense_heatmap")
    sum(proposals[name].square().sum() for name in names).backward()
    assert [name for name, value in head.named_parameters() if value.grad is None] == []


def narrow_answers(head: TransFusionHead, how: str, x: Tensor) -> dict[str, Tensor]:
    """Answers in bfloat16: of the folded copy, or under autocast."""
    run = FoldedEngine(head, bfloat16=True).module if how == "folded" else head
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return dict(run(x))


@pytest.mark.parametrize("how", ["folded", "autocast"])
def test_transfusion_boxes_in_bfloat16_are_where_they_are_in_float32(how: str) -> None:
    """On the released grid, whose cells beyond the 128th have no middle in bfloat16."""
    torch.manual_seed(0)
    head = TransFusionHead(
        16, 10, (-54.0, -54.0), (0.6, 0.6), hidden_channels=32, num_decoder_layers=2
    ).eval()
    x = torch.randn(1, 16, 180, 180)
    with torch.inference_mode():
        (wanted,) = head.decode(head(x))
        # The answers are a TypedDict; narrowed one by one they are a plain one.
        (found,) = head.decode(narrow_answers(head, how, x))  # type: ignore[arg-type]
    one_class = wanted.labels[:, None] == found.labels[None]
    offsets = (wanted.boxes[:, None, :3] - found.boxes[None, :, :3]).norm(dim=-1)
    nearest = torch.where(one_class, offsets, torch.inf).amin(dim=1)
    assert wanted.boxes[:, :2].max() > 40
    # Which of two equally high peaks is the last to become a box may change.
    assert (nearest < 0.05).float().mean() > 0.95


@pytest.mark.parametrize("how", ["folded", "autocast"])
def test_transfusion_finds_no_more_peaks_in_bfloat16_than_there_are(how: str) -> None:
    """Of a heat map that changes from cell to cell by less than a step of bfloat16."""
    torch.manual_seed(0)
    head = transfusion_head(num_proposals=400, single_cell_classes=())
    x = F.interpolate(torch.randn(1, 8, 8, 8), (64, 64), mode="bicubic")
    with torch.inference_mode():
        wanted = int(head(x)["query_heatmap_score"].amax(dim=1).count_nonzero())
    found = int(narrow_answers(head, how, x)["query_heatmap_score"].amax(dim=1).count_nonzero())
    assert wanted < 400
    assert found == pytest.approx(wanted, rel=0.1)


def test_embeddings_of_neighbouring_cells_differ_in_bfloat16_as_in_float32() -> None:
    torch.manual_seed(0)
    places = torch.cartesian_prod(torch.arange(180) + 0.5, torch.arange(180) + 0.5)[None]
    embed = PositionEmbedding(32).train()
    for part in embed.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 1.0  # as after a training on this map
    with torch.no_grad():
        embed(places)
    wide, narrow = embed.eval(), FoldedEngine(embed, bfloat16=True).module
    row = torch.stack((torch.full((52,), 150.5), torch.arange(128, 180) + 0.5), dim=-1)[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = narrow(row).float().diff(dim=1)[0]
    with torch.inference_mode():
        wanted = wide(row).diff(dim=1)[0]
    assert (found.norm(dim=1) > 0.3 * wanted.norm(dim=1)).all()
    assert (found - wanted).norm() < 0.5 * wanted.norm()


def test_wide_layers_are_not_narrowed_with_their_network() -> None:
    network = nn.Sequential(nn.Conv1d(2, 4, 1), WideConv1d(4, 2, 1))
    before = copy.deepcopy(network[1].state_dict())
    network.to(torch.bfloat16)
    assert network[0].weight.dtype == torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in network[1].state_dict().items())
    assert network(torch.ones(1, 2, 5, dtype=torch.bfloat16)).dtype == torch.float32
    assert network.double()[1].weight.dtype == torch.float64


def test_released_boxes_become_length_width_height_and_standard_yaw() -> None:
    boxes = torch.tensor([[1.0, 2, -1, 1.8, 4.5, 1.6, -math.pi / 2, 3, 4]])
    standard = standard_boxes(boxes, released=True)
    np.testing.assert_allclose(standard.center, [[1, 2, -0.2]], atol=1e-6)
    np.testing.assert_allclose(standard.size, [[4.5, 1.8, 1.6]])
    np.testing.assert_allclose(np.cos(standard.yaw), [1], atol=1e-6)
    np.testing.assert_allclose(standard.velocity, [[3, 4]])


def test_own_boxes_keep_their_order_and_yaw_within_half_turns() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4.5, 1.8, 1.6, 4.0, 0, 0]])
    standard = standard_boxes(boxes, released=False)
    np.testing.assert_allclose(standard.size, [[4.5, 1.8, 1.6]])
    np.testing.assert_allclose(standard.yaw, [4.0 - 2 * np.pi], rtol=1e-5)


def test_grid_transform_samples_cell_centres() -> None:
    scope = [(-4.0, 4.0, 1.0), (-8.0, 8.0, 1.0)]
    finer = [(-4.0, 4.0, 0.5), (-2.0, 2.0, 0.5)]
    x = (torch.arange(8.0) - 3.5).view(1, 1, 8, 1).expand(1, 1, 8, 16)
    y = (torch.arange(16.0) - 7.5).view(1, 1, 1, 16).expand(1, 1, 8, 16)
    sampled = BEVGridTransform(scope, finer)(torch.cat((x, y), dim=1))
    assert sampled.shape == (1, 2, 16, 8)
    torch.testing.assert_close(sampled[0, 0, 1:-1, 0], torch.arange(-3.25, 3.5, 0.5))
    torch.testing.assert_close(sampled[0, 1, 5], torch.arange(-1.75, 2.0, 0.5))


def test_segmentation_head_answers_on_the_output_grid() -> None:
    head = BEVSegmentationHead(8, 6, [(-4.0, 4.0, 1.0)] * 2, [(-3.0, 3.0, 0.5)] * 2, hidden_channels=4)
    logits = head(torch.randn(2, 8, 8, 8))
    assert logits.shape == (2, 6, *head.output_shape) == (2, 6, 12, 12)
    logits.sum().backward()
    assert all(value.grad is not None for value in head.parameters())
