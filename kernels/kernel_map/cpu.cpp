// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "kernel_map/kernel_map.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "common/array.h"

namespace kestrel {
namespace {

constexpr uint64_t kAxisMask = (uint64_t{1} << kAxisBits) - 1;

// Arrays shorter than this are not worth a second thread.
constexpr int64_t kShare = 1 << 13;

template <class Key>
struct Item {
  Key key;
  uint32_t value;
};

int bit_width(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// Keys spread their fields over 63 bits although a cloud spans few cells along each axis. Moving each field to its
// smallest value keeps the order and leaves fewer bits to sort by.
struct Compression {
  uint64_t weight[4], least = 0;
  int bits = 0;

  Compression(const int64_t* keys, int64_t count, int threads) {
    uint64_t low[4], most[4] = {0, 0, 0, 0};
    std::fill_n(low, 4, ~uint64_t{0});
#pragma omp parallel for num_threads(threads) reduction(min : low) reduction(max : most) if (count > kShare)
    for (int64_t i = 0; i < count; ++i) {
      for (int field = 0; field < 4; ++field) {
        const uint64_t value = part(keys[i], field);
        low[field] = std::min(low[field], value);
        most[field] = std::max(most[field], value);
      }
    }
    for (int field = 3; field >= 0; --field) {
      weight[field] = uint64_t{1} << bits;
      least += low[field] * weight[field];
      bits += count ? bit_width(most[field] - low[field]) : 0;
    }
  }

  static uint64_t part(int64_t key, int field) {
    const uint64_t shifted = static_cast<uint64_t>(key) >> (kAxisBits * (3 - field));
    return field ? shifted & kAxisMask : shifted;
  }

  uint64_t operator()(int64_t key) const {
    uint64_t packed = 0;
    for (int field = 0; field < 4; ++field) packed += part(key, field) * weight[field];
    return packed - least;
  }
};

// Stable radix sort by the lowest `bits` bits of the keys.
template <class Key>
void radix_sort(Block<Item<Key>>& items, int64_t count, int bits) {
  const auto less = [](const Item<Key>& one, const Item<Key>& other) { return one.key < other.key; };
  if (std::is_sorted(items.get(), items.get() + count, less)) return;
  constexpr int kDigit = 11;
  constexpr Key mask = (1 << kDigit) - 1;
  Block<Item<Key>> other = block<Item<Key>>(count);
  Array<uint32_t> starts(mask + 1);
  for (int shift = 0; shift < bits; shift += kDigit) {
    std::fill(starts.begin(), starts.end(), 0);
    for (int64_t i = 0; i < count; ++i) ++starts[items[i].key >> shift & mask];
    uint32_t sum = 0;
    for (uint32_t& entry : starts) sum += std::exchange(entry, sum);
    for (int64_t i = 0; i < count; ++i) other[starts[items[i].key >> shift & mask]++] = items[i];
    items.swap(other);
  }
}

// A range of the compressed keys, which one thread sorts in its own cache: threads that move items for each other
// are no faster than one. In the end an item holds the position of its key in the range.
template <class Key>
struct Range {
  Key low;
  Block<Item<Key>> items;
  int64_t count, unique, first;

  void fill(const int64_t* keys, int64_t total, const Compression& compress, const Range* next) {
    items = block<Item<Key>>(total);
    const uint64_t beyond = next ? next->low : ~uint64_t{0};  // no key is as large as that
    Item<Key>* to = items.get();
    for (int64_t i = 0; i < total; ++i) {
      const Key key = static_cast<Key>(compress(keys[i]));
      *to = {key, static_cast<uint32_t>(i)};
      to += (key >= low) & (key < beyond);
    }
    count = to - items.get();
    unique = 0;
    radix_sort(items, count, compress.bits);
    Key last = 0;
    for (int64_t i = 0; i < count; ++i) {
      unique += i == 0 || items[i].key != last;
      last = std::exchange(items[i].key, static_cast<Key>(unique - 1));
    }
  }
};

// Ranges that split the keys about evenly, judged by some of them.
template <class Key>
Array<Range<Key>> ranges_of(const int64_t* keys, int64_t count, const Compression& compress, int threads) {
  const int parts = static_cast<int>(std::clamp<int64_t>(count / kShare, 1, std::max(threads, 1)));
  Array<Range<Key>> ranges(parts);
  const int64_t samples = 256 * (parts - 1);
  Array<Key> sample(samples + 1, 0);
  for (int64_t i = 0; i < samples; ++i) sample[i] = static_cast<Key>(compress(keys[count * i / samples]));
  std::sort(sample.begin(), sample.end());
  for (int part = 1; part < parts; ++part) ranges[part].low = sample[samples * part / parts];
  return ranges;
}

// The work of number_keys with a type that compressed keys fit.
template <class Key, class Number>
int64_t number_compressed(const int64_t* keys, int64_t count, const Compression& compress, int64_t* unique,
                          Number* number, int threads) {
  Array<Range<Key>> ranges = ranges_of<Key>(keys, count, compress, threads);
  const int parts = static_cast<int>(ranges.size());
  int64_t found = 0;
  Shortage shortage;
#pragma omp parallel num_threads(parts)
  {
#pragma omp for schedule(static)
    for (int part = 0; part < parts; ++part)
      shortage.guard([&] { ranges[part].fill(keys, count, compress, part + 1 < parts ? &ranges[part + 1] : nullptr); });
#pragma omp single
    for (Range<Key>& range : ranges) range.first = std::exchange(found, found + range.unique);
#pragma omp for schedule(static)
    for (int part = 0; part < parts; ++part) {
      if (shortage) continue;
      const Range<Key>& own = ranges[part];
      for (int64_t i = 0; i < own.count; ++i) unique[own.first + own.items[i].key] = keys[own.items[i].value];
      // Numbers are written by part of the given keys: threads that write to the same cache lines wait for each other.
      const int64_t begin = count * part / parts, size = count * (part + 1) / parts - begin;
      Number nowhere, *const to[] = {&nowhere, number + begin};
      for (const Range<Key>& range : ranges) {
        const int64_t first = range.first;
        for (const Item<Key>*item = range.items.get(), *const end = item + range.count; item < end; ++item) {
          const int64_t place = item->value - begin;
          const bool here = static_cast<uint64_t>(place) < static_cast<uint64_t>(size);
          to[here][place & -int64_t{here}] = static_cast<Number>(first + item->key);
        }
      }
    }
  }
  shortage.raise();
  return found;
}

// Writes the sorted keys without repetition and the position of every key among them; returns how many there are.
template <class Number>
int64_t number_keys(const int64_t* keys, int64_t count, int64_t* unique, Number* number, int threads) {
  const Compression compress(keys, count, threads);
  const auto act = compress.bits <= 32 ? number_compressed<uint32_t, Number> : number_compressed<uint64_t, Number>;
  return act(keys, count, compress, unique, number, threads);
}

int64_t offset_key(const Offset& offset) {
  return offset.x * (int64_t{1} << 2 * kAxisBits) + offset.y * (int64_t{1} << kAxisBits) + offset.z;
}

// Kernel slices of one (x, y), a step of one cell in z apart.
struct Column {
  struct Slice {
    int32_t* rows;         // null where the kernel has no slice
    int32_t* opposite[2];  // where to write if nothing is found, and the rows of the opposite slice
  };
  int64_t first_key;  // of the lowest slice
  Array<Slice> slices;
};

// The slices that lead to smaller keys: those of a cube are fewer columns than its first half in the given order.
Array<Column> columns_below(const Offset* offsets, int slices, int32_t* table, int64_t count, int32_t* nowhere) {
  Array<int> below;
  for (int k = 0; k < slices; ++k)
    if (offset_key(offsets[k]) < 0) below.push_back(k);
  std::sort(below.begin(), below.end(), [&](int one, int other) {
    const Offset &a = offsets[one], &b = offsets[other];
    return std::tie(a.x, a.y, a.z) < std::tie(b.x, b.y, b.z);
  });
  Array<Column> columns;
  const Offset* lowest = nullptr;
  for (const int k : below) {
    const Offset& offset = offsets[k];
    if (!lowest || lowest->x != offset.x || lowest->y != offset.y) {
      lowest = &offset;
      columns.push_back({offset_key(offset), {}});
    }
    Array<Column::Slice>& column = columns.back().slices;
    column.resize(offset.z - lowest->z + 1);
    column.back() = {table + k * count, {nowhere, table + (slices - 1 - k) * count}};
  }
  return columns;
}

int64_t floor_divide(int64_t value, int64_t by) {
  return value >= 0 ? value / by : -((-value + by - 1) / by);
}

}  // namespace

bool pack_keys(const int64_t* indices, int64_t count, int64_t* keys, int threads) {
  bool fit = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : fit) if (count > kShare)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* index = indices + 4 * i;
    int64_t key = index[0];
    bool fits = key >= 0 && key < kBatchLimit;
    for (int axis = 1; axis < 4; ++axis) {
      fits = fits && index[axis] >= -kCellLimit && index[axis] < kCellLimit;
      key = key * (int64_t{1} << kAxisBits) + index[axis] + kAxisBias;
    }
    keys[i] = fits ? key : -1;
    fit = fit && fits;
  }
  return fit;
}

