// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows picked by index (voxels read at points), and their transpose (points added to voxels).
#pragma once

namespace kestrel {
namespace {

void weighted_gather(const WeightedGather& gather) {
  const int channels = gather.channels;
#pragma omp parallel for num_threads(gather.threads) schedule(static)
  for (int64_t p = 0; p < gather.points; ++p) {
    float* out = gather.out + p * channels;
    memset(out, 0, 4 * channels);
    for (int n = 0; n < gather.neighbours; ++n) {
      const int32_t row = gather.rows[p * gather.neighbours + n];
      const float weight = gather.weights[p * gather.neighbours + n];
      if (row < 0 || weight == 0) continue;
      const float* from = gather.features + static_cast<int64_t>(row) * channels;
      for (int c = 0; c < channels; ++c) out[c] += weight * from[c];
    }
  }
}

// Each thread owns a range of channels and walks over all points: no two threads write to one place and the
// order of the additions never changes.
void weighted_scatter(const WeightedScatter& scatter) {
  const int channels = scatter.channels;
  const int parts = static_cast<int>(larger(1, smaller(scatter.threads, (channels + 15) / 16)));
#pragma omp parallel for num_threads(scatter.threads) schedule(static)
  for (int part = 0; part < parts; ++part) {
    const int first = channels * part / parts, last = channels * (part + 1) / parts;
    for (int64_t p = 0; p < scatter.points; ++p) {
      const float* from = scatter.gradient + p * channels;
      for (int n = 0; n < scatter.neighbours; ++n) {
        const int64_t index = p * scatter.neighbours + n;
        const float weight = scatter.weights ? scatter.weights[index] : 1.0f;
        if (scatter.rows[index] < 0 || weight == 0) continue;
        float* out = scatter.out + static_cast<int64_t>(scatter.rows[index]) * channels;
        for (int c = first; c < last; ++c) out[c] += weight * from[c];
      }
    }
  }
}

}  // namespace
}  // namespace kestrel
