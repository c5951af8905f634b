# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO behind the engine's interface; imported only where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from kestrel.errors import InputError, describe


class OpenVinoEngine:
    """A module compiled for this CPU.

    Args:
        module: in evaluation mode; traced with ``examples``.
        examples: inputs of the sizes that will come.
        bfloat16: allow bfloat16 arithmetic; otherwise float32.
        dynamic_batch: whether the size of the first dimension changes from call to call.
    """

    name = "openvino"

    def __init__(
        self,
        module: nn.Module,
        examples: Sequence[Tensor],
        *,
        bfloat16: bool = False,
        dynamic_batch: bool = False,
    ) -> None:
        model = convert(module, examples)
        shapes = [list(example.shape) for example in examples]
        if dynamic_batch:
            shapes = [[-1, *shape[1:]] for shape in shapes]
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        self._run = CompiledModel(model, bfloat16=bfloat16)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's outputs; they are overwritten by the next call."""
        return self._run(*inputs)


class CompiledModel:
    """An openvino.Model compiled for one request at a time on as many threads as torch has.

    Args:
        model: its operations in int8, if it has such, stay in int8.
        bfloat16: allow bfloat16 arithmetic for the others; otherwise float32.
    """

    def __init__(self, model: Any, *, bfloat16: bool = False) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the model's outputs; they are overwritten by the next call.

        Raises:
            InputError: inputs of other sizes than the model was made for.
        """
        arrays = [each.contiguous().numpy() for each in inputs]
        try:
            found = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            wanted = [port.get_partial_shape() for port in self._request.model_inputs]
            given = [openvino.PartialShape(list(each.shape)) for each in inputs]
            if all(map(openvino.PartialShape.compatible, wanted, given)):
                raise
            expected, sizes = ([str(shape) for shape in shapes] for shapes in (wanted, given))
            raise InputError(
                describe("inputs of an OpenVINO model", expected=expected, found=sizes)
            ) from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return tuple(torch.from_numpy(array) for array in found.values())


class Int8Engine:
    """A quantized model, as kestrel.engine.quantization makes it.

    Args:
        path: the .xml file; the .bin file is beside it.
        bfloat16: allow bfloat16 arithmetic in what is not in int8; otherwise float32.
    """

    name = "int8"

    def __init__(self, path: Path, *, bfloat16: bool = False) -> None:
        self._run = CompiledModel(openvino.Core().read_model(path), bfloat16=bfloat16)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the model's outputs; they are overwritten by the next call."""
        return self._run(*inputs)


def convert(module: nn.Module, examples: Sequence[Tensor]) -> Any:
    """Return the module as an openvino.Model, in float32."""
    contiguous = tuple(example.contiguous() for example in examples)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: sizes become constants, which is what is wanted
        traced = torch.jit.trace(module, contiguous, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, example_input=contiguous)
