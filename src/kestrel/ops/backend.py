# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the operators runs: compiled kernels where they are installed, torch otherwise.

The compiled kernels come from the distribution ``kestrel-kernels``. Without it every operator runs its
pure-torch reference, which gives the same results more slowly; one log line says so. On a GPU the same holds
for Triton.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from kestrel.errors import ConfigError, SetupError, describe

_LOG = logging.getLogger(__name__)

DISPATCH_VARIABLE: Final = "KESTREL_DISPATCH"
"""Environment variable that forces a dispatch level: one of the compiled kernels, or TORCH_LEVEL."""

TORCH_LEVEL: Final = "torch"

INTERFACE_VERSION: Final = 13
"""The interface of the compiled kernels that these operators call; others are not used."""

_NATIVE_DTYPES: Final = (torch.float32, torch.bfloat16)
_TRITON_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


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
    found = getattr(native, "interface_version", None)
    if found != INTERFACE_VERSION:
        if wanted:
            expected = f"compiled kernels with interface {INTERFACE_VERSION}: install both again"
            raise SetupError(describe(DISPATCH_VARIABLE, expected=expected, found=f"interface {found}"))
        _LOG.warning(
            "compiled kernels have interface %s instead of %s, operators run in torch: install both again",
            found,
            INTERFACE_VERSION,
        )
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


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a compiled function, which takes the addresses of contiguous arrays (0 for None) and plain values.

    The tensors stay referenced until the function returns. Outputs must be contiguous already.
    """
    kept = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
    return function(
        *[each.data_ptr() if isinstance(each, Tensor) else 0 if each is None else each for each in kept]
    )


def native_for(*tensors: Tensor | None) -> ModuleType | None:
    """Return the compiled module if it can take these floating-point tensors (None entries are skipped)."""
    given = [tensor for tensor in tensors if tensor is not None]
    if NATIVE is None or any(tensor.device.type != "cpu" for tensor in given):
        return None
    dtype = given[0].dtype
    return NATIVE if dtype in _NATIVE_DTYPES and all(tensor.dtype == dtype for tensor in given) else None


@functools.cache
def triton_installed() -> bool:
    """Return whether the operators run in Triton on a GPU; without it one log line says what runs instead."""
    if os.environ.get(DISPATCH_VARIABLE) == TORCH_LEVEL:
        return False
    try:
        importlib.import_module("triton")
    except ImportError as error:
        _LOG.warning("Triton is not installed, operators on a GPU run in torch: %s", error)
        return False
    return True


def triton_for(*tensors: Tensor | None) -> bool:
    """Return whether Triton can take these floating-point tensors (None entries are skipped)."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return len(dtypes) == 1 and dtypes <= set(_TRITON_DTYPES) and triton_installed()
