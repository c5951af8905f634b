// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Whether the tile instructions can be used in this process.
#pragma once

namespace kestrel {

// Asks the processor and the kernel; asking the kernel is what permits the process to use them.
bool amx_permitted();

}  // namespace kestrel
