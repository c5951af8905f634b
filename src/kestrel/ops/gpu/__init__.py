# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The operators on a GPU, in Triton (Tillet et al., MAPL 2019); one module for each module of kestrel.ops.

Nothing here is imported before an operator meets a tensor on a GPU: Triton is optional. Every sum runs in a
fixed order, so results repeat bit by bit. They were proved equal to the reference in Triton's interpreter;
their speed on a GPU was not measured.
"""
