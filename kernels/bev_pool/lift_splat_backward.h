// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Gradients of lift-splat, one picture column after the other: its context and the gradient of it stay in cache
// while the gradient of each cell that its rays cross is read once.
#pragma once

namespace kestrel {
namespace {

inline float sum_of(Vector value) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += value[i];
  return sum;
}

template <bool kBfloat16>
struct RunGradient {
  const Frustum& frustum;
  RunStart start;
  int length, padded;
  const float* context;     // of the first pixel of the run
  const float* gradient;    // of the cell
  float* to_context;        // of the first pixel of the run
  float* to_depth;          // (length), starts at zero

  template <int V>
  void operator()(int channel) const {
    Vector upstream[V];
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v) upstream[v] = load(gradient + channel + v * kWidth);
    for (int i = 0; i < length; ++i) {
      const int64_t at = start.depth + i * frustum.depth_stride[2];
      const Vector weight = broadcast(read_element<kBfloat16>(frustum.depth, at));
      const float* from = context + i * padded + channel;
      float* to = to_context + i * padded + channel;
      Vector product = {};
#pragma GCC unroll 12
      for (int v = 0; v < V; ++v) {
        product += upstream[v] * load(from + v * kWidth);
        store(to + v * kWidth, load(to + v * kWidth) + weight * upstream[v]);
      }
      to_depth[i] += sum_of(product);
    }
  }
};

template <bool kBfloat16>
void column_gradient(const LiftSplatBackward& request, int64_t column, int padded, const float* packed,
                     float* to_context, float* upstream, float* to_depth) {
  const Frustum& frustum = request.frustum;
  const int64_t area = static_cast<int64_t>(frustum.height) * padded;
  memset(to_context, 0, 4 * area);
  for (int32_t i = request.index.column_start[column]; i < request.index.column_start[column + 1]; ++i) {
    const int32_t* run = request.index.runs + 3 * static_cast<int64_t>(request.index.by_column[i]);
    const RunStart start(frustum, run[1]);
    const int64_t cell = static_cast<int64_t>(run[0]) * frustum.channels;
    for (int c = 0; c < frustum.channels; ++c)
      upstream[c] = read_element<kBfloat16>(request.gradient, cell + c);
    memset(to_depth, 0, 4 * run[2]);
    for_pool_panels(padded, RunGradient<kBfloat16>{frustum, start, run[2], padded,
                                                   packed + column * area + start.row * padded, upstream,
                                                   to_context + start.row * padded, to_depth});
    for (int j = 0; j < run[2]; ++j)
      write_element<kBfloat16>(request.to_depth, run[1] + static_cast<int64_t>(j) * frustum.width, to_depth[j]);
  }
  const int64_t n = column / frustum.width, w = column % frustum.width;
  for (int c = 0; c < frustum.channels; ++c)
    for (int h = 0; h < frustum.height; ++h)
      write_element<kBfloat16>(
          request.to_context,
          ((n * frustum.channels + c) * frustum.height + h) * frustum.width + w, to_context[h * padded + c]);
}

template <bool kBfloat16>
void splat_gradients(const LiftSplatBackward& request) {
  const Frustum& frustum = request.frustum;
  const int padded = static_cast<int>(round_up(frustum.channels, kWidth));
  const int64_t columns = static_cast<int64_t>(frustum.images) * frustum.width;
  Scratch packed(columns * frustum.height * padded * 4);
  pack_context<kBfloat16>(frustum, padded, packed.floats(), request.threads);
  Shortage shortage;
#pragma omp parallel num_threads(request.threads)
  {
    Scratch to_context(static_cast<int64_t>(frustum.height) * padded * 4, shortage), upstream(padded * 4, shortage),
        to_depth(frustum.height * 4, shortage);
    upstream.clear(4 * padded);
#pragma omp for schedule(dynamic, 16)
    for (int64_t column = 0; column < columns; ++column) {
      if (shortage) continue;
      column_gradient<kBfloat16>(request, column, padded, packed.floats(), to_context.floats(),
                                 upstream.floats(), to_depth.floats());
    }
  }
  shortage.raise();
}

void lift_splat_backward(const LiftSplatBackward& request) {
  if (request.frustum.bfloat16)
    splat_gradients<true>(request);
  else
    splat_gradients<false>(request);
}

}  // namespace
}  // namespace kestrel
