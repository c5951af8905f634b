// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Products of picked rows with one packed kernel slice, added to picked rows of sums, in vector registers.
#pragma once

namespace kestrel {
namespace {

inline Vector add_product(Vector sum, float a, Vector b) { return sum + broadcast(a) * b; }

// The same with two bfloat16 in each 32-bit element: the dot product of the pairs is added.
inline Vector add_product(Vector sum, uint32_t a, Words b) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                   (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                                   (__m512bh) reinterpret_cast<__m512i>(b)));
#else
  const Vector low = reinterpret_cast<Vector>(b << 16), high = reinterpret_cast<Vector>(b & 0xffff0000);
  return sum + (to_float(static_cast<uint16_t>(a)) * low + to_float(static_cast<uint16_t>(a >> 16)) * high);
#endif
}

#if defined(__AVX512VNNI__)
// The same with four bytes, unsigned ones times signed ones, in each element of integers.
inline Words add_product(Words sum, uint32_t a, Words b) {
  return reinterpret_cast<Words>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                     _mm512_set1_epi32(static_cast<int>(a)),
                                                     reinterpret_cast<__m512i>(b)));
}
#endif

template <class Element>
inline Element read(const Element* from) {
  Element value;
  memcpy(&value, from, sizeof(value));  // rows of bfloat16 pairs start at any even address
  return value;
}

