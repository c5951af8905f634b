// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "common/memory.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>

namespace kestrel {

OutOfMemory::OutOfMemory(int64_t wanted_bytes, const char* kernel) : bytes(wanted_bytes) {
  std::snprintf(text_, sizeof text_, "kernel %s: expected %" PRId64 " bytes of memory for its work, found less",
                kernel, bytes);
}

const char* OutOfMemory::what() const noexcept { return text_; }

void out_of_memory(int64_t bytes) { throw OutOfMemory(bytes); }

void* acquire(int64_t bytes) noexcept {
  constexpr int64_t kLine = 64;
  return std::aligned_alloc(kLine, (std::max(bytes, kLine) + kLine - 1) / kLine * kLine);
}

}  // namespace kestrel
