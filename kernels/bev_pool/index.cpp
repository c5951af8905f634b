// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "bev_pool/bev_pool.h"
#include "common/array.h"

namespace kestrel {
namespace {

struct Run {
  int32_t cell, point, length;
};

// The runs of a range of picture columns in the order of (n, w, d, h), and how many each cell has.
struct Part {
  int64_t first, last;
  Array<Run> runs;
  Array<int32_t> count;
  int64_t base;
};

// Which of `cells` cells along one axis each of `count` places is in, -1 for none.
void axis_cells(const float* ray, int64_t count, float origin, float depth, float lower, float step, int32_t cells,
                bool truncated, int32_t* to) {
  // What is not a number is in no cell: no comparison holds.
  const float last = static_cast<float>(cells);
  for (int64_t i = 0; i < count; ++i) {
    const float place = (ray[i] * depth + origin - lower) / step;
    const bool inside = (truncated ? place > -1.0f : place >= 0.0f) && place < last;
    to[i] = inside ? static_cast<int32_t>(place) : -1;
  }
}

// Cells of the points of one picture column, (d, h).
void column_cells(const SplatIndexing& request, int64_t n, int64_t w, Array<float>& ray, Array<int32_t>& along,
                  int32_t* cells) {
  const FrustumRays& frustum = request.frustum;
  const int64_t height = request.height, frame = frustum.frames[n];
  const int32_t sizes[3] = {frustum.nx, frustum.ny, frustum.nz};
  for (int64_t h = 0; h < height; ++h)
    for (int axis = 0; axis < 3; ++axis)
      ray[axis * height + h] = frustum.rays[((n * height + h) * request.width + w) * 3 + axis];
  for (int64_t d = 0; d < request.depths; ++d, cells += height) {
    for (int axis = 0; axis < 3; ++axis)
      axis_cells(ray.data() + axis * height, height, frustum.origins[n * 3 + axis], frustum.depths[d],
                 frustum.lower[axis], frustum.step[axis], sizes[axis], frustum.truncated,
                 along.data() + axis * height);
    const int32_t *x = along.data(), *y = x + height, *z = y + height;
    const int32_t base = static_cast<int32_t>(frame) * frustum.nz;
    for (int64_t h = 0; h < height; ++h) {
      const bool outside = frame < 0 || (x[h] | y[h] | z[h]) < 0;
      cells[h] = outside ? -1 : ((base + z[h]) * frustum.nx + x[h]) * frustum.ny + y[h];
    }
  }
}

void find_runs(const SplatIndexing& request, Part& part) {
  const int64_t lines = static_cast<int64_t>(request.depths) * request.height;
  Array<int32_t> cells(lines), along(3 * request.height);
  Array<float> ray(3 * request.height);
  part.count.assign(request.num_cells, 0);
  part.runs.reserve((part.last - part.first) * lines);
  for (int64_t column = part.first; column < part.last; ++column) {
    const int64_t n = column / request.width, w = column % request.width;
    column_cells(request, n, w, ray, along, cells.data());
    request.column_start[column] = static_cast<int32_t>(part.runs.size());
    for (int64_t line = 0; line < lines;) {
      const int64_t bottom = (line / request.height + 1) * request.height;
      const int32_t cell = cells[line];
      int64_t end = line + 1;
      while (end < bottom && cells[end] == cell) ++end;
      if (cell >= 0) {
        const int64_t point = (n * lines + line) * request.width + w;
        part.runs.push_back({cell, static_cast<int32_t>(point), static_cast<int32_t>(end - line)});
        ++part.count[cell];
      }
      line = end;
    }
  }
}

// A stable counting sort by cell: what a part puts into a cell follows what the parts before it put there.
int64_t number_cells(const SplatIndexing& request, Array<Part>& parts) {
  int32_t sum = 0;
  for (int64_t cell = 0; cell < request.num_cells; ++cell) {
    request.row_start[cell] = sum;
    for (Part& part : parts) {
      const int32_t count = part.count[cell];
      part.count[cell] = sum;
      sum += count;
    }
  }
  request.row_start[request.num_cells] = sum;
  int64_t base = 0;
  for (Part& part : parts) {
    part.base = base;
    base += static_cast<int64_t>(part.runs.size());
  }
  request.column_start[static_cast<int64_t>(request.images) * request.width] = sum;
  return sum;
}

void place_runs(const SplatIndexing& request, Part& part) {
  for (int64_t column = part.first; column < part.last; ++column)
    request.column_start[column] += static_cast<int32_t>(part.base);
  for (size_t i = 0; i < part.runs.size(); ++i) {
    const Run& run = part.runs[i];
    const int32_t at = part.count[run.cell]++;
    int32_t* to = request.runs + 3 * static_cast<int64_t>(at);
    to[0] = run.cell, to[1] = run.point, to[2] = run.length;
    request.by_column[part.base + static_cast<int64_t>(i)] = at;
  }
}

}  // namespace

int64_t build_splat_index(const SplatIndexing& request) {
  const int64_t columns = static_cast<int64_t>(request.images) * request.width;
  Array<Part> parts(std::max(1, request.threads));
  const int count = static_cast<int>(parts.size());
  Shortage shortage;
#pragma omp parallel for num_threads(request.threads) schedule(static, 1)
  for (int i = 0; i < count; ++i) {
    parts[i].first = columns * i / count;
    parts[i].last = columns * (i + 1) / count;
    shortage.guard([&] { find_runs(request, parts[i]); });
  }
  shortage.raise();
  const int64_t runs = number_cells(request, parts);
#pragma omp parallel for num_threads(request.threads) schedule(static, 1)
  for (int i = 0; i < count; ++i) place_runs(request, parts[i]);
  return runs;
}

}  // namespace kestrel
