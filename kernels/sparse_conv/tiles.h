// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// The product of picked bfloat16 rows with one packed kernel slice on AMX tile registers: eight tiles of 16 rows
// of 64 bytes, two rows of blocks by two columns of them in float, and their operands.
// Inline assembly with memory clobbers: the intrinsics of g++ 12 do not tell the compiler what they read.
#pragma once

namespace kestrel {
namespace {

constexpr int kTileRows = 16, kTileDepth = 32, kTileBytes = 1024;
constexpr int kBlockRows = 2 * kTileRows, kBlockColumns = 2 * 16;

struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "as the processor reads it");

// The tile registers belong to the thread that makes this, for as long as it lives.
struct TileRegisters {
  TileRegisters() {
    const TileConfiguration configuration;
    asm volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
  }
  ~TileRegisters() { asm volatile("tilerelease" : : : "memory"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int Tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Tile>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
// sum[m][n] += sum_k rows[m][2k] * columns[k][2n] + rows[m][2k+1] * columns[k][2n+1]
template <int Sum, int Rows, int Columns>
inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Rows), "i"(Columns));
}

// c[0..16*Blocks)[0..32) = a @ b over `steps` times 32 channels; strides in bytes. b is a sequence of pairs of tiles.
template <int Blocks>
inline void multiply_tiles(const uint16_t* a, int64_t a_stride, const char* b, int steps, float* c,
                           int64_t c_stride) {
  const char* rows = reinterpret_cast<const char*>(a);
  char* sums = reinterpret_cast<char*>(c);
  tile_zero<0>(), tile_zero<1>();
  if (Blocks > 1) tile_zero<2>(), tile_zero<3>();
  for (int step = 0; step < steps; ++step, rows += 2 * kTileDepth, b += 2 * kTileBytes) {
    tile_load<6>(b, 64);
    tile_load<4>(rows, a_stride);
    tile_dot<0, 4, 6>();
    tile_load<7>(b + kTileBytes, 64);
    tile_dot<1, 4, 7>();
    if (Blocks == 1) continue;
    tile_load<5>(rows + kTileRows * a_stride, a_stride);
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  tile_store<0>(sums, c_stride);
  tile_store<1>(sums + 64, c_stride);
  if (Blocks == 1) return;
  tile_store<2>(sums + kTileRows * c_stride, c_stride);
  tile_store<3>(sums + kTileRows * c_stride + 64, c_stride);
}

// One tile of weights: channels [channel, channel + 32) and columns [column, column + 16), neighbouring channels
// next to each other, zeros beyond the borders.
inline void pack_tile(const uint16_t* slice, int cin, int cout, int channel, int column, uint16_t* to) {
  for (int i = 0; i < kTileDepth; ++i)
    for (int c = 0; c < 16; ++c)
      to[i / 2 * 32 + 2 * c + i % 2] =
          channel + i < cin && column + c < cout ? slice[static_cast<int64_t>(channel + i) * cout + column + c] : 0;
}

// A slice as multiply_tiles reads it: blocks of 32 columns, in each all channels.
inline void pack_tiles(const uint16_t* slice, int cin, int cout, uint16_t* to) {
  for (int column = 0; column < cout; column += kBlockColumns)
    for (int channel = 0; channel < cin; channel += kTileDepth)
      for (int half = 0; half < 2; ++half, to += kTileBytes / 2)
        pack_tile(slice, cin, cout, channel, column + 16 * half, to);
}

// bfloat16 on tile registers: 32 rows at a time are copied side by side, multiplied, and their products added.
struct TileProduct {
  static constexpr int kDepthStep = kTileDepth, kColumnStep = kBlockColumns, kElementBytes = 2;
  using Sum = float;
  const SparseConv& conv;
  const int padded, depth;
  TileRegisters registers;
  Scratch rows[2], products;

  TileProduct(const SparseConv& convolution, int columns, Shortage& shortage)
      : conv(convolution), padded(columns), depth(static_cast<int>(round_up(conv.cin, kTileDepth))),
        rows{{int64_t{kBlockRows} * depth * 2, shortage}, {int64_t{kBlockRows} * depth * 2, shortage}},
        products(int64_t{kBlockRows} * padded * 4, shortage) {
    // The channels beyond the last stay zero: rows are written over rows.
    for (const Scratch& each : rows) each.clear(int64_t{kBlockRows} * depth * 2);
  }

  void copy(const Pairs& pairs, int first, uint16_t* to) const {
    const uint16_t* features = static_cast<const uint16_t*>(conv.features);
    const int count = static_cast<int>(smaller(kBlockRows, pairs.count - first));
    const int ahead = static_cast<int>(smaller(kBlockRows, pairs.count - first - count));
    for (int r = 0; r < ahead; ++r)
      prefetch(features + static_cast<int64_t>(pairs.rows[first + count + r]) * conv.cin, 2 * conv.cin);
    for (int r = 0; r < count; ++r)
      copy_row(features + static_cast<int64_t>(pairs.rows[first + r]) * conv.cin, conv.cin,
               to + static_cast<int64_t>(r) * depth);
  }

  static void copy_row(const uint16_t* from, int count, uint16_t* to) {
    typedef uint16_t Block __attribute__((vector_size(64), aligned(2), may_alias));
    int i = 0;
    for (; i + kTileDepth <= count; i += kTileDepth)
      *reinterpret_cast<Block*>(to + i) = *reinterpret_cast<const Block*>(from + i);
    if (i < count) memcpy(to + i, from + i, 2 * (count - i));
  }

  void add(int k, const Pairs& pairs, float* sums) {
    const char* slice = static_cast<const char*>(conv.weight) + static_cast<int64_t>(k) * depth * padded * 2;
    // The rows of the next block are copied before this one is multiplied: the copies have left the store
    // buffer when the tiles read them.
    copy(pairs, 0, rows[0].halves());
    for (int first = 0, turn = 0; first < pairs.count; first += kBlockRows, turn ^= 1) {
      if (first + kBlockRows < pairs.count) copy(pairs, first + kBlockRows, rows[turn ^ 1].halves());
      const int count = static_cast<int>(smaller(kBlockRows, pairs.count - first));
      for (int column = 0; column < padded; column += kBlockColumns) {
        const char* block = slice + static_cast<int64_t>(column) * depth * 2;
        const auto multiply = count > kTileRows ? multiply_tiles<2> : multiply_tiles<1>;
        multiply(rows[turn].halves(), 2 * depth, block, depth / kTileDepth, products.floats() + column, 4 * padded);
      }
      for (int r = 0; r < count; ++r) {
        float* sum = sums + static_cast<int64_t>(pairs.places[first + r]) * padded;
        const float* product = products.floats() + static_cast<int64_t>(r) * padded;
        for (int c = 0; c < padded; c += kWidth) store(sum + c, load(sum + c) + load(product + c));
      }
    }
  }

  static void pack(const PackWeight& pack, int k, int padded) {
    const int64_t from = static_cast<int64_t>(k) * pack.cin * pack.cout;
    pack_tiles(static_cast<const uint16_t*>(pack.weight) + from, pack.cin, pack.cout,
               static_cast<uint16_t*>(pack.to) + k * round_up(pack.cin, kTileDepth) * padded);
  }
};

}  // namespace
}  // namespace kestrel
