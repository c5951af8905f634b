# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: what it says, what it leaves alone, and what it would run on a GPU that is not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kestrel import engine as engines
from kestrel.engine import engine_on, has_onnxruntime, make_engine
from kestrel.errors import InputError, SetupError
from tests.second_device import SECOND, SecondTensor

if not has_onnxruntime():
    pytest.skip("the extra onnxruntime is not installed", allow_module_level=True)

from kestrel.engine import onnxruntime
from kestrel.engine.onnxruntime import (
    CPU_PROVIDER,
    GPU_PROVIDERS,
    TENSORRT,
    OnnxRuntimeEngine,
    engine_folder,
    provider_settings,
    providers_on,
)

CPU = torch.device("cpu")
CUDA_PROVIDER = GPU_PROVIDERS[1]


class Two(nn.Module):
    """Two inputs, and more kinds of outputs than a network has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.conv(x) + shift, x, x > 0


def pictures(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, 6, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(batch, 1, 1, 1, generator=generator)


@pytest.fixture(scope="module")
def made() -> OnnxRuntimeEngine:
    torch.manual_seed(1)
    return OnnxRuntimeEngine(Two().eval(), pictures(2), dynamic_batch=True)


def test_outputs_outlive_later_calls_and_the_engine() -> None:
    module = Two().eval()
    engine = OnnxRuntimeEngine(module, pictures(2))
    first = engine(*pictures(2))
    with torch.no_grad():
        wanted = module(*pictures(2))
    engine(*(each + 1 for each in pictures(2)))
    del engine
    for found, expected in zip(first, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x, shift: (x, shift[:1]), r"float32 \[2,3,6,7\] on cpu', 'float32 \[1,1,1,1\] on cpu"),
        (lambda x, shift: (x.double(), shift), r"float64 \[2,3,6,7\] on cpu"),
        (lambda x, shift: (x,), r"\['float32 \[2,3,6,7\] on cpu'\]"),
        (lambda x, shift: (SecondTensor(x), shift), r"float32 \[2,3,6,7\] on cuda:0"),
    ],
)
def test_inputs_that_would_be_misread_are_refused(made: OnnxRuntimeEngine, change, found: str) -> None:
    with pytest.raises(InputError, match=rf"expected \['float32 \[\?,3,6,7\] on cpu'.*found .*{found}"):
        made(*change(*pictures(2)))


def test_on_the_cpu_bfloat16_changes_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = pictures(2)[0]
    exact, allowed = (OnnxRuntimeEngine(module, (x,), bfloat16=bfloat16)(x)[0] for bfloat16 in (False, True))
    assert torch.equal(exact, allowed)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_its_libraries_the_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == missing else name)
    assert not has_onnxruntime()
    with pytest.raises(SetupError, match=r"expected the extra `onnxruntime` \(`make setup EXTRAS=onnxr"):
        make_engine(nn.ReLU(), pictures(1)[:1], "onnxruntime")


def test_a_damaged_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_onnxruntime", lambda: True)
    monkeypatch.delitem(sys.modules, "kestrel.engine.onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError, match="engine onnxruntime: expected an ONNX Runtime that can be imported"):
        make_engine(nn.ReLU(), pictures(1)[:1], "onnxruntime")


def test_nothing_is_reported_to_its_maker(tmp_path: Path) -> None:
    script = (
        "import torch\n"
        "from kestrel.engine.onnxruntime import OnnxRuntimeEngine\n"
        "OnnxRuntimeEngine(torch.nn.ReLU(), (torch.ones(1, 2),))(torch.ones(1, 2))\n"
    )
    # Without what else would silence it, such as CI.
    subprocess.run([sys.executable, "-c", script], env={"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*")), "the name of this machine that it would report"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([TENSORRT, CUDA_PROVIDER, CPU_PROVIDER], [TENSORRT, CUDA_PROVIDER]),
        ([CPU_PROVIDER, CUDA_PROVIDER, TENSORRT], [TENSORRT, CUDA_PROVIDER]),
        ([CUDA_PROVIDER, CPU_PROVIDER], [CUDA_PROVIDER]),
    ],
)
def test_on_a_gpu_tensorrt_comes_first_and_the_cpu_never(there: list[str], expected: list[str]) -> None:
    assert providers_on(SECOND, there) == expected
    assert providers_on(CPU, there) == [CPU_PROVIDER]


@pytest.mark.parametrize("there", [[], [CPU_PROVIDER], ["AzureExecutionProvider", CPU_PROVIDER]])
def test_a_gpu_without_a_provider_is_refused(there: list[str]) -> None:
    expected = r"engine onnxruntime on cuda:0: expected TensorrtExecutionProvider or CUDA.*-gpu.*, found \["
    with pytest.raises(SetupError, match=expected):
        providers_on(SECOND, there)


def test_providers_run_on_the_gpu_that_was_asked_for_and_only_tensorrt_narrows_and_keeps(
    tmp_path: Path,
) -> None:
    second = torch.device("cuda:1")
    assert provider_settings(CUDA_PROVIDER, second, bfloat16=True, cache=tmp_path) == {"device_id": 1}
    assert provider_settings(TENSORRT, second, bfloat16=True, cache=tmp_path) == {
        "device_id": 1,
        "trt_bf16_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(tmp_path),
    }
    nowhere = provider_settings(TENSORRT, second, bfloat16=False, cache=None)
    assert nowhere == {"device_id": 1, "trt_bf16_enable": False}
    assert provider_settings(CPU_PROVIDER, CPU, bfloat16=True, cache=None) == {}


def test_what_tensorrt_builds_is_kept_by_model_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "CACHE", tmp_path / "cache")
    chosen = (b"model", False), (b"model", True), (b"other weights", False)
    folders = [engine_folder(model, bfloat16=bfloat16) for model, bfloat16 in chosen]
    assert len(set(folders)) == 3
    assert all(folder is not None and folder.is_dir() for folder in folders)
    assert engine_folder(b"model", bfloat16=False) == folders[0]
    (tmp_path / "file").touch()
    monkeypatch.setattr(onnxruntime, "CACHE", tmp_path / "file")
    assert engine_folder(b"model", bfloat16=False) is None


def test_a_model_is_exported_to_the_same_bytes_each_time() -> None:
    torch.manual_seed(1)
    module = Two().eval()
    first, again = (onnxruntime.exported(module, pictures(2), dynamic_batch=True) for _ in range(2))
    assert first == again, "or TensorRT would build it at every start"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_whose_libraries_are_missing_is_refused_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engine_on(SECOND, "onnxruntime") == "onnxruntime"
    examples = tuple(SecondTensor(each) for each in pictures(2))
    refused = r"engine onnxruntime on cuda:0: expected Tensorrt.*, found \[.*'CPUExecutionProvider'"
    with pytest.raises(SetupError, match=refused):
        make_engine(Two().eval(), examples, "onnxruntime")
    # As a GPU's build without CUDA says, of which the session then has none.
    both = [CUDA_PROVIDER, CPU_PROVIDER]
    monkeypatch.setattr(onnxruntime.onnxruntime, "get_available_providers", lambda: both)
    with pytest.warns(UserWarning, match=CUDA_PROVIDER), pytest.raises(SetupError, match=refused):
        make_engine(Two().eval(), examples, "onnxruntime")
