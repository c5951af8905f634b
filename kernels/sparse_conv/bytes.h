// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Products of unsigned bytes with signed ones, summed as integers, and the bytes that stand for float features.
#pragma once

namespace kestrel {
namespace {

constexpr float kMostFloat = 3e38f;

struct Range {
  float low, high;
  bool usable;
};

// The range of the values and of zero; not usable with values that are not finite, or negative and may not be.
Range range_of(const Quantize& request) {
  const float* from = request.from;
  const float least = request.negative ? -kMostFloat : 0;
  const int64_t whole = request.count / kWidth * kWidth;
  float low = 0, high = 0;
  int bad = 0;
#pragma omp parallel num_threads(request.threads) reduction(max : high) reduction(min : low) reduction(| : bad)
  {
    Vector most{}, fewest{};
    decltype(most >= 0) wrong{};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < whole; i += kWidth) {
      const Vector value = load(from + i);
      wrong |= !(value >= least);  // NaN is not either
      most = value > most ? value : most;
      fewest = value < fewest ? value : fewest;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      high = most[lane] > high ? most[lane] : high;
      low = fewest[lane] < low ? fewest[lane] : low;
      bad |= wrong[lane] != 0;
    }
  }
  for (int64_t i = whole; i < request.count; ++i) {
    bad |= !(from[i] >= least);
    high = from[i] > high ? from[i] : high;
    low = from[i] < low ? from[i] : low;
  }
  return {low, high, !bad && high <= kMostFloat && high - low <= kMostFloat};
}

Steps quantize(const Quantize& request) {
  const Range range = range_of(request);
  if (!range.usable) return {-1, 0};
  // With a zero of its own, which is rounded too, the largest value may come to lie one step higher.
  const float steps = range.low < 0 ? 254 : 255, per_value = steps / (range.high - range.low);
  if (!(per_value < kMostFloat)) {  // nothing but zeros, or as good as that
    memset(request.to, 0, request.count);
    return {0, 0};
  }
  const int zero = static_cast<int>(0.5f - range.low * per_value);
  const float shift = zero + 0.5f;
  const int64_t whole = request.count / kWidth * kWidth;
  typedef uint8_t Bytes __attribute__((vector_size(kWidth), aligned(1), may_alias));
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Integers rounded = __builtin_convertvector(load(request.from + i) * per_value + shift, Integers);
    *reinterpret_cast<Bytes*>(request.to + i) = __builtin_convertvector(rounded, Bytes);
  }
  for (int64_t i = whole; i < request.count; ++i)
    request.to[i] = static_cast<uint8_t>(static_cast<int32_t>(request.from[i] * per_value + shift));
  return {1 / per_value, zero};
}

#if defined(__AVX512VNNI__)

// Channels in groups of four; their number is a multiple of that.
struct ByteProduct {
  static constexpr int kDepthStep = 4, kColumnStep = kWidth, kElementBytes = 1;
  using Sum = uint32_t;
  const SparseConv& conv;
  const int padded;

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
