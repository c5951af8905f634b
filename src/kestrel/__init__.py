# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel: efficient perception for cars and robots, from sensors to bird's-eye view."""

__version__ = "0.1.0"
