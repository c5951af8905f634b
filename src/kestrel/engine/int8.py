# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a network in int8: a folder of quantized models with a manifest that says what they are.

`kestrel calibrate` makes such a folder (kestrel.train.calibration). The scales of int8 hang on the weights,
so models are only used with those that they were made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from kestrel.errors import ModelError, SetupError, describe, extra

MANIFEST: Final = "int8.json"

TOLERANCE: Final = 0.05
"""Largest relative error of an output in int8, mean over frames that calibration did not use: the Euclidean
norm of its difference to float32 divided by that of float32."""


@dataclass(frozen=True)
class Int8Models:
    """What a folder of quantized models is.

    weights, sha256: name and hash of the weights file they were made from. models: sha256 of each file, an
    openvino.Model in two: PART.xml its operations, PART.bin its numbers. calibration: with what. versions: of
    the libraries. difference: mean relative error of each output of the network on other frames.
    """

    weights: str
    sha256: str
    models: dict[str, str]
    calibration: dict[str, Any]
    versions: dict[str, str]
    difference: dict[str, float]
    folder: Path = Path()

    @classmethod
    def open(cls, folder: str | Path, sha256: str) -> Int8Models:
        """Read the manifest of a folder, and check its files.

        Args:
            folder: made by `kestrel calibrate`.
            sha256: of the weights that are in use.

        Raises:
            ModelError: there is no such folder, it is damaged, or it belongs to other weights.
            SetupError: OpenVINO is not installed.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            expected = f"a folder with {MANIFEST}, made by `kestrel calibrate`"
            raise ModelError(describe(f"int8 models {folder}", expected=expected, found=f"no file {path}"))
        models = cls._parsed(path)
        if models.sha256 != sha256:
            expected = f"models of the weights in use, sha256 {sha256[:12]}"
            found = f"of {models.weights}, sha256 {models.sha256[:12]}: run `kestrel calibrate` again"
            raise ModelError(describe(f"int8 models {folder}", expected=expected, found=found))
        for name, digest in models.models.items():
            found = file_hash(folder / name) if (folder / name).exists() else "no file"
            if found != digest:
                raise ModelError(describe(f"{folder / name} sha256", expected=digest, found=found))
        check_installed("openvino")
        return models

    @classmethod
    def _parsed(cls, path: Path) -> Int8Models:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {entry.name for entry in fields(cls)} - {"folder"}
            if not isinstance(values, dict) or values.keys() != known:
                raise ValueError(f"other entries than {sorted(known)}")
            if not isinstance(values["models"], dict):
                raise ValueError("models that are no mapping")
            return cls(**values, folder=path.parent)
        except ValueError as error:
            raise ModelError(
                describe(str(path), expected="a manifest of int8 models", found=error)
            ) from error

    def model(self, part: str) -> Path | None:
        """Return the model of a part; None where that stays in floating point."""
        return self.folder / f"{part}.xml" if f"{part}.xml" in self.models else None

    def write(self) -> None:
        """Write the manifest into the folder."""
        values = asdict(self)
        del values["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_installed(*libraries: str) -> None:
    """Raise SetupError unless libraries of the extra int8 are there."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise SetupError(describe("int8", expected=extra("int8"), found=f"no {library}"))


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
