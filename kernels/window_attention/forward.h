// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Attention within shifted windows: windows are read from the map and written back to it cell by cell, and scores,
// their softmax and what they mix stay in cache.
#pragma once

namespace kestrel {
namespace {

// Of columns that are there for the width of vectors alone; next to any other score it is nothing.
constexpr float kNoScore = -1e30f;

// Where the cells of one window lie in the map, and which of them are neighbours there.
struct Window {
  int64_t* cell;    // (positions) -1 beyond the border
  int32_t* region;  // (positions)

  // Returns whether cells that are no neighbours meet in it.
  bool place(const WindowAttention& request, int64_t image, int down, int across) const {
    const int size = request.window, shift = request.shift;
    const int height = static_cast<int>(round_up(request.height, size));
    const int width = static_cast<int>(round_up(request.width, size));
    // The cyclic shift brings three parts of each axis together (Liu et al. 2021, figure 4).
    const auto part = [=](int at, int length) { return shift ? (at >= length - size) + (at >= length - shift) : 0; };
    bool mixed = false;
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) {
        const int row = down * size + i, column = across * size + j, at = i * size + j;
        const int y = (row + shift) % height, x = (column + shift) % width;
        const bool inside = y < request.height && x < request.width;
        cell[at] = inside ? (image * request.height + y) * request.width + x : -1;
        region[at] = 3 * part(row, height) + part(column, width);
        mixed |= region[at] != region[0];
      }
    }
    return mixed;
  }
};

// to[0..count) = factor * from[0..count).
template <class Element>
inline void widen_scaled(const Element* from, int count, float factor, float* to) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, factor * load(from + i));
  for (; i < count; ++i) to[i] = factor * to_float(from[i]);
}

// Softmax without the division, which what is mixed bears later. Returns the sum.
inline float exponentials(float* row, int padded) {
  Vector most = load(row);
  for (int c = kWidth; c < padded; c += kWidth) {
    const Vector value = load(row + c);
    most = value > most ? value : most;
  }
  float largest = most[0];
  for (int lane = 1; lane < kWidth; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  Vector sums = {};
  for (int c = 0; c < padded; c += kWidth) {
    const Vector value = exponential(load(row + c) - largest);
    store(row + c, value);
    sums += value;
  }
  float sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) sum += sums[lane];
  return sum;
}

// One head of one window.
template <class Element>
struct HeadAttention {
  const WindowAttention& request;
  int positions, columns, channels;  // columns and channels are padded to whole vectors
  Scratch query, row, keys, values, scores, mixed;

  HeadAttention(const WindowAttention& asked, Shortage& shortage)
      : request(asked),
        positions(asked.window * asked.window),
        columns(static_cast<int>(round_up(positions, kWidth))),
        channels(static_cast<int>(round_up(asked.depth, kWidth))),
        query(int64_t{positions} * asked.depth * 4, shortage),
        row(int64_t{positions} * asked.depth * 4, shortage),
        keys(int64_t{columns} * asked.depth * 4, shortage),
        values(int64_t{positions} * channels * 4, shortage),
        scores(int64_t{kRows} * columns * 4, shortage),
        mixed(int64_t{kRows} * channels * 4, shortage) {}

  const Element* part_of(const Window& window, int position, int part, int head) const {
    const int64_t cell = window.cell[position];
    const Element* from = static_cast<const Element*>(cell < 0 ? request.padding : request.qkv);
    return from + ((cell < 0 ? 0 : cell) * 3 + part) * request.heads * request.depth + int64_t{head} * request.depth;
  }

  void read(const Window& window, int head) {
    const int depth = request.depth;
    for (int p = 0; p < positions; ++p) {
      widen_scaled(part_of(window, p, 0, head), depth, request.scale, query.floats() + p * depth);
      widen_scaled(part_of(window, p, 1, head), depth, 1.0f, row.floats() + p * depth);
    }
    for_panels(columns, [&](int column, int vectors) {
      float* to = keys.floats() + int64_t{column} * depth;
      for (int d = 0; d < depth; ++d)
        for (int p = column; p < column + vectors * kWidth; ++p)
          *to++ = p < positions ? row.floats()[p * depth + d] : 0.0f;
    });
    for_panels(channels, [&](int column, int vectors) {
      float* to = values.floats() + int64_t{column} * positions;
      const int count = static_cast<int>(smaller(vectors * kWidth, depth - column));
      for (int p = 0; p < positions; ++p, to += vectors * kWidth) {
        widen_scaled(part_of(window, p, 2, head) + column, count, 1.0f, to);
        for (int c = count; c < vectors * kWidth; ++c) to[c] = 0;
      }
    });
  }

