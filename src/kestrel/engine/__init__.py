# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How the dense part of a network runs: one small interface, several engines behind it.

An :class:`Engine` takes tensors and returns tensors, like the module it was made from. ``make_engine`` builds
one; "auto" times "folded" against OpenVINO, where that is installed, on example inputs and keeps the faster,
since which one that is depends on the machine and on the network. "compiled" takes a compiler and long to
start, and "onnxruntime" loads torch's compiler to gain, if at all, for cameras in float32: both are taken by
name alone (`kestrel bench engines`).
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from kestrel.engine.folded import FoldedEngine
from kestrel.errors import ConfigError, SetupError, describe, extra

_LOG = logging.getLogger(__name__)

# OpenVINO and NNCF report to their maker what they run, without asking, where they find this module; without
# it they go on in silence. Who wants it imports it before.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what Python takes as "not there"

EngineName = Literal["auto", "eager", "folded", "compiled", "openvino", "int8", "onnxruntime"]
"""eager: torch as it is. folded: batch normalisation folded, own 3x3 convolutions. compiled: torch.compile of
that. openvino: Intel's compiler and run time (optional extra ``openvino``). int8: that with a quantized model
(kestrel.engine.int8, optional extra ``int8``). onnxruntime: Microsoft's run time, on an NVIDIA GPU with
TensorRT (optional extra ``onnxruntime``)."""

GPU_ENGINES: Final[tuple[EngineName, ...]] = ("auto", "eager", "folded", "onnxruntime")
"""Engines that run on a GPU; the others are of the CPU, or were never tried there."""

TRIALS: Final = 3


class Engine(Protocol):
    """Runs a module; ``name`` says how.

    Outputs may live in buffers that the next call reuses: whoever wants to keep them copies them.
    """

    name: str

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the module returns, always as a tuple."""


class EagerEngine:
    """The module as it is."""

    name = "eager"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's outputs."""
        return as_tuple(self.module(*inputs))


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return one or several tensors as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def engine_on(device: torch.device, name: EngineName) -> EngineName:
    """Return the engine that is meant on a device: "auto" is "folded" on a GPU, where no other competes.

    Raises:
        ConfigError: on a GPU, an engine that does not run there.
    """
    if device.type == "cpu":
        return name
    if name not in GPU_ENGINES:
        found = f"{name} on {device}"
        raise ConfigError(describe("engine", expected=f"one of {GPU_ENGINES} on a GPU", found=found))
    return "folded" if name == "auto" else name


def has_openvino() -> bool:
    """Whether the optional extra ``openvino`` is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_onnxruntime() -> bool:
    """Whether an optional extra for ONNX Runtime is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnxscript"))


def make_engine(
    module: nn.Module,
    examples: Sequence[Tensor],
    name: EngineName = "auto",
    *,
    bfloat16: bool = False,
    dynamic_batch: bool = False,
    dynamic_int8: Sequence[str] = (),
    int8: Path | None = None,
) -> Engine:
    """Build an engine that runs ``module``.

    Args:
        module: in evaluation mode; it and its weights stay as they are.
        examples: inputs of the sizes that will come.
        name: which engine; "auto" measures.
        bfloat16: let it compute in bfloat16 where that is faster.
        dynamic_batch: whether the size of the first dimension changes from call to call.
        dynamic_int8: parts of it that may multiply bytes that are quantized on their way; see FoldedEngine.
        int8: the quantized model of ``module``, for the engine of that name.

    Raises:
        SetupError: an engine is asked for by name whose library is not installed, or damaged, or not for the
            GPU that the examples are on.
        ConfigError: there is no such engine, or int8 is asked for without a model.
    """
    if name not in get_args(EngineName):
        raise ConfigError(describe("engine", expected=f"one of {get_args(EngineName)}", found=name))
    if name == "auto":
        return _fastest(
            module, examples, bfloat16=bfloat16, dynamic_batch=dynamic_batch, dynamic_int8=dynamic_int8
        )
    if name == "eager":
        return EagerEngine(module)
    if name in ("folded", "compiled"):
        compiled = name == "compiled"
        return FoldedEngine(module, bfloat16=bfloat16, compiled=compiled, dynamic_int8=dynamic_int8)
    if name == "onnxruntime":
        return _onnxruntime_engine(module, examples, bfloat16=bfloat16, dynamic_batch=dynamic_batch)
    if not has_openvino():
        raise SetupError(describe(f"engine {name}", expected=extra(name), found="no openvino"))
    try:
        from kestrel.engine.openvino import Int8Engine, OpenVinoEngine
    except ImportError as error:
        expected = "an OpenVINO that can be imported"
        raise SetupError(describe(f"engine {name}", expected=expected, found=error)) from error
    if name == "int8":
        if int8 is None:
            part = f"engine int8 of {type(module).__name__}"
            raise ConfigError(describe(part, expected="a quantized model", found="none"))
        return Int8Engine(int8, bfloat16=bfloat16)
    return OpenVinoEngine(module, examples, bfloat16=bfloat16, dynamic_batch=dynamic_batch)


def _onnxruntime_engine(
    module: nn.Module, examples: Sequence[Tensor], *, bfloat16: bool, dynamic_batch: bool
) -> Engine:
    if not has_onnxruntime():
        found = "no onnxruntime, or no onnxscript"
        raise SetupError(describe("engine onnxruntime", expected=extra("onnxruntime"), found=found))
    try:
        from kestrel.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(module, examples, bfloat16=bfloat16, dynamic_batch=dynamic_batch)
    except ImportError as error:  # of onnxscript when torch exports, of a provider too
        expected = "an ONNX Runtime that can be imported"
        raise SetupError(describe("engine onnxruntime", expected=expected, found=error)) from error


def _fastest(
    module: nn.Module,
    examples: Sequence[Tensor],
    *,
    bfloat16: bool,
    dynamic_batch: bool,
    dynamic_int8: Sequence[str],
) -> Engine:
    names: list[EngineName] = ["folded", "openvino"] if has_openvino() else ["folded"]
    if len(names) == 1:
        _LOG.info("openvino is not installed: %s runs in torch", type(module).__name__)
        return make_engine(module, examples, names[0], bfloat16=bfloat16, dynamic_int8=dynamic_int8)
    timed = []
    for name in names:
        try:
            engine = make_engine(
                module,
                examples,
                name,
                bfloat16=bfloat16,
                dynamic_batch=dynamic_batch,
                dynamic_int8=dynamic_int8,
            )
        except SetupError as error:
            _LOG.warning("%s runs without it: %s", type(module).__name__, error)
            continue
        timed.append((best_seconds(lambda engine=engine: engine(*examples)), engine))  # type: ignore[misc]
    timed.sort(key=lambda pair: pair[0])
    text = ", ".join(f"{engine.name} {1e3 * seconds:.1f} ms" for seconds, engine in timed)
    _LOG.info("engine of %s: %s", type(module).__name__, text)
    return timed[0][1]


def best_seconds(run: Callable[[], object], trials: int = TRIALS) -> float:
    """Return the shortest of ``trials`` times, after one run that does not count."""
    best = float("inf")
    with torch.inference_mode():
        run()
        for _ in range(trials):
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
    return best
