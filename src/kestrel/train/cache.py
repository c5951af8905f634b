# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Compact training data on disk: one folder per drive, simulated or imported.

``frame_0000.npz`` and so on hold key frames (:class:`CachedFrame`), ``video.npz`` the front camera's pictures
(:class:`CachedVideo`). ``drive.json`` is written last: a drive without it is unfinished and is made again.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from kestrel.classes import DETECTION_CLASSES
from kestrel.errors import InputError, describe
from kestrel.files import write_whole
from kestrel.sim.splits import split_names
from kestrel.types import Calibration, Float32Array, Float64Array, Int64Array, UInt8Array

POSITION_STEP_M: Final = 0.002
"""Positions are stored as int16 multiples of this, which reaches 65 m."""

REACH_M: Final = 65.0
JPEG_QUALITY: Final = 90
DONE: Final = "drive.json"

FORMAT: Final = 6
"""Of key frames, in ``drive.json``: 2 undoes the motion within a sweep, 3 has attributes, 4 poses, 5 those
of the pictures, 6 maps on whose islands nobody drives."""

UNREADABLE: Final = (
    *(OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError),
    *(TokenError, zipfile.BadZipFile, zlib.error),
)
"""What numpy raises where a file is not there, cut off, damaged or another one."""

AGAIN: Final = "to have it again, remove the folder of its drive, then `kestrel train prepare` or `import`"
"""What to do about a file that is damaged."""

CachedT = TypeVar("CachedT", "CachedFrame", "CachedVideo")


def _everywhere() -> Float32Array:
    return np.zeros((0, 7), np.float32)


def _every_class() -> NDArray[np.bool_]:
    return np.ones(len(DETECTION_CLASSES), np.bool_)


@dataclass(frozen=True)
class CachedFrame:
    """One key frame with its truth, in base_link at the stamp of its sweep.

    What the truth of an imported frame does not say is told as such, and nothing is learned of it: velocities
    that are NaN, NO_ATTRIBUTE, points of the class IGNORE, a map without bits, pictures without semantics,
    and what ``unlabelled`` and ``labelled_classes`` leave out. Simulated frames have no such gaps.

    points: (P, 3) int16 in POSITION_STEP_M; intensity: (P,) uint8 of 255; sweep: (P,) uint8, 0 is the newest.
    ages: (S,) float32 seconds between a sweep and the current one. label: (P0,) uint8 class of the points of
    sweep 0, which come first. boxes: (N, 9) float32 x, y, z, length, width, height, yaw, vx, vy (m/s, NaN
    where unknown); box_label,
    box_points, box_attribute: (N,) int64. map_bits: packed (layers, 200, 200) truth. pictures: one JPEG after
    the other, cut at picture_ends (M,); semantics: the same for PNG label images. matrices: (M, 3, 3) and
    base_from_camera: (M, 4, 4) of the cameras on the vehicle. base_from_picture: (M, 4, 4) where the vehicle
    was, as of where it is, when it took each picture. odom_from_base: (4, 4) where the vehicle is, NaN where
    nobody knows. unlabelled: (K, 7) float32 boxes like ``boxes`` in which only what ``boxes`` has is known.
    labelled_classes: (classes,) bool, which of DETECTION_CLASSES would have boxes if they were there.
    """

    points: NDArray[np.int16]
    intensity: UInt8Array
    sweep: UInt8Array
    ages: Float32Array
    label: UInt8Array
    boxes: Float32Array
    box_label: Int64Array
    box_points: Int64Array
    box_attribute: Int64Array
    map_bits: UInt8Array
    pictures: UInt8Array
    picture_ends: Int64Array
    semantics: UInt8Array
    semantic_ends: Int64Array
    matrices: Float64Array
    base_from_camera: Float64Array
    base_from_picture: Float64Array
    odom_from_base: Float64Array
    unlabelled: Float32Array = field(default_factory=_everywhere)
    labelled_classes: NDArray[np.bool_] = field(default_factory=_every_class)

    @property
    def has_map(self) -> bool:
        """Whether it says what the ground is."""
        return len(self.map_bits) > 0

    @property
    def has_semantics(self) -> bool:
        """Whether it says what its pictures show."""
        return len(self.semantic_ends) > 0

    def cloud(self, sweeps: int | None = None) -> Float32Array:
        """Return (P, 5) [x, y, z, intensity, age] of the current and at most ``sweeps`` earlier sweeps."""
        kept = slice(None) if sweeps is None else self.sweep <= sweeps
        columns = (
            self.points[kept].astype(np.float32) * np.float32(POSITION_STEP_M),
            (self.intensity[kept].astype(np.float32) / 255)[:, None],
            self.ages[self.sweep[kept]][:, None],
        )
        return np.concatenate(columns, 1)

    def map_truth(self, layers: int, cells: int) -> UInt8Array:
        """Return the truth (layers, cells, cells), 0 or 1; InputError if it has another size."""
        count = layers * cells * cells
        if len(self.map_bits) != -(-count // 8):
            expected = f"{layers} layers of {cells} x {cells} cells"
            raise InputError(
                describe("cached map", expected=expected, found=f"{8 * len(self.map_bits)} cells in all")
            )
        return np.unpackbits(self.map_bits, count=count).reshape(layers, cells, cells)

    def picture(self, index: int) -> UInt8Array:
        """Return picture ``index`` (H, W, 3), RGB."""
        return decode_picture(_part(self.pictures, self.picture_ends, index))

    def calibration(self, index: int, size: tuple[int, int]) -> Calibration:
        """Return how picture ``index``, of ``size`` (H, W), shows what is around the vehicle at the stamp."""
        pose = self.base_from_picture[index] @ self.base_from_camera[index]
        return Calibration(self.matrices[index], size[1], size[0], pose)

    def semantic(self, index: int) -> UInt8Array:
        """Return the label image of picture ``index`` (H, W)."""
        data = _part(self.semantics, self.semantic_ends, index)
        decoded: UInt8Array = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)  # type: ignore[assignment]
        return decoded


