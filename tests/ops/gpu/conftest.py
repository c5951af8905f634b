# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def device() -> str:
    """Where the kernels run: Triton's interpreter takes tensors of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed; `pip install -e '.[gpu]'` brings it")
    if not torch.cuda.is_available():
        _multiply_bfloat16(monkeypatch)


def _multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter's matrix product read bfloat16, whose bits it takes for integers (seen in 3.9)."""
    import triton.language as tl
    from triton.runtime import interpreter

    product = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return product(self, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
