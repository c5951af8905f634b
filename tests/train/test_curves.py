# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

from kestrel.train.curves import draw_curves, keep_metrics, read_metrics


def write(path: Path, *rows: str, at: int) -> None:
    path.write_text("loss,step,epoch,val/mean,val/mean/car\n" + "\n".join(rows) + "\n")
    os.utime(path, (at, at))


def test_a_resumed_run_has_all_its_curves_and_what_was_done_again_counts(tmp_path: Path) -> None:
    write(tmp_path / "metrics-1.csv", "3.0,9,0,,", ",9,0,0.1,0.2", "2.9,19,0,,", at=1)
    write(tmp_path / "metrics.csv", "2.0,19,0,,", ",29,0,0.3,0.4", at=2)
    curves = read_metrics(tmp_path)
    assert curves["loss"] == [(9, 3.0), (19, 2.0)]
    assert curves["val/mean"] == [(9, 0.1), (29, 0.3)]
    assert draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_resumed_twice_keeps_all_it_logged_and_a_new_one_nothing(tmp_path: Path) -> None:
    for number in range(3):
        keep_metrics(tmp_path, resumed=number > 0)
        write(tmp_path / "metrics.csv", f"{number}.0,{number}9,0,,", at=number + 1)
    assert read_metrics(tmp_path)["loss"] == [(9, 0.0), (19, 1.0), (29, 2.0)]
    keep_metrics(tmp_path, resumed=False)
    assert read_metrics(tmp_path) == {}


def test_a_run_without_a_validation_has_a_picture_too(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", "3.0,9,0,,", at=1)
    draw_curves(tmp_path)
