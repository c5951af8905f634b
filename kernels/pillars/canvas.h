// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Points to a canvas of pillars. The points are sorted by pillar (counting sort), so that a pillar is one thread's:
// its mean, its layer and its maximum need neither atomic operations nor a canvas that is filled before.
#pragma once

namespace kestrel {
namespace {

constexpr int kPointColumns = 5, kPillarInputs = 9;

// The pillar of a point; -1 outside of the grid, -2 for a frame that the batch does not have.
inline int32_t pillar_of(const PillarCanvas& request, int64_t point) {
  const float* at = request.points + point * kPointColumns;
  const int64_t frame = request.frames[point];
  if (frame < 0 || frame >= request.batch) return -2;
  // Division, not multiplication by the reciprocal: that would move points across the borders of cells.
  const float x = __builtin_floorf((at[0] + request.extent) / request.size);
  const float y = __builtin_floorf((at[1] + request.extent) / request.size);
  const float side = static_cast<float>(request.side);
  // Nothing becomes an integer before it is known to fit; what is not a number fits nowhere.
  if (!(x >= 0 && x < side && y >= 0 && y < side && at[2] >= request.low && at[2] < request.high)) return -1;
  const int32_t row = static_cast<int32_t>(frame) * request.side + static_cast<int32_t>(x);
  return row * request.side + static_cast<int32_t>(y);
}

// Sort the points of pillars 0..count by them, in the order in which they came; ends[p] is where those of p end.
// Returns how many there are, -1 if a point's frame does not exist.
inline int64_t sort_by_pillar(const PillarCanvas& request, int32_t* pillar, int32_t* ends, int64_t pillars,
                              int32_t* order) {
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < request.count; ++i) pillar[i] = pillar_of(request, i);
  memset(ends, 0, pillars * sizeof(int32_t));
  for (int64_t i = 0; i < request.count; ++i) {
    if (pillar[i] < -1) return -1;
    if (pillar[i] >= 0) ++ends[pillar[i]];
  }
  int32_t before = 0;
  for (int64_t p = 0; p < pillars; ++p) {
    const int32_t here = ends[p];
    ends[p] = before;
    before += here;
  }
  for (int64_t i = 0; i < request.count; ++i)
    if (pillar[i] >= 0) order[ends[pillar[i]]++] = static_cast<int32_t>(i);
  return before;
}

constexpr int kPillarBlock = 64;

// What the layer sees of some points of a pillar: to[n][kPillarInputs].
inline void pillar_inputs(const PillarCanvas& request, const int32_t* points, int count, const float* center,
                          const float* mean, float* to) {
  for (int n = 0; n < count; ++n, to += kPillarInputs) {
    const float* at = request.points + static_cast<int64_t>(points[n]) * kPointColumns;
    memcpy(to, at, kPointColumns * sizeof(float));
    to[5] = at[0] - center[0];
    to[6] = at[1] - center[1];
    to[7] = at[0] - mean[0];
    to[8] = at[1] - mean[1];
  }
}

// V vectors of channels: best = max(best, weight * inputs + bias) over some points.
template <int V>
inline void pillar_maximum(const float* inputs, int count, const float* weight, int padded, float* best) {
  const float* const bias = weight + kPillarInputs * padded;
  Vector highest[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) highest[v] = load(best + v * kWidth);
  for (int n = 0; n < count; ++n, inputs += kPillarInputs) {
    Vector value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) value[v] = load(bias + v * kWidth);
#pragma GCC unroll 9
    for (int k = 0; k < kPillarInputs; ++k) {
      const Vector input = broadcast(inputs[k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) value[v] += input * load(weight + k * padded + v * kWidth);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      // NaN passes and stays, as it does through torch.
      highest[v] = value[v] > highest[v] ? value[v] : highest[v];
      highest[v] = value[v] != value[v] ? value[v] : highest[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(best + v * kWidth, highest[v]);
}

// The padded channels of one pillar. Nothing is below zero after the ReLU: the maximum starts there.
inline void encode_pillar(const PillarCanvas& request, const int32_t* points, int count, const float* center,
                          const float* weight, int padded, float* to) {
  memset(to, 0, padded * sizeof(float));
  if (!count) return;
  float mean[2] = {};
  for (int n = 0; n < count; ++n)
    for (int axis = 0; axis < 2; ++axis)
      mean[axis] += request.points[static_cast<int64_t>(points[n]) * kPointColumns + axis];
  for (int axis = 0; axis < 2; ++axis) mean[axis] /= static_cast<float>(count);
  float inputs[kPillarBlock * kPillarInputs];
  for (int first = 0; first < count; first += kPillarBlock) {
    const int some = static_cast<int>(smaller(kPillarBlock, count - first));
    pillar_inputs(request, points + first, some, center, mean, inputs);
    for_panels(padded, [&](int channel, int vectors) {
      as_constant<kMaxVectors>(vectors, [&](auto constant) {
        pillar_maximum<decltype(constant)::value>(inputs, some, weight + channel, padded, to + channel);
      });
    });
  }
}

bool pillar_canvas(const PillarCanvas& request) {
  const int64_t rows = request.batch * request.side, pillars = rows * request.side;
  Scratch cells(request.count * 4), order(request.count * 4), ends(pillars * 4);
  const int64_t kept = sort_by_pillar(request, cells.ints(), ends.ints(), pillars, order.ints());
  if (kept < 0) return false;
  const int channels = request.channels, padded = static_cast<int>(round_up(channels, kWidth));
  if (kept < request.least) memset(ends.data, 0, pillars * 4);
  Scratch weight((kPillarInputs + 1) * padded * 4);
  weight.clear((kPillarInputs + 1) * padded * 4);
  for (int k = 0; k <= kPillarInputs; ++k)
    memcpy(weight.floats() + k * padded, k < kPillarInputs ? request.weight + k * channels : request.bias,
           channels * 4);
  Shortage shortage;
#pragma omp parallel num_threads(request.threads)
  {
    Scratch result(padded * 4, shortage);
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
      if (shortage) continue;
      for (int32_t column = 0; column < request.side; ++column) {
        const int64_t p = row * request.side + column;
        const int32_t first = p ? ends.ints()[p - 1] : 0;
        const float center[2] = {request.centers[row % request.side], request.centers[column]};
        float* const out = request.out + p * channels;
        float* const to = padded == channels ? out : result.floats();
        encode_pillar(request, order.ints() + first, ends.ints()[p] - first, center, weight.floats(), padded, to);
        if (to != out) memcpy(out, to, channels * 4);
      }
    }
  }
  shortage.raise();
  return true;
}

}  // namespace
}  // namespace kestrel
