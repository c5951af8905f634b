# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel train`: training data, networks from them, and how good these are."""

from __future__ import annotations

import os

import typer

from kestrel.commands.train.data import import_, prepare
from kestrel.commands.train.networks import augment, fusion, point_networks, seg, video
from kestrel.commands.train.score import score

train = typer.Typer(no_args_is_help=True)


@train.callback()
def _one_thread_each() -> None:
    """Make training data, train networks on them, or score weights.

    An interrupted training goes on with --resume; without it, it begins anew. prepare goes on by itself.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded


train.command("prepare")(prepare)
train.command("import")(import_)
train.command("seg")(seg)
train.command("fusion")(fusion)
train.command("video")(video)
train.command("augment")(augment)
train.command("point-networks")(point_networks)
train.command("score")(score)
