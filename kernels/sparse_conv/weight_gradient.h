// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Weight gradient of a sparse convolution: per kernel slice a product of gathered rows, summed in registers
// over blocks of pairs that stay in cache. Every thread owns parts of the result, so the sums are
// always formed in the same order.
#pragma once

namespace kestrel {
namespace {

constexpr int kPairBlock = 64;
constexpr int kSmallBlock = 4 * kRows;

// Rows of floats by index, read where they lie.
struct PickedRows {
  const float* from;
  int64_t stride;
  const int32_t* rows;

  const float* operator()(int p) const { return from + rows[p] * stride; }
  PickedRows behind(int columns) const { return {from + columns, stride, rows}; }
};

// Rows one after the other.
template <class Element>
struct RowsInOrder {
  const Element* from;
  int64_t stride;

  const Element* operator()(int p) const { return from + p * stride; }
  RowsInOrder behind(int columns) const { return {from + columns, stride}; }
};

// c[r][...] += sum_p a(p)[r] * b(p)[...].
template <int R, int V, class Rows>
inline void outer(const Rows& a, const Rows& b, int count, float* c, int64_t c_stride) {
  Vector sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = load(c + r * c_stride + v * kWidth);
  for (int p = 0; p < count; ++p) {
    const auto *left = a(p), *from = b(p);
    decltype(load(from)) right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load(from + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = add_product(sum[r][v], left[r], right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kWidth, sum[r][v]);
}

// The products of all rows of a block, added to sums (channels, padded).
template <class Rows>
void add_block(const Rows& left, const Rows& right, int count, int channels, int padded, float* sums) {
  for_panels(padded, [&](int column, int vectors) {
    as_constant<kMaxVectors>(vectors, [&](auto width) {
      for (int r = 0; r < channels; r += kRows)
        as_constant<kRows>(static_cast<int>(smaller(kRows, channels - r)), [&](auto rows) {
          outer<rows.value, width.value>(left.behind(r), right.behind(column), count,
                                         sums + static_cast<int64_t>(r) * padded + column, padded);
        });
    });
  });
}

// Pairs of rows of one kernel slice, and the input channels [channel, channel + channels) whose gradient is meant.
struct SlicePairs {
  const int32_t *inputs, *outputs;
  int64_t count;
  int channel, channels;
};

// Ask for the rows of the block of pairs that begins at `start`.
template <class From>
int fetch_block(const SlicePairs& pairs, int64_t start, const From* features, int64_t cin, const From* gradient,
                int64_t columns) {
  const int count = static_cast<int>(larger(0, smaller(kPairBlock, pairs.count - start)));
  for (int p = 0; p < count; ++p) {
    prefetch(features + pairs.inputs[start + p] * cin + pairs.channel, sizeof(From) * pairs.channels);
    prefetch(gradient + pairs.outputs[start + p] * columns, sizeof(From) * columns);
  }
  return count;
}

// Single precision: rows are read where they lie. Those of the gradient are padded to whole vectors.
struct FloatGradient {
  const WeightGradient& grad;
  const int padded;
  const float* gradient;

  FloatGradient(const WeightGradient& request, int columns, const float* wide, Shortage&)
      : grad(request), padded(columns), gradient(wide ? wide : static_cast<const float*>(request.gradient)) {}

  void add(const SlicePairs& pairs, float* sums) const {
    const float* features = static_cast<const float*>(grad.features);
    for (int64_t start = 0; start < pairs.count; start += kPairBlock) {
      const int count = fetch_block<float>(pairs, start, features, grad.cin, gradient, padded);
      add_block(PickedRows{features + pairs.channel, grad.cin, pairs.inputs + start},
                PickedRows{gradient, padded, pairs.outputs + start}, count, pairs.channels, padded, sums);
    }
  }
};

// How bfloat16 rows are copied: two at a time, neighbours in one element, for the instruction that adds the products
// of such pairs; without it one at a time, as floats.
#if defined(__AVX512BF16__)
typedef uint32_t Joined;
constexpr int kTogether = 2;

inline void join(const uint16_t* const* rows, int count, Joined* to) {
  const auto words = [](const uint16_t* from) {
    return __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words);
  };
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, words(rows[0] + i) | words(rows[1] + i) << 16);
  for (; i < count; ++i) to[i] = rows[0][i] | static_cast<Joined>(rows[1][i]) << 16;
}
#else
typedef float Joined;
constexpr int kTogether = 1;

inline void join(const uint16_t* const* rows, int count, Joined* to) { widen(rows[0], count, to); }
#endif

// bfloat16: the rows of a block are copied side by side.
struct HalfGradient {
  const WeightGradient& grad;
  const int padded;
  const Scratch left, right, zeros;

