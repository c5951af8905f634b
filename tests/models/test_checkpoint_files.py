# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints: weights are found, what else is there is passed over or refused, never executed."""

from __future__ import annotations

import os
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kestrel.errors import ModelError
from kestrel.models.checkpoint_files import Checkpoint, read_checkpoint


@pytest.mark.parametrize("container", [None, "state_dict", "model", "g_ema", "params", "net", "ema"])
def test_weights_are_found_in_their_container(tmp_path: Path, container: str | None) -> None:
    weights = {"module.a": torch.ones(2)}
    torch.save(weights if container is None else {"epoch": 3, container: weights}, tmp_path / "file.pth")
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))


def read(tmp_path: Path, content: object) -> Checkpoint:
    torch.save(content, tmp_path / "file.pth")
    return read_checkpoint(tmp_path / "file.pth")


def test_of_several_weights_those_are_taken_that_were_trained_and_it_is_said(tmp_path: Path) -> None:
    one, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    for content, taken, left in (
        ({"ema": other, "net": one}, "net", "ema"),
        ({"state_dict_ema": other, "epoch": 3, "state_dict": one}, "state_dict", "state_dict_ema"),
        ({"params_ema": other, "params": one}, "params", "params_ema"),
        ({"model": one, "net": other, "ema": other}, "model", "net, ema"),
    ):
        found = read(tmp_path, content)
        assert torch.equal(found["a"], torch.ones(2))
        assert found.notes == {"weights": f"those under {taken}; there are others under {left}"}
    assert read(tmp_path, {"ema": one, "epoch": 3}).notes == {"weights": "those under ema"}
    assert read(tmp_path, {"state_dict": one, "epoch": 3}).notes == {}


@pytest.mark.parametrize("empty", [{}, {"depth": 3}, {"model": {}}])
def test_a_container_without_weights_does_not_hide_the_one_that_has_them(
    tmp_path: Path, empty: object
) -> None:
    found = read(tmp_path, {"state_dict": empty, "model": {"a": torch.ones(2)}})
    assert torch.equal(found["a"], torch.ones(2))
    assert not found.notes
    within = read(tmp_path, {"state_dict": {"model": {"a": torch.ones(2)}}})
    assert torch.equal(within["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"weights": {"a": torch.ones(2)}, "epoch": 3}, r"found weights \(1 entries\), epoch \(int\)$"),
        (
            {"state_dict": {}, "epoch": 3},
            r"expected weights, .*ema, found state_dict \(empty\), epoch \(int\)$",
        ),
        ({"model": {"depth": 3}}, r"found model \(1 entries, none a tensor\)$"),
        ({f"k{n}": n for n in range(20)}, r"k7 \(int\), and 12 more$"),
        (
            {"state_dict": {"a": torch.ones(2), "step": 3}},
            r"file\.pth: state_dict: expected weights and nothing else, found step \(int\) beside 1 tensors$",
        ),
        ({"a": torch.ones(2), "b": np.ones(2)}, r"found b \(no tensor\) beside 1 tensors$"),
        ([torch.ones(2)], r"found list$"),
    ],
)
def test_what_is_no_weight_is_named(tmp_path: Path, content: object, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        read(tmp_path, content)


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 3}
    content["model"] = content["net"] = content
    with pytest.raises(ModelError, match=r"found epoch \(int\), model \(3 entries, none a tensor\)"):
        read(tmp_path, content)


def test_attributes_that_a_file_gives_its_entries_are_not_asked(tmp_path: Path) -> None:
    weights, content = OrderedDict(a=torch.ones(2)), OrderedDict()
    content["state_dict"] = weights
    for entries in (content, weights):
        entries.__dict__.update(get=3, keys=3, values=3, _metadata={})
    assert torch.equal(read(tmp_path, content)["a"], torch.ones(2))


def test_prefixes_of_wrappers_are_taken_away_however_many(tmp_path: Path) -> None:
    keys = ("module.a", "_orig_mod.b", "module._orig_mod.c", "_orig_mod.module.module.d", "e.module.f")
    assert [*read(tmp_path, dict.fromkeys(keys, torch.ones(2)))] == ["a", "b", "c", "d", "e.module.f"]
    twice = {"a": torch.ones(2), "module.a": torch.zeros(2)}
    with pytest.raises(ModelError, match=r"keys that differ without module\..* found \['module\.a'\]"):
        read(tmp_path, twice)


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


OPTIONS = {
    "namespace": Namespace(lr=0.1, out=Path("runs"), when=datetime.now(UTC)),
    "path": PurePosixPath("/runs/one"),
    "times": [datetime.now(UTC), datetime(2020, 1, 1), date(2020, 1, 1), timedelta(hours=1), time(3)],
    "defaults": defaultdict(list, {"loss": [0.5]}),
    "counts": defaultdict(int, {"a": 1}),
    "unset": defaultdict(None, {"a": 1}),
    "queue": deque([1, 2], maxlen=5),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("zipped", [True, False])
def test_options_and_logs_of_a_training_beside_the_weights_are_passed_over(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    content = {"model": {"a": torch.ones(2)}, "epoch": 3, name: OPTIONS[name]}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))


def test_weights_may_lie_in_a_defaultdict(tmp_path: Path) -> None:
    assert torch.equal(read(tmp_path, defaultdict(list, {"a": torch.ones(2)}))["a"], torch.ones(2))


class Config(dict):
    """As in the trainer of PVCNN, whose checkpoints hold its options: a dict with attributes."""

    executed = False

    def __init__(self, func: object = None) -> None:
        super().__init__()
        self.__dict__["_func_"] = func

    def __setitem__(self, key: object, value: object) -> None:
        Config.executed = True
        super().__setitem__(key, value)


class S3DIS:
    """A data set, of which a configuration says that it is made."""


def test_the_configuration_of_pvcnn_beside_the_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls, name in ((Config, "utils.config"), (S3DIS, "datasets.s3dis")):
        monkeypatch.setattr(cls, "__module__", name)
        module = ModuleType(name)
        monkeypatch.setattr(module, cls.__name__, cls, raising=False)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    configs = Config()
    dict.update(configs, dataset=Config(S3DIS), optimizer=Config(torch.optim.Adam), epochs=50)
    found = read(tmp_path, {"model": {"a": torch.ones(2)}, "epoch": 3, "configs": configs})
    assert torch.equal(found["a"], torch.ones(2))
    assert not Config.executed


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
        "path": PurePosixPath("/runs"),
        "time": datetime(2020, 1, 1),
        "options": Namespace(lr=0.1),
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
