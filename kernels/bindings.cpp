// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Python module kestrel_kernels.native. Arrays cross as addresses with their sizes; kestrel.ops checks them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "bev_pool/bev_pool.h"
#include "box_points/box_points.h"
#include "common/array.h"
#include "common/dispatch.h"
#include "kernel_map/kernel_map.h"
#include "point_voxel/trilinear.h"
#include "rotated_iou/rotated_iou.h"
#include "voxelize/voxelize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = uintptr_t;
using Offsets = std::vector<std::vector<int>>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

kestrel::Offset triple(const std::vector<int>& values) { return {values.at(0), values.at(1), values.at(2)}; }

kestrel::Array<kestrel::Offset> triples(const Offsets& offsets) {
  kestrel::Array<kestrel::Offset> result;
  for (const std::vector<int>& offset : offsets) result.push_back(triple(offset));
  return result;
}

std::vector<std::string> available_levels() {
  std::vector<std::string> names;
  for (const kestrel::Level* const* each = kestrel::available_levels(); *each; ++each)
    names.emplace_back((*each)->name);
  return names;
}

void set_dispatch_level(const std::string& name) {
  if (!kestrel::set_level(name.c_str())) throw nb::value_error("this machine cannot run that level");
}

// number: 0 float32, 1 bfloat16, 2 int8.
int64_t pack_weight(Address weight, Address to, int slices, int cin, int cout, int number, int threads) {
  return kestrel::level().pack_weight({at<void>(weight), at<void>(to), slices, cin, cout,
                                       static_cast<kestrel::Number>(number), threads});
}

float quantize(Address from, Address to, int64_t count, int threads) {
  return kestrel::level().quantize({at<float>(from), at<uint8_t>(to), count, threads});
}

void sparse_conv(Address features, Address weight, Address units, Address bias, Address residual, Address gather,
                 Address out, int64_t outputs, int slices, int cin, int cout, int number, bool relu, int threads,
                 Address read, Address read_rows, Address read_weights, int neighbours) {
  kestrel::level().sparse_conv({at<void>(features), at<void>(weight), at<float>(units), at<void>(bias),
                                at<void>(residual), at<int32_t>(gather), at<void>(out), outputs, slices, cin, cout,
                                static_cast<kestrel::Number>(number), relu, threads,
                                {at<void>(read), at<int32_t>(read_rows), at<float>(read_weights), neighbours}});
}

void weight_gradient(Address features, Address gradient, Address gather, Address out, int64_t outputs,
                     int slices, int cin, int cout, int threads) {
  kestrel::level().weight_gradient({at<void>(features), at<void>(gradient), at<int32_t>(gather),
                                    at<float>(out), outputs, slices, cin, cout, false, threads});
}

void weight_gradient_bfloat16(Address features, Address gradient, Address gather, Address out, int64_t outputs,
                              int slices, int cin, int cout, int threads) {
  kestrel::level().weight_gradient({at<void>(features), at<void>(gradient), at<int32_t>(gather),
                                    at<float>(out), outputs, slices, cin, cout, true, threads});
}

void weighted_gather(Address features, Address rows, Address weights, Address out, int64_t points,
                     int neighbours, int channels, int threads) {
  kestrel::level().weighted_gather({{at<void>(features), at<int32_t>(rows), at<float>(weights), neighbours},
                                    at<float>(out), points, channels, threads});
}

void weighted_scatter(Address gradient, Address rows, Address weights, Address out, int64_t points,
                      int neighbours, int channels, int threads) {
  kestrel::level().weighted_scatter({at<float>(gradient), at<int32_t>(rows), at<float>(weights),
                                     at<float>(out), points, neighbours, channels, threads});
}

void scatter_mean(Address features, Address rows, Address out, Address counts, int64_t points, int channels,
                  int64_t voxels, int threads) {
  kestrel::level().scatter_mean({at<float>(features), at<int32_t>(rows), at<float>(out), at<float>(counts), points,
                                 channels, voxels, threads});
}

