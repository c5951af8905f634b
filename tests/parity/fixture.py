# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the reference implementations: where they are, how values are compared with them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = REPOSITORY.parent / "shared" / "parity"

Outputs = Iterator[tuple[str, Any]] | Mapping[str, Any]
"""Names and values of a network's outputs, in network order."""
Runner = Callable[[Any], Outputs]


def parity_folder() -> Path:
    """Return the folder that KESTREL_PARITY names, or the default one (which may be missing)."""
    chosen = os.environ.get("KESTREL_PARITY")
    return (REPOSITORY / chosen).resolve() if chosen else DEFAULT_FOLDER


def fixture_names(folder: Path) -> list[str]:
    """Return every fixture below the folder, however deep, as its path without ending."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.npz"))


def loader(folder: Path) -> ModuleType:
    """Import the loader that comes with the fixtures."""
    if "load" not in sys.modules or Path(str(sys.modules["load"].__file__)).parent != folder:
        sys.path.insert(0, str(folder))
        try:
            spec = importlib.util.spec_from_file_location("load", folder / "load.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules["load"] = module
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
    return sys.modules["load"]


def tensors(fixture: Any) -> dict[str, torch.Tensor]:
    """Return the inputs of a fixture as tensors."""
    return {name: torch.from_numpy(np.array(value)) for name, value in fixture.inputs.items()}


def fill(network: torch.nn.Module, fixture: Any, prefix: str | None = None) -> torch.nn.Module:
    """Give a network the fixture's weights; its keys and shapes must be exactly those of the reference.

    Args:
        network: to fill; put into evaluation mode.
        fixture: of the reference.
        prefix: what the fixture's keys have and the network's have not; the manifest's prefix if not given.
    """
    prefix = fixture.manifest["weights"].get("prefix", "") if prefix is None else prefix
    weights = {key.removeprefix(prefix): torch.from_numpy(value) for key, value in fixture.weights().items()}
    expected = {key.removeprefix(prefix): tuple(shape) for key, shape in fixture.shapes().items()}
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    assert not wrong, f"keys or shapes differ from the reference: {wrong[:10]}"
    network.load_state_dict({**network.state_dict(), **weights})
    return network.eval()


def _middle_row(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return every n-th channel and column of the middle row: (frames, channels, columns)."""
    channels, columns = -(-array.shape[1] // shape[1]), -(-array.shape[3] // shape[2])
    return array[:, ::channels, array.shape[2] // 2, ::columns]


def shape_of(fixture: Any, key: str) -> tuple[int, ...]:
    """Return the shape of a weight, named without the manifest's prefix."""
    prefix = fixture.manifest["weights"].get("prefix", "")
    shapes = {name.removeprefix(prefix): shape for name, shape in fixture.shapes().items()}
    return tuple(shapes[key])


class Comparison:
    """Compares outputs one after the other and remembers which of the stored ones have been."""

    def __init__(self, fixture: Any) -> None:
        self.fixture = fixture
        self.done: set[str] = set()
        note = re.search(r"allow a fraction of ([0-9.e+-]*[0-9])", fixture.manifest.get("note", ""))
        self.fraction = float(note.group(1)) if note else 0.0

    def check_all(self, outputs: Outputs) -> None:
        """Compare all outputs in their order; stops at the first that deviates.

        Raises:
            AssertionError: an output deviates, is unknown to the fixture, or was never computed.
        """
        pairs = outputs.items() if isinstance(outputs, Mapping) else outputs
        for name, value in pairs:
            self.check(name, value)
        rest = sorted(set(self.fixture.outputs) - self.done)
        assert not rest, f"outputs that were never compared: {rest}"

    def check(self, name: str, value: Any) -> None:
        """Compare one output in every form that the fixture stores it in.

        Raises:
            AssertionError: it deviates, or the fixture holds no such output.
        """
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        stored = self.fixture.outputs
        forms = {
            name: lambda: array,
            f"{name}.value": lambda: self.fixture.sampled(array, name),
            f"{name}.sample": lambda: _middle_row(array, stored[f"{name}.sample"].shape),
            f"{name}.channel_mean": lambda: array.mean(axis=tuple(range(2, array.ndim)), dtype=np.float64),
        }
        found = [form for form in forms if form in stored]
        assert found, f"{name}: the fixture holds no such output"
        for form in found:
            result = self.fixture.compare(form, forms[form]())
            fine = result["ok"] or 0 < result.get("fraction_bad", 1) <= self.fraction
            assert fine, f"{form}: {result}"
            self.done.update((form, f"{name}.index") if form.endswith(".value") else (form,))
