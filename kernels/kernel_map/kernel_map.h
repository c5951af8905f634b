// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Voxel keys and kernel maps. Integer work that gains nothing from wider vectors: compiled once.
#pragma once

#include <cstdint>

namespace kestrel {

// Bits of one axis in a key (batch, x, y, z), z lowest; as in kestrel.ops.coordinates.
constexpr int kAxisBits = 17;
constexpr int64_t kAxisBias = int64_t{1} << (kAxisBits - 1);
constexpr int64_t kBatchLimit = int64_t{1} << (63 - 3 * kAxisBits);

// Cells lie in [-kCellLimit, kCellLimit); the margin keeps neighbours in range.
constexpr int64_t kCellLimit = kAxisBias - 64;

struct Offset {
  int32_t x, y, z;
};

// keys of (count, 4) indices batch, x, y, z. Returns whether all of them fit; those that do not get the key -1.
bool pack_keys(const int64_t* indices, int64_t count, int64_t* keys, int threads);

// Sort keys and drop repetitions. unique and inverse hold `count` entries; returns how many unique ones there
// are. inverse[i] is the position of keys[i] among them.
int64_t unique_keys(const int64_t* keys, int64_t count, int64_t* unique, int64_t* inverse, int threads);

// table[k][j] = row of keys[j] + offset_k, or -1. keys are sorted and unique, offsets point-symmetric around
// the middle one.
void submanifold_table(const int64_t* keys, int64_t count, const Offset* offsets, int slices, int32_t* table,
                       int threads);

// Outputs p that read an input at stride * p + offset for some offset, restricted to [0, shape) if given.
struct StridedMap {
  const int64_t* keys;      // sorted inputs
  int64_t count;
  const Offset* offsets;
  int slices;
  Offset stride;
  const Offset* shape;      // or null
};

// Finds all (input, slice, output) triples. The four arrays hold `capacity` entries; on return outputs[0..M) are
// the sorted output keys. Returns {triples, M}, or {-1, 0} if the capacity does not suffice.
struct Triples {
  int64_t count, outputs;
};
Triples strided_triples(const StridedMap& map, int64_t capacity, int64_t* outputs, int32_t* input,
                        int32_t* slice, int32_t* output, int threads);

// rows[q] = position of wanted[q] in the sorted keys, or -1.
void find_keys(const int64_t* keys, int64_t count, const int64_t* wanted, int64_t queries, int32_t* rows,
               int threads);

// Position of one key in the sorted keys, or -1. `hint` is where the last search ended: neighbouring queries
// often want the same row or the next one.
int64_t find_key(const int64_t* keys, int64_t count, int64_t wanted, int64_t& hint);

}  // namespace kestrel
