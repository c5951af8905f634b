# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the operators runs: compiled kernels where they are installed, torch otherwise.

The compiled kernels come from the distribution ``kestrel-kernels``. Without it every operator runs its
pure-torch reference, which gives the same results more slowly; one log line says so.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Final

import torch

_LOG = logging.getLogger(__name__)

_NATIVE_DTYPES: Final = (torch.float32, torch.bfloat16)


def _load_native() -> ModuleType | None:
    try:
        return importlib.import_module("kestrel_kernels.native")
    except ImportError as error:
        _LOG.warning("compiled kernels are not installed, operators run in torch: %s", error)
        return None


NATIVE: Final[ModuleType | None] = _load_native()
"""The compiled module, or None where only the torch reference exists."""


def dispatch_level() -> str:
    """Return what the operators run on: an instruction set of the compiled kernels, or "torch"."""
    return "torch" if NATIVE is None else str(NATIVE.dispatch_level())


def native_for(*tensors: torch.Tensor | None) -> ModuleType | None:
    """Return the compiled module if it can take these floating-point tensors (None entries are skipped)."""
    given = [tensor for tensor in tensors if tensor is not None]
    if NATIVE is None or any(tensor.device.type != "cpu" for tensor in given):
        return None
    dtype = given[0].dtype
    return NATIVE if dtype in _NATIVE_DTYPES and all(tensor.dtype == dtype for tensor in given) else None
