# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints: weights are found, what else is there is passed over or refused, never executed."""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kestrel.errors import ModelError
from kestrel.models.checkpoints import read_checkpoint


@pytest.mark.parametrize("container", [None, "state_dict", "model", "g_ema"])
def test_weights_are_found_in_their_container(tmp_path: Path, container: str | None) -> None:
    weights = {"module.a": torch.ones(2)}
    torch.save(weights if container is None else {"epoch": 3, container: weights}, tmp_path / "file.pth")
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Attack(tmp_path / "executed")}, tmp_path / "file.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    for name in ("file.pth", "plain.pth"):
        with pytest.raises(ModelError, match=r"plain weights"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_what_would_be_executed_is_named_and_not_recommended(tmp_path: Path) -> None:
    torch.save({"state_dict": Attack(tmp_path / "executed")}, tmp_path / "file.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, code in (("file.pth", "mkdir"), ("module.pth", r"torch\.nn\.modules\.linear\.Linear")):
        with pytest.raises(
            ModelError, match=rf"expected a checkpoint of plain weights, found code, .*{code}$"
        ):
            read_checkpoint(tmp_path / name)


class HistoryBuffer:
    """As in mmengine, whose checkpoints hold one for every logged value."""

    executed = False

    def __init__(self) -> None:
        self._log_history = np.array([0.5, 0.25])
        self.statistics_methods = {"min": HistoryBuffer.min}

    def min(self) -> float:
        return float(self._log_history.min())

    def __setstate__(self, state: object) -> None:
        HistoryBuffer.executed = True


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give HistoryBuffer the place that it has in mmengine."""
    name = "mmengine.logging.history_buffer"
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    monkeypatch.setattr(HistoryBuffer.min, "__module__", name)
    module = ModuleType(name)
    monkeypatch.setattr(module, "HistoryBuffer", HistoryBuffer, raising=False)
    for part in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("mmengine")
@pytest.mark.parametrize("zipped", [True, False])
def test_logs_of_mmengine_beside_the_weights_are_passed_over(tmp_path: Path, zipped: bool) -> None:
    scalars = OrderedDict(loss=HistoryBuffer())
    content = {"meta": {"epoch": 3}, "state_dict": {"a": torch.ones(2)}, "message_hub": scalars}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))
    assert not HistoryBuffer.executed


NUMBERS = (
    np.float64(3.0),
    np.int32(3),
    np.bool_(True),
    np.arange(3),
    np.array(["a"]),
    np.zeros((2, 0), "f2"),
)


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: str(value.dtype))
def test_numbers_of_numpy_beside_the_weights_are_passed_over(tmp_path: Path, value: object) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "epoch": value}, tmp_path / "file.pth")
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))


def test_arrays_of_numpy_are_no_weights(tmp_path: Path) -> None:
    torch.save({"model": {"a": np.ones(2)}}, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"file\.pth: expected weights"):
        read_checkpoint(tmp_path / "file.pth")


class Stored:
    """Stored as a call with arguments."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


class StoredFunction(Stored):
    """The same where pickle wants a function."""

    def __call__(self) -> None:
        pass


def test_what_is_passed_over_is_not_even_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy would read addresses from bytes that are said to be objects, and getattr may run code."""
    read, contents = torch.load, []

    def load(*arguments: Any, **options: Any) -> object:
        contents.append(read(*arguments, **options))
        return contents[-1]

    monkeypatch.setattr(torch, "load", load)
    others = {
        "scalar": np.float64(3.0),
        "array": np.arange(3),
        "dtype": np.dtype("f8"),
        "fetched": Stored(getattr, (torch.Size, "numel")),
    }
    torch.save({"model": {"a": torch.ones(2)}, **others}, tmp_path / "file.pth")
    read_checkpoint(tmp_path / "file.pth")
    assert {type(contents[0][name]).__name__ for name in others} == {"_Ignored"}


def test_what_was_passed_over_cannot_be_called(tmp_path: Path) -> None:
    called = Stored(StoredFunction(getattr, (torch.Size, "numel")), ())
    torch.save({"model": {"a": torch.ones(2)}, "other": called}, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"plain weights"):
        read_checkpoint(tmp_path / "file.pth")


def test_names_are_passed_over_while_a_checkpoint_is_read_and_not_longer(tmp_path: Path) -> None:
    before = set(map(str, torch.serialization.get_safe_globals()))
    torch.save({"a": torch.ones(2)}, tmp_path / "file.pth")
    read_checkpoint(tmp_path / "file.pth")
    assert set(map(str, torch.serialization.get_safe_globals())) == before


NO_PICKLES = [b"", b"no checkpoint", b"hello world", b"e", b"0", b"\x80\x02a", b"\x80\x02X\x01", bytes(600)]


@pytest.mark.parametrize("content", NO_PICKLES)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"file\.pth"):
        read_checkpoint(tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"none\.pth"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_checkpoint_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    for zipped in (False, True):
        torch.save({"a": torch.randn(4), "b": torch.ones(3)}, whole, _use_new_zipfile_serialization=zipped)
        content = whole.read_bytes()
        for length in range(0, len(content) - 1, 7):
            (tmp_path / "file.pth").write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"file\.pth"):
                read_checkpoint(tmp_path / "file.pth")
