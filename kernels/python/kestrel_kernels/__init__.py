# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of Kestrel's operators; ``kestrel.ops`` calls the module ``native`` where it could be built."""
