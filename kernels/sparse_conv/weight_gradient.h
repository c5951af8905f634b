// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Weight gradient of a sparse convolution: per kernel slice a product of gathered rows, summed in registers
// over blocks of pairs that stay in cache. Every thread owns parts of the result, so the sums are
// always formed in the same order.
#pragma once

namespace kestrel {
namespace {

constexpr int kPairBlock = 64;
constexpr int kSmallBlock = 4 * kRows;

// c[r][...] += sum_p a_p[r] * b_p[...] over pairs of rows given by index.
template <int R, int V>
inline void outer(const float* features, int64_t a_stride, const int32_t* a_rows, const float* gradient,
                  int64_t b_stride, const int32_t* b_rows, int pairs, float* c, int64_t c_stride) {
  Vector sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = load(c + r * c_stride + v * kWidth);
  for (int p = 0; p < pairs; ++p) {
    const float* a = features + a_rows[p] * a_stride;
    const float* b = gradient + b_rows[p] * b_stride;
    Vector right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector left = broadcast(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kWidth, sum[r][v]);
}

// The gradient of `channels` input channels from `channel` on, of one slice, into sums (channels, padded).
void slice_gradient(const WeightGradient& grad, const float* gradient, int padded, int channel, int channels,
                    const int32_t* inputs, const int32_t* outputs, int64_t pairs, float* sums) {
  memset(sums, 0, static_cast<int64_t>(channels) * padded * 4);
  for (int64_t start = 0; start < pairs; start += kPairBlock) {
    const int block = static_cast<int>(smaller(kPairBlock, pairs - start));
    for (int p = 0; p < block; ++p) {
      prefetch(grad.features + inputs[start + p] * static_cast<int64_t>(grad.cin) + channel, 4 * channels);
      prefetch(gradient + outputs[start + p] * static_cast<int64_t>(padded), 4 * padded);
    }
    for_panels(padded, [&](int column, int vectors) {
      as_constant<kMaxVectors>(vectors, [&](auto width) {
        for (int r = 0; r < channels; r += kRows)
          as_constant<kRows>(static_cast<int>(smaller(kRows, channels - r)), [&](auto rows) {
            outer<rows.value, width.value>(grad.features + channel + r, grad.cin, inputs + start,
                                           gradient + column, padded, outputs + start, block,
                                           sums + static_cast<int64_t>(r) * padded + column, padded);
          });
      });
    });
  }
}

void weight_gradient(const WeightGradient& grad) {
  const int padded = static_cast<int>(round_up(grad.cout, kWidth));
  const int64_t room = round_up(grad.outputs + 16, 16);
  Scratch input_memory(grad.slices * room * 4), output_memory(grad.slices * room * 4),
      count_memory(grad.slices * 4), wide(padded == grad.cout ? 0 : grad.outputs * padded * 4);
  const float* gradient = grad.gradient;
  if (padded != grad.cout) {
#pragma omp parallel for num_threads(grad.threads) schedule(static)
    for (int64_t j = 0; j < grad.outputs; ++j) {
      memcpy(wide.floats() + j * padded, grad.gradient + j * grad.cout, 4 * grad.cout);
      memset(wide.floats() + j * padded + grad.cout, 0, 4 * (padded - grad.cout));
    }
    gradient = wide.floats();
  }
#pragma omp parallel for num_threads(grad.threads) schedule(dynamic)
  for (int k = 0; k < grad.slices; ++k)
    count_memory.ints()[k] =
        compact(grad.gather + k * grad.outputs, static_cast<int>(grad.outputs),
                output_memory.ints() + k * room, input_memory.ints() + k * room);
  // Few threads: one unit per slice, so that rows are fetched once. Many: parts of slices, so that all have work.
  const int channel_block = grad.threads * 4 <= grad.slices ? grad.cin : kSmallBlock;
  const int blocks = (grad.cin + channel_block - 1) / channel_block;
  Shortage shortage;
#pragma omp parallel num_threads(grad.threads)
  {
    Scratch sum_memory(static_cast<int64_t>(channel_block) * padded * 4, shortage);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < grad.slices * blocks; ++unit) {
      if (shortage) continue;
      // The middle slice of a submanifold layer has the most pairs: start with it.
      const int k = (unit / blocks + grad.slices / 2) % grad.slices, channel = unit % blocks * channel_block;
      const int channels = static_cast<int>(smaller(channel_block, grad.cin - channel));
      slice_gradient(grad, gradient, padded, channel, channels, input_memory.ints() + k * room,
                     output_memory.ints() + k * room, count_memory.ints()[k], sum_memory.floats());
      for (int r = 0; r < channels; ++r)
        memcpy(grad.out + (static_cast<int64_t>(k) * grad.cin + channel + r) * grad.cout,
               sum_memory.floats() + static_cast<int64_t>(r) * padded, 4 * grad.cout);
    }
  }
  shortage.raise();
}

}  // namespace
}  // namespace kestrel
