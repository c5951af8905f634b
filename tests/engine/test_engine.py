# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every engine answers like the module it was made from, and leaves that alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kestrel import engine as engines
from kestrel.engine import EngineName, as_tuple, has_onnxruntime, has_openvino, make_engine
from kestrel.engine.folded import FoldedEngine, Int8Conv2d, WinogradConv2d, fold
from kestrel.engine.packed import PackedLayer, has_packed_layers
from kestrel.errors import ConfigError, InputError, SetupError
from kestrel.models.resnet import ResNet
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.nn.bev_decoder import SECOND, SECONDFPN, ConvFuser
from kestrel.ops import int8_is_fast
from kestrel.ops.axis_sampling import sample_axes, sample_axes_reference
from kestrel.ops.backend import NATIVE

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="the extra openvino is not installed")
needs_onnxruntime = pytest.mark.skipif(not has_onnxruntime(), reason="the extra onnxruntime is not installed")
OPENVINO = pytest.param("openvino", marks=needs_openvino)
ONNX_RUNTIME = pytest.param("onnxruntime", marks=needs_onnxruntime)
NAMES = ["eager", "folded", OPENVINO, ONNX_RUNTIME, "auto"]


@needs_openvino
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """It writes who it is into the home folder before it reports."""
    code = (
        "import torch; from kestrel.engine import make_engine\n"
        "make_engine(torch.nn.Conv2d(3, 4, 3).eval(), [torch.rand(1, 3, 8, 8)], 'openvino')"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*ga_cid*"))


def test_what_openvino_reports_with_is_not_found() -> None:
    code = "import kestrel.engine, sys; sys.exit(sys.modules['openvino_telemetry'] is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Decoder(nn.Module):
    """Convolutions of all kinds, two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fuser = ConvFuser((16, 20), 24)
        self.backbone = SECOND(24, (16, 32), (2, 1), (1, 2))
        self.neck = SECONDFPN((16, 32), (16, 16), (1, 2))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bev = self.neck(self.backbone(self.fuser([first, second])))
        return bev, bev.mean(1)


def trained(module: nn.Module) -> nn.Module:
    """Return the module with running statistics as after a training."""
    generator = torch.Generator().manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return module.eval()


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    torch.manual_seed(1)
    return trained(Decoder())


def maps(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return (
        torch.randn(batch, 16, 20, 12, generator=generator),
        torch.randn(batch, 20, 20, 12, generator=generator),
    )


@pytest.mark.parametrize("name", NAMES)
def test_answers_like_the_module(name: EngineName, decoder: nn.Module) -> None:
    made = make_engine(decoder, maps(), name)
    for inputs in (maps(), tuple(2 * each for each in maps())):
        with torch.no_grad():
            for found, wanted in zip(made(*inputs), decoder(*inputs), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_samples_may_change(name: EngineName, decoder: nn.Module) -> None:
    made = make_engine(decoder, maps(2), name, dynamic_batch=True)
    with torch.no_grad():
        for batch in (2, 1, 3):
            torch.testing.assert_close(made(*maps(batch))[0], decoder(*maps(batch))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_made_for_one_sample_takes_several_in_inference_mode(
    name: EngineName, decoder: nn.Module
) -> None:
    with torch.inference_mode():
        made = make_engine(decoder, maps(1), name, dynamic_batch=True)
        for batch in (1, 3):
            torch.testing.assert_close(made(*maps(batch))[0], decoder(*maps(batch))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["folded", OPENVINO, ONNX_RUNTIME])
def test_bfloat16_stays_close(name: EngineName, decoder: nn.Module) -> None:
    made = make_engine(decoder, maps(), name, bfloat16=True)
    with torch.no_grad():
        found, wanted = made(*maps())[0].float(), decoder(*maps())[0]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_module_is_left_alone(decoder: nn.Module) -> None:
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    folded = fold(decoder, winograd=True)
    assert any(isinstance(part, WinogradConv2d) for part in folded.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())


def test_grids_are_sampled_by_the_operator_in_the_copy_alone() -> None:
    module = AxisSampler(torch.linspace(-2, 2, 9), 2.5, (4, 6))
    folded = fold(module, winograd=True)
    assert (module.sample, folded.sample) == (sample_axes_reference, sample_axes)
    grids = torch.randn(1, 3, 4, 4), torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(folded(*grids), module(*grids))


@pytest.mark.skipif(not has_packed_layers(torch.float32), reason="torch without oneDNN")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 24, 3),
        nn.Conv2d(8, 24, 3, stride=2, padding=1),
        nn.Conv2d(8, 24, 3, groups=8),
        nn.Conv2d(8, 24, 3, padding=2, dilation=2, bias=False),
        nn.ConvTranspose2d(8, 24, 2, stride=2),
        nn.ConvTranspose2d(8, 24, 3, stride=2, padding=1, output_padding=1, bias=False),
    ],
)
def test_packed_convolutions_answer_like_plain_ones(
    layer: nn.Conv2d | nn.ConvTranspose2d, activation: type[nn.Module]
) -> None:
    module = nn.Sequential(layer, activation(), nn.Conv2d(24, 5, 1)).eval()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        if not has_packed_layers(dtype):
            continue
        folded = fold(module, winograd=dtype == torch.float32, packed=True, dtype=dtype)
        assert [type(part) for part in folded] == [PackedLayer, nn.Identity, PackedLayer]
        for batch in (1, 3):  # 9 times as large, so that a ReLU6 has to cut off
            x = 9 * torch.randn(batch, 8, 11, 14, generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                found, wanted = folded(x), module(x)
            assert (found.dtype, found.shape) == (dtype, wanted.shape)
            assert float((found.float() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.skipif(not has_packed_layers(torch.bfloat16), reason="no bfloat16 in oneDNN")
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU()])
def test_packed_products_answer_like_plain_ones(activation: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 48), activation, nn.Linear(48, 8)).eval()
    folded = fold(module, winograd=False, packed=True, dtype=torch.bfloat16)
    assert [type(part) for part in folded] == [PackedLayer, nn.Identity, PackedLayer]
    x = 3 * torch.randn(5, 7, 24)
    with torch.no_grad():
        found, wanted = folded(x).float(), module(x)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


class Attention(nn.Module):
    """Products of all kinds that autocast narrows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(6, 32, 1)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).transpose(1, 2)
        tokens = self.norm(tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0])
        answer: torch.Tensor = self.feed(tokens)
        return answer


