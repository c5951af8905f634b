# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kestrel.errors import InputError, describe


@contextmanager
def appearing(out: Path, name: str) -> Iterator[Path]:
    """Give a path to make a file or folder at, which becomes ``out`` when the block ends without an error.

    Args:
        out: where it is to appear; folders above it are made.
        name: what the user calls ``out``.

    Raises:
        InputError: ``out`` exists, or nothing can be made there.
    """
    if out.exists():
        raise InputError(describe(name, expected="a path that does not exist", found=out))
    with replacing(out, name) as unfinished:
        yield unfinished


@contextmanager
def replacing(out: Path, name: str) -> Iterator[Path]:
    """Give a path to make a file at, which takes the place of ``out`` when the block ends without an error.

    Args:
        out: where it is to appear; folders above it are made.
        name: what the user calls ``out``.

    Raises:
        InputError: nothing can be made there; what was there stays as it was.
    """
    expected = "a path that can be made"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(describe(name, expected=expected, found=error)) from error
    try:
        yield scratch / out.name
        try:
            (scratch / out.name).replace(out)
        except OSError as error:
            raise InputError(describe(name, expected=expected, found=error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in place of the one that may be there; folders above it are made.

    Raises:
        InputError: it cannot be written; what was there stays as it was.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        expected = "a file that can be written"
        raise InputError(describe(str(path), expected=expected, found=error)) from error