@dataclass(frozen=True)
class CachedVideo:
    """The front camera of one drive.

    pictures, picture_ends: as in CachedFrame. stamp_ns: (T,) int64. event: (T,) uint8, an index of EVENTS.
    """

    pictures: UInt8Array
    picture_ends: Int64Array
    stamp_ns: Int64Array
    event: UInt8Array

    def picture(self, index: int) -> UInt8Array:
        """Return picture ``index`` (H, W, 3), RGB."""
        return decode_picture(_part(self.pictures, self.picture_ends, index))


def _part(data: UInt8Array, ends: Int64Array, index: int) -> UInt8Array:
    return data[0 if index == 0 else ends[index - 1] : ends[index]]


def decode_picture(data: UInt8Array) -> UInt8Array:
    """Return the RGB picture of a JPEG."""
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise InputError(describe("cached picture", expected="a JPEG", found=f"{len(data)} other bytes"))
    return decoded  # type: ignore[return-value]


def encode(images: list[UInt8Array], kind: str) -> tuple[UInt8Array, Int64Array]:
    """Return images as one array of ``.jpg`` (RGB) or ``.png`` (grey) files, and where each ends."""
    encoded = []
    for image in images:
        stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if kind == ".jpg" else image
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == ".jpg" else []
        encoded.append(cv2.imencode(kind, stored, options)[1].ravel())
    ends = np.cumsum([len(data) for data in encoded], dtype=np.int64)
    return (np.concatenate(encoded) if encoded else np.zeros(0, np.uint8)), ends


def pack_points(points: Float32Array) -> tuple[NDArray[np.int16], UInt8Array]:
    """Return points (P, 4) x, y, z, intensity 0..1 as ``points`` and ``intensity`` of a CachedFrame.

    They are within REACH_M along each axis.
    """
    places = np.round(points[:, :3] / POSITION_STEP_M).astype(np.int16)
    return places, np.round(points[:, 3].clip(0, 1) * 255).astype(np.uint8)


def write(path: Path, cached: CachedFrame | CachedVideo) -> None:
    """Write one frame or video."""
    np.savez(path, **{entry.name: getattr(cached, entry.name) for entry in fields(cached)})


def read(kind: type[CachedT], path: Path) -> CachedT:
    """Read what :func:`write` wrote; in an older file what has a default may be missing.

    Raises:
        InputError: the file is not there or not of that kind.
    """
    with opened(path, kind) as stored:
        names = [
            entry.name for entry in fields(kind) if entry.default_factory is MISSING or entry.name in stored
        ]
        return kind(**{name: stored[name] for name in names})


@contextmanager
def opened(path: Path, kind: type[CachedFrame] | type[CachedVideo] = CachedFrame) -> Iterator[NpzFile]:
    """Give the arrays of a file that :func:`write` wrote, of which only what is looked at is read.

    Raises:
        InputError: the file is not there, is damaged or not of that kind, also where it is looked at.
    """
    try:
        with np.load(path) as stored:
            yield stored
    except UNREADABLE as error:
        raise InputError(describe(str(path), expected=f"a {kind.__name__} ({AGAIN})", found=error)) from error


def finish(folder: Path, summary: dict[str, Any]) -> None:
    """Mark a drive as complete; the mark appears complete or not at all."""
    write_whole(folder / DONE, (json.dumps(summary, indent=2) + "\n").encode())


