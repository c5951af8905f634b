// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "voxelize/voxelize.h"

#include <algorithm>
#include <cstring>

#include "common/array.h"

namespace kestrel {
namespace {

constexpr int kAxisBits = 20;  // that a cell along one axis takes

// The cell of a point as one number, x highest, or -1. Nothing becomes an integer before it is known to fit.
// The axes are one vector, whose fourth element is idle.
struct Grid {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Floats lower, upper, size, shape;

  explicit Grid(const Voxelize& request) : lower{}, upper{}, size{1, 1, 1, 1}, shape{} {
    for (int axis = 0; axis < 3; ++axis) {
      lower[axis] = request.lower[axis];
      upper[axis] = request.upper[axis];
      size[axis] = request.size[axis];
      shape[axis] = static_cast<float>(request.shape[axis]);
    }
  }

  int64_t cell_of(const float* point) const {
    const Floats at = {point[0], point[1], point[2], 0};
    // Division, not multiplication by the reciprocal: that would move points across the borders of cells.
    const Floats place = (at - lower) / size;
    const Ints fits = (at >= lower) & (at < upper) & (place < shape);
    if (!(fits[0] & fits[1] & fits[2])) return -1;
    const Ints cell = __builtin_convertvector(place, Ints);  // not negative: rounds down
    return int64_t{cell[0]} << 2 * kAxisBits | int64_t{cell[1]} << kAxisBits | cell[2];
  }
};

// Cells numbered in the order in which they come, open addressing. The slots hold numbers alone, and there are few
// more of them than cells: both keeps them in cache. There are half as many slots as points at first, which few
// clouds outgrow: to grow is to place every cell again.
class Table {
 public:
  explicit Table(int64_t points) {
    while (points >> (64 - shift_ + 1)) --shift_;
    slots_.assign(size_t{1} << (64 - shift_), -1);
    cells_.reserve(slots_.size() / 2 + 1);
  }

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

  int shift_ = 64 - 10;
  Array<int32_t> slots_;
  Array<int64_t> cells_;
};

void begin(const Voxelize& request, int64_t voxel, int64_t cell, int64_t row) {
  const float* point = request.points + row * request.channels;
  request.first[voxel] = row;
  request.counts[voxel] = 1;
  for (int axis = 0; axis < 3; ++axis)
    request.indices[3 * voxel + axis] = static_cast<int32_t>(cell >> (2 - axis) * kAxisBits & ((1 << kAxisBits) - 1));
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
  const Block<int64_t> cells = block<int64_t>(request.count);
  const Grid grid(request);
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < request.count; ++i) cells[i] = grid.cell_of(request.points + i * request.channels);
  const int64_t room = std::min(request.count, request.max_voxels);
  Table table(request.count);
  constexpr int64_t kAhead = 12;
  int64_t found = 0;
  for (int64_t i = 0; i < request.count; ++i) {
    if (i + kAhead < request.count) table.prefetch(cells[i + kAhead]);
    request.rows[i] = -1;
    if (cells[i] < 0) continue;
    const int32_t voxel = table.find(cells[i]);
    if (voxel >= room) continue;
    if (voxel == found) {
      begin(request, voxel, cells[i], i);
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
