# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m kestrel` is the `kestrel` tool."""

from kestrel.cli import main

main()