def finished_drives(folder: Path) -> list[Path]:
    """Return the complete drives below ``folder`` in a fixed order.

    Raises:
        InputError: there is none.
    """
    drives = sorted(path.parent for path in folder.glob(f"*/{DONE}"))
    if not drives:
        raise InputError(
            describe(str(folder), expected="drives made by `kestrel train prepare`", found="none")
        )
    return drives


def frame_number(path: Path) -> int:
    """Return which key frame of its drive a file holds, counted from 0."""
    return int(path.stem.removeprefix("frame_"))


def frame_hz(drive: Path) -> float:
    """Return how many key frames a second a drive has.

    Raises:
        InputError: ``drive.json`` does not say it, or is damaged.
    """
    found = _told(drive).get("frame_hz")
    if not isinstance(found, int | float) or not math.isfinite(found):
        expected = "frame_hz, the rate of its key frames, as `kestrel train prepare` writes it"
        said = "none" if found is None else found
        raise InputError(describe(str(drive / DONE), expected=expected, found=said))
    return float(found)


def _told(drive: Path) -> dict[str, Any]:
    """Return what ``drive.json`` of a complete drive says; raise InputError if it is damaged."""
    path = drive / DONE
    try:
        told = json.loads(path.read_text())
        if not isinstance(told, dict):
            raise TypeError(f"a {type(told).__name__}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(describe(str(path), expected=f"a JSON object ({AGAIN})", found=error)) from error
    return told


def earlier_frames(path: Path, hop_s: float, count: int) -> list[Path]:
    """Return at most ``count`` key frames of the same drive that lie ``hop_s`` apart, the oldest first.

    The last one is a hop before that of ``path``. There are none where key frames do not lie a hop apart, and
    none before a gap: an imported drive has no frame, but its number, where the recording has no labels.
    """
    steps = hop_s * frame_hz(path.parent)
    if steps < 1 or abs(steps - round(steps)) > 1e-3:
        return []
    numbers = [frame_number(path) - back * round(steps) for back in range(1, count + 1)]
    files = [path.with_name(f"frame_{number:04d}.npz") for number in numbers if number >= 0]
    return list(takewhile(Path.exists, files))[::-1]


def pictures(path: Path, base_from_camera: Float64Array) -> list[UInt8Array]:
    """Return the pictures of a key frame, (H, W, 3) RGB, without reading the rest of it.

    Args:
        path: the key frame.
        base_from_camera: of the cameras in the order that is expected, (M, 4, 4).

    Raises:
        InputError: the frame has other cameras, or the file is not there or damaged.
    """
    with opened(path) as stored:
        data, ends, found = (stored[name] for name in ("pictures", "picture_ends", "base_from_camera"))
    if not np.array_equal(found, base_from_camera):
        expected = f"the {len(base_from_camera)} of the frames around it"
        raise InputError(describe(f"cameras of {path}", expected=expected, found=f"{len(found)}, or others"))
    return [decode_picture(_part(data, ends, index)) for index in range(len(ends))]


def key_frames(drive: Path) -> list[Path]:
    """Return the key frames of a complete drive.

    Raises:
        InputError: they are of an earlier version, one is cut off, or ``drive.json`` is damaged.
    """
    files = sorted(drive.glob("frame_*.npz"))
    found = _told(drive).get("format") if files else FORMAT
    if found != FORMAT:
        expected = f"key frames of format {FORMAT}; `kestrel train prepare` makes the drive again"
        raise InputError(describe(str(drive), expected=expected, found=f"format {found}"))
    for path in files:
        if not zipfile.is_zipfile(path):  # which looks at the end alone
            raise InputError(describe(str(path), expected=f"a whole key frame ({AGAIN})", found="a part"))
    return files


def frame_files(*folders: Path) -> list[Path]:
    """Return the key frames of all complete drives below ``folders``.

    Raises:
        InputError: there is no complete drive, or one of an earlier version.
    """
    drives = [drive for folder in folders for drive in finished_drives(folder)]
    return [path for drive in drives for path in key_frames(drive)]


def split_folders(data: Path, purpose: str, sensors: str) -> list[Path]:
    """Return the folders of all splits for a purpose with ``sensors`` that have a complete drive.

    Args:
        data: folder of the splits.
        purpose: "train" or "validation".
        sensors: "cameras", "lidar" or "video".

    Raises:
        InputError: there is none of them.
    """
    names = split_names(purpose, sensors)
    found = [data / name for name in names if any((data / name).glob(f"*/{DONE}"))]
    if not found:
        expected = f"one of {', '.join(names)}, made by `kestrel train prepare`"
        raise InputError(describe(str(data), expected=expected, found="none"))
    return found
