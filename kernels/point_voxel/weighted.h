// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows picked by index (voxels read at points), their transpose, and means of points per voxel.
#pragma once

namespace kestrel {
namespace {

// The readings of one call, with rows of zeros in the place of missing ones: that costs less than a branch that the
// processor cannot predict.
template <class Element>
struct Reader {
  const Reading& read;
  const int64_t channels;
  Scratch zeros{channels * static_cast<int64_t>(sizeof(Element))};

  Reader(const Reading& reading, int columns) : read(reading), channels(columns) {
    memset(zeros.data, 0, channels * sizeof(Element));
  }

  // Call act(weight, address) for every neighbour of result row j.
  template <class Action>
  void neighbours(int64_t j, const Action& act) const {
    for (int n = 0; n < read.neighbours; ++n) {
      const int32_t row = read.rows[j * read.neighbours + n];
      const Element* known = static_cast<const Element*>(read.features) + row * channels;
      const float weight = read.weights[j * read.neighbours + n];
      act(broadcast(row < 0 ? 0.0f : weight), row < 0 ? static_cast<const Element*>(zeros.data) : known);
    }
  }

  // Call act(column, read[j]) for each whole vector of row j, and act(column, read[j], rest) for a partial one.
  template <class Whole, class Partial>
  void row(int64_t j, const Whole& whole, const Partial& partial) const {
    const int wide = static_cast<int>(channels / kWidth * kWidth), rest = static_cast<int>(channels - wide);
    for_panels(wide, [&](int column, int vectors) {
      as_constant<kMaxVectors>(vectors, [&](auto count) {
        Vector sum[count.value] = {};
        neighbours(j, [&](Vector weight, const Element* from) {
#pragma GCC unroll 4
          for (int v = 0; v < count.value; ++v) sum[v] += weight * load(from + column + v * kWidth);
        });
#pragma GCC unroll 4
        for (int v = 0; v < count.value; ++v) whole(column + v * kWidth, sum[v]);
      });
    });
    if (!rest) return;
    Vector sum{};
    neighbours(j, [&](Vector weight, const Element* from) { sum += weight * load_some(from + wide, rest); });
    partial(wide, sum, rest);
  }
};

void weighted_gather(const WeightedGather& gather) {
  const Reader<float> reader(gather.read, gather.channels);
#pragma omp parallel for num_threads(gather.threads) schedule(static)
  for (int64_t p = 0; p < gather.points; ++p) {
    float* out = gather.out + p * gather.channels;
    reader.row(p, [&](int column, Vector sum) { store(out + column, sum); },
               [&](int column, Vector sum, int rest) { store_some(out + column, sum, rest); });
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
        const float weight = scatter.weights[index];
        if (scatter.rows[index] < 0) continue;
        float* out = scatter.out + static_cast<int64_t>(scatter.rows[index]) * channels;
        for (int c = first; c < last; ++c) out[c] += weight * from[c];
      }
    }
  }
}

// Each thread owns a range of voxels with an even share of the points and walks over all of them, so that the
// order of the additions never changes.
void scatter_mean(const ScatterMean& mean) {
  const int64_t channels = mean.channels;
  for (int64_t m = 0; m < mean.voxels; ++m) mean.counts[m] = 0;
  for (int64_t p = 0; p < mean.points; ++p)
    if (mean.rows[p] >= 0) ++mean.counts[mean.rows[p]];
  const int parts = static_cast<int>(larger(1, mean.threads));
  Scratch border_memory((parts + 1) * 4);
  int32_t* borders = border_memory.ints();
  int64_t before = 0;
  int part = 0;
  for (int64_t m = 0; m < mean.voxels; ++m) {
    // Voxels without points cost something too.
    const int64_t share = part * (mean.points + mean.voxels);
    if (part < parts && before * parts >= share) borders[part++] = static_cast<int32_t>(m);
    before += 1 + static_cast<int64_t>(mean.counts[m]);
  }
  while (part <= parts) borders[part++] = static_cast<int32_t>(mean.voxels);
#pragma omp parallel for num_threads(mean.threads) schedule(static)
  for (int each = 0; each < parts; ++each) {
    const int64_t first = borders[each], last = borders[each + 1];
    memset(mean.out + first * channels, 0, (last - first) * channels * 4);
    for (int64_t p = 0; p < mean.points; ++p) {
      const int64_t row = mean.rows[p];
      if (row < first || row >= last) continue;
      const float* from = mean.features + p * channels;
      float* to = mean.out + row * channels;
      for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
    }
    for (int64_t m = first; m < last; ++m) {
      const float count = mean.counts[m] > 1 ? mean.counts[m] : 1;
      for (int64_t c = 0; c < channels; ++c) mean.out[m * channels + c] /= count;
    }
  }
}

}  // namespace
}  // namespace kestrel
