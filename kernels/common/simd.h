// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set this translation unit is compiled for, and what the kernels share.
#pragma once

namespace kestrel {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kMaxVectors = 4, kRows = 6;  // 6 x 4 accumulators, 4 + 1 operands: 29 of 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kMaxVectors = 2, kRows = 6;   // 6 x 2 + 2 + 1 of 16
#elif defined(__aarch64__)
constexpr int kWidth = 4, kMaxVectors = 4, kRows = 5;   // 5 x 4 + 4 + 5 of 32: compilers load all rows' values ahead
#else
constexpr int kWidth = 4, kMaxVectors = 2, kRows = 6;
#endif

// Unaligned vectors of kWidth floats, of their bits, and of as many bfloat16.
typedef float Vector __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline Words load(const uint32_t* from) { return *reinterpret_cast<const Words*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline void store(uint32_t* to, Words value) { *reinterpret_cast<Words*>(to) = value; }

// Minus zero, not plus: x - 0 is x for every x, so that nothing but the broadcast is left.
inline Vector broadcast(float value) { return value - Vector{}; }

inline Vector load(const uint16_t* from) {
  return reinterpret_cast<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

// Round to nearest even; NaN stays NaN.
inline void store(uint16_t* to, Vector value) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Words result = (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(result, Halves);
}

// The first `count` < kWidth elements alone; the others are zero.
template <class Element>
inline Vector load_some(const Element* from, int count) {
  Element whole[kWidth] = {};
  memcpy(whole, from, count * sizeof(Element));
  return load(whole);
}

template <class Element>
inline void store_some(Element* to, Vector value, int count) {
  Element whole[kWidth];
  store(whole, value);
  memcpy(to, whole, count * sizeof(Element));
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline float to_float(float value) { return value; }
inline float to_float(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// One value as store() rounds it.
inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

// to[0..count) = from[0..count) as float.
inline void widen(const uint16_t* from, int count, float* to) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

// Ask for the cache lines of one row before it is needed.
inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line);
}

// Write the positions of the non-negative entries of row[0..count) and the entries themselves.
// Both outputs need room for count + 16.
inline int compact(const int32_t* row, int count, int32_t* position, int32_t* entry) {
  int kept = 0, j = 0;
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; j + 16 <= count; j += 16) {
    const __m512i values = _mm512_loadu_si512(row + j);
    const __mmask16 valid = _mm512_cmpge_epi32_mask(values, _mm512_setzero_si512());
    const __m512i where = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
    _mm512_storeu_si512(position + kept, _mm512_maskz_compress_epi32(valid, where));
    _mm512_storeu_si512(entry + kept, _mm512_maskz_compress_epi32(valid, values));
    kept += __builtin_popcount(valid);
  }
#endif
  for (; j < count; ++j) {
    position[kept] = j;
    entry[kept] = row[j];
    kept += row[j] >= 0;
  }
  return kept;
}

// Call act(first_column, vectors) for slices of at most kMaxVectors vectors, as even as they can be.
template <class Action>
inline void for_panels(int padded_columns, const Action& act) {
  const int vectors = padded_columns / kWidth;
  const int panels = (vectors + kMaxVectors - 1) / kMaxVectors;
  int first = 0;
  for (int panel = 0; panel < panels; ++panel) {
    const int count = (vectors - first + panels - panel - 1) / (panels - panel);
    act(first * kWidth, count);
    first += count;
  }
}

// Call act with the number (1..Most) as a compile-time constant.
template <int N>
struct Constant {
  static constexpr int value = N;
};
template <int Most, class Action>
inline void as_constant(int number, const Action& act) {
  if constexpr (Most > 1) {
    if (number < Most) return as_constant<Most - 1>(number, act);
  }
  act(Constant<Most>{});
}

}  // namespace
}  // namespace kestrel
