// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "common/amx.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace kestrel {

bool amx_permitted() {
  // Intel SDM: CPUID.7.0:EDX bits 24 (AMX-TILE) and 22 (AMX-BF16); XCR0 bits 17 and 18 say that the operating
  // system keeps tiles between threads.
  constexpr unsigned kTile = 1u << 24, kBfloat16 = 1u << 22, kSaved = 1u << 27;
  constexpr uint32_t kTileState = 3u << 17;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTile) || !(d & kBfloat16)) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSaved)) return false;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return false;
  // Linux gives the tile data (state component 18) to processes that ask: Documentation/arch/x86/xstate.rst.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace kestrel
#else
namespace kestrel {
bool amx_permitted() { return false; }
}  // namespace kestrel
#endif
