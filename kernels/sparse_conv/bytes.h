// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Products of unsigned bytes with signed ones, summed as integers, and the bytes that stand for float features.
#pragma once

namespace kestrel {
namespace {

float quantize(const Quantize& request) {
  const float* from = request.from;
  const int64_t whole = request.count / kWidth * kWidth;
  float largest = 0;
  int bad = 0;
#pragma omp parallel num_threads(request.threads) reduction(max : largest) reduction(| : bad)
  {
    Vector most{};
    decltype(most >= 0) wrong{};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < whole; i += kWidth) {
      const Vector value = load(from + i);
      wrong |= !(value >= 0);  // NaN is not either
      most = value > most ? value : most;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      largest = most[lane] > largest ? most[lane] : largest;
      bad |= wrong[lane] != 0;
    }
  }
  for (int64_t i = whole; i < request.count; ++i) {
    bad |= !(from[i] >= 0);
    largest = from[i] > largest ? from[i] : largest;
  }
  const float per_value = 255 / largest;
  if (bad || largest > 3e38f) return -1;
  if (!(per_value < 3e38f)) {  // nothing but zeros, or as good as that
    memset(request.to, 0, request.count);
    return 0;
  }
  typedef uint8_t Bytes __attribute__((vector_size(kWidth), aligned(1), may_alias));
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Integers rounded = __builtin_convertvector(load(from + i) * per_value + 0.5f, Integers);
    *reinterpret_cast<Bytes*>(request.to + i) = __builtin_convertvector(rounded, Bytes);
  }
  for (int64_t i = whole; i < request.count; ++i)
    request.to[i] = static_cast<uint8_t>(static_cast<int32_t>(from[i] * per_value + 0.5f));
  return largest / 255;
}

#if defined(__AVX512VNNI__)

// Channels in groups of four; their number is a multiple of that.
struct ByteProduct : PlainProduct {
  static constexpr int kDepthStep = 4, kColumnStep = kWidth, kElementBytes = 1;
  using Sum = uint32_t;
  using PlainProduct::PlainProduct;

  void add(int k, const Pairs& pairs, uint32_t* sums) {
    const int depth = conv.cin / 4;
    const uint32_t* slice = static_cast<const uint32_t*>(conv.weight) + static_cast<int64_t>(k) * depth * padded;
    multiply_pairs(static_cast<const uint32_t*>(conv.features), depth, pairs, slice, depth, sums, padded);
  }

  static void pack(const PackWeight& pack, int k, int padded) {
    const int64_t from = static_cast<int64_t>(k) * pack.cin * pack.cout;
    pack_panels<4>(static_cast<const int8_t*>(pack.weight) + from, pack.cin, pack.cout, padded,
                   static_cast<int8_t*>(pack.to) + static_cast<int64_t>(k) * pack.cin * padded);
  }
};

#endif

}  // namespace
}  // namespace kestrel
