// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "common/dispatch.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/amx.h"

namespace kestrel {

extern const Level level_portable;
#ifdef KESTREL_X86
extern const Level level_avx2, level_avx512, level_avx512_vnni, level_avx512_bf16, level_amx_bf16;
#endif

namespace {

const Level* const* find_levels() {
  static const Level* levels[7];
  int count = 0;
#ifdef KESTREL_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("bmi2");
  const bool bytes = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bfloat16 = bytes && __builtin_cpu_supports("avx512bf16");
  if (bfloat16 && amx_permitted()) {
    if (multiplies_correctly(level_amx_bf16))
      levels[count++] = &level_amx_bf16;
    else
      std::fprintf(stderr, "kestrel_kernels: AMX is announced but multiplies wrongly here; it is not used\n");
  }
  if (bfloat16) levels[count++] = &level_avx512_bf16;
  if (bytes) levels[count++] = &level_avx512_vnni;
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

bool multiplies_correctly(const Level& level) {
  // More than one tile in every direction, and no multiple of one.
  constexpr int kRows = 37, kInputs = 40, kOutputs = 35;
  // Small integers: exact in bfloat16, and their sums of products exact in any order.
  std::vector<float> features(kRows * kInputs), weight(kInputs * kOutputs);
  std::vector<uint16_t> left, right, out(kRows * kOutputs);
  const auto fill = [](std::vector<float>& values, std::vector<uint16_t>& halves, int step) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(i * i * step % 7 % 4) - 1;
      uint32_t bits;
      std::memcpy(&bits, &values[i], 4);
      halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
  };
  fill(features, left, 3);
  fill(weight, right, 5);
  PackWeight pack{right.data(), nullptr, 1, kInputs, kOutputs, Number::kBfloat16, 1};
  std::vector<uint64_t> packed(level.pack_weight(pack) / 8 + 1);
  pack.to = packed.data();
  level.pack_weight(pack);
  level.sparse_conv({left.data(), packed.data(), nullptr, nullptr, nullptr, nullptr, out.data(), kRows, 1, kInputs,
                     kOutputs, Number::kBfloat16, false, 1, {}});
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kOutputs; ++column) {
      float sum = 0;
      for (int i = 0; i < kInputs; ++i) sum += features[row * kInputs + i] * weight[i * kOutputs + column];
      const uint32_t bits = static_cast<uint32_t>(out[row * kOutputs + column]) << 16;
      float found;
      std::memcpy(&found, &bits, 4);
      if (found != sum) return false;  // |sum| <= 160: exact in bfloat16 too
    }
  }
  return true;
}

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
