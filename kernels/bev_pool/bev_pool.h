// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// What the kernels of lift-splat read and write.
#pragma once

#include <cstdint>

namespace kestrel {

// Depth probabilities and context of the pixels; all strides in elements.
struct Frustum {
  const void* depth;          // (images, depths, height, width) float or bfloat16
  const void* context;        // (images, channels, height, width), same type
  int64_t depth_stride[4], context_stride[4];
  int32_t images, depths, height, width, channels;
  bool bfloat16;
};

// Runs of points that follow each other down a picture column, at one depth, and fall into one cell.
struct SplatIndex {
  const int32_t* row_start;   // (cells + 1) first run of each cell
  const int32_t* runs;        // (count, 3) cell, flat (n, d, h, w) index of the first point, points; by cell
  const int32_t* by_column;   // (count) the runs in the order of (n, w, d, h)
  const int32_t* column_start;  // (images * width + 1) into by_column
};

// out[cell] = sum over the points of the cell of depth * context.
struct LiftSplat {
  Frustum frustum;
  SplatIndex index;
  int64_t layers, nx, ny;     // cells are (layers, nx, ny)
  void* out;                  // (cells, channels), type of the context
  int threads;
};

// Gradients of depth and context from that of the cells.
struct LiftSplatBackward {
  Frustum frustum;
  SplatIndex index;
  const void* gradient;       // (cells, channels), type of the context
  void* to_depth;             // (images, depths, height, width), zeroed by the caller
  void* to_context;           // (images, channels, height, width)
  int threads;
};

// Where the points of the pictures are: origin + ray * depth. The rest of a grid is in SplatIndexing.
struct FrustumRays {
  const float* rays;          // (images, height, width, 3)
  const float* origins;       // (images, 3)
  const float* depths;        // (depths)
  const int64_t* frames;      // (images) sample of the batch, -1 for a picture that took no part
  float lower[3], step[3];    // corner and cell of the grid
  int32_t nx, ny, nz;         // cells are (batch, nz, nx, ny)
  bool truncated;             // places are rounded toward zero: up to a cell below the corner is cell 0
};

// Points along rays to the arrays of SplatIndex; `runs` and `by_column` have room for every point.
struct SplatIndexing {
  FrustumRays frustum;
  int32_t images, depths, height, width;
  int64_t num_cells;
  int32_t* row_start;
  int32_t* runs;
  int32_t* by_column;
  int32_t* column_start;
  int threads;
};

// Returns the number of runs.
int64_t build_splat_index(const SplatIndexing& request);

}  // namespace kestrel
