# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores: metrics as the benchmarks define them; what a recording holds, and how it scores against its truth."""
