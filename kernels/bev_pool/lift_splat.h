// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Sums of depth times context per cell. The context of a picture column lies in a row of memory, and the points
// of a cell come in runs down such columns: a run is a short vector times a small matrix that the cache holds.
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
        const int64_t from = n * stride[0] + h * stride[2];
        for (int c = 0; c < padded; ++c) {
          for (int w = first; w < last; ++w) {
            float* to = packed + ((static_cast<int64_t>(n) * frustum.width + w) * frustum.height + h) * padded;
            to[c] = c < frustum.channels
                        ? read_element<kBfloat16>(frustum.context, from + c * stride[1] + w * stride[3])
                        : 0.0f;
          }
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

template <bool kBfloat16>
struct CellSum {
  const LiftSplat& splat;
  const float* packed;
  int padded;
  int32_t first_run, last_run;
  float* sums;

  // Few vectors alone would wait for each other's sums: every other point then has sums of its own.
  template <int V>
  void operator()(int channel) const {
    constexpr int kChains = V <= 6 ? 2 : 1;
    const Frustum& frustum = splat.frustum;
    const int64_t step = frustum.depth_stride[2];
    Vector sum[kChains][V] = {};
    for (int32_t run = first_run; run < last_run; ++run) {
      const RunStart start(frustum, splat.index.runs[3 * run + 1]);
      const int length = splat.index.runs[3 * run + 2];
      const float* from = packed + (start.column * frustum.height + start.row) * padded + channel;
      int i = 0;
      for (; i + kChains <= length; i += kChains) {
#pragma GCC unroll 2
        for (int chain = 0; chain < kChains; ++chain) {
          const int64_t at = start.depth + (i + chain) * step;
          const Vector weight = Vector{} + read_element<kBfloat16>(frustum.depth, at);
#pragma GCC unroll 12
          for (int v = 0; v < V; ++v)
            sum[chain][v] += weight * load(from + (i + chain) * padded + v * kWidth);
        }
      }
      if (i < length) {
        const Vector weight = Vector{} + read_element<kBfloat16>(frustum.depth, start.depth + i * step);
#pragma GCC unroll 12
        for (int v = 0; v < V; ++v) sum[0][v] += weight * load(from + i * padded + v * kWidth);
      }
    }
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v)
      store(sums + channel + v * kWidth, kChains == 2 ? sum[0][v] + sum[kChains - 1][v] : sum[0][v]);
  }
};

template <bool kBfloat16>
void splat_cells(const LiftSplat& splat) {
  const Frustum& frustum = splat.frustum;
  const int channels = frustum.channels, padded = static_cast<int>(round_up(channels, kWidth));
  Scratch memory(static_cast<int64_t>(frustum.images) * frustum.width * frustum.height * padded * 4);
  pack_context<kBfloat16>(frustum, padded, memory.floats(), splat.threads);
  // Cells in blocks: neighbours are crossed by the same picture columns, which then come from the cache.
  constexpr int kBlock = 16;
  const int64_t rows = (splat.nx + kBlock - 1) / kBlock, columns = (splat.ny + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(splat.threads)
  {
    Scratch sums(padded * 4);
#pragma omp for schedule(dynamic) collapse(3)
    for (int64_t layer = 0; layer < splat.layers; ++layer) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t last_x = smaller(splat.nx, (row + 1) * kBlock);
          const int64_t first_y = column * kBlock, last_y = smaller(splat.ny, first_y + kBlock);
          for (int64_t x = row * kBlock; x < last_x; ++x) {
            for (int64_t y = first_y; y < last_y; ++y) {
              const int64_t cell = (layer * splat.nx + x) * splat.ny + y;
              const int32_t first = splat.index.row_start[cell], last = splat.index.row_start[cell + 1];
              const bool direct = !kBfloat16 && padded == channels;
              float* into = direct ? static_cast<float*>(splat.out) + cell * channels : sums.floats();
              if (first == last)
                memset(into, 0, 4 * padded);
              else
                for_pool_panels(padded,
                                CellSum<kBfloat16>{splat, memory.floats(), padded, first, last, into});
              if (direct) continue;
              for (int c = 0; c < channels; ++c) write_element<kBfloat16>(splat.out, cell * channels + c, into[c]);
            }
          }
        }
      }
    }
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
