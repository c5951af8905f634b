# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights and their manifests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import save

from kestrel.errors import ModelError
from kestrel.weights import Manifest, load
from tests.fuzz.cases import answer, cases, damaged, damaged_text

MANIFEST = Manifest("small", "Network", {"width": 3}, ("car", "bus"), metrics={"iou": 0.5}).to_json()
TENSORS = save({"weight": torch.ones(2, 3).half(), "bias": torch.zeros(3), "count": torch.tensor(7)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@cases(4)
@given(text=damaged_text([MANIFEST]))
def test_no_manifest_raises_anything_but_a_model_error(folder: Path, text: bytes) -> None:
    (folder / "a.safetensors").write_bytes(TENSORS)
    (folder / "a.json").write_bytes(text)
    found = answer(lambda: load(folder / "a.safetensors"), ModelError)
    assert found is None  # its hash is none


@cases(4)
@given(content=damaged([TENSORS]))
def test_no_tensors_raise_anything_but_a_model_error(folder: Path, content: bytes) -> None:
    (folder / "b.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "b.json").write_text(json.dumps(json.loads(MANIFEST) | {"sha256": digest}))
    found = answer(lambda: load(folder / "b.safetensors"), ModelError)
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found[0].values())
