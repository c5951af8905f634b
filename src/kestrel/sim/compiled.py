# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Loops over rays and pixels, compiled where they first run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays (Numba).

    The code is kept on disk for the next process, where there is a place to write to. Arithmetic keeps its
    order, so that a machine gives the same bytes every time.
    """
    try:
        compiler = numba.njit(cache=True, error_model="numpy")
        return cast(Function, compiler(function))
    except RuntimeError:  # neither beside the source nor in the home folder can anything be kept
        return cast(Function, numba.njit(error_model="numpy")(function))
