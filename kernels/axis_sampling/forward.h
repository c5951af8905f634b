// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Bilinear values at places that are the same along both axes: two lines of the grid are mixed into one, which the
// cache holds, and its cells into a line of the result.
#pragma once

namespace kestrel {
namespace {

// to[c] = a[c] + share * (b[c] - a[c]).
template <class To, class From>
inline void mix(const From* a, const From* b, float share, int64_t count, To* to) {
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    const Vector first = load(a + c);
    store(to + c, first + share * (load(b + c) - first));
  }
  if (c == count) return;
  const int rest = static_cast<int>(count - c);
  const Vector first = load_some(a + c, rest);
  store_some(to + c, first + share * (load_some(b + c, rest) - first), rest);
}

template <class Element>
void sample_grid(const AxisSampling& request) {
  const Element* const grid = static_cast<const Element*>(request.grid);
  Element* const out = static_cast<Element*>(request.out);
  const int64_t places = request.places, channels = request.channels, line = request.size * channels;
  Shortage shortage;
#pragma omp parallel num_threads(request.threads)
  {
    Scratch mixed(line * 4, shortage);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < request.images * places; ++row) {
      if (shortage) continue;
      const int64_t image = row / places, place = row % places;
      const Element* above = grid + (image * request.size + request.lower[place]) * line;
      mix(above, above + line, request.share[place], line, mixed.floats());
      for (int64_t column = 0; column < places; ++column) {
        const float* from = mixed.floats() + request.lower[column] * channels;
        mix(from, from + channels, request.share[column], channels, out + (row * places + column) * request.stride);
      }
    }
  }
  shortage.raise();
}

void sample_axes(const AxisSampling& request) {
  if (request.bfloat16)
    sample_grid<uint16_t>(request);
  else
    sample_grid<float>(request);
}

}  // namespace
}  // namespace kestrel
