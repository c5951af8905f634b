# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from kestrel.errors import InputError
from kestrel.files import appearing, replacing, write_whole


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with appearing(out, "--out") as unfinished:
        unfinished.mkdir()
        (unfinished / "a").write_text("a")
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    assert list(out.parent.iterdir()) == [out]


def half_done(out: Path, reason: type[BaseException]) -> None:
    with appearing(out, "--out") as unfinished:
        unfinished.write_text("half")
        raise reason


@pytest.mark.parametrize("reason", [KeyboardInterrupt, InputError])
def test_nothing_stays_of_what_was_not_finished(tmp_path: Path, reason: type[BaseException]) -> None:
    with pytest.raises(reason):
        half_done(tmp_path / "out.mcap", reason)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("before")
    with pytest.raises(InputError, match="--out: expected a path that does not exist"):
        half_done(out, KeyboardInterrupt)
    assert out.read_text() == "before"


def replaced(out: Path, reason: BaseException | None) -> None:
    with replacing(out, "video") as unfinished:
        unfinished.write_text("half")
        if reason is not None:
            raise reason
        unfinished.write_text("after")


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        replaced(out, KeyboardInterrupt())
    assert not list(out.parent.iterdir())
    out.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        replaced(out, KeyboardInterrupt())
    assert out.read_text() == "before"
    replaced(out, None)
    assert out.read_text() == "after"
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(InputError, match="video: expected a path that can be made"):
        replaced(tmp_path / "out.mp4", None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]


def test_where_nothing_can_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"--out: expected a path that can be made, found .*file"):
        half_done(tmp_path / "file" / "out", KeyboardInterrupt)


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "a.json"
    folder.mkdir()
    (tmp_path / "file").touch()
    for path in (folder, tmp_path / "file" / "b.json"):
        with pytest.raises(InputError, match=f"{path.name}: expected a file that can be written"):
            write_whole(path, b"{}")
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "file"]
    assert not list(folder.iterdir())
