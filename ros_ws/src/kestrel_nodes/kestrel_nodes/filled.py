# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Messages that are made by the hundred in every frame."""

from __future__ import annotations

from typing import Any, TypeVar

MessageT = TypeVar("MessageT")


def filled(kind: type[MessageT], **fields: Any) -> MessageT:
    """Return a message of ``kind`` with these fields, which have to be all that it has.

    A generated constructor also makes the default of every field that is given, with all the messages in it:
    for one box in three messages these were a hundred objects to throw away.
    """
    message = kind.__new__(kind)
    # The constructor's only other work is to say whether setting a field checks its type.
    for name, value in {"_check_fields": False, **fields}.items():
        setattr(message, name, value)
    return message
