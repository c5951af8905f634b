// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Which points are around which box. Branches and look-ups, no arithmetic to speak of: compiled once.
#pragma once

#include <cstdint>

namespace kestrel {

struct BoxPoints {
  const float* points;   // (count, 5) x, y, z, intensity, age
  int64_t count;
  const float* regions;  // (region_count, 12), see kestrel.ops.box_points
  int64_t region_count;
  int slots;             // ages apart, slot_s each
  double slot_s;
  int64_t limit;         // rows for each region and slot
  int64_t* rows;         // (region_count, slots, limit), -1 where there is none
  int64_t* found;        // (region_count, slots) how many there are, also beyond the limit
  int threads;
};

void box_points(const BoxPoints& request);

}  // namespace kestrel
