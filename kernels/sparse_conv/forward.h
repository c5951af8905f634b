// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Sparse convolution in tiles of output rows: the sums of a tile stay in cache while all kernel slices are
// added, input rows are read where they lie, and bias, residual and ReLU end the tile.
#pragma once

namespace kestrel {
namespace {

// c[r][0..V*kWidth) += sum_i a[r][i] * b[i][...] for R rows given by their addresses.
template <int R, int V>
inline void multiply(const float* const* a, const float* b, int64_t stride, int depth, float* const* c) {
  Vector sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = load(c[r] + v * kWidth);
  for (int i = 0; i < depth; ++i, b += stride) {
    Vector right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector left = Vector{} + a[r][i];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c[r] + v * kWidth, sum[r][v]);
}

#if defined(__AVX512BF16__)
// The same on pairs of bfloat16: a[r] and b hold two values per 32-bit element, depth counts pairs.
template <int R, int V>
inline void multiply(const uint32_t* const* a, const uint32_t* b, int64_t stride, int depth,
                     float* const* c) {
  __m512 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_loadu_ps(c[r] + v * 16);
  for (int i = 0; i < depth; ++i, b += stride) {
    __m512i right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = _mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      memcpy(&pair, a[r] + i, 4);
      const __m512i left = _mm512_set1_epi32(static_cast<int>(pair));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)left, (__m512bh)right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(c[r] + v * 16, sum[r][v]);
}
#endif

// All pairs of one kernel slice in one tile, for one panel of V vectors.
template <int V, class Element>
void multiply_pairs(const Element* features, const int32_t* rows, const int32_t* places, int count,
                    int64_t row_stride, const Element* panel, int64_t stride, int depth, float* sums,
                    int64_t sum_stride) {
  const Element* a[kRows];
  float* c[kRows];
  int pair = 0;
  for (; pair + kRows <= count; pair += kRows) {
    const int ahead = static_cast<int>(smaller(kRows, count - pair - kRows));
    for (int r = 0; r < ahead; ++r) prefetch(features + rows[pair + kRows + r] * row_stride, 4 * depth);
    for (int r = 0; r < kRows; ++r) {
      // Rows are in halves of 32-bit elements where Element holds two bfloat16 and the channels are even.
      a[r] = features + rows[pair + r] * row_stride;
      c[r] = sums + places[pair + r] * sum_stride;
    }
    multiply<kRows, V>(a, panel, stride, depth, c);
  }
  const int rest = count - pair;
  for (int r = 0; r < rest; ++r) {
    a[r] = features + rows[pair + r] * row_stride;
    c[r] = sums + places[pair + r] * sum_stride;
  }
  switch (rest) {
    case 1: multiply<1, V>(a, panel, stride, depth, c); break;
    case 2: multiply<2, V>(a, panel, stride, depth, c); break;
    case 3: multiply<3, V>(a, panel, stride, depth, c); break;
    case 4: multiply<4, V>(a, panel, stride, depth, c); break;
    case 5: multiply<5, V>(a, panel, stride, depth, c); break;
    default: break;
  }
}

// Add all slices to the sums of the tile of `count` rows from `first` on.
template <class Element>
void add_slices(const SparseConv& conv, const Element* features, int64_t row_stride, const Element* weight,
                int padded, int depth, int64_t first, int count, int32_t* places, int32_t* rows,
                float* sums) {
  const int64_t slice_size = static_cast<int64_t>(depth) * padded;
  for (int k = 0; k < conv.slices; ++k) {
    int pairs = count;
    if (conv.gather)
      pairs = compact(conv.gather + k * conv.outputs + first, count, places, rows);
    else
      for (int j = 0; j < count; ++j) places[j] = j, rows[j] = static_cast<int32_t>(first + j);
    if (!pairs) continue;
    for_panels(padded, [&](int column, int vectors) {
      const Element* panel = weight + k * slice_size + column;
      float* into = sums + column;
      if (vectors == 1)
        multiply_pairs<1>(features, rows, places, pairs, row_stride, panel, padded, depth, into, padded);
      else if (vectors == 2)
        multiply_pairs<2>(features, rows, places, pairs, row_stride, panel, padded, depth, into, padded);
      else if (vectors == 3)
        multiply_pairs<3>(features, rows, places, pairs, row_stride, panel, padded, depth, into, padded);
      else
        multiply_pairs<4>(features, rows, places, pairs, row_stride, panel, padded, depth, into, padded);
    });
  }
}

template <bool Half>
inline float read(const void* from, int64_t index) {
  return Half ? from_bfloat16(static_cast<const uint16_t*>(from)[index])
              : static_cast<const float*>(from)[index];
}

template <bool Half>
void finish_tile(const SparseConv& conv, const float* sums, int padded, int64_t first, int count) {
  for (int j = 0; j < count; ++j) {
    const float* sum = sums + static_cast<int64_t>(j) * padded;
    const int64_t row = (first + j) * conv.cout;
    for (int c = 0; c < conv.cout; ++c) {
      float value = sum[c];
      if (conv.residual) value += read<Half>(conv.residual, row + c);
      // NaN passes, as it does through torch.relu.
      if (conv.relu) value = value < 0 ? 0 : value;
      if (Half)
        static_cast<uint16_t*>(conv.out)[row + c] = to_bfloat16(value);
      else
        static_cast<float*>(conv.out)[row + c] = value;
    }
  }
}

// Rows per tile: enough to reuse the weights, few enough for the sums to stay in cache and to feed all threads.
inline int tile_rows(const SparseConv& conv, int padded) {
  const int64_t fits = (192 << 10) / (4 * padded);
  const int64_t share = conv.outputs / (4 * larger(conv.threads, 1));
  return static_cast<int>(larger(64, smaller(smaller(fits, share), 1024)));
}

template <class Element>
void run_tiles(const SparseConv& conv, const Element* features, int64_t row_stride, const Element* weight,
               int padded, int depth) {
  const int tile = tile_rows(conv, padded);
  const int64_t tiles = (conv.outputs + tile - 1) / tile;
  Scratch start_memory(4 * padded);
  float* start = start_memory.floats();
  memset(start, 0, 4 * padded);
  for (int c = 0; conv.bias && c < conv.cout; ++c)
    start[c] = conv.bfloat16 ? read<true>(conv.bias, c) : read<false>(conv.bias, c);
#pragma omp parallel num_threads(conv.threads)
  {
    Scratch sum_memory(static_cast<int64_t>(tile) * padded * 4), place_memory((tile + 16) * 4),
        row_memory((tile + 16) * 4);
    float* sums = sum_memory.floats();
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * tile;
      const int count = static_cast<int>(smaller(tile, conv.outputs - first));
      for (int j = 0; j < count; ++j) memcpy(sums + static_cast<int64_t>(j) * padded, start, 4 * padded);
      add_slices(conv, features, row_stride, weight, padded, depth, first, count, place_memory.ints(),
                 row_memory.ints(), sums);
      if (conv.bfloat16)
        finish_tile<true>(conv, sums, padded, first, count);
      else
        finish_tile<false>(conv, sums, padded, first, count);
    }
  }
}

// Weights as float with columns padded to whole vectors.
inline void pad_weight(const SparseConv& conv, int padded, float* to) {
  const int64_t lines = static_cast<int64_t>(conv.slices) * conv.cin;
#pragma omp parallel for num_threads(conv.threads) schedule(static)
  for (int64_t line = 0; line < lines; ++line) {
    for (int c = 0; c < padded; ++c) {
      const int64_t from = line * conv.cout + c;
      to[line * padded + c] =
          c >= conv.cout ? 0.0f : conv.bfloat16 ? read<true>(conv.weight, from) : read<false>(conv.weight, from);
    }
  }
}

#if defined(__AVX512BF16__)
// Weights as pairs of input channels next to each other, which is what the dot product instruction reads.
inline void pair_weight(const SparseConv& conv, int padded, uint32_t* to) {
  const uint16_t* weight = static_cast<const uint16_t*>(conv.weight);
  const int64_t lines = static_cast<int64_t>(conv.slices) * conv.cin / 2;
#pragma omp parallel for num_threads(conv.threads) schedule(static)
  for (int64_t line = 0; line < lines; ++line) {
    const uint16_t* low = weight + 2 * line * conv.cout;
    const uint16_t* high = low + conv.cout;
    for (int c = 0; c < padded; ++c)
      to[line * padded + c] = c < conv.cout ? low[c] | static_cast<uint32_t>(high[c]) << 16 : 0;
  }
}
#endif

void sparse_conv(const SparseConv& conv) {
  const int padded = static_cast<int>(round_up(conv.cout, kWidth));
  const int64_t weights = static_cast<int64_t>(conv.slices) * conv.cin * padded;
#if defined(__AVX512BF16__)
  if (conv.bfloat16 && conv.cin % 2 == 0) {
    Scratch memory(weights * 2);
    uint32_t* paired = static_cast<uint32_t*>(memory.data);
    pair_weight(conv, padded, paired);
    run_tiles(conv, static_cast<const uint32_t*>(conv.features), conv.cin / 2, paired, padded, conv.cin / 2);
    return;
  }
#endif
  if (!conv.bfloat16 && padded == conv.cout) {
    run_tiles(conv, static_cast<const float*>(conv.features), conv.cin, static_cast<const float*>(conv.weight),
              padded, conv.cin);
    return;
  }
  Scratch memory(weights * 4);
  pad_weight(conv, padded, memory.floats());
  if (!conv.bfloat16) {
    run_tiles(conv, static_cast<const float*>(conv.features), conv.cin,
              static_cast<const float*>(memory.floats()), padded, conv.cin);
    return;
  }
  const int64_t values = conv.inputs * conv.cin;
  Scratch wide(values * 4);
#pragma omp parallel for num_threads(conv.threads) schedule(static)
  for (int64_t i = 0; i < values; ++i)
    wide.floats()[i] = from_bfloat16(static_cast<const uint16_t*>(conv.features)[i]);
  run_tiles(conv, static_cast<const float*>(wide.floats()), conv.cin,
            static_cast<const float*>(memory.floats()), padded, conv.cin);
}

}  // namespace
}  // namespace kestrel
