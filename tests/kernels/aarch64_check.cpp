// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// The kernels against plain loops, for processors that the tests in Python do not reach. Prints one line per check:
// the levels, the relative errors of both convolutions, how many points along rays fall into other cells than they do
// where products and sums are rounded apart, and how many kernels say what memory they lack.
#include <cstdio>

#include "bev_pool/bev_pool.h"
#include "common/memory.h"
#include "plain_loops.h"

namespace {

// F(4x4, 3x3) of Lavin and Gray: the transform of the weights.
constexpr double kWeights[6][3] = {{1 / 4., 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                                   {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};

double winograd_error(int height, int width, int cin, int cout) {
  std::mt19937 generator(1);
  const auto input = random_values<float>(generator, int64_t{height} * width * cin);
  const auto weight = random_values<float>(generator, int64_t{9} * cin * cout);  // (3, 3, cin, cout)
  const auto bias = random_values<float>(generator, cout);
  const int panels = (cout + 15) / 16;
  std::vector<float> transformed(int64_t{36} * panels * cin * 16);
  for (int k = 0; k < 36; ++k)
    for (int i = 0; i < cin; ++i)
      for (int o = 0; o < cout; ++o) {
        double sum = 0;
        for (int part = 0; part < 9; ++part)
          sum += kWeights[k / 6][part / 3] * kWeights[k % 6][part % 3] * weight[(part * cin + i) * cout + o];
        transformed[((int64_t{k} * panels + o / 16) * cin + i) * 16 + o % 16] = static_cast<float>(sum);
      }
  std::vector<float> out(int64_t{height} * width * cout);
  kestrel::level().winograd({input.data(), transformed.data(), bias.data(), out.data(), 1, height, width, cin, cout,
                             true, 2});
  std::vector<double> expected(out.size());
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int o = 0; o < cout; ++o) {
        double sum = bias[o];
        for (int part = 0; part < 9; ++part) {
          const int row = y + part / 3 - 1, column = x + part % 3 - 1;
          if (row < 0 || row >= height || column < 0 || column >= width) continue;
          for (int i = 0; i < cin; ++i)
            sum += double{input[(row * width + column) * cin + i]} * weight[(part * cin + i) * cout + o];
        }
        expected[(y * width + x) * cout + o] = sum > 0 ? sum : 0;
      }
  return relative_error(out, expected);
}

// Pictures of one pixel whose points lie by the borders of cells: their coordinates are in steps of a tenth.
int misplaced_points() {
  constexpr int kPictures = 400, kDepths = 120, kCells = 400;
  constexpr float kLower = -20.0f, kStep = 0.1f;
  std::vector<float> rays, origins, depths;
  for (int n = 0; n < kPictures; ++n) {
    for (const float value : {0.01f * static_cast<float>(n - 200), 0.0f, 0.0f}) rays.push_back(value);
    for (const float value : {0.1f * static_cast<float>(n % 7), 0.0f, 0.0f}) origins.push_back(value);
  }
  for (int d = 0; d < kDepths; ++d) depths.push_back(0.05f * static_cast<float>(10 + d));
  const std::vector<int64_t> frames(kPictures, 0);
  std::vector<int32_t> row_start(kCells + 1), runs(3 * kPictures * kDepths), by_column(kPictures * kDepths),
      column_start(kPictures + 1);
  const int64_t count = kestrel::build_splat_index(
      {{rays.data(), origins.data(), depths.data(), frames.data(), {kLower, -1, -1}, {kStep, 2, 2}, kCells, 1, 1, false},
       kPictures, kDepths, 1, 1, kCells, row_start.data(), runs.data(), by_column.data(), column_start.data(), 2});
  int wrong = 0;
  for (int64_t run = 0; run < count; ++run) {
    const int32_t cell = runs[3 * run], point = runs[3 * run + 1];
    const int n = point / kDepths, d = point % kDepths;
    volatile float product = rays[3 * n] * depths[d];  // rounded before anything is added
    const float place = (product + origins[3 * n] - kLower) / kStep;
    wrong += static_cast<int32_t>(place) != cell;
  }
  return count == kPictures * kDepths ? wrong : -1;
}

// More than any address reaches, asked for in the threads of a parallel region and outside of one.
int refused_kernels() {
  constexpr int64_t kBytes = int64_t{1} << 48;
  int refused = 0;
  const auto call = [&](const auto& kernel) {
    try {
      kernel();
    } catch (const kestrel::OutOfMemory& error) {
      refused += error.bytes == kBytes;
    }
  };
  call([] { kestrel::build_splat_index({{}, 0, 0, 0, 0, kBytes / 4, nullptr, nullptr, nullptr, nullptr, 2}); });
  const kestrel::Frustum frustum{nullptr, nullptr, {}, {}, 1 << 10, 1, 1 << 15, 1 << 15, 64, false};
  call([&] { kestrel::level().lift_splat({frustum, {}, 1, 1, 1, nullptr, 2}); });
  return refused;
}

}  // namespace

int main() {
  std::printf("levels");
  for (const kestrel::Level* const* each = kestrel::available_levels(); *each; ++each) std::printf(" %s", (*each)->name);
  std::printf("\n");
  constexpr int kChannels[][2] = {{64, 64}, {4, 32}, {33, 130}, {5, 3}, {96, 17}};
  for (const auto& channels : kChannels) {
    std::printf("float32 %.2e\n", convolution_error<float>(kestrel::level(), 150, 170, 3, channels[0], channels[1]));
    std::printf("bfloat16 %.2e\n", convolution_error<uint16_t>(kestrel::level(), 150, 170, 3, channels[0], channels[1]));
  }
  std::printf("winograd %.2e\n", winograd_error(9, 14, 20, 40));
  std::printf("misplaced %d\n", misplaced_points());
  std::printf("refused %d\n", refused_kernels());
}