// c[r][0..V*kWidth) += sum_i a[r][i] * b[i][...] for R rows given by their addresses; b has V*kWidth columns.
template <int R, int V, class Element, class Sum>
inline void multiply(const Element* const* a, const Element* b, int depth, Sum* const* c) {
  decltype(load(*c)) sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = load(c[r] + v * kWidth);
  for (int i = 0; i < depth; ++i, b += V * kWidth) {
    decltype(load(b)) right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Element left = read(a[r] + i);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = add_product(sum[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c[r] + v * kWidth, sum[r][v]);
}

// Rows of the left matrix by index, and the rows of the sums that their products belong to.
struct Pairs {
  const int32_t *rows, *places;
  int count;
};

// All pairs with one panel of V vectors.
template <int V, class Element, class Sum>
void multiply_panel(const Element* features, int64_t row_stride, const Pairs& pairs, const Element* panel,
                    int depth, Sum* sums, int64_t sum_stride) {
  const Element* a[kRows];
  Sum* c[kRows];
  for (int first = 0; first < pairs.count; first += kRows) {
    const int rows = static_cast<int>(smaller(kRows, pairs.count - first));
    const int ahead = static_cast<int>(smaller(kRows, pairs.count - first - rows));
    for (int r = 0; r < ahead; ++r)
      prefetch(features + pairs.rows[first + rows + r] * row_stride, static_cast<int64_t>(sizeof(Element)) * depth);
    for (int r = 0; r < rows; ++r) {
      a[r] = features + pairs.rows[first + r] * row_stride;
      c[r] = sums + pairs.places[first + r] * sum_stride;
    }
    as_constant<kRows>(rows, [&](auto count) { multiply<count.value, V>(a, panel, depth, c); });
  }
}

// sums[places[p]] += features[rows[p]] @ slice. The slice is packed in panels, each with all its depth.
template <class Element, class Sum>
void multiply_pairs(const Element* features, int64_t row_stride, const Pairs& pairs, const Element* slice,
                    int depth, Sum* sums, int padded) {
  for_panels(padded, [&](int column, int vectors) {
    as_constant<kMaxVectors>(vectors, [&](auto count) {
      multiply_panel<count.value>(features, row_stride, pairs, slice + static_cast<int64_t>(column) * depth,
                                  depth, sums + column, padded);
    });
  });
}

// Each way to multiply has a `depth` and a `column` step that its packed slices are padded to, the type of its sums,
// and add(), which adds the products of some pairs with slice k. One object per thread, made in the parallel region.

// What those share that need no memory of their own.
struct PlainProduct {
  const SparseConv& conv;
  const int padded;

  PlainProduct(const SparseConv& convolution, int columns, Shortage&) : conv(convolution), padded(columns) {}
};

// Elements of a slice in panels of columns: channel after channel, Group neighbouring channels together.
template <int Group, class From, class To>
void pack_panels(const From* slice, int cin, int cout, int padded, To* to) {
  for_panels(padded, [&](int column, int vectors) {
    for (int i = 0; i < cin; i += Group)
      for (int c = column; c < column + vectors * kWidth; ++c)
        for (int part = 0; part < Group; ++part, ++to) {
          const From value = c < cout ? slice[static_cast<int64_t>(i + part) * cout + c] : From{};
          if constexpr (sizeof(To) == sizeof(From))
            *to = value;
          else
            *to = to_float(value);
        }
  });
}

// Single precision: rows are read where they lie.
struct FloatProduct : PlainProduct {
  static constexpr int kDepthStep = 1, kColumnStep = kWidth, kElementBytes = 4;
  using Sum = float;
  using PlainProduct::PlainProduct;

  void add(int k, const Pairs& pairs, float* sums) {
    const float* slice = static_cast<const float*>(conv.weight) + static_cast<int64_t>(k) * conv.cin * padded;
    multiply_pairs(static_cast<const float*>(conv.features), conv.cin, pairs, slice, conv.cin, sums, padded);
  }

  static void pack(const PackWeight& pack, int k, int padded) {
    const int64_t from = static_cast<int64_t>(k) * pack.cin * pack.cout;
    pack_panels<1>(static_cast<const float*>(pack.weight) + from, pack.cin, pack.cout, padded,
                   static_cast<float*>(pack.to) + static_cast<int64_t>(k) * pack.cin * padded);
  }
};

// bfloat16 where no instruction multiplies it: some rows at a time become float in cache, weights when packed.
struct WidenedProduct {
  static constexpr int kDepthStep = 1, kColumnStep = kWidth, kElementBytes = 4;
  static constexpr int kBlock = 8 * kRows;
  using Sum = float;
  const SparseConv& conv;
  const int padded;
  Scratch wide;
  int32_t order[kBlock];

  WidenedProduct(const SparseConv& convolution, int columns, Shortage& shortage)
      : conv(convolution), padded(columns), wide(int64_t{kBlock} * conv.cin * 4, shortage) {
    for (int r = 0; r < kBlock; ++r) order[r] = r;
  }

  void add(int k, const Pairs& pairs, float* sums) {
    const uint16_t* features = static_cast<const uint16_t*>(conv.features);
    const float* slice = static_cast<const float*>(conv.weight) + static_cast<int64_t>(k) * conv.cin * padded;
    for (int first = 0; first < pairs.count; first += kBlock) {
      const int rows = static_cast<int>(smaller(kBlock, pairs.count - first));
      for (int r = 0; r < rows; ++r) {
        if (first + r + kRows < pairs.count)
          prefetch(features + static_cast<int64_t>(pairs.rows[first + r + kRows]) * conv.cin, 2 * conv.cin);
        widen(features + static_cast<int64_t>(pairs.rows[first + r]) * conv.cin, conv.cin,
              wide.floats() + static_cast<int64_t>(r) * conv.cin);
      }
      multiply_pairs(static_cast<const float*>(wide.floats()), conv.cin, {order, pairs.places + first, rows},
                     slice, conv.cin, sums, padded);
    }
  }

  static void pack(const PackWeight& pack, int k, int padded) {
    const int64_t from = static_cast<int64_t>(k) * pack.cin * pack.cout;
    pack_panels<1>(static_cast<const uint16_t*>(pack.weight) + from, pack.cin, pack.cout, padded,
                   static_cast<float*>(pack.to) + static_cast<int64_t>(k) * pack.cin * padded);
  }
};

// bfloat16 in pairs of channels, as the dot product instruction reads them; needs an even number of channels.
struct PairProduct : PlainProduct {
  static constexpr int kDepthStep = 2, kColumnStep = kWidth, kElementBytes = 2;
  using Sum = float;
  using PlainProduct::PlainProduct;

  void add(int k, const Pairs& pairs, float* sums) {
    const int depth = conv.cin / 2;
    const uint32_t* slice = static_cast<const uint32_t*>(conv.weight) + static_cast<int64_t>(k) * depth * padded;
    multiply_pairs(static_cast<const uint32_t*>(conv.features), depth, pairs, slice, depth, sums, padded);
  }

  static void pack(const PackWeight& pack, int k, int padded) {
    const int64_t from = static_cast<int64_t>(k) * pack.cin * pack.cout;
    pack_panels<2>(static_cast<const uint16_t*>(pack.weight) + from, pack.cin, pack.cout, padded,
                   static_cast<uint16_t*>(pack.to) + static_cast<int64_t>(k) * pack.cin * padded);
  }
};

}  // namespace
}  // namespace kestrel
