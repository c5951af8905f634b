# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which device a word means, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kestrel.engine import has_onnxruntime
from kestrel.engine.device import chosen_device, gpu_failure
from kestrel.errors import ConfigError, ModelError, SetupError
from kestrel.pipelines import Augmenter, BEVFusionDetector, FusionDetector, PointSegmenter, VideoUnderstanding
from tests.models.test_bevfusion import small_config
from tests.pipelines.conftest import make_frame
from tests.pipelines.test_bevfusion import classes_of
from tests.second_device import second_device

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

PIPELINES: dict[str, Callable[..., Any]] = {
    "video": VideoUnderstanding,
    "segmentation": PointSegmenter,
    "fusion": FusionDetector,
    "augment": Augmenter,
    "bevfusion": lambda **options: BEVFusionDetector.untrained(
        small_config("seg", "lidar"), classes_of("seg", "lidar"), **options
    ),
}


@no_gpu
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused_with_the_reason() -> None:
    assert chosen_device("auto") == chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(
        ConfigError, match=r"device: expected cuda, a GPU that this torch can use, found torch"
    ):
        chosen_device("cuda")


@no_gpu
def test_auto_and_cuda_are_the_first_gpu_where_there_is_one() -> None:
    with second_device():
        assert chosen_device("auto") == chosen_device("cuda") == torch.device("cuda", 0)
        assert chosen_device("cuda:0") == torch.device("cuda", 0)
        assert chosen_device("cpu") == torch.device("cpu")
        with pytest.raises(ConfigError, match=r"expected cuda:1, a GPU .*, found 1 GPUs that torch .* finds"):
            chosen_device("cuda:1")


@no_gpu
def test_a_gpu_that_cannot_add_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution\nmore")

    with second_device():
        monkeypatch.setattr(torch, "ones", old)
        assert chosen_device("auto") == torch.device("cpu")
        with pytest.raises(
            ConfigError, match=r"found AcceleratorError: CUDA error: no kernel image is .*tion$"
        ):
            chosen_device("cuda")


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:one", "cuda0", "cuda:-1", "", "CPU", "mps"])
def test_another_word_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"device: expected cpu, cuda, cuda:N or auto, found '{word}'"):
        chosen_device(word)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_refuses_a_gpu_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device: expected cuda:99, a GPU that this torch can use, found"):
        PIPELINES[name](device="cuda:99")


@no_gpu
@pytest.mark.parametrize("name", ["fusion", "bevfusion"])
@pytest.mark.parametrize("engine", ["openvino", "compiled"])
def test_engines_of_the_cpu_are_refused_on_a_gpu(name: str, engine: str) -> None:
    with second_device(), pytest.raises(ConfigError, match=rf"engine: .* on a GPU, found {engine} on cuda:0"):
        PIPELINES[name](device="cuda", engine=engine)


@no_gpu
@pytest.mark.skipif(not has_onnxruntime(), reason="the extra onnxruntime is not installed")
@pytest.mark.parametrize("name", ["fusion", "bevfusion"])
def test_onnxruntime_for_the_cpu_is_refused_on_a_gpu_at_the_first_frame(name: str) -> None:
    with second_device():
        detector = PIPELINES[name](device="cuda", engine="onnxruntime")
        with pytest.raises(SetupError, match=r"expected TensorrtExecutionProvider or .*, found .*CPUExec"):
            detector.detect(make_frame())


@no_gpu
@pytest.mark.parametrize("name", ["fusion", "bevfusion", "segmentation"])
def test_int8_is_refused_on_a_gpu_and_bfloat16_on_one_that_has_none(name: str) -> None:
    with second_device():
        with pytest.raises(ConfigError, match=r"precision: .*on this GPU, found int8 on cuda:0"):
            PIPELINES[name](device="cuda", precision="int8")
        assert PIPELINES[name](device="cuda").precision == "float32"
        if name != "segmentation":
            with pytest.raises(ConfigError, match=r"precision: .*on this GPU, found bfloat16 on cuda:0"):
                PIPELINES[name](device="cuda", precision="bfloat16")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "OutOfMemoryError: CUDA out of memory."),
        (torch.AcceleratorError("device lost"), "AcceleratorError: device lost"),
        (RuntimeError("cuDNN error: NOT_SUPPORTED"), "RuntimeError: cuDNN error: NOT_SUPPORTED"),
        (RuntimeError("TensorRT EP failed\nmore"), "RuntimeError: TensorRT EP failed"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("too few points"), None),
        (ModelError("output on cuda:0: expected finite values, found NaN"), None),
    ],
)
def test_failures_of_a_gpu_are_told_from_other_errors(error: Exception, failure: str | None) -> None:
    assert gpu_failure(error) == failure
