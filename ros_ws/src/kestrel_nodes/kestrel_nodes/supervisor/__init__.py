# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps a set of nodes up: one process each, activated in order, restarted when one dies or hangs."""
