# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores: metrics as the benchmarks define them; what a recording holds, and its scores against its truth."""
