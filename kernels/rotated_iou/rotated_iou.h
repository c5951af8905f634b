// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Overlap of turned rectangles and suppression by it. Few pairs, all scalar: compiled once.
#pragma once

#include <cstdint>

namespace kestrel {

struct RotatedIou {
  const double* boxes;      // (count, 5) x, y, length, width, yaw
  int64_t count;
  const double* others;     // (other_count, 5)
  int64_t other_count;
  double* out;              // (count, other_count)
  int threads;
};

void rotated_iou(const RotatedIou& request);

// Boxes come best first; those of other labels do not compete. Both return how many ranks they wrote to kept,
// which has room for all, at most limit.
int64_t rotated_nms(const double* boxes, const int64_t* labels, int64_t count, double threshold, int64_t limit,
                    int64_t* kept);

// A box goes if a kept one, whose squared distance counts, is at most that far.
int64_t circle_nms(const double* centers, const int64_t* labels, const double* squared, int64_t count,
                   int64_t limit, int64_t* kept);

}  // namespace kestrel
