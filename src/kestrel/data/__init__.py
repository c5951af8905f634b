# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Readers and writers: bags, their messages, and the public data sets that become bags."""
