// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Points to voxels with limits on both. Bound by memory latency, not by vector width: compiled once.
#pragma once

#include <cstdint>

namespace kestrel {

enum class Reduction { first, mean, max };

struct Voxelize {
  const float* points;      // (count, channels), x, y, z first
  int64_t count;
  int32_t channels;
  float lower[3], upper[3], size[3];
  int64_t shape[3];         // cells along x, y, z, at most 2^20 each
  Reduction reduction;
  int64_t max_points;       // of a voxel
  int64_t max_voxels;
  float* features;          // (room, channels), room = min(count, max_voxels)
  int32_t* indices;         // (room, 3)
  int32_t* counts;          // (room)
  int64_t* first;           // (room)
  int32_t* rows;            // (count) voxel of every point or -1
  int threads;
};

// Returns the number of voxels.
int64_t voxelize(const Voxelize& request);

}  // namespace kestrel