int64_t unique_keys(const int64_t* keys, int64_t count, int64_t* unique, int64_t* inverse, int threads) {
  return number_keys(keys, count, unique, inverse, threads);
}

void submanifold_table(const int64_t* keys, int64_t count, const Offset* offsets, int slices, int32_t* table,
                       int threads) {
  // No key is as large as the padding, so that the search may look kStep keys ahead without asking for the end.
  constexpr int64_t kChunk = 2048, kStep = 4;
  const Block<int64_t> padded = block<int64_t>(count + kStep);
  std::copy_n(keys, count, padded.get());
  std::fill_n(padded.get() + count, kStep, INT64_MAX);
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  Shortage shortage;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int k = 0; k < slices; ++k) {
      if (offset_key(offsets[k]) > 0) std::fill_n(table + k * count, count, -1);
      if (offset_key(offsets[k]) == 0) std::iota(table + k * count, table + (k + 1) * count, 0);
    }
    // A pair (j, i) at one offset is the pair (i, j) at the opposite one: half of the searches suffice.
    int32_t nowhere;
    Array<Column> columns;
    Array<const int64_t*> reached;
    shortage.guard([&] {
      columns = columns_below(offsets, slices, table, count, &nowhere);
      reached.resize(columns.size());
    });
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (shortage) continue;
      const int64_t first = chunk * kChunk, last = std::min(count, first + kChunk);
      for (size_t c = 0; c < columns.size(); ++c)
        reached[c] = std::lower_bound(padded.get(), padded.get() + count, keys[first] + columns[c].first_key);
      // Columns take turns: their searches do not wait for each other. Nothing branches on what is found, which
      // cannot be predicted.
      for (int64_t j = first; j < last; ++j) {
        for (size_t c = 0; c < columns.size(); ++c) {
          int64_t wanted = keys[j] + columns[c].first_key;
          const int64_t* at = reached[c];
          for (int64_t smaller = kStep; smaller == kStep; at += smaller) {
            smaller = 0;
            for (int64_t i = 0; i < kStep; ++i) smaller += at[i] < wanted;
          }
          reached[c] = at;
          for (const Column::Slice& slice : columns[c].slices) {
            const bool found = *at == wanted++;
            const int64_t i = at - padded.get(), all = -int64_t{found};
            if (slice.rows) {
              slice.rows[j] = static_cast<int32_t>(i | ~all);
              slice.opposite[found][i & all] = static_cast<int32_t>(j);
            }
            at += found;
          }
        }
      }
    }
  }
  shortage.raise();
}

