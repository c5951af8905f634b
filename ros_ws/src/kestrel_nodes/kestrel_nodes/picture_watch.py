# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are well-formed and yet show nothing: a frozen driver, a covered lens, a blinded sensor.

A real sensor has noise: two pictures in a row never have the same bytes. There is no ROS in this module.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np

from kestrel.types import UInt8Array
from kestrel_nodes.health import Concern

SAMPLING: Final = 8
"""Every so many rows and columns are looked at."""
DARK: Final = 10
BRIGHT: Final = 245
SHARE: Final = 0.98
"""Of the samples (all channels) that have to be dark, or bright, for the picture to show nothing."""


class PictureWatch:
    """Watches the pictures of one camera.

    Args:
        concern: where it is said; WARN until a picture that shows something.
        frozen_after: equal pictures in a row from which the camera counts as frozen; 0: never.
    """

    def __init__(self, concern: Concern, frozen_after: int) -> None:
        self._concern = concern
        self._frozen_after = frozen_after
        self._stamp_ns = -1
        self._hash = -1
        self._equal = 1

    def look(self, stamp_ns: int, data: Any, picture: UInt8Array) -> None:
        """Judge a picture; one that was seen before (it serves two sweeps) is not judged again.

        Args:
            stamp_ns: of the message.
            data: its bytes as they came (a buffer).
            picture: (H, W, 3) as decoded.
        """
        if stamp_ns == self._stamp_ns:
            return
        self._stamp_ns = stamp_ns
        self._look_for_freeze(data)
        sample = picture[::SAMPLING, ::SAMPLING]
        for key, share in (("black", np.mean(sample <= DARK)), ("saturated", np.mean(sample >= BRIGHT))):
            shows_nothing = bool(share >= SHARE)
            if shows_nothing:
                self._concern.count(f"{key}_pictures")
            self._concern.check(key, f"the picture is {key}" if shows_nothing else None)

    def _look_for_freeze(self, data: Any) -> None:
        if not self._frozen_after:
            return
        digest = zlib.crc32(data)
        self._equal = self._equal + 1 if digest == self._hash else 1
        self._hash = digest
        frozen = self._equal >= self._frozen_after
        if frozen:
            self._concern.count("frozen_pictures")
        text = f"frozen: the last {self._equal} pictures are equal" if frozen else None
        self._concern.check("frozen", text)
