// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Sparse convolution in tiles of output rows: the sums of a tile stay in cache while all kernel slices are
// added, and bias, residual, ReLU and what is read end the tile. How a slice is packed, and how the rows that
// meet it are multiplied with it, is what the instruction sets differ in.
#pragma once

namespace kestrel {
namespace {

template <class Product>
struct Kind {
  using Type = Product;
};

// Call act with the way to multiply that this level has for the number of input channels and the type, if any.
template <class Action>
void with_product(int cin, Number number, const Action& act) {
  if (number == Number::kFloat32) return act(Kind<FloatProduct>{});
  if (number == Number::kInt8) {
#if defined(__AVX512VNNI__)
    if (cin % ByteProduct::kDepthStep == 0) act(Kind<ByteProduct>{});
#endif
    return;
  }
#if defined(KESTREL_AMX)
  return act(Kind<TileProduct>{});
#elif defined(__AVX512BF16__) || defined(KESTREL_PAIRS)
  if (cin % PairProduct::kDepthStep == 0) return act(Kind<PairProduct>{});
#endif
  (void)cin;
  act(Kind<WidenedProduct>{});
}

// Each row of sums begins with `start` and is used as it is; integers begin with zeros, and `start` is added when
// they have become floats.
inline void begin_row(float* sums, const float* start, int padded) { memcpy(sums, start, 4 * padded); }
inline void begin_row(uint32_t* sums, const float*, int padded) { memset(sums, 0, 4 * padded); }
inline Vector total(const float* sums, const float*, const float*) { return load(sums); }
inline Vector total(const uint32_t* sums, const float* units, const float* start) {
  return __builtin_convertvector(reinterpret_cast<Integers>(load(sums)), Vector) * load(units) + load(start);
}

// What the columns of the sums are given: bias and units, padded with zeros.
struct Columns {
  const float *units, *start;
};

template <class Element, class Sum>
void finish_tile(const SparseConv& conv, const Reader<Element>& reader, const Columns& columns, const Sum* sums,
                 int padded, int64_t first, int count) {
  const Element* residual = static_cast<const Element*>(conv.residual);
  Element* out = static_cast<Element*>(conv.out);
  const int whole = conv.cout / kWidth * kWidth, rest = conv.cout - whole;
  // NaN passes, as it does through torch.relu.
  const auto act = [&](Vector value) { return conv.relu ? (value < 0 ? Vector{} : value) : value; };
  for (int j = 0; j < count; ++j) {
    const Sum* sum = sums + static_cast<int64_t>(j) * padded;
    const int64_t row = (first + j) * conv.cout;
    const auto end = [&](int column) {
      const Vector value = total(sum + column, columns.units + column, columns.start + column);
      return act(residual ? value + load(residual + row + column) : value);
    };
    const auto end_some = [&] {
      const Vector value = total(sum + whole, columns.units + whole, columns.start + whole);
      return act(residual ? value + load_some(residual + row + whole, rest) : value);
    };
    if (conv.read.features) {
      reader.row(first + j, [&](int column, Vector read) { store(out + row + column, end(column) + read); },
                 [&](int, Vector read, int) { store_some(out + row + whole, end_some() + read, rest); });
      continue;
    }
    for (int c = 0; c < whole; c += kWidth) store(out + row + c, end(c));
    if (rest) store_some(out + row + whole, end_some(), rest);
  }
}

// Add all slices to the sums of the tile of `count` rows from `first` on.
template <class Product>
void add_slices(const SparseConv& conv, Product& product, int64_t first, int count, int32_t* places,
                int32_t* rows, typename Product::Sum* sums) {
  for (int k = 0; k < conv.slices; ++k) {
    int pairs = count;
    if (conv.gather)
      pairs = compact(conv.gather + k * conv.outputs + first, count, places, rows);
    else
      for (int j = 0; j < count; ++j) places[j] = j, rows[j] = static_cast<int32_t>(first + j);
    if (pairs) product.add(k, {rows, places, pairs}, sums);
  }
}

// Rows per tile: enough to reuse the weights, few enough for the sums to stay in cache and to feed all threads.
// Bytes are multiplied so fast that the sums have to come from the first level of it.
inline int tile_rows(const SparseConv& conv, int padded) {
  const int64_t fits = ((conv.number == Number::kInt8 ? 24 : 192) << 10) / (4 * padded);
  const int64_t share = conv.outputs / (4 * larger(conv.threads, 1));
  return static_cast<int>(larger(64, smaller(smaller(fits, share), 1024)));
}

// The bias, zeros in the padding.
inline void fill_start(const SparseConv& conv, int padded, float* start) {
  memset(start, 0, 4 * padded);
  for (int c = 0; conv.bias && c < conv.cout; ++c)
    start[c] = conv.number == Number::kBfloat16 ? to_float(static_cast<const uint16_t*>(conv.bias)[c])
                             : static_cast<const float*>(conv.bias)[c];
}

template <class Product>
void run_tiles(const SparseConv& conv) {
  const int padded = static_cast<int>(round_up(conv.cout, Product::kColumnStep));
  const int tile = tile_rows(conv, padded);
  const int64_t tiles = (conv.outputs + tile - 1) / tile;
  using Sum = typename Product::Sum;
  Scratch start(4 * padded), units(4 * padded);
  fill_start(conv, padded, start.floats());
  units.clear(4 * padded);
  if (conv.units) memcpy(units.data, conv.units, 4 * conv.cout);
  const Columns columns{units.floats(), start.floats()};
  const Reader<uint16_t> half_reader(conv.read, conv.cout);
  const Reader<float> reader(conv.read, conv.cout);
  Shortage shortage;
#pragma omp parallel num_threads(conv.threads)
  {
    Product product(conv, padded, shortage);
    Scratch sum_memory(static_cast<int64_t>(tile) * padded * 4, shortage), places((tile + 16) * 4, shortage),
        rows((tile + 16) * 4, shortage);
    Sum* sums = static_cast<Sum*>(sum_memory.data);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      if (shortage) continue;
      const int64_t first = t * tile;
      const int count = static_cast<int>(smaller(tile, conv.outputs - first));
      for (int j = 0; j < count; ++j) begin_row(sums + static_cast<int64_t>(j) * padded, columns.start, padded);
      add_slices(conv, product, first, count, places.ints(), rows.ints(), sums);
      if (conv.number == Number::kBfloat16)
        finish_tile(conv, half_reader, columns, sums, padded, first, count);
      else
        finish_tile(conv, reader, columns, sums, padded, first, count);
    }
  }
  shortage.raise();
}

void sparse_conv(const SparseConv& conv) {
  with_product(conv.cin, conv.number, [&](auto kind) { run_tiles<typename decltype(kind)::Type>(conv); });
}

int64_t pack_weight(const PackWeight& pack) {
  int64_t bytes = 0;
  with_product(pack.cin, pack.number, [&](auto kind) {
    using Product = typename decltype(kind)::Type;
    const int padded = static_cast<int>(round_up(pack.cout, Product::kColumnStep));
    bytes = pack.slices * round_up(pack.cin, Product::kDepthStep) * padded * Product::kElementBytes;
    if (!pack.to) return;
#pragma omp parallel for num_threads(pack.threads) schedule(static)
    for (int k = 0; k < pack.slices; ++k) Product::pack(pack, k, padded);
  });
  return bytes;
}

}  // namespace
}  // namespace kestrel
