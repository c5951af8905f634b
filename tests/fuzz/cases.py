# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How many cases each test gets, and bytes that were good before something happened to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kestrel.errors import KestrelError

T = TypeVar("T")

USUAL: Final = 4000
CASES: Final = int(os.environ.get("KESTREL_FUZZ_CASES", USUAL))
"""Cases of all tests together."""

PARTS: Final = 200
"""Shares of all tests together: a test with 10 of them gets every twentieth case."""


def cases(share: int) -> settings:
    """Return the settings of a test that gets ``share`` of PARTS.

    The usual cases are the same in every run, so that none fails by chance; on demand they are others.
    """
    return settings(
        max_examples=max(1, CASES * share // PARTS),
        derandomize=CASES == USUAL,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def answer(call: Callable[[], T], *allowed: type[KestrelError]) -> T | None:
    """Return what ``call`` returns, or None where it raises what it may."""
    try:
        return call()
    except allowed as error:
        text = str(error)
    assert ": expected " in text, f"{text!r} does not say what was expected"
    return None


ODD_BYTES: Final = (
    *(b"", b"\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x7f\xff\xff\xff", b"-", b"\n", b"\xc3"),
)
ODD_WORDS: Final = (
    *("", "nan", "-inf", "1e999", "-1", "0", "99999999999999999999", "0x10", "1_0", "\xe9", "\u0664", "x"),
    *(":", "=", "\0", "\ufeff", "{}", "[]", "null", "true", '"', "1.5", "\n", "[" * 3000),
)


@st.composite
def damaged(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    """Draw one of ``good`` with a few places cut out, doubled, overwritten or cut off."""
    data = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 3) | st.integers(0, 64))
        new = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8))
        data = data[:at] + draw(
            st.sampled_from(
                (
                    new + data[at + len(new) :],
                    new + data[at + length :],
                    data[at : at + length] + data[at:],
                    b"",
                )
            )
        )
    return data


@st.composite
def damaged_text(draw: st.DrawFn, good: Sequence[str]) -> bytes:
    """Draw one of ``good`` with words replaced, left out or doubled; now and then other bytes as well."""
    text = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(0, 3))):
        words = text.split(" ")
        at = draw(st.integers(0, len(words) - 1))
        odd = draw(st.sampled_from(ODD_WORDS) | st.text(max_size=4))
        words[at : at + 1] = draw(st.sampled_from(([odd], [], [words[at], words[at]], [words[at] + odd])))
        text = " ".join(words)
    raw = text.encode("utf-8", "surrogatepass")
    return draw(st.just(raw) | damaged([raw]))