namespace {

// Along one axis: the output that reads an input index through each kernel slice. An index is
// `stride * whole + rest`; slice k leads it to output whole + step[rest][k], or to none.
struct Steps {
  static constexpr int64_t kNone = INT64_MIN;
  int64_t stride;
  int slices;
  Array<int64_t> step;

  Steps(int64_t by, const Offset* offsets, int count, int axis) : stride(by), slices(count), step(by * count) {
    for (int64_t rest = 0; rest < stride; ++rest) {
      for (int k = 0; k < slices; ++k) {
        const int64_t moved = rest - (axis == 0 ? offsets[k].x : axis == 1 ? offsets[k].y : offsets[k].z);
        const int64_t cell = floor_divide(moved, stride);
        step[rest * slices + k] = cell * stride == moved ? cell : kNone;
      }
    }
  }
};

}  // namespace

Triples strided_triples(const StridedMap& map, int64_t capacity, int64_t* outputs, int32_t* input,
                        int32_t* slice, int32_t* output, int threads) {
  const Steps axes[3] = {{map.stride.x, map.offsets, map.slices, 0},
                         {map.stride.y, map.offsets, map.slices, 1},
                         {map.stride.z, map.offsets, map.slices, 2}};
  const int64_t limits[3] = {map.shape ? map.shape->x : 0, map.shape ? map.shape->y : 0,
                             map.shape ? map.shape->z : 0};
  const Block<int64_t> reached = block<int64_t>(capacity);
  int64_t count = 0;
  for (int64_t i = 0; i < map.count; ++i) {
    const int64_t key = map.keys[i];
    int64_t whole[3];
    const int64_t* step[3];
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t index = static_cast<int64_t>(Compression::part(key, axis + 1)) - kAxisBias;
      whole[axis] = floor_divide(index, axes[axis].stride);
      step[axis] = axes[axis].step.data() + (index - whole[axis] * axes[axis].stride) * map.slices;
    }
    for (int k = 0; k < map.slices; ++k) {
      int64_t packed = key >> 3 * kAxisBits;
      bool fits = true;
      for (int axis = 0; axis < 3 && fits; ++axis) {
        fits = step[axis][k] != Steps::kNone;
        const int64_t cell = fits ? whole[axis] + step[axis][k] : 0;
        fits = fits && (!map.shape || (cell >= 0 && cell < limits[axis]));
        packed = packed << kAxisBits | (cell + kAxisBias);
      }
      if (!fits) continue;
      if (count == capacity) return {-1, 0};
      reached[count] = packed;
      input[count] = static_cast<int32_t>(i);
      slice[count++] = k;
    }
  }
  return {count, number_keys(reached.get(), count, outputs, output, threads)};
}

void find_keys(const int64_t* keys, int64_t count, const int64_t* wanted, int64_t queries, int32_t* rows,
               int threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t hint = 0;
#pragma omp for schedule(static)
    for (int64_t q = 0; q < queries; ++q) rows[q] = static_cast<int32_t>(find_key(keys, count, wanted[q], hint));
  }
}

int64_t find_key(const int64_t* keys, int64_t count, int64_t wanted, int64_t& hint) {
  for (int64_t near = hint; near < std::min(count, hint + 2); ++near) {
    if (keys[near] != wanted) continue;
    hint = near;
    return near;
  }
  const int64_t at = std::lower_bound(keys, keys + count, wanted) - keys;
  hint = at;
  return at < count && keys[at] == wanted ? at : -1;
}

}  // namespace kestrel
