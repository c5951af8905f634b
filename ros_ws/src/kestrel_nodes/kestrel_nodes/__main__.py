# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs one node: `python -m kestrel_nodes NODE [--ros-args ...]`."""

from __future__ import annotations

import sys

from kestrel_nodes import NODES
from kestrel_nodes.main import main
from kestrel_nodes.supervisor.process import end_with_supervisor

if len(sys.argv) < 2 or sys.argv[1] not in NODES:
    sys.exit(f"usage: python -m kestrel_nodes {{{','.join(NODES)}}} [--ros-args ...]")
end_with_supervisor()
main(sys.argv[1])