def test_in_bfloat16_no_weight_is_rounded_or_packed_again(decoder: nn.Module) -> None:
    torch.manual_seed(3)
    for module, given in ((decoder, maps()), (trained(Attention()), (torch.randn(2, 6, 10),))):
        run = FoldedEngine(module, bfloat16=True)
        with torch.no_grad():
            wanted = as_tuple(module(*given))[0]
            found = run(*given)[0]
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
            ) as seen:
                run(*given)
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.02
        weights = {tuple(value.shape) for value in module.parameters() if value.ndim > 1}
        events = seen.events()
        assert events
        for event in events:
            shapes = {tuple(shape) for shape in event.input_shapes}
            assert event.name not in ("aten::_to_copy", "aten::copy_") or not weights & shapes, event


@pytest.mark.parametrize("winograd", [False, True])
def test_bottlenecks_are_folded_in_the_order_they_run_in(winograd: bool) -> None:
    torch.manual_seed(3)
    network = trained(ResNet((1, 2), 5, width=16))
    x = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        folded = fold(network, winograd=winograd, packed=not winograd)
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)


def test_without_openvino_torch_runs_and_one_line_says_so(
    decoder: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    with caplog.at_level(logging.INFO, "kestrel.engine"):
        assert make_engine(decoder, maps()).name == "folded"
    assert [record.getMessage() for record in caplog.records] == [
        "openvino is not installed: Decoder runs in torch"
    ]
    with pytest.raises(SetupError, match=r"expected the extra `openvino` \(`make setup EXTRAS=openvino`"):
        make_engine(decoder, maps(), "openvino")


def test_a_damaged_openvino_is_done_without_unless_it_was_asked_for(
    decoder: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    monkeypatch.delitem(sys.modules, "kestrel.engine.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert make_engine(decoder, maps()).name == "folded"
    assert "Decoder runs without it: engine openvino: expected an OpenVINO that can be" in caplog.text
    with pytest.raises(SetupError, match="engine openvino: expected an OpenVINO that can be imported"):
        make_engine(decoder, maps(), "openvino")


@pytest.mark.parametrize("name", [OPENVINO, ONNX_RUNTIME])
def test_sizes_that_a_model_was_not_made_for_are_named(name: EngineName, decoder: nn.Module) -> None:
    library = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}[name]
    narrow = tuple(each[..., :8] for each in maps())
    for dynamic, wrong in ((False, maps(2)), (True, narrow)):
        made = make_engine(decoder, maps(), name, dynamic_batch=dynamic)
        with pytest.raises(InputError, match=rf"inputs of an {library} model: expected .*16,20,12\]"):
            made(*wrong)
        made(*maps())


@pytest.mark.skipif(NATIVE is None, reason="compiled kernels are not installed")
def test_auto_takes_the_fastest(decoder: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    made = {"folded": engines.EagerEngine(decoder), "openvino": engines.EagerEngine(decoder)}
    seconds = iter((0.2, 0.1))
    monkeypatch.setattr(engines, "best_seconds", lambda run: next(seconds))
    monkeypatch.setattr(engines, "make_engine", lambda module, examples, name, **options: made[name])
    options = {"bfloat16": False, "dynamic_batch": False, "dynamic_int8": ()}
    assert engines._fastest(decoder, maps(), **options) is made["openvino"]


needs_int8 = pytest.mark.skipif(not int8_is_fast(), reason="the processor multiplies no bytes")


@needs_int8
def test_bytes_that_are_quantized_on_their_way_stay_close(decoder: nn.Module) -> None:
    engine = make_engine(decoder, maps(), "folded", dynamic_int8=("backbone",))
    assert isinstance(engine, FoldedEngine)
    convolutions = {
        path: part for path, part in engine.module.named_modules() if isinstance(part, Int8Conv2d)
    }
    assert {part.stride for part in convolutions.values()} == {1, 2}
    assert all(path.startswith("backbone.") for path in convolutions), "and the fuser stays as it was"
    with torch.inference_mode():
        for answer, expected in zip(engine(*maps()), as_tuple(decoder(*maps())), strict=True):
            difference = (answer - expected).norm() / expected.norm()
            assert 1e-5 < difference < 0.05


@needs_int8
def test_inputs_that_no_byte_stands_for_are_convolved_as_floats() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU()).eval()
    engine = FoldedEngine(module, dynamic_int8=("",))
    x = torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(engine(x)[0], module(x), rtol=1e-5, atol=1e-5)
        assert not torch.equal(engine(x.abs())[0], module(x.abs()))


@needs_int8
@pytest.mark.parametrize("options", [{"bfloat16": True}, {"compiled": True}])
def test_bytes_are_not_mixed_with_bfloat16_or_a_compiler(options: dict[str, bool]) -> None:
    module = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval()
    for given, count in ((options, 0), ({}, 1)):
        engine = FoldedEngine(module, dynamic_int8=("",), **given)
        assert sum(isinstance(part, Int8Conv2d) for part in engine.module.modules()) == count


def test_a_relu6_behind_a_convolution_keeps_it_in_floats() -> None:
    module = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU6()).eval()
    engine = FoldedEngine(module, dynamic_int8=("",))
    assert not any(isinstance(part, Int8Conv2d) for part in engine.module.modules())


def test_instance_normalisation_keeps_channels_last_and_its_answer() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True)).eval()
    nn.init.normal_(module[1].weight)  # type: ignore[arg-type]
    nn.init.normal_(module[1].bias)  # type: ignore[arg-type]
    x = (3 + 2 * torch.randn(2, 4, 9, 7)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        (found,) = make_engine(module, (x,), "folded")(x)
        torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_an_engine_that_does_not_exist_is_refused_with_the_names_of_all(decoder: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"engine: expected one of .*'folded'.*, found onnx"):
        make_engine(decoder, maps(), "onnx")  # type: ignore[arg-type]
