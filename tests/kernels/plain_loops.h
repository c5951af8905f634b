// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// How far the convolution of one level is from plain loops in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"

inline float as_float(float value) { return value; }
inline float as_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Normal numbers that bfloat16 holds exactly, as float or as the bits of bfloat16.
template <class Element>
std::vector<Element> random_values(std::mt19937& generator, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<Element> values(count);
  for (Element& each : values) {
    const float value = normal(generator);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    if constexpr (std::is_same_v<Element, float>)
      each = as_float(half);
    else
      each = half;
  }
  return values;
}

template <class Element>
double relative_error(const std::vector<Element>& found, const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double value = as_float(found[i]);
    error += (value - expected[i]) * (value - expected[i]), norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

template <class Element>
double convolution_error(const kestrel::Level& level, int inputs, int outputs, int slices, int cin, int cout) {
  std::mt19937 generator(0);
  const auto draw = [&](int64_t count) { return random_values<Element>(generator, count); };
  const auto features = draw(int64_t{inputs} * cin), weight = draw(int64_t{slices} * cin * cout);
  const auto bias = draw(cout), residual = draw(int64_t{outputs} * cout);
  std::vector<int32_t> gather(slices * outputs);
  for (int32_t& row : gather) row = generator() % 3 ? static_cast<int32_t>(generator() % inputs) : -1;
  std::vector<double> expected(outputs * cout);
  for (int j = 0; j < outputs; ++j)
    for (int n = 0; n < cout; ++n) {
      double sum = double{as_float(bias[n])} + as_float(residual[j * cout + n]);
      for (int k = 0; k < slices; ++k)
        for (int i = 0; gather[k * outputs + j] >= 0 && i < cin; ++i)
          sum += double{as_float(features[gather[k * outputs + j] * cin + i])} *
                 as_float(weight[(k * cin + i) * cout + n]);
      expected[j * cout + n] = sum > 0 ? sum : 0;
    }
  const auto number = std::is_same_v<Element, float> ? kestrel::Number::kFloat32 : kestrel::Number::kBfloat16;
  kestrel::PackWeight pack{weight.data(), nullptr, slices, cin, cout, number, 2};
  std::vector<uint32_t> packed(level.pack_weight(pack) / 4 + 1);
  pack.to = packed.data();
  level.pack_weight(pack);
  std::vector<Element> out(outputs * cout);
  level.sparse_conv({features.data(), packed.data(), nullptr, bias.data(), residual.data(), gather.data(), out.data(),
                     outputs, slices, cin, cout, number, true, 2, {}});
  return relative_error(out, expected);
}
