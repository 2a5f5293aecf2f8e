// SPDX-License-Identifier: BSD-3-Clause
// Convolutions 3x3 with stride 1 and padding 1 of 8-bit integers, channels_last, by Winograd's
// F(2x2, 3x3): 16 products for 4 outputs instead of the 36 of the definition, so 2.25 times fewer.
// Larger tiles need more bits than a byte has.
//
// The transform of a tile's inputs has 16 positions. Each is a sum of four inputs with signs that
// cancel, so within -510 .. 510, or at one position the sum of four inputs less their zero points,
// within -1020 .. 1020. It is rounded to a byte, with a step and a zero point (`middle`) for each
// position, which calibration chooses: fixed steps that clip nothing would round twice as much. The
// filters are transformed and rounded to signed bytes once, with a step for each position and
// output (fastdet/ops/winograd_int8.py). Sums of products are exact in 32 bits; sums of the filters
// take out the zero points. All else is in float32, rounded once.
//
// A block of tiles is transformed into 16 matrices of bytes, which stay in the L2 cache. They are
// multiplied by the filters of 32 outputs at a time, which are transformed back while they are in
// that cache, too. For 256 channels the transforms take a sixth of the time.
#include <algorithm>
#include <array>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "tile_division.h"
#include "winograd_int8.loops.h"

namespace fastdet::cpu {

namespace {

using Filters = Int8Filters<Tensor>;

constexpr int kTile = 2, kSide = 4;
constexpr int64_t kBlockBytes = 420'000;  // of transformed inputs
constexpr int64_t kMostTiles = 96;
constexpr int64_t kLeastTiles = 12;
constexpr int64_t kLine = 64;  // bytes of a cache line; an offset against equal sets of the caches
constexpr int64_t kSumPosition = 5;  // of the sum of four inputs
constexpr double kUnit = 1024;       // see Int8Rounding
constexpr float kLargestFloat = 3.4e38f;

// The tables of a call: how inputs are rounded, what the products begin with and are multiplied by,
// and the bias.
struct Int8Tables {
  Int8Tables(const Filters& of, int64_t zero_point, double result_scale)
      : width(of.filters.size(0) * kWinogradPanel),
        starts(kWinogradInt8Positions * width),
        factors(starts.size()),
        bias(width) {
    const Tensor rounding = torch::stable::contiguous(of.roundings);
    const Tensor steps = torch::stable::contiguous(of.steps);
    const Tensor sums = torch::stable::contiguous(of.sums);
    const Tensor scales = torch::stable::contiguous(of.scales);
    const Tensor shifts = torch::stable::contiguous(of.bias);
    const int64_t channels = scales.size(0);
    const float* scale = data<float>(scales);
    for (int64_t q = 0; q < kWinogradInt8Positions; ++q) {
      const int32_t multiplier = data<int32_t>(rounding)[2 * q];
      const int32_t middle = data<int32_t>(rounding)[2 * q + 1];
      roundings[q] = {.offset = static_cast<int16_t>(q == kSumPosition ? 4 * zero_point : 0),
                      .multiplier = static_cast<int16_t>(multiplier),
                      .middle = static_cast<int16_t>(middle)};
      // The integers of the filters are those of four times the filters.
      const auto unit = static_cast<float>(kUnit / 4 / multiplier / result_scale);
      const int32_t* sum = data<int32_t>(sums) + q * width;
      const float* step = data<float>(steps) + q * width;
      for (int64_t o = 0; o < width; ++o) starts[q * width + o] = -middle * sum[o];
      for (int64_t o = 0; o < channels; ++o) factors[q * width + o] = step[o] * scale[o] * unit;
    }
    for (int64_t o = 0; o < channels; ++o)
      bias[o] = data<float>(shifts)[o] / static_cast<float>(result_scale);
  }