// bounds: lower and upper corner; reduction: 0 first, 1 mean, 2 max.
int64_t voxelize(Address points, int64_t count, int channels, const std::vector<double>& bounds,
                 const std::vector<double>& size, const std::vector<int64_t>& shape, int reduction,
                 int64_t max_points, int64_t max_voxels, Address features, Address indices, Address counts,
                 Address first, Address rows, int threads) {
  kestrel::Voxelize request{at<float>(points), count, channels, {}, {}, {}, {},
                            static_cast<kestrel::Reduction>(reduction), max_points, max_voxels,
                            at<float>(features), at<int32_t>(indices), at<int32_t>(counts),
                            at<int64_t>(first), at<int32_t>(rows), threads};
  for (int axis = 0; axis < 3; ++axis) {
    request.lower[axis] = static_cast<float>(bounds.at(axis));
    request.upper[axis] = static_cast<float>(bounds.at(axis + 3));
    request.size[axis] = static_cast<float>(size.at(axis));
    request.shape[axis] = shape.at(axis);
  }
  return kestrel::voxelize(request);
}

using Sizes = std::vector<int64_t>;

kestrel::Frustum frustum(Address depth, Address context, const Sizes& depth_stride, const Sizes& context_stride,
                         const Sizes& shape, bool bfloat16) {
  kestrel::Frustum result{at<void>(depth), at<void>(context), {}, {}, 0, 0, 0, 0, 0, bfloat16};
  for (int i = 0; i < 4; ++i) {
    result.depth_stride[i] = depth_stride.at(i);
    result.context_stride[i] = context_stride.at(i);
  }
  int32_t* const sizes[] = {&result.images, &result.depths, &result.height, &result.width, &result.channels};
  for (int i = 0; i < 5; ++i) *sizes[i] = static_cast<int32_t>(shape.at(i));
  return result;
}

kestrel::SplatIndex splat_index(const Sizes& addresses) {
  return {at<int32_t>(addresses.at(0)), at<int32_t>(addresses.at(1)), at<int32_t>(addresses.at(2)),
          at<int32_t>(addresses.at(3))};
}

void lift_splat(Address depth, Address context, const Sizes& depth_stride, const Sizes& context_stride,
                const Sizes& shape, bool bfloat16, const Sizes& index, const Sizes& grid, Address out,
                int threads) {
  kestrel::level().lift_splat({frustum(depth, context, depth_stride, context_stride, shape, bfloat16),
                               splat_index(index), grid.at(0), grid.at(1), grid.at(2), at<void>(out),
                               threads});
}

void lift_splat_backward(Address depth, Address context, const Sizes& depth_stride,
                         const Sizes& context_stride, const Sizes& shape, bool bfloat16, const Sizes& index,
                         Address gradient, Address to_depth, Address to_context, int threads) {
  kestrel::level().lift_splat_backward({frustum(depth, context, depth_stride, context_stride, shape, bfloat16),
                                        splat_index(index), at<void>(gradient), at<void>(to_depth),
                                        at<void>(to_context), threads});
}

// grid: lower corner and size of a cell along x, y, z. shape: images, depths, height, width and the cells of
// the grid along x, y, z.
int64_t build_splat_index(Address rays, Address origins, Address depths, Address frames,
                        const std::vector<float>& grid, bool truncated, const std::vector<int>& shape,
                        int64_t num_cells, Address row_start, Address runs, Address by_column,
                        Address column_start, int threads) {
  const kestrel::FrustumRays frustum{at<float>(rays), at<float>(origins), at<float>(depths), at<int64_t>(frames),
                                     {grid.at(0), grid.at(1), grid.at(2)}, {grid.at(3), grid.at(4), grid.at(5)},
                                     shape.at(4), shape.at(5), shape.at(6), truncated};
  return kestrel::build_splat_index({frustum, shape.at(0), shape.at(1), shape.at(2), shape.at(3),
                                     num_cells, at<int32_t>(row_start), at<int32_t>(runs),
                                     at<int32_t>(by_column), at<int32_t>(column_start), threads});
}

