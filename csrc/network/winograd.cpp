// SPDX-License-Identifier: BSD-3-Clause
// Convolutions 3x3 with stride 1 and padding 1 in float32, channels_last, by Winograd's F(2x2, 3x3)
// (Lavin & Gray, https://arxiv.org/abs/1509.09308): 16 products for 4 outputs instead of the 36 of
// the definition, so 2.25 times fewer multiply-adds than a direct convolution. The transforms take
// 8 additions for each input value and 6 for each output value, 6 % of the time at 256 channels.
//
// A block of 2x2 tiles is transformed into 16 matrices (tiles, C) that stay in the L2 cache. Each
// of them is multiplied by its matrix of the filters (C, 32 outputs at a time). The 16 products are
// transformed into outputs while they are in the L1 cache. So a map is read and written once, and
// the 16 matrices of the filters stream from the L3 cache at 4 to 10 bytes a cycle.
//
// The gradient with respect to the input is the same convolution with the filters rotated by 180
// degrees. The gradient with respect to the filters is in winograd_filters_grad.cpp.
//
// An output is the sum of its products in one order, with any number of threads. Rounding: the
// transform matrices contain only 0, +-1 and +-1/2, and the error is about twice that of a direct
// convolution. A value that is not finite spreads to all outputs of its tiles, which is more than
// in the definition.
#include <algorithm>
#include <array>
#include <memory>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "winograd.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlockFloats = 150'000;  // of transformed inputs: 600 KB of a 1 MB L2 cache
constexpr int64_t kMostBlockTiles = 72;

// A workspace of n floats that begins on a cache line.
class Workspace {
 public:
  explicit Workspace(int64_t n) : lines_(new Line[(n + 15) / 16]) {}
  float* data() const { return lines_[0].floats; }

 private:
  struct alignas(64) Line {
    float floats[16];
  };
  std::unique_ptr<Line[]> lines_;
};

// A map (B, C, H, W) in channels_last, as 2x2 tiles.
template <typename T>
class TiledMap {
 public:
  explicit TiledMap(const Tensor& map)
      : height_(map.size(2)),
        width_(map.size(3)),
        tile_rows_((height_ + 1) / 2),
        tile_columns_((width_ + 1) / 2),
        tiles_(map.size(0) * tile_rows_ * tile_columns_),
        image_stride_(map.stride(0)),
        row_stride_(map.stride(2)),
        pixel_stride_(map.stride(3)) {
    if constexpr (std::is_const_v<T>)
      data_ = fastdet::data<float>(map);
    else
      data_ = mutable_data<float>(map);
  }

  int64_t tiles() const { return tiles_; }

  // Pointers to the channels of kSide x kSide pixels. The first is `before` pixels above and left
  // of the tile. For a pixel outside the map, the pointer is `outside`.
  template <int kSide>
  std::array<T*, kSide * kSide> pixels(int64_t tile, int64_t before, T* outside) const {
    const int64_t image = tile / (tile_rows_ * tile_columns_);
    const int64_t top = tile / tile_columns_ % tile_rows_ * 2 - before;
    const int64_t left = tile % tile_columns_ * 2 - before;
    std::array<T*, kSide * kSide> pixels;
    for (int64_t i = 0; i < kSide; ++i)
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < height_ && x >= 0 && x < width_;
        pixels[i * kSide + j] =
            inside ? data_ + image * image_stride_ + y * row_stride_ + x * pixel_stride_ : outside;
      }
    return pixels;
  }

 private:
  T* data_;
  int64_t height_, width_, tile_rows_, tile_columns_, tiles_;
  int64_t image_stride_, row_stride_, pixel_stride_;
};

}  // namespace