  HalfGradient(const WeightGradient& request, int columns, const float*, Shortage& shortage)
      : grad(request), padded(columns), left(int64_t{kPairBlock} * grad.cin * 4, shortage),
        right(int64_t{kPairBlock} * padded * 4, shortage), zeros(larger(grad.cin, grad.cout) * 2, shortage) {
    right.clear(int64_t{kPairBlock} * padded * 4);  // the columns beyond the last stay zero
    zeros.clear(larger(grad.cin, grad.cout) * 2);
  }

  void add(const SlicePairs& pairs, float* sums) const {
    const uint16_t* features = static_cast<const uint16_t*>(grad.features);
    const uint16_t* gradient = static_cast<const uint16_t*>(grad.gradient);
    Joined *inputs = static_cast<Joined*>(left.data), *outputs = static_cast<Joined*>(right.data);
    int count = fetch_block<uint16_t>(pairs, 0, features, grad.cin, gradient, grad.cout);
    for (int64_t start = 0; count; start += kPairBlock) {
      copy(features + pairs.channel, grad.cin, pairs.inputs + start, count, pairs.channels, pairs.channels, inputs);
      copy(gradient, grad.cout, pairs.outputs + start, count, grad.cout, padded, outputs);
      const int rows = (count + kTogether - 1) / kTogether;
      count = fetch_block<uint16_t>(pairs, start + kPairBlock, features, grad.cin, gradient, grad.cout);
      add_block(RowsInOrder<Joined>{inputs, pairs.channels}, RowsInOrder<Joined>{outputs, padded}, rows,
                pairs.channels, padded, sums);
    }
  }

  void copy(const uint16_t* from, int64_t stride, const int32_t* rows, int count, int columns, int apart,
            Joined* to) const {
    for (int p = 0; p < count; p += kTogether, to += apart) {
      const uint16_t* together[kTogether];
      for (int i = 0; i < kTogether; ++i) together[i] = p + i < count ? from + rows[p + i] * stride : zeros.halves();
      join(together, columns, to);
    }
  }
};

// The gradient of every slice by a way to add the products of some pairs, one object of which each thread has.
template <class Way>
void slice_gradients(const WeightGradient& grad, int padded, const float* wide) {
  const int64_t room = round_up(grad.outputs + 16, 16);
  Scratch input_memory(grad.slices * room * 4), output_memory(grad.slices * room * 4),
      count_memory(grad.slices * 4);
#pragma omp parallel for num_threads(grad.threads) schedule(dynamic)
  for (int k = 0; k < grad.slices; ++k)
    count_memory.ints()[k] =
        compact(grad.gather + k * grad.outputs, static_cast<int>(grad.outputs),
                output_memory.ints() + k * room, input_memory.ints() + k * room);
  // Few threads: one unit per slice, so that rows are fetched once. Many: parts of slices, so that all have work.
  const int channel_block = grad.threads * 4 <= grad.slices ? grad.cin : kSmallBlock;
  const int blocks = (grad.cin + channel_block - 1) / channel_block;
  Shortage shortage;
#pragma omp parallel num_threads(grad.threads)
  {
    Scratch sum_memory(static_cast<int64_t>(channel_block) * padded * 4, shortage);
    const Way way(grad, padded, wide, shortage);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < grad.slices * blocks; ++unit) {
      if (shortage) continue;
      // The middle slice of a submanifold layer has the most pairs: start with it.
      const int k = (unit / blocks + grad.slices / 2) % grad.slices, channel = unit % blocks * channel_block;
      const int channels = static_cast<int>(smaller(channel_block, grad.cin - channel));
      memset(sum_memory.data, 0, static_cast<int64_t>(channels) * padded * 4);
      way.add({input_memory.ints() + k * room, output_memory.ints() + k * room, count_memory.ints()[k], channel,
               channels}, sum_memory.floats());
      for (int r = 0; r < channels; ++r)
        memcpy(grad.out + (static_cast<int64_t>(k) * grad.cin + channel + r) * grad.cout,
               sum_memory.floats() + static_cast<int64_t>(r) * padded, 4 * grad.cout);
    }
  }
  shortage.raise();
}

void weight_gradient(const WeightGradient& grad) {
  const int padded = static_cast<int>(round_up(grad.cout, kWidth));
  if (grad.bfloat16) return slice_gradients<HalfGradient>(grad, padded, nullptr);
  if (padded == grad.cout) return slice_gradients<FloatGradient>(grad, padded, nullptr);
  const Scratch wide(grad.outputs * padded * 4);
#pragma omp parallel for num_threads(grad.threads) schedule(static)
  for (int64_t j = 0; j < grad.outputs; ++j) {
    memcpy(wide.floats() + j * padded, static_cast<const float*>(grad.gradient) + j * grad.cout, 4 * grad.cout);
    memset(wide.floats() + j * padded + grad.cout, 0, 4 * (padded - grad.cout));
  }
  slice_gradients<FloatGradient>(grad, padded, wide.floats());
}

}  // namespace
}  // namespace kestrel
