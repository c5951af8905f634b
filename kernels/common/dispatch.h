// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// The functions that exist once per instruction set, and the choice between the sets.
#pragma once

#include <cstdint>

#include "bev_pool/bev_pool.h"

namespace kestrel {

enum class Number : int32_t { kFloat32, kBfloat16, kInt8 };

// Kernel slices in the order in which the sparse convolution of the same level reads them.
struct PackWeight {
  const void* weight;       // (slices, cin, cout)
  void* to;                 // packed; null: only ask for the size
  int32_t slices, cin, cout;
  Number number;
  int threads;
};

// to[i] = round(from[i] / step) with step = largest / 255, so that zero stays zero.
struct Quantize {
  const float* from;
  uint8_t* to;
  int64_t count;
  int threads;
};

// Weighted sums of rows, read[j] = sum_n weights[j][n] * features[rows[j][n]]; rows below zero count as zero.
struct Reading {
  const void* features;     // (m, columns of the result) float or bfloat16; null: nothing is read
  const int32_t* rows;      // (rows of the result, neighbours)
  const float* weights;     // (rows of the result, neighbours)
  int32_t neighbours;
};

// out[j] = act(sum_k features[gather[k][j]] @ weight[k] + bias + residual[j]) + read[j]; all matrices row-major.
// With int8 the features are unsigned, their sums exact integers, and everything from them on is float.
struct SparseConv {
  const void* features;     // (n, cin) float, bfloat16 or uint8
  const void* weight;       // (slices, cin, cout), packed from the same type
  const float* units;       // (cout) what 1 means in the integer sums of each column; int8 alone
  const void* bias;         // (cout) or null
  const void* residual;     // (outputs, cout) or null
  const int32_t* gather;    // (slices, outputs), -1 where there is no input; null: one slice, row by row
  void* out;                // (outputs, cout)
  int64_t outputs;
  int32_t slices, cin, cout;
  Number number;
  bool relu;
  int threads;
  Reading read;
};

// out[k] = sum_j features[gather[k][j]]^T gradient[j], in float.
struct WeightGradient {
  const void* features;     // (n, cin) float or bfloat16
  const void* gradient;     // (outputs, cout), same type
  const int32_t* gather;    // (slices, outputs)
  float* out;               // (slices, cin, cout)
  int64_t outputs;
  int32_t slices, cin, cout;
  bool bfloat16;
  int threads;
};

// out[p] = read[p], float.
struct WeightedGather {
  Reading read;
  float* out;               // (points, channels)
  int64_t points;
  int32_t channels;
  int threads;
};

// The transpose of a reading: out[rows[p][n]] += weights[p][n] * gradient[p]; out starts at zero.
struct WeightedScatter {
  const float* gradient;    // (points, channels)
  const int32_t* rows;      // (points, neighbours)
  const float* weights;     // (points, neighbours)
  float* out;               // (m, channels), zeroed by the caller
  int64_t points;
  int32_t neighbours, channels;
  int threads;
};

// out[m] = mean of the features of the points with rows[p] = m, zeros where there is none.
struct ScatterMean {
  const float* features;    // (points, channels)
  const int32_t* rows;      // (points), points below zero are left out
  float* out;               // (voxels, channels)
  float* counts;            // (voxels) points of each
  int64_t points;
  int32_t channels;
  int64_t voxels;
  int threads;
};

// out = act(input * weight + bias), 3x3, stride 1, border 1, float, channels last.
struct Winograd {
  const float* input;       // (images, height, width, cin)
  const float* weight;      // (36, panels, cin, 16): transformed, cout in panels of 16 padded with zeros
  const float* bias;        // (cout) or null
  float* out;               // (images, height, width, cout)
  int64_t images;
  int32_t height, width, cin, cout;  // cin and cout at least 16
  bool relu;
  int threads;
};

// out[frame][i][j][c] = max(0, max over the points of pillar (i, j) of bias[c] + sum_k inputs[k] * weight[k][c]) with
// inputs x, y, z, intensity, age, x and y from the centre of the pillar, x and y from the mean of its points.
struct PillarCanvas {
  const float* points;      // (count, 5) x, y, z [m], intensity, age [s]
  const int64_t* frames;    // (count)
  const float* weight;      // (9, channels)
  const float* bias;        // (channels)
  const float* centers;     // (side) of the pillars along one axis
  float* out;               // (batch, side, side, channels)
  int64_t count, batch;
  int64_t least;            // with fewer points inside of the grid all stays empty
  int32_t side, channels;
  float extent, size;       // half a side of the grid and a side of a pillar [m]
  float low, high;          // z from low to below high
  int threads;
};

// Bilinear values of a square grid at places that are the same along both axes.
struct AxisSampling {
  const void* grid;         // (images, size, size, channels) float or bfloat16
  const int32_t* lower;     // (places) grid line at or before each place, at most size - 2
  const float* share;       // (places) of the line after it
  void* out;                // (images, places, places, stride), whose first channels are written
  int64_t images;
  int32_t size, channels, places, stride;
  bool bfloat16;
  int threads;
};

// label = the class of the largest logit of a row, probability = softmax of that logit.
struct MostLikely {
  const float* logits;      // (count, classes)
  int64_t count;
  int32_t classes;          // 1 to 256
  uint8_t* label;           // (count)
  float* probability;       // (count)
  int threads;
};

// Each cell of a window attends to all cells of it: out = softmax(scale * q k^T + bias + mask) v for every head. The
// map is padded to whole windows and shifted cyclically first; the mask is `hidden` between cells that only the shift
// brought together (Liu et al. 2021, section 3.2).
struct WindowAttention {
  const void* qkv;          // (images, height, width, 3, heads, depth) float or bfloat16
  const void* padding;      // (3, heads, depth) what a cell beyond the border has
  const float* bias;        // (heads, positions, positions), positions = window^2
  void* out;                // (images, height, width, heads, depth)
  int64_t images;
  int32_t height, width, heads, depth, window, shift;
  float scale, hidden;
  bool bfloat16;
  int threads;
};

struct Level {
  const char* name;
  int64_t (*pack_weight)(const PackWeight&);  // returns the size in bytes, 0: not multiplied at this level
  float (*quantize)(const Quantize&);  // returns the step, a negative one for values that are negative or not finite
  void (*sparse_conv)(const SparseConv&);
  void (*weight_gradient)(const WeightGradient&);
  void (*weighted_gather)(const WeightedGather&);
  void (*weighted_scatter)(const WeightedScatter&);
  void (*scatter_mean)(const ScatterMean&);
  void (*lift_splat)(const LiftSplat&);
  void (*lift_splat_backward)(const LiftSplatBackward&);
  void (*winograd)(const Winograd&);
  bool (*pillar_canvas)(const PillarCanvas&);  // false: a point is of a frame that the batch does not have
  void (*sample_axes)(const AxisSampling&);
  void (*most_likely)(const MostLikely&);
  void (*window_attention)(const WindowAttention&);
};

// The level in use: the best one of this machine, or what KESTREL_DISPATCH or set_level named.
const Level& level();

// Levels this machine can run, best first, ended by null.
const Level* const* available_levels();

// Whether a small bfloat16 product of this level is exactly what plain code gives.
bool multiplies_correctly(const Level& level);

// Returns false for a name that this machine cannot run.
bool set_level(const char* name);

}  // namespace kestrel
