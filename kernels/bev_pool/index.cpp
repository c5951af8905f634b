// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "bev_pool/bev_pool.h"

namespace kestrel {
namespace {

constexpr int kStrip = 8;  // picture columns read together: one cache line of cells

struct Run {
  int32_t cell, point, length;
};

// The runs of a range of strips in the order of (n, w, d, h), and how many each cell has.
struct Part {
  int64_t first_strip, last_strip;
  std::vector<Run> runs;
  std::vector<int32_t> count;
  int64_t base;
};

// Cells of a strip turned to (w, d, h).
void turn(const SplatIndexing& request, int64_t n, int first, int columns, std::vector<int32_t>& cells) {
  const int64_t lines = static_cast<int64_t>(request.depths) * request.height;
  const int64_t* from = request.cells + n * lines * request.width + first;
  for (int64_t line = 0; line < lines; ++line, from += request.width)
    for (int w = 0; w < columns; ++w) cells[w * lines + line] = static_cast<int32_t>(from[w]);
}

void find_runs(const SplatIndexing& request, Part& part) {
  const int64_t strips = (request.width + kStrip - 1) / kStrip;
  const int64_t lines = static_cast<int64_t>(request.depths) * request.height;
  std::vector<int32_t> cells(kStrip * lines);
  part.count.assign(request.num_cells, 0);
  for (int64_t strip = part.first_strip; strip < part.last_strip; ++strip) {
    const int64_t n = strip / strips;
    const int first = static_cast<int>(strip % strips) * kStrip;
    const int columns = std::min(kStrip, request.width - first);
    turn(request, n, first, columns, cells);
    for (int w = 0; w < columns; ++w) {
      request.column_start[n * request.width + first + w] = static_cast<int32_t>(part.runs.size());
      const int32_t* column = cells.data() + w * lines;
      for (int64_t line = 0; line < lines;) {
        const int64_t bottom = (line / request.height + 1) * request.height;
        const int32_t cell = column[line];
        int64_t end = line + 1;
        while (end < bottom && column[end] == cell) ++end;
        if (cell >= 0) {
          const int64_t point = (n * lines + line) * request.width + first + w;
          part.runs.push_back({cell, static_cast<int32_t>(point), static_cast<int32_t>(end - line)});
          ++part.count[cell];
        }
        line = end;
      }
    }
  }
}

// A stable counting sort by cell: what a part puts into a cell follows what the parts before it put there.
int64_t number_cells(const SplatIndexing& request, std::vector<Part>& parts) {
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
  const int64_t strips = (request.width + kStrip - 1) / kStrip;
  const auto column = [&](int64_t strip) {
    return strip / strips * request.width + std::min<int64_t>(strip % strips * kStrip, request.width);
  };
  for (int64_t at = column(part.first_strip); at < column(part.last_strip); ++at)
    request.column_start[at] += static_cast<int32_t>(part.base);
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
  const int64_t strips = static_cast<int64_t>(request.images) * ((request.width + kStrip - 1) / kStrip);
  std::vector<Part> parts(std::max(1, request.threads));
  const int count = static_cast<int>(parts.size());
#pragma omp parallel for num_threads(request.threads) schedule(static, 1)
  for (int i = 0; i < count; ++i) {
    parts[i].first_strip = strips * i / count;
    parts[i].last_strip = strips * (i + 1) / count;
    find_runs(request, parts[i]);
  }
  const int64_t runs = number_cells(request, parts);
#pragma omp parallel for num_threads(request.threads) schedule(static, 1)
  for (int i = 0; i < count; ++i) place_runs(request, parts[i]);
  return runs;
}

}  // namespace kestrel
