# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Loops over rays and pixels, compiled where they first run."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = Path(__file__).parent
"""Folder of all that compiled functions are made of."""

_NAME: Final = "compiled-"


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays (Numba).

    The code is kept on disk for the next process, where there is a place to write to. Arithmetic keeps its
    order, so that a machine gives the same bytes every time.
    """
    settings: Any = numba.config  # whose entries Numba makes when it is imported
    before, folder = settings.CACHE_DIR, _folder()
    settings.CACHE_DIR = str(folder or "")
    try:
        compiler = numba.njit(cache=folder is not None, error_model="numpy")
        return cast(Function, compiler(function))
    finally:
        settings.CACHE_DIR = before


@functools.cache
def _folder() -> Path | None:
    """Return where the code of these very sources is kept, None if nowhere; that of others is removed.

    Numba looks at the file of a function alone, and would go on with old code where a function, a constant or
    a type in another file has changed.
    """
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.read_bytes())
    for parent in (SOURCES / "__pycache__", Path(os.path.expanduser("~")) / ".cache" / "kestrel"):
        folder = parent / f"{_NAME}{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            for other in parent.glob(f"{_NAME}*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
            return folder
    return None
