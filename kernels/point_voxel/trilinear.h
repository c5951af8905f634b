// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Which eight voxels surround a point, and with which weights they are read.
#pragma once

#include <cstdint>

#include "kernel_map/kernel_map.h"

namespace kestrel {

struct Trilinear {
  const float* points;      // (count, 4) batch, x, y, z in voxels of the finest grid
  int64_t count;
  Offset stride;
  const int64_t* keys;      // (voxels) sorted
  int64_t voxels;
  const int32_t* table;     // (27, voxels) neighbours with x fastest, or null where it was not built
  int32_t* rows;            // (count, 8) z fastest, -1 for missing voxels
  float* weights;           // (count, 8) zero for missing voxels, the others divided by (sum + 1e-8)
  int threads;
  const int32_t* near;      // (count) row to search first for the voxel of each point, or null
};

// Returns whether all points are numbers, of a batch that fits a key; what the others get is not set.
bool trilinear(const Trilinear& request);

}  // namespace kestrel
