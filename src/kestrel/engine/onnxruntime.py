# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime behind the engine's interface; imported only where it is installed.

On an NVIDIA GPU it is the way to TensorRT. That was never run: there was no GPU to run it on.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from kestrel.errors import InputError, SetupError, describe, extra

# From 1.29 on ONNX Runtime reports to its maker what it runs, unless it is told not to before it is loaded. A
# user's own choice stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

CPU_PROVIDER: Final = "CPUExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
GPU_PROVIDERS: Final = (TENSORRT, "CUDAExecutionProvider")
"""What runs networks on a GPU; what the first cannot run is left to the second."""

CACHE: Final = Path("~", ".cache", "kestrel", "tensorrt")
"""Where TensorRT keeps what it took minutes to build."""


class OnnxRuntimeEngine:
    """A module compiled for the CPU, for one request at a time on as many threads as torch has, or for a GPU.

    Args:
        module: in evaluation mode; exported with ``examples``.
        examples: inputs of the sizes and types, and on the device, that will come.
        bfloat16: allow bfloat16 arithmetic, which of the providers TensorRT alone has: on the CPU it stays
            float32.
        dynamic_batch: whether the size of the first dimension, which all inputs share, changes from call to
            call.

    Raises:
        SetupError: the examples are on a GPU that this ONNX Runtime cannot use.
    """

    name = "onnxruntime"

    def __init__(
        self,
        module: nn.Module,
        examples: Sequence[Tensor],
        *,
        bfloat16: bool = False,
        dynamic_batch: bool = False,
    ) -> None:
        self.device = examples[0].device
        self._dynamic = dynamic_batch
        self._expected = [_described(each, any_batch=dynamic_batch) for each in examples]
        names = providers_on(self.device, onnxruntime.get_available_providers())
        model = exported(module, examples, dynamic_batch=dynamic_batch)
        folder = engine_folder(model, bfloat16=bfloat16) if TENSORRT in names else None
        settings = [provider_settings(name, self.device, bfloat16=bfloat16, cache=folder) for name in names]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while there is nothing to do take the cores from other nodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Its own pool of memory takes three times what is needed; pipelines keep what is freed anyway.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(model, options, names, settings, enable_fallback=0)
        # A provider whose own libraries are missing is left out without an error.
        self.providers = providers_on(self.device, self._session.get_providers())
        self._inputs = [
            (name, torch.empty(0, dtype=each.dtype).numpy().dtype.type)
            for name, each in zip(_input_names(examples), examples, strict=True)
        ]
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's outputs.

        Raises:
            InputError: inputs of other sizes or types than the model was made for, or on another device.
        """
        self._check(inputs)
        place = self.device.type, self.device.index or 0
        given = [each.detach().contiguous() for each in inputs]
        binding = self._session.io_binding()
        for (name, dtype), each in zip(self._inputs, given, strict=True):
            binding.bind_input(name, *place, dtype, tuple(each.shape), each.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, *place)
        if self.device.type != "cpu":
            # ONNX Runtime has a stream of its own. What torch still has to write is read there, and memory
            # of earlier outputs, which torch may still have to read, is written to.
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return tuple(from_dlpack(value) for value in binding.get_outputs())

    def _check(self, inputs: Sequence[Tensor]) -> None:
        # Addresses are handed over, so that nothing else would notice.
        found = [_described(each, any_batch=self._dynamic) for each in inputs]
        if found != self._expected or (self._dynamic and len({len(each) for each in inputs}) != 1):
            sizes = [_described(each) for each in inputs]
            raise InputError(
                describe("inputs of an ONNX Runtime model", expected=self._expected, found=sizes)
            )


def providers_on(device: torch.device, there: Sequence[str]) -> list[str]:
    """Return which of the providers that are there run a network on a device; on a GPU never the CPU's.

    Raises:
        SetupError: on a GPU, there is none for it.
    """
    if device.type == "cpu":
        return [CPU_PROVIDER]
    found = [name for name in GPU_PROVIDERS if name in there]
    if not found:
        expected = f"{' or '.join(GPU_PROVIDERS)}, of {extra('onnxruntime-gpu')} with its CUDA"
        raise SetupError(describe(f"engine onnxruntime on {device}", expected=expected, found=list(there)))
    return found


def provider_settings(
    name: str, device: torch.device, *, bfloat16: bool, cache: Path | None
) -> dict[str, Any]:
    """Return the settings of a provider.

    Args:
        name: of the provider.
        device: where it runs.
        bfloat16: allow bfloat16 arithmetic.
        cache: where TensorRT keeps what it builds; None: nowhere.
    """
    if name == CPU_PROVIDER:
        return {}
    settings: dict[str, Any] = {"device_id": device.index or 0}
    if name == TENSORRT:
        settings["trt_bf16_enable"] = bfloat16
        if cache is not None:
            settings |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache)}
    return settings


def engine_folder(model: bytes, *, bfloat16: bool) -> Path | None:
    """Return the folder for what TensorRT builds of this very model; None where none can be written.

    The names that ONNX Runtime gives it there depend on the operations of a model, not on its weights.
    """
    kind = f"{onnxruntime.__version__} {bfloat16}".encode()
    folder = Path(os.path.expanduser(CACHE)) / hashlib.sha256(kind + model).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def exported(module: nn.Module, examples: Sequence[Tensor], *, dynamic_batch: bool = False) -> bytes:
    """Return the module as an ONNX model, in float32.

    By torch's exporter of today, which needs onnxscript and loads torch's compiler (300 MiB). The one before,
    which needs neither, is deprecated.
    """
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        # Copies, since what was made in inference mode cannot be traced.
        inputs = [each.cpu().clone(memory_format=torch.contiguous_format) for each in examples]
        shapes = None
        if dynamic_batch:
            # A size of 1 would become a constant.
            inputs = [torch.cat((each, each)) if len(each) == 1 else each for each in inputs]
            batch = torch.export.Dim("batch")
            shapes = (tuple({0: batch} for _ in inputs),)
        program = torch.onnx.export(
            _Positional(copy.deepcopy(module).cpu()),
            tuple(inputs),
            input_names=_input_names(inputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    return model


class _Positional(nn.Module):
    """A module whose inputs have no names, so that sizes are told of all alike."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from warning of what it will not need, such as torchvision."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _input_names(inputs: Sequence[Tensor]) -> list[str]:
    return [f"input{place}" for place in range(len(inputs))]


def _described(tensor: Tensor, *, any_batch: bool = False) -> str:
    sizes = ["?" if any_batch else str(len(tensor)), *map(str, tensor.shape[1:])]
    return f"{str(tensor.dtype).removeprefix('torch.')} [{','.join(sizes)}] on {tensor.device}"
