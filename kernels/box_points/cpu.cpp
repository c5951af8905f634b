// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "box_points/box_points.h"

#include <algorithm>
#include <cmath>

#include "common/array.h"

namespace kestrel {

namespace {

constexpr int columns = 12;
constexpr int point_columns = 5;
constexpr int side = 128;  // cells of the table, along either axis

struct Region {
  double x, y, cos, sin, length, width, low, high, along, across, vx, vy;

  explicit Region(const float* from)
      : x(from[0]), y(from[1]), cos(from[2]), sin(from[3]), length(from[4]), width(from[5]), low(from[6]),
        high(from[7]), along(from[8]), across(from[9]), vx(from[10]), vy(from[11]) {}

  bool holds(const float* point) const {
    const double age = point[4], dx = point[0] + vx * age - x, dy = point[1] + vy * age - y;
    return point[2] > low && point[2] < high && std::fabs(dx * cos + dy * sin) < length + along * age &&
           std::fabs(dy * cos - dx * sin) < width + across * age;
  }

  // How far from its middle now a point may be that is at most so old, or so far in the future. What does not grow
  // back in time was larger later.
  double reach(double age) const {
    return std::hypot(length + std::fabs(along) * age, width + std::fabs(across) * age) + std::hypot(vx, vy) * age;
  }
};

// Says which regions may hold a point: a table of the cells of the square that all of them lie in.
class Table {
 public:
  Table(const Array<Region>& regions, double oldest) : start_(side * side + 1) {
    double low_x = INFINITY, low_y = INFINITY, high_x = -INFINITY, high_y = -INFINITY;
    for (const Region& region : regions) {
      const double reach = region.reach(oldest);
      if (!std::isfinite(reach)) { unbounded_ = true; continue; }
      low_x = std::min(low_x, region.x - reach), high_x = std::max(high_x, region.x + reach);
      low_y = std::min(low_y, region.y - reach), high_y = std::max(high_y, region.y + reach);
    }
    if (!(low_x <= high_x)) low_x = high_x = low_y = high_y = 0;
    x_ = low_x, y_ = low_y;
    scale_ = side / std::max({high_x - low_x, high_y - low_y, 1e-6});
    // Counted first, then written: the list of each cell in the order of the regions.
    for (const bool counting : {true, false}) {
      for (size_t i = 0; i < regions.size(); ++i) {
        const Region& region = regions[i];
        const double reach = region.reach(oldest);
        const int first = row(region.x - reach - x_), last = row(region.x + reach - x_);
        const int left = row(region.y - reach - y_), right = row(region.y + reach - y_);
        for (int u = first; u <= last; ++u)
          for (int v = left; v <= right; ++v) {
            if (counting) ++start_[u * side + v + 1];
            else list_[next_[u * side + v]++] = static_cast<int>(i);
          }
      }
      if (!counting) break;
      for (int cell = 0; cell < side * side; ++cell) start_[cell + 1] += start_[cell];
      next_.assign(start_.begin(), start_.end() - 1);
      list_.resize(start_.back());
    }
  }

  template <class Visit>
  void visit(const float* point, const Visit& with) const {
    const double u = (point[0] - x_) * scale_, v = (point[1] - y_) * scale_;
    // Beyond the table there are at most regions without an end, which are in each of its cells.
    if (std::isnan(u) || std::isnan(v)) return;
    if (!unbounded_ && !(u >= 0 && u <= side && v >= 0 && v <= side)) return;
    const int cell = clamped(u) * side + clamped(v);
    for (int64_t i = start_[cell]; i < start_[cell + 1]; ++i) with(list_[i]);
  }

 private:
  int row(double offset) const { return clamped(offset * scale_); }

  static int clamped(double row) {  // in this order what is no number gives a row as well
    return static_cast<int>(std::max(0.0, std::min(side - 1.0, row)));
  }

  double x_, y_, scale_;
  bool unbounded_ = false;
  Array<int64_t> start_, next_;
  Array<int> list_;
};

}  // namespace

void box_points(const BoxPoints& request) {
  const int64_t groups = request.region_count * request.slots;
  std::fill(request.rows, request.rows + groups * request.limit, -1);
  std::fill(request.found, request.found + groups, 0);
  if (!request.count || !request.region_count) return;
  Array<Region> regions;
  for (int64_t i = 0; i < request.region_count; ++i) regions.emplace_back(request.regions + columns * i);
  double oldest = 0;
  for (int64_t i = 0; i < request.count; ++i) {
    const double age = request.points[point_columns * i + 4];
    if (std::isfinite(age)) oldest = std::max(oldest, std::fabs(age));
  }
  const Table table(regions, oldest);

  struct Hit {
    int64_t group, row;
  };
  // Parts of the points in their order, so that their hits are, too.
  Array<Array<Hit>> parts(std::max(1, request.threads));
  const int64_t count = static_cast<int64_t>(parts.size());
  const auto find_hits = [&](int64_t part) {
    for (int64_t i = part * request.count / count; i < (part + 1) * request.count / count; ++i) {
      const float* point = request.points + point_columns * i;
      table.visit(point, [&](int region) {
        if (!regions[region].holds(point)) return;
        const double slot = std::nearbyint(point[4] / request.slot_s);
        const int64_t which = static_cast<int64_t>(std::clamp(slot, 0.0, request.slots - 1.0));
        parts[part].push_back({int64_t{region} * request.slots + which, i});
      });
    }
  };
  Shortage shortage;
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t part = 0; part < count; ++part) shortage.guard([&] { find_hits(part); });
  shortage.raise();
  for (const Array<Hit>& part : parts)
    for (const Hit& hit : part) ++request.found[hit.group];
  // Of too many every so many-th stays.
  Array<int64_t> rank(groups);
  for (const Array<Hit>& part : parts)
    for (const Hit& hit : part) {
      const int64_t there = request.found[hit.group], mine = rank[hit.group]++;
      const int64_t place = there > request.limit ? mine * request.limit / there : mine;
      int64_t& row = request.rows[hit.group * request.limit + place];
      if (row < 0) row = hit.row;
    }
}

}  // namespace kestrel