void winograd(Address input, Address weight, Address bias, Address out, int64_t images, int height, int width,
              int cin, int cout, bool relu, int threads) {
  kestrel::level().winograd({at<float>(input), at<float>(weight), at<float>(bias), at<float>(out), images,
                             height, width, cin, cout, relu, threads});
}

// lengths: half a side of the grid, side of a pillar, lowest and highest z.
bool pillar_canvas(Address points, Address frames, int64_t count, Address weight, Address bias, Address centers,
                   Address out, int64_t batch, int side, int channels, const std::vector<float>& lengths,
                   int64_t least, int threads) {
  return kestrel::level().pillar_canvas({at<float>(points), at<int64_t>(frames), at<float>(weight),
                                         at<float>(bias), at<float>(centers), at<float>(out), count, batch, least,
                                         side, channels, lengths.at(0), lengths.at(1), lengths.at(2),
                                         lengths.at(3), threads});
}

void sample_axes(Address grid, Address lower, Address share, Address out, int64_t images, int size, int channels,
                 int places, int stride, bool bfloat16, int threads) {
  kestrel::level().sample_axes({at<void>(grid), at<int32_t>(lower), at<float>(share), at<void>(out), images, size,
                                channels, places, stride, bfloat16, threads});
}

void most_likely(Address logits, int64_t count, int classes, Address label, Address probability, int threads) {
  kestrel::level().most_likely({at<float>(logits), count, classes, at<uint8_t>(label), at<float>(probability),
                                threads});
}

void window_attention(Address qkv, Address padding, Address bias, Address out, int64_t images, int height, int width,
                      int heads, int depth, int window, int shift, float scale, float hidden, bool bfloat16,
                      int threads) {
  kestrel::level().window_attention({at<void>(qkv), at<void>(padding), at<float>(bias), at<void>(out), images, height,
                                     width, heads, depth, window, shift, scale, hidden, bfloat16, threads});
}

bool pack_keys(Address indices, int64_t count, Address keys, int threads) {
  return kestrel::pack_keys(at<int64_t>(indices), count, at<int64_t>(keys), threads);
}

int64_t unique_keys(Address keys, int64_t count, Address unique, Address inverse, int threads) {
  return kestrel::unique_keys(at<int64_t>(keys), count, at<int64_t>(unique), at<int64_t>(inverse), threads);
}

void submanifold_table(Address keys, int64_t count, const Offsets& offsets, Address table, int threads) {
  const kestrel::Array<kestrel::Offset> list = triples(offsets);
  kestrel::submanifold_table(at<int64_t>(keys), count, list.data(), static_cast<int>(list.size()),
                             at<int32_t>(table), threads);
}

std::pair<int64_t, int64_t> strided_triples(Address keys, int64_t count, const Offsets& offsets,
                                            const std::vector<int>& stride, const std::vector<int>& shape,
                                            int64_t capacity, Address outputs, Address input, Address slice,
                                            Address output, int threads) {
  const kestrel::Array<kestrel::Offset> list = triples(offsets);
  const kestrel::Offset limit = shape.empty() ? kestrel::Offset{0, 0, 0} : triple(shape);
  const kestrel::StridedMap map{at<int64_t>(keys),  count, list.data(), static_cast<int>(list.size()),
                                triple(stride), shape.empty() ? nullptr : &limit};
  const kestrel::Triples found = kestrel::strided_triples(map, capacity, at<int64_t>(outputs), at<int32_t>(input),
                                                          at<int32_t>(slice), at<int32_t>(output), threads);
  return {found.count, found.outputs};
}

void find_keys(Address keys, int64_t count, Address wanted, int64_t queries, Address rows, int threads) {
  kestrel::find_keys(at<int64_t>(keys), count, at<int64_t>(wanted), queries, at<int32_t>(rows), threads);
}

