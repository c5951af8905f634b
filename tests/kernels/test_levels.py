# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every instruction set that this machine can run gives what the torch reference gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from kestrel.bench.scan import SENSOR_HEIGHT, street_scan
from kestrel.classes import POINT_CLASSES
from kestrel.errors import ConfigError, InputError
from kestrel.models.kestrel_seg import KestrelSeg
from kestrel.ops import (
    KernelMap,
    int8_is_fast,
    pack_weight,
    pointwise,
    sparse_conv,
    torchsparse_offsets,
)
from kestrel.ops.bev_pool import lift_splat
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.ops.packed_weight import MOST_PRODUCTS
from kestrel.ops.sparse_conv import (
    convolve_int8_reference,
    convolve_reference,
    weight_gradient_reference,
)
from kestrel.pipelines import PointSegmenter
from kestrel.pipelines.runtime import load_network
from kestrel.types import PointCloud
from tests.ops.voxels import random_voxels

native = pytest.importorskip("kestrel_kernels.native", reason="the compiled kernels are not installed")

CHANNELS = [(1, 1), (4, 16), (16, 16), (20, 81), (64, 64), (33, 130), (5, 3)]


@pytest.fixture(params=native.available_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.dispatch_level()
    native.set_dispatch_level(request.param)
    yield request.param
    native.set_dispatch_level(before)


@pytest.fixture(scope="module")
def kernel_map() -> KernelMap:
    return random_voxels(1500, extent=12).submanifold_map(torchsparse_offsets(3))


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def inputs(kernel_map: KernelMap, channels: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    count = kernel_map.gather.shape[1]
    shapes = ((count, channels[0]), (27, *channels), (channels[1],), (count, channels[1]))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_convolution_equals_the_reference(level, kernel_map, channels, dtype, tolerance):
    features, weight, bias, residual = inputs(kernel_map, channels, dtype)
    result = sparse_conv(features, weight, kernel_map, bias=bias, residual=residual, relu=True)
    wide = (tensor.double() for tensor in (features, weight, bias, residual))
    assert relative(result, convolve_reference(*wide, kernel_map.gather, True)) < tolerance


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_gradients_equal_the_reference(level, kernel_map, channels, dtype, tolerance):
    features, weight, _, upstream = inputs(kernel_map, channels, dtype)
    features.requires_grad_()
    weight.requires_grad_()
    sparse_conv(features, weight, kernel_map).backward(upstream)
    wide = upstream.double(), weight.detach().double().transpose(1, 2)
    to_features = convolve_reference(*wide, None, None, kernel_map.scatter, False)
    assert relative(features.grad, to_features) < tolerance
    to_weight = weight_gradient_reference(features.detach().double(), wide[0], kernel_map.gather)
    assert relative(weight.grad, to_weight) < tolerance


def level_cameras(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, LiftSplatIndex]:
    """Two cameras of 21 columns whose rows mostly share a cell, as those of a level camera do."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.randint(-1, 40 * 35, (2, 9, 1, 21), generator=generator).repeat(1, 1, 6, 1)
    moved = torch.rand(cells.shape, generator=generator) < 0.2
    cells = torch.where(moved, torch.randint(-1, 40 * 35, cells.shape, generator=generator), cells)
    depth = torch.rand(2, 9, 6, 21, generator=generator).to(dtype)
    context = torch.randn(2, channels, 6, 21, generator=generator).to(dtype)
    return depth, context, LiftSplatIndex.build(cells, 1, (40, 35, 1))


@pytest.mark.parametrize("channels", [1, 12, 33, 80, 130])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lift_splat_and_its_gradients_equal_the_reference(level, channels, dtype, tolerance, memory_format):
    depth, context, index = level_cameras(channels, dtype)
    upstream = torch.randn(1, channels, 40, 35, generator=torch.Generator().manual_seed(3)).to(dtype)
    results = []
    for wide in (False, True):
        leaves = [
            (each.double() if wide else each).to(memory_format=memory_format).requires_grad_()
            for each in (depth, context)
        ]
        out = lift_splat(*leaves, index)
        results.append((out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))))
    assert results[0][0].dtype == dtype
    assert all(relative(a, b) < tolerance for a, b in zip(*results, strict=True))


def test_lift_splat_and_its_index_do_not_depend_on_the_number_of_threads(level):
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            depth, context, index = level_cameras(24, torch.float32)
            leaves = depth.requires_grad_(), context.requires_grad_()
            out = lift_splat(*leaves, index)
            gradients = torch.autograd.grad(out, leaves, out.detach().cos())
            results.append(
                (out, *gradients, index.runs, index.row_start, index.by_column, index.column_start)
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_is_passed_on_and_not_clipped_away(level, kernel_map):
    features, weight, *_ = inputs(kernel_map, (16, 16), torch.float32)
    features[7, 3] = float("nan")
    result = sparse_conv(features, weight, kernel_map, relu=True)
    touched = (kernel_map.gather == 7).any(0)
    assert torch.equal(result.isnan().any(1), touched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_number_of_threads(level, kernel_map, dtype):
    features, weight, bias, upstream = inputs(kernel_map, (48, 40), dtype)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            leaves = features.clone().requires_grad_(), weight.clone().requires_grad_()
            out = sparse_conv(*leaves, kernel_map, bias=bias)
            results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def dispatch_in_new_process(value: str | None, code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "KESTREL_DISPATCH"}
    if value is not None:
        environment["KESTREL_DISPATCH"] = value
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


PRINT_LEVEL = "from kestrel.ops import dispatch_level; print(dispatch_level())"


@pytest.mark.parametrize("value", ["portable", "torch"])
def test_the_environment_forces_a_level(value):
    done = dispatch_in_new_process(value, PRINT_LEVEL)
    assert (done.returncode, done.stdout.strip()) == (0, value), done.stderr


def test_a_level_that_does_not_exist_is_refused_by_name():
    done = dispatch_in_new_process("avx1024", PRINT_LEVEL)
    assert done.returncode != 0
    assert "KESTREL_DISPATCH" in done.stderr
    assert "avx1024" in done.stderr


def test_without_compiled_kernels_one_log_line_says_so_and_torch_runs():
    code = f"import sys; sys.modules['kestrel_kernels.native'] = None; {PRINT_LEVEL}"
    done = dispatch_in_new_process(None, code)
    assert (done.returncode, done.stdout.strip()) == (0, "torch"), done.stderr
    assert done.stderr.count("compiled kernels are not installed") == 1


def test_kernels_of_another_interface_are_not_used():
    code = f"import kestrel_kernels.native as native; native.interface_version = -1; {PRINT_LEVEL}"
    done = dispatch_in_new_process(None, code)
    assert (done.returncode, done.stdout.strip()) == (0, "torch"), done.stderr
    assert "interface -1" in done.stderr


def test_packed_matrices_give_the_same_bits_and_are_refused_where_they_cannot_be_read(level, kernel_map):
    features, weight, bias, _ = inputs(kernel_map, (20, 36), torch.bfloat16)
    expected = sparse_conv(features, weight, kernel_map, bias=bias)
    packed, single = pack_weight(weight), pack_weight(weight[0])
    with torch.no_grad():
        assert torch.equal(sparse_conv(features, packed, kernel_map, bias=bias), expected)
        assert torch.equal(pointwise(features, single, bias=bias), pointwise(features, weight[0], bias=bias))
        for other, rows in ((replace(packed, level="another"), features), (packed, features.float())):
            with pytest.raises(InputError, match=f"packed weight: .*{other.level}.*{rows.dtype}.*{level}"):
                sparse_conv(rows, other, kernel_map)
        with pytest.raises(InputError, match=r"packed weight: .*another"):
            pointwise(features, replace(single, level="another"))
    with pytest.raises(InputError, match=r"packed weight: .*no gradients.* found .* gradients"):
        sparse_conv(features, packed, kernel_map)


BYTE_LEVELS = [
    name for name in native.available_levels() if name in ("amx_bf16", "avx512_bf16", "avx512_vnni")
]


@pytest.fixture(params=BYTE_LEVELS)
def byte_level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.dispatch_level()
    native.set_dispatch_level(request.param)
    yield request.param
    native.set_dispatch_level(before)


def test_the_levels_that_multiply_bytes_are_those_with_the_instruction(level):
    assert int8_is_fast() == (level in BYTE_LEVELS)


@pytest.mark.parametrize("channels", [(16, 16), (20, 81), (64, 64), (36, 130), (96, 5)])
@pytest.mark.parametrize("relu", [True, False])
def test_bytes_give_what_their_reference_gives(byte_level, kernel_map, channels, relu):
    _, weight, bias, residual = inputs(kernel_map, channels, torch.float32)
    # In whole steps, of which none lies between two bytes.
    count = kernel_map.gather.shape[1]
    steps = torch.randint(0, 256, (count, channels[0]), generator=torch.Generator().manual_seed(4))
    steps[0, 0] = 255
    features = steps * 0.03125
    with torch.no_grad():
        result = sparse_conv(
            features,
            pack_weight(weight, int8=True),
            kernel_map,
            bias=bias,
            residual=residual,
            relu=relu,
        )
    expected = convolve_int8_reference(features, weight, bias, residual, kernel_map.gather, relu)
    assert relative(result, expected) < 1e-6
    exact = convolve_reference(features, weight, bias, residual, kernel_map.gather, relu)
    assert 1e-6 < relative(result, exact) < 1e-2


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_features_that_no_byte_stands_for_are_multiplied_as_floats(byte_level, kernel_map, value):
    features, weight, *_ = inputs(kernel_map, (32, 16), torch.float32)
    features = features.abs()
    features[17, 30] = value
    with torch.no_grad():
        as_bytes = sparse_conv(features, pack_weight(weight, int8=True), kernel_map)
        as_floats = sparse_conv(features, pack_weight(weight), kernel_map)
    assert torch.equal(as_bytes.nan_to_num(), as_floats.nan_to_num())
    assert torch.equal(as_bytes.isnan(), as_floats.isnan())


def test_zeros_in_bytes_give_the_bias_and_the_largest_sum_fits(byte_level, kernel_map):
    _, weight, bias, _ = inputs(kernel_map, (32, 16), torch.float32)
    nothing = torch.zeros(kernel_map.gather.shape[1], 32)
    with torch.no_grad():
        result = sparse_conv(nothing, pack_weight(weight, int8=True), kernel_map, bias=bias)
        assert torch.equal(result, bias.expand_as(result))
        deep, here = MOST_PRODUCTS // 4 * 4, torch.zeros(1, 1, dtype=torch.int32)
        ones, one = torch.ones(1, deep), KernelMap(here, here)
        largest = sparse_conv(ones, pack_weight(torch.ones(1, deep, 1), int8=True), one)
    assert float(largest) == pytest.approx(deep, rel=1e-6)
    assert pack_weight(torch.ones(1, deep + 4, 1), int8=True).int8 is None


def test_bytes_do_not_depend_on_the_number_of_threads(byte_level, kernel_map):
    features, weight, bias, _ = inputs(kernel_map, (48, 40), torch.float32)
    packed, results, threads = pack_weight(weight, int8=True), [], torch.get_num_threads()
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append(sparse_conv(features.abs(), packed, kernel_map, bias=bias))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("channels", [(12, 16), (18, 16)], ids=["few", "no multiple of four"])
def test_other_numbers_of_channels_are_not_packed_as_bytes(byte_level, channels):
    assert pack_weight(torch.randn(27, *channels), int8=True).int8 is None


def test_int8_labels_the_points_ahead_in_a_scan_as_single_precision_does(byte_level):
    exact, quick = PointSegmenter(precision="float32"), PointSegmenter(precision="int8")
    assert (exact.precision, quick.precision, PointSegmenter().precision) == ("float32", "int8", "int8")
    points = street_scan() + torch.tensor([0, 0, SENSOR_HEIGHT, 0])
    cloud = PointCloud(points[points[:, 0] > 0].numpy(), 0, "base_link")
    single, bytes_ = exact.segment(cloud), quick.segment(cloud)
    assert (single.probability != bytes_.probability).any(), "something else was multiplied"
    assert (single.label == bytes_.label).mean() >= 0.995


def test_int8_where_no_byte_is_multiplied_is_refused_and_auto_does_without(level):
    if level not in BYTE_LEVELS:
        with pytest.raises(ConfigError, match=f"int8: .*VNNI.*{level}"):
            PointSegmenter(precision="int8")
    assert PointSegmenter().precision == ("int8" if level in BYTE_LEVELS else "float32")


def test_bfloat16_labels_the_points_ahead_in_a_scan_as_single_precision_does(level):
    network, narrow = (load_network(KestrelSeg, "kestrel-seg", POINT_CLASSES)[0] for _ in range(2))
    narrow = narrow.network.bfloat16()
    points = street_scan() + torch.tensor([0, 0, SENSOR_HEIGHT, 0])
    points = points[network.inside(points) & (points[:, 0] > 0)]
    positions = torch.nn.functional.pad(points[:, :3] / network.config.voxel_size, (1, 0))
    features = points * network.scale
    with torch.inference_mode():
        single = network.network(positions, features)
        half = narrow(positions, features.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative(half, single) < 1e-2
    commonest = single.argmax(1).bincount().max() / len(points)
    assert commonest < 0.7, "points of one class would agree however narrow the arithmetic"
    assert float((half.argmax(1) == single.argmax(1)).float().mean()) >= 0.995
