# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions Kestrel raises; each message names the input, what was expected and what was found."""

from __future__ import annotations


class KestrelError(Exception):
    """Base of every error that Kestrel raises on purpose."""


class InputError(KestrelError):
    """Data from outside (a message, a file, an array) is malformed."""


class CalibrationError(KestrelError):
    """A calibration or a transform is missing or unusable."""


class ModelError(KestrelError):
    """Weights or a network configuration cannot be used, or a network gave no answer or one not finite."""


class ConfigError(KestrelError):
    """A parameter or a configuration file holds a value that is not allowed."""


class SetupError(KestrelError):
    """Something that the machine should provide is missing or too old."""


def describe(name: str, *, expected: object, found: object) -> str:
    """Return the standard error text: which input, what was expected, what was found."""
    return f"{name}: expected {expected}, found {found}"


def extra(name: str) -> str:
    """Return, as what was expected, an optional extra of the library and how to install it."""
    return f'the extra `{name}` (`make setup EXTRAS={name}`; without ROS 2: `pip install -e ".[{name}]"`)'
