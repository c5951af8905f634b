# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files that requests name: only below the folders that the operator allowed, and only so many bytes.

There is no ROS in this module.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kestrel.data.picture_header import check_compressed
from kestrel.errors import InputError, SetupError, describe
from kestrel.types import UInt8Array


def below(root: str, name: str, *, what: str) -> Path:
    """Return the path ``name`` below ``root``; links are followed before the comparison.

    Raises:
        InputError: there is no root, or the path leads out of it.
    """
    if not root:
        raise InputError(describe(what, expected="none, as the node has no folder for it", found=repr(name)))
    base = Path(root).expanduser().resolve()
    try:
        path = (base / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(describe(what, expected="a path", found=f"{name!r}: {error}")) from error
    if Path(name).is_absolute() or path == base or not path.is_relative_to(base):
        raise InputError(
            describe(what, expected=f"a relative path that stays below {base}", found=repr(name))
        )
    return path


def read_label_file(root: str, name: str) -> UInt8Array:
    """Return the label image (H, W) uint8 of the PNG ``name`` below ``root``.

    Raises:
        InputError: the path leads elsewhere, or the file is no picture with one byte per pixel.
    """
    path = below(root, name, what="label_source")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(describe("label_source", expected="a readable PNG", found=error)) from error
    check_compressed(data)
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        found = "nothing decodable" if labels is None else f"{labels.dtype} of shape {labels.shape}"
        raise InputError(describe("label_source", expected="a PNG with one byte per pixel", found=found))
    return np.asarray(labels, np.uint8)


class PictureFolder:
    """A folder that takes pictures with their labels until it is full.

    Args:
        root: folder below which the operator allows writing; empty: nowhere.
        name: path below ``root``; created.
        limit_bytes: nothing is written once the folder holds so much.

    Raises:
        InputError: ``name`` leads out of ``root``.
        SetupError: the folder cannot be created.
    """

    def __init__(self, root: str, name: str, *, limit_bytes: int) -> None:
        self.path = below(root, name, what="output_folder")
        self._limit_bytes = limit_bytes
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(entry.stat().st_size for entry in self.path.iterdir() if entry.is_file())
        except OSError as error:
            raise SetupError(describe("output_folder", expected="a writable folder", found=error)) from error

    def write(self, name: str, picture: UInt8Array, labels: UInt8Array) -> None:
        """Write ``name``.png and ``name``_labels.png, both or none.

        Raises:
            SetupError: the folder is full, or the disk does not take them.
        """
        files = {
            self.path / f"{name}.png": _png(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)),
            self.path / f"{name}_labels.png": _png(labels),
        }
        size = sum(len(data) for data in files.values())
        if self._bytes + size > self._limit_bytes:
            raise SetupError(
                describe(
                    "output_folder",
                    expected=f"less than {self._limit_bytes >> 20} MB in it",
                    found=f"{self._bytes >> 20} MB",
                )
            )
        try:
            for path, data in files.items():
                path.write_bytes(data)
        except OSError as error:
            for path in files:
                path.unlink(missing_ok=True)
            raise SetupError(describe("output_folder", expected="room to write", found=error)) from error
        self._bytes += size


def _png(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | cv2.typing.MatLike) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1])
