// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "point_voxel/trilinear.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace kestrel {
namespace {

// Cells beyond this cannot be occupied.
constexpr float kLimit = static_cast<float>(kCellLimit);

// Which columns of points are numbers, the batch one that fits a key: no comparison is true for NaN. All columns are
// one vector, and points are put together without a branch, which took longer.
struct Fit {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  static constexpr float kAny = std::numeric_limits<float>::infinity();
  Floats lower = {0, -kAny, -kAny, -kAny};
  Floats upper = {kBatchLimit - 1, kAny, kAny, kAny};
  Ints columns = {-1, -1, -1, -1};

  void add(const float* point) {
    Floats at;
    std::memcpy(&at, point, sizeof at);
    columns &= (at >= lower) & (at <= upper);
  }

  bool all() const { return columns[0] & columns[1] & columns[2] & columns[3]; }
};

// Rows of the voxels at cell + {0, 1}^3. Where the voxel of the cell itself exists, its neighbours are known.
void corners(const Trilinear& request, int64_t key, int64_t& hint, int32_t* rows) {
  const int64_t own = find_key(request.keys, request.voxels, key, hint);
  for (int corner = 0; corner < 8; ++corner) {
    const int x = corner >> 2, y = corner >> 1 & 1, z = corner & 1;
    if (own >= 0 && request.table) {
      const int64_t slice = (z + 1) * 9 + (y + 1) * 3 + (x + 1);
      rows[corner] = request.table[slice * request.voxels + own];
      continue;
    }
    int64_t elsewhere = hint;
    const int64_t wanted = key + (static_cast<int64_t>(x) << 2 * kAxisBits) +
                           (static_cast<int64_t>(y) << kAxisBits) + z;
    rows[corner] = static_cast<int32_t>(find_key(request.keys, request.voxels, wanted, elsewhere));
  }
}

}  // namespace

bool trilinear(const Trilinear& request) {
  bool fit = true;
  const float stride[3] = {static_cast<float>(request.stride.x), static_cast<float>(request.stride.y),
                           static_cast<float>(request.stride.z)};
#pragma omp parallel num_threads(request.threads) reduction(&& : fit)
  {
    int64_t hint = 0;
    Fit points_fit;
#pragma omp for schedule(static)
    for (int64_t p = 0; p < request.count; ++p) {
      const float* point = request.points + 4 * p;
      points_fit.add(point);
      int64_t key = static_cast<int64_t>(point[0]);
      float part[3][2];
      for (int axis = 0; axis < 3; ++axis) {
        const float scaled = point[axis + 1] / stride[axis];
        // NaN lies at the lower end: the first comparison is false for it.
        const float inside = std::min(scaled > -kLimit ? scaled : -kLimit, kLimit - 1);
        const int64_t towards_zero = static_cast<int64_t>(inside);
        const int64_t cell = towards_zero - (static_cast<float>(towards_zero) > inside);
        part[axis][1] = scaled - static_cast<float>(cell);
        part[axis][0] = 1 - part[axis][1];
        key = key << kAxisBits | (cell + kAxisBias);
      }
      if (request.near) hint = std::max(request.near[p], 0);
      int32_t* rows = request.rows + 8 * p;
      float* weights = request.weights + 8 * p;
      corners(request, key, hint, rows);
      float sum = 0;
      for (int corner = 0; corner < 8; ++corner) {
        const float weight = part[0][corner >> 2] * part[1][corner >> 1 & 1] * part[2][corner & 1];
        weights[corner] = rows[corner] < 0 ? 0 : weight;
        sum += weights[corner];
      }
      for (int corner = 0; corner < 8; ++corner) weights[corner] /= sum + 1e-8f;
    }
    fit = points_fit.all();
  }
  return fit;
}

}  // namespace kestrel
