# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the operators runs: compiled kernels where they are installed, torch otherwise.

The compiled kernels come from the distribution ``kestrel-kernels``. Without it every operator runs its
pure-torch reference, which gives the same results more slowly; one log line says so.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Final

import torch

from kestrel.errors import ConfigError, SetupError, describe

_LOG = logging.getLogger(__name__)

DISPATCH_VARIABLE: Final = "KESTREL_DISPATCH"
"""Environment variable that forces a dispatch level: one of the compiled kernels, or TORCH_LEVEL."""

TORCH_LEVEL: Final = "torch"

_NATIVE_DTYPES: Final = (torch.float32, torch.bfloat16)


def _load_native() -> ModuleType | None:
    wanted = os.environ.get(DISPATCH_VARIABLE)
    if wanted == TORCH_LEVEL:
        return None
    try:
        native = importlib.import_module("kestrel_kernels.native")
    except ImportError as error:
        if wanted:
            raise SetupError(
                describe(DISPATCH_VARIABLE, expected="installed compiled kernels", found=error)
            ) from error
        _LOG.warning("compiled kernels are not installed, operators run in torch: %s", error)
        return None
    levels = [*native.available_levels(), TORCH_LEVEL]
    if wanted and wanted not in levels:
        raise ConfigError(describe(DISPATCH_VARIABLE, expected=f"one of {levels}", found=wanted))
    return native


NATIVE: Final[ModuleType | None] = _load_native()
"""The compiled module, or None where only the torch reference exists."""


def dispatch_level() -> str:
    """Return what the operators run on: an instruction set of the compiled kernels, or "torch"."""
    return TORCH_LEVEL if NATIVE is None else str(NATIVE.dispatch_level())


def address(tensor: torch.Tensor | None) -> int:
    """Return where the elements of a contiguous tensor start, 0 for None: the form compiled kernels take."""
    return 0 if tensor is None else tensor.data_ptr()


def native_for(*tensors: torch.Tensor | None) -> ModuleType | None:
    """Return the compiled module if it can take these floating-point tensors (None entries are skipped)."""
    given = [tensor for tensor in tensors if tensor is not None]
    if NATIVE is None or any(tensor.device.type != "cpu" for tensor in given):
        return None
    dtype = given[0].dtype
    return NATIVE if dtype in _NATIVE_DTYPES and all(tensor.dtype == dtype for tensor in given) else None
