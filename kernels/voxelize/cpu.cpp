// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "voxelize/voxelize.h"

namespace kestrel {
namespace {

// Division, not multiplication by the reciprocal: that would move points across the borders of cells.
float place_of(const Voxelize& request, const float* point, int axis) {
  return (point[axis] - request.lower[axis]) / request.size[axis];
}

// The cell of a point as one number, or -1. Nothing becomes an integer before it is known to fit.
int64_t cell_of(const Voxelize& request, const float* point) {
  int64_t cell = 0;
  for (int axis = 0; axis < 3; ++axis) {
    if (!(point[axis] >= request.lower[axis] && point[axis] < request.upper[axis])) return -1;
    const float place = place_of(request, point, axis);
    if (!(place < static_cast<float>(request.shape[axis]))) return -1;
    cell = cell * request.shape[axis] + static_cast<int64_t>(place);  // not negative: rounds down
  }
  return cell;
}

// Cells numbered in the order in which they come, open addressing. The slots hold numbers alone, and there are few
// more of them than cells: both keeps them in cache.
class Table {
 public:
  void prefetch(int64_t cell) const { __builtin_prefetch(&slots_[start(cell)]); }

  int32_t find(int64_t cell) {
    size_t at = start(cell);
    for (; slots_[at] >= 0; at = (at + 1) & (slots_.size() - 1))
      if (cells_[slots_[at]] == cell) return slots_[at];
    const int32_t number = static_cast<int32_t>(cells_.size());
    slots_[at] = number;
    cells_.push_back(cell);
    if (2 * cells_.size() > slots_.size()) grow();
    return number;
  }

 private:
  size_t start(int64_t cell) const {
    return static_cast<uint64_t>(cell) * 0x9E3779B97F4A7C15ull >> shift_;  // Fibonacci hashing (Knuth, 6.4)
  }

  void grow() {
    --shift_;
    slots_.assign(2 * slots_.size(), -1);
    for (size_t number = 0; number < cells_.size(); ++number) {
      size_t at = start(cells_[number]);
      while (slots_[at] >= 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = static_cast<int32_t>(number);
    }
  }

  int shift_ = 64 - 14;
  std::vector<int32_t> slots_ = std::vector<int32_t>(1 << 14, -1);
  std::vector<int64_t> cells_;
};

void begin(const Voxelize& request, int64_t voxel, int64_t row) {
  const float* point = request.points + row * request.channels;
  request.first[voxel] = row;
  request.counts[voxel] = 1;
  for (int axis = 0; axis < 3; ++axis)
    request.indices[3 * voxel + axis] = static_cast<int32_t>(place_of(request, point, axis));
  std::memcpy(request.features + voxel * request.channels, point, sizeof(float) * request.channels);
}

void add(const Voxelize& request, int64_t voxel, int64_t point) {
  ++request.counts[voxel];
  float* to = request.features + voxel * request.channels;
  const float* from = request.points + point * request.channels;
  if (request.reduction == Reduction::mean)
    for (int c = 0; c < request.channels; ++c) to[c] += from[c];
  else if (request.reduction == Reduction::max)
    for (int c = 0; c < request.channels; ++c)
      if (from[c] > to[c] || from[c] != from[c]) to[c] = from[c];  // NaN wins, as in torch
}

}  // namespace

int64_t voxelize(const Voxelize& request) {
  const std::unique_ptr<int64_t[]> cells(new int64_t[request.count]);
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < request.count; ++i)
    cells[i] = cell_of(request, request.points + i * request.channels);
  const int64_t room = std::min(request.count, request.max_voxels);
  Table table;
  constexpr int64_t kAhead = 12;
  int64_t found = 0;
  for (int64_t i = 0; i < request.count; ++i) {
    if (i + kAhead < request.count) table.prefetch(cells[i + kAhead]);
    request.rows[i] = -1;
    if (cells[i] < 0) continue;
    const int32_t voxel = table.find(cells[i]);
    if (voxel >= room) continue;
    if (voxel == found) {
      begin(request, voxel, i);
      ++found;
    } else if (request.counts[voxel] < request.max_points) {
      add(request, voxel, i);
    } else {
      continue;
    }
    request.rows[i] = voxel;
  }
  if (request.reduction == Reduction::mean) {
#pragma omp parallel for num_threads(request.threads) schedule(static)
    for (int64_t voxel = 0; voxel < found; ++voxel)
      for (int c = 0; c < request.channels; ++c)
        request.features[voxel * request.channels + c] /= static_cast<float>(request.counts[voxel]);
  }
  return found;
}

}  // namespace kestrel