  void attend(const Window& window, bool masked, int head) {
    read(window, head);
    for (int first = 0; first < positions; first += kRows)
      as_constant<kRows>(static_cast<int>(smaller(kRows, positions - first)),
                         [&](auto count) { attend_rows<count.value>(window, masked, head, first); });
  }

  // Not inlined: with six of these in one function compilers have too few registers for the products within.
  template <int R>
  __attribute__((noinline)) void attend_rows(const Window& window, bool masked, int head, int first) {
    const int depth = request.depth;
    const float *asked[R], *weights[R];
    float *score[R], *out[R];
    for (int r = 0; r < R; ++r) {
      const int p = first + r;
      asked[r] = query.floats() + p * depth;
      weights[r] = score[r] = scores.floats() + int64_t{r} * columns;
      out[r] = mixed.floats() + int64_t{r} * channels;
      memcpy(score[r], request.bias + (int64_t{head} * positions + p) * positions, sizeof(float) * positions);
      for (int c = positions; c < columns; ++c) score[r][c] = kNoScore;
      if (masked)
        for (int c = 0; c < positions; ++c)
          if (window.region[c] != window.region[p]) score[r][c] += request.hidden;
      memset(out[r], 0, sizeof(float) * channels);
    }
    product<R>(asked, keys.floats(), depth, columns, score);
    float share[R];
    for (int r = 0; r < R; ++r) share[r] = 1.0f / exponentials(score[r], columns);
    product<R>(weights, values.floats(), positions, channels, out);
    for (int r = 0; r < R; ++r) {
      const int64_t cell = window.cell[first + r];
      if (cell < 0) continue;
      Element* to = static_cast<Element*>(request.out) + (cell * request.heads + head) * depth;
      int c = 0;
      for (; c + kWidth <= depth; c += kWidth) store(to + c, share[r] * load(out[r] + c));
      if (c < depth) store_some(to + c, share[r] * load(out[r] + c), depth - c);
    }
  }

  // c[r] += a[r] @ b, whose `padded` columns are packed in panels.
  template <int R>
  static void product(const float* const* a, const float* b, int depth, int padded, float* const* c) {
    for_panels(padded, [&](int column, int vectors) {
      float* sums[R];
      for (int r = 0; r < R; ++r) sums[r] = c[r] + column;
      as_constant<kMaxVectors>(vectors, [&](auto count) {
        multiply<R, count.value>(a, b + int64_t{column} * depth, depth, sums);
      });
    });
  }
};

template <class Element>
void attend_windows(const WindowAttention& request) {
  const int size = request.window, positions = size * size;
  const int64_t down = round_up(request.height, size) / size, across = round_up(request.width, size) / size;
  Shortage shortage;
#pragma omp parallel num_threads(request.threads)
  {
    Scratch cells(int64_t{positions} * 8, shortage), regions(int64_t{positions} * 4, shortage);
    const Window window{static_cast<int64_t*>(cells.data), regions.ints()};
    HeadAttention<Element> attention(request, shortage);
#pragma omp for schedule(static)
    for (int64_t number = 0; number < request.images * down * across; ++number) {
      if (shortage) continue;
      const int64_t place = number % (down * across);
      const bool masked = window.place(request, number / (down * across), static_cast<int>(place / across),
                                       static_cast<int>(place % across));
      for (int head = 0; head < request.heads; ++head) attention.attend(window, masked, head);
    }
  }
  shortage.raise();
}

void window_attention(const WindowAttention& request) {
  if (request.bfloat16)
    attend_windows<uint16_t>(request);
  else
    attend_windows<float>(request);
}

}  // namespace
}  // namespace kestrel
