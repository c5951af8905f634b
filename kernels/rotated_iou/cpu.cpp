// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
#include "rotated_iou/rotated_iou.h"

#include <cmath>

#include "common/array.h"

namespace kestrel {
namespace {

struct Rectangle {
  double x, y, a, b, cos, sin;  // a, b: half of length and width
  double radius;                // of the circle around it

  explicit Rectangle(const double* box)
      : x(box[0]), y(box[1]), a(box[2] / 2), b(box[3] / 2), cos(std::cos(box[4])), sin(std::sin(box[4])),
        radius(std::hypot(a, b)) {}
};

// NaN stays.
double clamp(double value, double bound) { return value > bound ? bound : value < -bound ? -bound : value; }

// The integral of clamp(x, -a, a) dy over the part of an edge with |y| <= b; see kestrel.ops.rotated_iou.
double along(double x0, double y0, double x1, double y1, double a, double b) {
  const double low = clamp(y0, b), high = clamp(y1, b);
  if (low == high) return 0;
  const double slope = (x1 - x0) / (y1 - y0);
  const double start = x0 + slope * (low - y0), end = x0 + slope * (high - y0);
  const double left = clamp(start, a), right = clamp(end, a);
  if (left == right) return (high - low) * right;
  return (high - low) * (right + (left - right) * ((left - start) + (right - left) / 2) / (end - start));
}

double shared_area(const Rectangle& one, const Rectangle& other) {
  const double dx = other.x - one.x, dy = other.y - one.y, reach = one.radius + other.radius;
  if (dx * dx + dy * dy >= reach * reach) return 0;
  const double x = one.cos * dx + one.sin * dy, y = one.cos * dy - one.sin * dx;
  const double cos = one.cos * other.cos + one.sin * other.sin, sin = one.cos * other.sin - one.sin * other.cos;
  const double ux = cos * other.a, uy = sin * other.a, vx = -sin * other.b, vy = cos * other.b;
  const double cx[] = {x + ux - vx, x + ux + vx, x - ux + vx, x - ux - vx};
  const double cy[] = {y + uy - vy, y + uy + vy, y - uy + vy, y - uy - vy};
  double area = 0;
  for (int i = 0; i < 4; ++i) area += along(cx[i], cy[i], cx[(i + 1) % 4], cy[(i + 1) % 4], one.a, one.b);
  return area < 0 ? 0 : area;
}

double iou(const Rectangle& one, const Rectangle& other) {
  const double area = shared_area(one, other), total = 4 * (one.a * one.b + other.a * other.b) - area;
  return total > 0 ? area / total : 0 * area;
}

Array<Rectangle> rectangles(const double* boxes, int64_t count) {
  Array<Rectangle> result;
  result.reserve(count);
  for (int64_t i = 0; i < count; ++i) result.emplace_back(boxes + 5 * i);
  return result;
}

// drops(kept, candidate) says whether a kept box drops a later one.
template <class Drops>
int64_t keep_best(const int64_t* labels, int64_t count, int64_t limit, int64_t* kept, const Drops& drops) {
  int64_t found = 0;
  for (int64_t i = 0; i < count && found < limit; ++i) {
    bool stays = true;
    for (int64_t k = 0; k < found && stays; ++k) stays = labels[kept[k]] != labels[i] || !drops(kept[k], i);
    if (stays) kept[found++] = i;
  }
  return found;
}

}  // namespace

void rotated_iou(const RotatedIou& request) {
  const Array<Rectangle> boxes = rectangles(request.boxes, request.count);
  const Array<Rectangle> others = rectangles(request.others, request.other_count);
#pragma omp parallel for num_threads(request.threads) schedule(static)
  for (int64_t i = 0; i < request.count; ++i)
    for (int64_t j = 0; j < request.other_count; ++j)
      request.out[i * request.other_count + j] = iou(boxes[i], others[j]);
}

int64_t rotated_nms(const double* boxes, const int64_t* labels, int64_t count, double threshold, int64_t limit,
                    int64_t* kept) {
  const Array<Rectangle> all = rectangles(boxes, count);
  return keep_best(labels, count, limit, kept,
                   [&](int64_t k, int64_t i) { return iou(all[k], all[i]) > threshold; });
}

int64_t circle_nms(const double* centers, const int64_t* labels, const double* squared, int64_t count,
                   int64_t limit, int64_t* kept) {
  return keep_best(labels, count, limit, kept, [&](int64_t k, int64_t i) {
    const double dx = centers[2 * k] - centers[2 * i], dy = centers[2 * k + 1] - centers[2 * i + 1];
    return dx * dx + dy * dy <= squared[k];
  });
}

}  // namespace kestrel
