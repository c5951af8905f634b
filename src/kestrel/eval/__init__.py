# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores: metrics as the benchmarks define them, and what a recording scores against its truth."""