bool trilinear(Address points, int64_t count, const std::vector<int>& stride, Address keys, int64_t voxels,
               Address table, Address rows, Address weights, int threads, Address near) {
  return kestrel::trilinear({at<float>(points), count, triple(stride), at<int64_t>(keys), voxels, at<int32_t>(table),
                             at<int32_t>(rows), at<float>(weights), threads, at<int32_t>(near)});
}

void rotated_iou(Address boxes, int64_t count, Address others, int64_t other_count, Address out, int threads) {
  kestrel::rotated_iou({at<double>(boxes), count, at<double>(others), other_count, at<double>(out), threads});
}

int64_t rotated_nms(Address boxes, Address labels, int64_t count, double threshold, int64_t limit,
                    Address kept) {
  return kestrel::rotated_nms(at<double>(boxes), at<int64_t>(labels), count, threshold, limit,
                              at<int64_t>(kept));
}

int64_t circle_nms(Address centers, Address labels, Address squared, int64_t count, int64_t limit,
                   Address kept) {
  return kestrel::circle_nms(at<double>(centers), at<int64_t>(labels), at<double>(squared), count, limit,
                             at<int64_t>(kept));
}

void box_points(Address points, int64_t count, Address regions, int64_t region_count, int slots, double slot_s,
                int64_t limit, Address rows, Address found, int threads) {
  kestrel::box_points({at<float>(points), count, at<float>(regions), region_count, slots, slot_s, limit,
                       at<int64_t>(rows), at<int64_t>(found), threads});
}

// A kernel as a function of the module: others may run Python meanwhile, and it names itself where it lacks memory.
template <class Result, class... Arguments>
void define(nb::module_& m, const char* name, Result (*kernel)(Arguments...)) {
  m.def(name, [name, kernel](Arguments... arguments) -> Result {
    const nb::gil_scoped_release release;
    try {
      return kernel(arguments...);
    } catch (const kestrel::OutOfMemory& error) {
      throw kestrel::OutOfMemory(error.bytes, name);
    }
  });
}

}  // namespace

// Raised whenever a function below changes its name, its arguments or their meaning; kestrel.ops asks for it.
constexpr int interface_version = 13;

NB_MODULE(native, m) {
  m.attr("interface_version") = interface_version;
  m.def("dispatch_level", [] { return std::string(kestrel::level().name); });
  m.def("available_levels", &available_levels);
  m.def("set_dispatch_level", &set_dispatch_level, "name"_a);
  define(m, "pack_weight", &pack_weight);
  define(m, "quantize", &quantize);
  define(m, "sparse_conv", &sparse_conv);
  define(m, "weight_gradient", &weight_gradient);
  define(m, "weight_gradient_bfloat16", &weight_gradient_bfloat16);
  define(m, "weighted_gather", &weighted_gather);
  define(m, "weighted_scatter", &weighted_scatter);
  define(m, "scatter_mean", &scatter_mean);
  define(m, "winograd", &winograd);
  define(m, "pillar_canvas", &pillar_canvas);
  define(m, "sample_axes", &sample_axes);
  define(m, "most_likely", &most_likely);
  define(m, "window_attention", &window_attention);
  define(m, "pack_keys", &pack_keys);
  define(m, "unique_keys", &unique_keys);
  define(m, "submanifold_table", &submanifold_table);
  define(m, "strided_triples", &strided_triples);
  define(m, "find_keys", &find_keys);
  define(m, "trilinear", &trilinear);
  define(m, "voxelize", &voxelize);
  define(m, "lift_splat", &lift_splat);
  define(m, "lift_splat_backward", &lift_splat_backward);
  define(m, "rotated_iou", &rotated_iou);
  define(m, "rotated_nms", &rotated_nms);
  define(m, "circle_nms", &circle_nms);
  define(m, "box_points", &box_points);
  define(m, "build_splat_index", &build_splat_index);
}