  int64_t width;
  std::array<Int8Rounding, kWinogradInt8Positions> roundings;
  std::vector<int32_t> starts;
  std::vector<float> factors, bias;
};

// T is uint8_t, float or BFloat16.
template <typename T>
Tensor conv_of(const Tensor& input, int64_t zero_point, const Filters& of,
               const std::optional<Tensor>& summand, const Int8Grid& summand_grid, bool relu,
               const Int8Grid& grid, ScalarType dtype) {
  const Tensor readable = in_channels_last(input);
  const Tensor filters = torch::stable::contiguous(of.filters);
  const Tensor readable_summand = in_channels_last(summand ? *summand : input);
  const int64_t depth = input.size(1), channels = of.scales.size(0), panels = filters.size(0);
  const Tensor output =
      empty_in_channels_last(input.size(0), channels, input.size(2), input.size(3), dtype);
  const TiledMap<const uint8_t, kTile> from(data<uint8_t>(readable), readable);
  const TiledMap<const uint8_t, kTile> added(data<uint8_t>(readable_summand), readable_summand);
  const TiledMap<T, kTile> to(mutable_data<T>(output), output);
  const std::vector<uint8_t> outside(depth, static_cast<uint8_t>(zero_point));
  constexpr bool kIsByte = std::is_same_v<T, uint8_t>;
  const double scale = kIsByte ? grid.scale : 1;
  const Int8Tables tables(of, zero_point, scale);
  const float least = kIsByte ? static_cast<float>(-grid.zero_point) : -kLargestFloat;
  const Int8Result result{
      .factors = tables.factors.data(),
      .factor_stride = tables.width,
      .bias = tables.bias.data(),
      .summand_scale = static_cast<float>(summand_grid.scale / scale),
      .summand_zero_point = static_cast<int32_t>(summand_grid.zero_point),
      .least = relu ? 0 : least,
      .most = kIsByte ? least + 255 : kLargestFloat,
      .zero_point = static_cast<int32_t>(grid.zero_point),
  };
  const int64_t quads = filters.size(2), row_stride = round_up(depth, kLine) + kLine;
  const int64_t most =
      std::clamp(kBlockBytes / (kWinogradInt8Positions * row_stride), kLeastTiles, kMostTiles);
  const TileDivision division(from.tiles(), most, panels, panels, torch::stable::get_num_threads());
  const int64_t position_stride = division.block_tiles() * row_stride + kLine;
  const int64_t product_stride = division.block_tiles() * kWinogradPanel + kLine / 4;
  const auto& loops = current_loops<WinogradInt8Loops>();
  const auto& result_loops = current_loops<WinogradInt8ResultLoops<T>>();
  const auto workspace = [&] {
    const int64_t bytes = kWinogradInt8Positions * (position_stride + 4 * product_stride);
    return reinterpret_cast<uint8_t*>(kept_workspace(bytes / 4));
  };
  division.run(
      kTorchPool,
      [&](int64_t tile, int64_t past) {
        uint8_t* transformed = workspace();
        for (; tile < past; ++tile, transformed += row_stride)
          loops.input(from.template pixels<kSide>(tile, 1, outside.data()).data(), depth,
                      tables.roundings.data(), transformed, position_stride);
      },
      [&](int64_t tile, int64_t past, int64_t panel, int64_t past_panel) {
        const uint8_t* transformed = workspace();
        auto* products =
            reinterpret_cast<int32_t*>(workspace() + kWinogradInt8Positions * position_stride);
        const int64_t panel_bytes = quads * 4 * kWinogradPanel;
        std::array<std::array<T*, kTile * kTile>, kMostTiles> pixels;
        std::array<std::array<const uint8_t*, kTile * kTile>, kMostTiles> summands;
        for (int64_t i = tile; i < past; ++i) {
          pixels[i - tile] = to.template pixels<kTile>(i, 0, nullptr);
          if (summand) summands[i - tile] = added.template pixels<kTile>(i, 0, nullptr);
        }
        for (; panel < past_panel; ++panel) {
          const int64_t first = panel * kWinogradPanel;
          const int8_t* bytes =
              data<int8_t>(filters) + panel * kWinogradInt8Positions * panel_bytes;
          for (int64_t q = 0; q < kWinogradInt8Positions; ++q)
            loops.multiply(transformed + q * position_stride, row_stride, past - tile,
                           bytes + q * panel_bytes, quads,
                           tables.starts.data() + q * tables.width + first,
                           products + q * product_stride);
          for (int64_t i = 0; i < past - tile; ++i)
            result_loops.output(products + i * kWinogradPanel, product_stride, result,
                                summand ? summands[i].data() : nullptr, first,
                                std::min(kWinogradPanel, channels - first), pixels[i].data());
        }
      });
  return output;
}

}  // namespace

Tensor winograd_conv_int8(const Tensor& input, int64_t zero_point, const Tensor& roundings,
                          const Tensor& filters, const Tensor& steps, const Tensor& sums,
                          const Tensor& scales, const Tensor& bias,
                          const std::optional<Tensor>& summand, double summand_scale,
                          int64_t summand_zero_point, int64_t activation, double result_scale,
                          int64_t result_zero_point, int64_t result) {
  const Filters of{roundings, filters, steps, sums, scales, bias};
  const Int8Grid summand_grid{summand_scale, summand_zero_point};
  const Int8Grid grid{result_scale, result_zero_point};
  check_winograd_conv_int8("winograd_conv_int8", input, zero_point, of, summand, summand_grid,
                           activation, grid, result);
  const bool relu = activation == static_cast<int64_t>(Activation::kRelu);
  const auto run = [&](auto conv, ScalarType dtype) {
    return conv(input, zero_point, of, summand, summand_grid, relu, grid, dtype);
  };
  switch (static_cast<Int8ResultType>(result)) {
    case Int8ResultType::kFloat:
      return run(conv_of<float>, kFloat32);
    case Int8ResultType::kBFloat16:
      return run(conv_of<BFloat16>, ScalarType::BFloat16);
    default:
      return run(conv_of<uint8_t>, ScalarType::Byte);
  }
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_conv_int8", TORCH_BOX(&winograd_conv_int8));
}

}  // namespace fastdet::cpu
