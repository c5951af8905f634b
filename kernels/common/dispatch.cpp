// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "common/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace kestrel {

extern const Level level_portable;
#ifdef KESTREL_X86
extern const Level level_avx2, level_avx512, level_avx512_bf16;
#endif

namespace {

const Level* const* find_levels() {
  static const Level* levels[5];
  int count = 0;
#ifdef KESTREL_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("bmi2");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) levels[count++] = &level_avx512_bf16;
  if (avx512) levels[count++] = &level_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    levels[count++] = &level_avx2;
#endif
  levels[count++] = &level_portable;
  levels[count] = nullptr;
  return levels;
}

const Level* find(const char* name) {
  for (const Level* const* each = available_levels(); *each; ++each)
    if (!std::strcmp((*each)->name, name)) return *each;
  return nullptr;
}

const Level*& current() {
  static const Level* chosen = [] {
    const char* wanted = std::getenv("KESTREL_DISPATCH");
    const Level* named = wanted ? find(wanted) : nullptr;
    return named ? named : available_levels()[0];
  }();
  return chosen;
}

}  // namespace

const Level* const* available_levels() {
  static const Level* const* levels = find_levels();
  return levels;
}

const Level& level() { return *current(); }

bool set_level(const char* name) {
  const Level* named = find(name);
  if (named) current() = named;
  return named != nullptr;
}

}  // namespace kestrel
