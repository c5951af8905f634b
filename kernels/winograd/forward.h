// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution, stride 1, border 1, as F(4x4, 3x3) of Lavin and Gray, Fast Algorithms for Convolutional
// Neural Networks, CVPR 2016: 36 products for 16 outputs instead of 144. A block of tiles is transformed,
// multiplied and transformed back while it is in cache; bias and ReLU end it.
#pragma once

namespace kestrel {
namespace {

constexpr int kTile = 4, kPatch = 6, kProducts = kPatch * kPatch;

// One dimension of the transform of the input: to[i] = sum_j B[i][j] from[j].
inline void to_products(const Vector* d, int step, Vector* to) {
  const Vector a = d[4 * step] - 4.0f * d[2 * step], b = d[3 * step] - 4.0f * d[step];
  const Vector c = d[4 * step] - d[2 * step], e = 2.0f * (d[3 * step] - d[step]);
  to[0] = 4.0f * d[0] - 5.0f * d[2 * step] + d[4 * step];
  to[step] = a + b;
  to[2 * step] = a - b;
  to[3 * step] = c + e;
  to[4 * step] = c - e;
  to[5 * step] = 4.0f * d[step] - 5.0f * d[3 * step] + d[5 * step];
}

// One dimension of the transform back: to[i] = sum_j A[i][j] from[j].
inline void to_outputs(const Vector* m, int step, Vector* to) {
  const Vector a = m[step] + m[2 * step], b = m[step] - m[2 * step];
  const Vector c = m[3 * step] + m[4 * step], d = m[3 * step] - m[4 * step];
  to[0] = m[0] + a + c;
  to[step] = b + 2.0f * d;
  to[2 * step] = a + 4.0f * c;
  to[3 * step] = b + 8.0f * d + m[5 * step];
}

// Call act(first_channel) for vectors that cover `channels` (at least kWidth); the last one may overlap.
template <class Action>
inline void for_channels(int channels, const Action& act) {
  for (int c = 0; c + kWidth <= channels; c += kWidth) act(c);
  if (channels % kWidth) act(channels - kWidth);
}

// The patch of one tile, transformed: to[k * stride + c].
inline void transform_input(const Winograd& conv, const float* zeros, int64_t image, int row, int column,
                            float* to, int64_t stride) {
  const float* pixel[kProducts];
  for (int i = 0; i < kPatch; ++i)
    for (int j = 0; j < kPatch; ++j) {
      const int y = row + i - 1, x = column + j - 1;
      const bool inside = y >= 0 && y < conv.height && x >= 0 && x < conv.width;
      const int64_t place = (image * conv.height + y) * conv.width + x;
      pixel[i * kPatch + j] = inside ? conv.input + place * conv.cin : zeros;
    }
  for_channels(conv.cin, [&](int c) {
    Vector half[kProducts], whole[kPatch];
    for (int j = 0; j < kPatch; ++j) {
      Vector d[kPatch], t[kPatch];
      for (int i = 0; i < kPatch; ++i) d[i] = load(pixel[i * kPatch + j] + c);
      to_products(d, 1, t);
      for (int i = 0; i < kPatch; ++i) half[i * kPatch + j] = t[i];
    }
    for (int i = 0; i < kPatch; ++i) {
      to_products(half + i * kPatch, 1, whole);
      for (int j = 0; j < kPatch; ++j) store(to + (i * kPatch + j) * stride + c, whole[j]);
    }
  });
}

// The outputs of one tile from its products from[k * stride + c].
inline void transform_output(const Winograd& conv, const float* from, int64_t stride, int64_t image, int row,
                             int column) {
  const int rows = static_cast<int>(smaller(kTile, conv.height - row));
  const int columns = static_cast<int>(smaller(kTile, conv.width - column));
  for_channels(conv.cout, [&](int c) {
    Vector half[kTile * kPatch], whole[kTile];
    for (int j = 0; j < kPatch; ++j) {
      Vector m[kPatch], t[kTile];
      for (int i = 0; i < kPatch; ++i) m[i] = load(from + (i * kPatch + j) * stride + c);
      to_outputs(m, 1, t);
      for (int i = 0; i < kTile; ++i) half[i * kPatch + j] = t[i];
    }
    const Vector bias = conv.bias ? load(conv.bias + c) : Vector{};
    for (int i = 0; i < rows; ++i) {
      to_outputs(half + i * kPatch, 1, whole);
      float* pixel = conv.out + ((image * conv.height + row + i) * conv.width + column) * conv.cout + c;
      for (int j = 0; j < columns; ++j) {
        Vector value = whole[j] + bias;
        // NaN passes, as it does through torch.relu.
        if (conv.relu) value = value < 0.0f ? Vector{} : value;
        store(pixel + j * conv.cout, value);
      }
    }
  });
}

// Columns of the transformed weights lie in panels of this width, one after the other.
constexpr int kPanel = 16;

// c[r][0..V * kWidth) = sum_i a[r][i] * b[i][...]; the columns of b may lie in several panels.
template <int R, int V>
inline void multiply_tiles(const float* a, int depth, const float* b, float* c, int64_t stride) {
  Vector sum[R][V] = {};
  const int64_t panel = static_cast<int64_t>(depth) * kPanel;
  for (int i = 0; i < depth; ++i, b += kPanel) {
    Vector right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kWidth / kPanel * panel + v * kWidth % kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector left = broadcast(a[r * depth + i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * stride + v * kWidth, sum[r][v]);
}

// All tiles of a block (a multiple of kRows) times one product's weights, V vectors of columns at a time.
template <int V>
inline void multiply_columns(const float* a, int tiles, int depth, const float* b, float* c, int64_t stride) {
  for (int t = 0; t < tiles; t += kRows)
    multiply_tiles<kRows, V>(a + static_cast<int64_t>(t) * depth, depth, b, c + t * stride, stride);
}

inline void multiply_block(const float* a, int tiles, int depth, const float* weight, int padded, float* c) {
  for_panels(padded, [&](int column, int vectors) {
    const float* from = weight + static_cast<int64_t>(column / kPanel) * depth * kPanel + column % kPanel;
    as_constant<kMaxVectors>(vectors, [&](auto constant) {
      multiply_columns<decltype(constant)::value>(a, tiles, depth, from, c + column, padded);
    });
  });
}

void winograd(const Winograd& conv) {
  const int padded = static_cast<int>(round_up(conv.cout, kPanel));
  const int64_t down = (conv.height + kTile - 1) / kTile, across = (conv.width + kTile - 1) / kTile;
  const int64_t tiles = conv.images * down * across;
  // What a block holds before and after its products has to fit into the cache of a core.
  const int64_t fits = (384 << 10) / (4 * kProducts * (conv.cin + padded));
  const int block = static_cast<int>(larger(1, fits / kRows) * kRows);
  const int64_t blocks = (tiles + block - 1) / block;
  const int64_t before = static_cast<int64_t>(block) * conv.cin, after = static_cast<int64_t>(block) * padded;
  const int64_t slice = static_cast<int64_t>(conv.cin) * padded;
  Shortage shortage;
#pragma omp parallel num_threads(conv.threads)
  {
    Scratch patches(kProducts * before * 4, shortage), products(kProducts * after * 4, shortage),
        nothing(4 * conv.cin, shortage);
    patches.clear(kProducts * before * 4);
    nothing.clear(4 * conv.cin);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      if (shortage) continue;
      const int count = static_cast<int>(smaller(block, tiles - b * block));
      const auto place = [&](int t, int64_t* image, int* row, int* column) {
        const int64_t tile = b * block + t;
        *image = tile / (down * across);
        *row = static_cast<int>(tile / across % down) * kTile;
        *column = static_cast<int>(tile % across) * kTile;
      };
      int64_t image;
      int row, column;
      for (int t = 0; t < count; ++t) {
        place(t, &image, &row, &column);
        transform_input(conv, nothing.floats(), image, row, column, patches.floats() + t * conv.cin, before);
      }
      const int rows = static_cast<int>(round_up(count, kRows));
      for (int k = 0; k < kProducts; ++k)
        multiply_block(patches.floats() + k * before, rows, conv.cin, conv.weight + k * slice, padded,
                       products.floats() + k * after);
      for (int t = 0; t < count; ++t) {
        place(t, &image, &row, &column);
        transform_output(conv, products.floats() + t * padded, after, image, row, column);
      }
    }
  }
  shortage.raise();
}

}  // namespace
}  // namespace kestrel
