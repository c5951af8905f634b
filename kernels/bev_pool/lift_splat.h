// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Sums of depth times context per cell. The context of a picture column lies in a row of memory, and the points
// of a cell come in runs down such columns: a run is a short vector times a small matrix that the cache holds.
// Runs are summed first, column by column, then those of each cell.
#pragma once

namespace kestrel {
namespace {

constexpr int kPoolVectors = 12;  // of 16 registers; the rest holds the weight and what is read

template <bool kBfloat16>
inline float read_element(const void* from, int64_t at) {
  if constexpr (kBfloat16) return to_float(static_cast<const uint16_t*>(from)[at]);
  return static_cast<const float*>(from)[at];
}

template <bool kBfloat16>
inline void prefetch_element(const void* from, int64_t at) {
  __builtin_prefetch(static_cast<const char*>(from) + at * (kBfloat16 ? 2 : 4));
}

template <bool kBfloat16>
inline void write_element(void* to, int64_t at, float value) {
  if constexpr (kBfloat16)
    static_cast<uint16_t*>(to)[at] = to_bfloat16(value);
  else
    static_cast<float*>(to)[at] = value;
}

// Where a run begins: its picture column, its first row and its first depth probability.
struct RunStart {
  int64_t column, depth;
  int32_t row;

  RunStart(const Frustum& frustum, int32_t point) {
    const int32_t w = point % frustum.width, rest = point / frustum.width;
    const int32_t above = rest / frustum.height, n = above / frustum.depths, d = above % frustum.depths;
    const int64_t* stride = frustum.depth_stride;
    row = rest % frustum.height;
    column = static_cast<int64_t>(n) * frustum.width + w;
    depth = n * stride[0] + d * stride[1] + row * stride[2] + w * stride[3];
  }
};

// Context as float, (n, w, h, padded channels).
template <bool kBfloat16>
void pack_context(const Frustum& frustum, int padded, float* packed, int threads) {
  const int64_t* stride = frustum.context_stride;
  constexpr int kBlock = 16;
  const int blocks = (frustum.width + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (int n = 0; n < frustum.images; ++n) {
    for (int block = 0; block < blocks; ++block) {
      const int first = block * kBlock, last = static_cast<int>(smaller(frustum.width, first + kBlock));
      for (int h = 0; h < frustum.height; ++h) {
        // By tiles: the columns of a picture are kilobytes apart, and would drive each other out of the cache.
        for (int channel = 0; channel < padded; channel += kWidth) {
          float tile[kBlock][kWidth];
          // Channels are kilobytes apart, so that no processor foresees the next tile.
          const int64_t next = channel + kWidth < padded ? kWidth * stride[1] : stride[2] - channel * stride[1];
          for (int c = 0; c < kWidth; ++c) {
            const bool known = channel + c < frustum.channels;
            const int64_t from = n * stride[0] + h * stride[2] + (channel + c) * stride[1];
            prefetch_element<kBfloat16>(frustum.context, from + next + first * stride[3]);
            prefetch_element<kBfloat16>(frustum.context, from + next + (last - 1) * stride[3]);
            for (int w = first; w < last; ++w)
              tile[w - first][c] = known ? read_element<kBfloat16>(frustum.context, from + w * stride[3]) : 0.0f;
          }
          for (int w = first; w < last; ++w)
            store(packed + ((static_cast<int64_t>(n) * frustum.width + w) * frustum.height + h) * padded + channel,
                  load(tile[w - first]));
        }
      }
    }
  }
}

// Call act(first_channel, vectors as a compile-time number) for panels of the channels, as even as they can be.
template <class Action>
inline void for_pool_panels(int padded, const Action& act) {
  const int vectors = padded / kWidth, panels = (vectors + kPoolVectors - 1) / kPoolVectors;
  for (int panel = 0; panel < panels; ++panel) {
    const int first = vectors * panel / panels, count = vectors * (panel + 1) / panels - first;
    switch (count) {
#define KESTREL_PANEL(V) \
  case V: act.template operator()<V>(first * kWidth); break;
      KESTREL_PANEL(1) KESTREL_PANEL(2) KESTREL_PANEL(3) KESTREL_PANEL(4) KESTREL_PANEL(5) KESTREL_PANEL(6)
      KESTREL_PANEL(7) KESTREL_PANEL(8) KESTREL_PANEL(9) KESTREL_PANEL(10) KESTREL_PANEL(11)
      KESTREL_PANEL(12)
#undef KESTREL_PANEL
    }
  }
}

// The sum of one run.
template <bool kBfloat16>
struct RunSum {
  const Frustum& frustum;
  const float* packed;
  int padded;
  RunStart start;
  int length;
  float* sums;

  // Few vectors alone would wait for each other's sums: every other point then has sums of its own.
  template <int V>
  void operator()(int channel) const {
    constexpr int kChains = V <= 6 ? 2 : 1;
    const int64_t step = frustum.depth_stride[2];
    const float* from = packed + (start.column * frustum.height + start.row) * padded + channel;
    Vector sum[kChains][V] = {};
    int i = 0;
    for (; i + kChains <= length; i += kChains) {
#pragma GCC unroll 2
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t at = start.depth + (i + chain) * step;
        const Vector weight = broadcast(read_element<kBfloat16>(frustum.depth, at));
#pragma GCC unroll 12
        for (int v = 0; v < V; ++v)
          sum[chain][v] += weight * load(from + (i + chain) * padded + v * kWidth);
      }
    }
    if (i < length) {
      const Vector weight = broadcast(read_element<kBfloat16>(frustum.depth, start.depth + i * step));
#pragma GCC unroll 12
      for (int v = 0; v < V; ++v) sum[0][v] += weight * load(from + i * padded + v * kWidth);
    }
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v)
      store(sums + channel + v * kWidth, kChains == 2 ? sum[0][v] + sum[kChains - 1][v] : sum[0][v]);
  }
};

// Sums of the runs from `first` to `last`, column by column: its context then stays in the nearest cache.
template <bool kBfloat16>
void sum_runs(const LiftSplat& splat, const float* packed, int padded, int32_t first, int32_t last, float* sums) {
  const Frustum& frustum = splat.frustum;
  const SplatIndex& index = splat.index;
  const int64_t columns = static_cast<int64_t>(frustum.images) * frustum.width;
  constexpr int kAhead = 8;
#pragma omp parallel for num_threads(splat.threads) schedule(dynamic, 16)
  for (int64_t column = 0; column < columns; ++column) {
    const int32_t end = index.column_start[column + 1];
    for (int32_t at = index.column_start[column]; at < end; ++at) {
      const int32_t run = index.by_column[at];
      __builtin_prefetch(index.runs + 3 * index.by_column[smaller(at + kAhead, end - 1)]);
      if (run < first || run >= last) continue;
      const RunStart start(frustum, index.runs[3 * run + 1]);
      float* into = sums + static_cast<int64_t>(run - first) * padded;
      for_pool_panels(padded,
                      RunSum<kBfloat16>{frustum, packed, padded, start, index.runs[3 * run + 2], into});
    }
  }
}

// Sums of the cells from `first` to `last`, whose runs follow each other in `sums`.
template <bool kBfloat16>
void sum_cells(const LiftSplat& splat, int padded, int64_t first, int64_t last, const float* sums) {
  const int channels = splat.frustum.channels;
  const int32_t* row_start = splat.index.row_start;
  Shortage shortage;
#pragma omp parallel num_threads(splat.threads)
  {
    Scratch memory(padded * 4, shortage);
#pragma omp for schedule(static)
    for (int64_t cell = first; cell < last; ++cell) {
      if (shortage) continue;
      const int32_t runs = row_start[cell + 1] - row_start[cell];
      const float* total = sums + static_cast<int64_t>(row_start[cell] - row_start[first]) * padded;
      if (runs != 1) {  // most cells have one or none
        float* into = memory.floats();
        memset(into, 0, padded * 4);
        for (int32_t run = 0; run < runs; ++run, total += padded)
          for (int c = 0; c < padded; c += kWidth) store(into + c, load(into + c) + load(total + c));
        total = into;
      }
      if constexpr (kBfloat16) {
        for (int c = 0; c < channels; ++c) write_element<kBfloat16>(splat.out, cell * channels + c, total[c]);
      } else {
        memcpy(static_cast<float*>(splat.out) + cell * channels, total, channels * 4);
      }
    }
  }
  shortage.raise();
}

template <bool kBfloat16>
void splat_cells(const LiftSplat& splat) {
  const Frustum& frustum = splat.frustum;
  const int padded = static_cast<int>(round_up(frustum.channels, kWidth));
  const int64_t cells = splat.layers * splat.nx * splat.ny;
  const int32_t* row_start = splat.index.row_start;
  Scratch packed(static_cast<int64_t>(frustum.images) * frustum.width * frustum.height * padded * 4);
  pack_context<kBfloat16>(frustum, padded, packed.floats(), splat.threads);
  // Level cameras have few runs, which are all at once; of others there may be as many as points.
  constexpr int32_t kAtOnce = 1 << 17;
  for (int64_t first = 0; first < cells;) {
    int64_t last = first + 1;
    if (row_start[cells] - row_start[first] <= kAtOnce)
      last = cells;
    else
      while (last < cells && row_start[last + 1] - row_start[first] <= kAtOnce) ++last;
    const int32_t runs = row_start[last] - row_start[first];
    Scratch sums(static_cast<int64_t>(runs) * padded * 4);
    sum_runs<kBfloat16>(splat, packed.floats(), padded, row_start[first], row_start[last], sums.floats());
    sum_cells<kBfloat16>(splat, padded, first, last, sums.floats());
    first = last;
  }
}

void lift_splat(const LiftSplat& splat) {
  if (splat.frustum.bfloat16)
    splat_cells<true>(splat);
  else
    splat_cells<false>(splat);
}

}  // namespace
}  // namespace kestrel
