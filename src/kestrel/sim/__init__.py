# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A procedural drive with ray-cast sensors and complete ground truth."""
