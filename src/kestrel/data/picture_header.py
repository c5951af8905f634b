# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of compressed pictures before they are decoded: kind, size and whether the end is there.

Decoders fill what a truncated file lacks with grey and call it a picture, and they allocate whatever size the
header claims.
"""

from __future__ import annotations

import struct
from typing import Final

from kestrel.errors import InputError, describe

MAX_PIXELS: Final = 64_000_000
END_WITHIN: Final = 64
"""The end marker lies in the last bytes; some cameras pad their files."""

JPEG_START: Final = b"\xff\xd8"
JPEG_END: Final = b"\xff\xd9"
PNG_START: Final = b"\x89PNG\r\n\x1a\n"
PNG_END: Final = b"IEND"
START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the JPEG markers that carry the size of the picture."""


def check_compressed(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return the (width, height) that a complete JPEG or PNG states.

    Raises:
        InputError: another format, no size, an absurd size, or the end of the file is missing.
    """
    view = memoryview(data).cast("B")
    if bytes(view[:2]) == JPEG_START:
        kind, size, end = "JPEG", _jpeg_size(view), JPEG_END
    elif bytes(view[:8]) == PNG_START and len(view) >= 24:
        kind, size, end = "PNG", struct.unpack(">II", view[16:24]), PNG_END
    else:
        raise InputError(
            describe("compressed image", expected="a JPEG or PNG", found=f"bytes {bytes(view[:8])!r}")
        )
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise InputError(describe(f"{kind} size", expected=f"1 .. {MAX_PIXELS} pixels", found=size))
    if end not in bytes(view[-END_WITHIN:]):
        raise InputError(describe(f"{kind} data", expected="an end marker", found="a truncated file"))
    return size[0], size[1]


def _jpeg_size(view: memoryview) -> tuple[int, int] | None:
    """Return (width, height) from the start-of-frame segment, or None if the segments end before it."""
    at = 2
    while at + 9 <= len(view) and view[at] == 0xFF:
        marker = view[at + 1]
        if marker in START_OF_FRAME:
            height, width = struct.unpack(">HH", view[at + 5 : at + 9])
            return width, height
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            at += 2 + int.from_bytes(view[at + 2 : at + 4], "big")
    return None
