# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One supervisor per ROS domain."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kestrel.errors import SetupError, describe

_CREDENTIALS = struct.Struct("3i")
"""`struct ucred` of unix(7): process, user and group id."""


@contextmanager
def claimed_domain() -> Iterator[None]:
    """Hold this process's ROS domain, so that no other supervisor takes it.

    Discovery of a graph takes longer the busier the machine is, so that not having heard of another
    supervisor proves nothing. The kernel knows at once: the claim is an abstract socket, which only one
    process of a network namespace can bind, and which ends with that process, however it ends.

    Raises:
        SetupError: another supervisor holds the domain.
    """
    name = f"\0kestrel-up-{_domain()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            refuse([_holder(name)])
        claim.listen()
        yield


def refuse(found: Sequence[str]) -> None:
    """Say that others are in this process's ROS domain already, if ``found`` names any.

    Raises:
        SetupError: it does.
    """
    if found:
        raise SetupError(
            describe(
                f"ROS domain {_domain()}",
                expected="no other Kestrel nodes (stop them, or set ROS_DOMAIN_ID)",
                found=", ".join(found),
            )
        )


def _domain() -> str:
    return os.environ.get("ROS_DOMAIN_ID") or "0"


def _holder(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as question:
        try:
            question.connect(name)
        except OSError:  # it does not listen yet, or has ended meanwhile
            return "kestrel up"
        process, _, _ = _CREDENTIALS.unpack(
            question.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    return f"kestrel up (process {process})"
