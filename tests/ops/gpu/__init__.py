# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter."""
