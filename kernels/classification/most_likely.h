// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// The largest of the logits of each row and what softmax makes of it, in one pass over them.
#pragma once

namespace kestrel {
namespace {

// e^x for x <= 0, to a few units in the last place of what is worth adding to 1; NaN stays NaN.
inline Vector exponential(Vector x) {
  const Vector scaled = x * 1.44269504f;
  const Vector power = scaled < -126.0f ? broadcast(-126.0f) : scaled;
  const Vector rounding = broadcast(12582912.0f);  // 1.5 * 2^23: next to it floats are whole numbers
  const Vector whole = (power + rounding) - rounding;
  const Vector rest = power - whole;  // 2^rest by its series, |rest| <= 1/2
  Vector mantissa = rest * 1.54035304e-4f + 1.33335581e-3f;
  mantissa = mantissa * rest + 9.61812911e-3f;
  mantissa = mantissa * rest + 5.55041087e-2f;
  mantissa = mantissa * rest + 2.40226507e-1f;
  mantissa = mantissa * rest + 6.93147181e-1f;
  mantissa = mantissa * rest + 1.0f;
  const Integers exponent = __builtin_convertvector(whole, Integers) << 23;
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(mantissa) + exponent);
}

void most_likely(const MostLikely& request) {
  const int classes = request.classes;
  const int64_t bytes = int64_t{classes} * kWidth * 4;  // of as many rows as a vector has elements
  Shortage shortage;
#pragma omp parallel num_threads(request.threads)
  {
    Scratch columns(bytes, shortage);
    columns.clear(bytes);
    float* const block = columns.floats();
#pragma omp for schedule(static)
    for (int64_t first = 0; first < request.count; first += kWidth) {
      if (shortage) continue;
      const int rows = static_cast<int>(smaller(kWidth, request.count - first));
      const float* const from = request.logits + first * classes;
      for (int row = 0; row < rows; ++row)
        for (int c = 0; c < classes; ++c) block[c * kWidth + row] = from[row * classes + c];
      Vector best = load(block);
      Integers label = {};
      for (int c = 1; c < classes; ++c) {
        const Vector value = load(block + c * kWidth);
        label = value > best ? Integers{} + c : label;
        best = value > best ? value : best;
      }
      Vector sum = {};
      for (int c = 0; c < classes; ++c) sum += exponential(load(block + c * kWidth) - best);
      const Vector probability = 1.0f / sum;
      for (int row = 0; row < rows; ++row) {
        request.label[first + row] = static_cast<uint8_t>(label[row]);
        request.probability[first + row] = probability[row];
      }
    }
  }
  shortage.raise();
}

}  // namespace
}  // namespace kestrel
