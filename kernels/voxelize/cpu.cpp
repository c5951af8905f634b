// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "voxelize/voxelize.h"

namespace kestrel {
namespace {

// The cell of a point as one number, or -1. Nothing becomes an integer before it is known to fit.
int64_t cell_of(const Voxelize& request, const float* point) {
  int64_t cell = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const float value = point[axis];
    if (!(value >= request.lower[axis] && value < request.upper[axis])) return -1;
    // Division, not multiplication by the reciprocal: that would move points across the borders of cells.
    const float at = std::floor((value - request.lower[axis]) / request.size[axis]);
    if (!(at < static_cast<float>(request.shape[axis]))) return -1;
    cell = cell * request.shape[axis] + static_cast<int64_t>(at);
  }
  return cell;
}

// Cells to voxel numbers, open addressing.
class Table {
 public:
  explicit Table(int64_t entries) {
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * entries) ++bits;
    shift_ = 64 - bits;
    slots_.assign(size_t{1} << bits, Slot{-1, 0});
  }

  void prefetch(int64_t cell) const { __builtin_prefetch(&slots_[start(cell)]); }

  // The number of the cell; a new one gets `next` if that is below `limit`, otherwise the answer is -1.
  int64_t find(int64_t cell, int64_t next, int64_t limit) {
    for (size_t at = start(cell);; at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (slot.cell == cell) return slot.voxel;
      if (slot.cell >= 0) continue;
      if (next >= limit) return -1;
      slot = {cell, next};
      return next;
    }
  }

 private:
  struct Slot {
    int64_t cell, voxel;
  };

  size_t start(int64_t cell) const {
    return static_cast<uint64_t>(cell) * 0x9E3779B97F4A7C15ull >> shift_;  // Fibonacci hashing (Knuth, 6.4)
  }

  std::vector<Slot> slots_;
  int shift_;
};

void begin(const Voxelize& request, int64_t voxel, int64_t point, int64_t cell) {
  request.first[voxel] = point;
  request.counts[voxel] = 1;
  for (int axis = 2; axis >= 0; --axis) {
    request.indices[3 * voxel + axis] = static_cast<int32_t>(cell % request.shape[axis]);
    cell /= request.shape[axis];
  }
  std::memcpy(request.features + voxel * request.channels, request.points + point * request.channels,
              sizeof(float) * request.channels);
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
  std::vector<int64_t> cells(request.count);
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < request.count; ++i)
    cells[i] = cell_of(request, request.points + i * request.channels);
  const int64_t room = std::min(request.count, request.max_voxels);
  Table table(room);
  constexpr int64_t kAhead = 12;
  int64_t found = 0;
  for (int64_t i = 0; i < request.count; ++i) {
    if (i + kAhead < request.count) table.prefetch(cells[i + kAhead]);
    request.rows[i] = -1;
    if (cells[i] < 0) continue;
    const int64_t voxel = table.find(cells[i], found, room);
    if (voxel < 0) continue;
    if (voxel == found)
      begin(request, found++, i, cells[i]);
    else if (request.counts[voxel] < request.max_points)
      add(request, voxel, i);
    else
      continue;
    request.rows[i] = static_cast<int32_t>(voxel);
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