Tensor winograd_filters(const Tensor& weight, bool turned) {
  check_winograd_filters("winograd_filters", weight);
  const Tensor readable = torch::stable::contiguous(channels_to_back(weight));  // (O, 3, 3, C)
  const int64_t filters = weight.size(0), channels = weight.size(1);
  const int64_t outputs = turned ? channels : filters, depth = turned ? filters : channels;
  const int64_t panels = winograd_panels(outputs);
  const Tensor packed =
      in_huge_pages(empty(weight, {kWinogradPositions, panels, depth, kWinogradPanel}, kFloat32));
  const float* taps = data<float>(readable);
  float* out = mutable_data<float>(packed);
  const int64_t position_stride = panels * depth * kWinogradPanel;
  const WinogradLoops& loops = current_loops<WinogradLoops>();
  // The rows of 16 channels of a panel; they stay in the L1 cache while their columns are written.
  constexpr int64_t kChannels = 16;
  const auto pack = [&](int64_t panel, int64_t first) {
    alignas(64) float one[kWinogradPositions * kWinogradPanel];
    const int64_t count = std::min(kChannels, depth - first);
    for (int64_t column = 0; column < kWinogradPanel; ++column) {
      const int64_t filter = panel * kWinogradPanel + column;
      if (filter < outputs)
        loops.filter(taps + filter * 9 * channels + first, channels, count, one);
      else
        std::fill_n(one, kWinogradPositions * kWinogradPanel, 0.0f);
      for (int64_t q = 0; q < kWinogradPositions; ++q) {
        float* to = out + q * position_stride + (panel * depth + first) * kWinogradPanel + column;
        for (int64_t i = 0; i < count; ++i) to[i * kWinogradPanel] = one[q * kWinogradPanel + i];
      }
    }
  };
  const auto pack_turned = [&](int64_t panel, int64_t filter) {
    alignas(64) float one[kWinogradPositions * kWinogradPanel] = {};
    const int64_t first = panel * kWinogradPanel;
    loops.filter(taps + (filter * 9 + 8) * channels + first, -channels,
                 std::min(kWinogradPanel, channels - first), one);
    for (int64_t q = 0; q < kWinogradPositions; ++q)
      std::copy_n(one + q * kWinogradPanel, kWinogradPanel,
                  out + q * position_stride + (panel * depth + filter) * kWinogradPanel);
  };
  const int64_t step = turned ? 1 : kChannels, steps = round_up(depth, step) / step;
  parallel_for(panels * steps, turned ? 64 : 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      turned ? pack_turned(i / steps, i % steps) : pack(i / steps, i % steps * step);
  });
  return packed;
}

Tensor winograd_conv(const Tensor& input, const Tensor& filters, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& summand, int64_t channels, bool relu) {
  check_winograd_conv("winograd_conv", input, filters, bias, summand, channels);
  const Tensor readable = in_channels_last(input), packed = torch::stable::contiguous(filters);
  const Tensor readable_summand = in_channels_last(summand ? *summand : input);
  const Tensor output =
      empty_in_channels_last(input.size(0), channels, input.size(2), input.size(3), kFloat32);
  const TiledMap<const float> from(readable), added(readable_summand);
  const TiledMap<float> to(output);
  const int64_t depth = filters.size(2), panels = filters.size(1);
  std::vector<float> shift(panels * kWinogradPanel), outside(depth);
  if (bias) std::copy_n(data<float>(torch::stable::contiguous(*bias)), channels, shift.data());
  const float* columns = data<float>(packed);
  const int64_t row_stride = round_up(std::max<int64_t>(depth, 1), 16);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t fitting = std::min(kBlockFloats / (kWinogradPositions * row_stride),
                                   round_up(from.tiles(), threads) / threads);
  const int64_t block =
      std::clamp(round_up(fitting, kWinogradRows), kWinogradRows, kMostBlockTiles);
  const WinogradLoops& loops = current_loops<WinogradLoops>();
  parallel_for(round_up(from.tiles(), block) / block, 1, [&](int64_t first, int64_t last) {
    const Workspace transformed(kWinogradPositions * block * row_stride);
    const Workspace products(kWinogradPositions * block * kWinogradPanel);
    const int64_t position_stride = block * row_stride, product_stride = block * kWinogradPanel;
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * block, end = std::min(begin + block, from.tiles());
      for (int64_t tile = begin; tile < end; ++tile)
        loops.input(from.pixels<4>(tile, 1, outside.data()).data(), depth,
                    transformed.data() + (tile - begin) * row_stride, position_stride);
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t q = 0; q < kWinogradPositions; ++q)
          loops.multiply({transformed.data() + q * position_stride, row_stride, 1},
                         round_up(end - begin, kWinogradRows),
                         columns + (q * panels + panel) * depth * kWinogradPanel, depth, false,
                         products.data() + q * product_stride, kWinogradPanel);
        const int64_t column = panel * kWinogradPanel;
        for (int64_t tile = begin; tile < end; ++tile) {
          const auto summands = added.pixels<2>(tile, 0, nullptr);
          loops.output(products.data() + (tile - begin) * kWinogradPanel, product_stride,
                       shift.data() + column, summand ? summands.data() : nullptr, relu, column,
                       std::min(kWinogradPanel, channels - column),
                       to.pixels<2>(tile, 0, nullptr).data());
        }
      }
    }
  });
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_filters", TORCH_BOX(&winograd_filters));
  m.impl("winograd_conv", TORCH_BOX(&winograd_conv));
}

}  // namespace fastdet::cpu
