// SPDX-License-Identifier: BSD-3-Clause
// Convolutions 3x3 with stride 1 and padding 1, channels_last, by Winograd's F(4x4, 3x3)
// (Lavin & Gray, https://arxiv.org/abs/1509.09308): 36 products for 16 outputs instead of the 144
// of the definition, so 4 times fewer multiply-adds than a direct convolution. In bfloat16 it is
// F(6x6, 3x3), 64 products for 36 outputs, 5 times fewer, unless its larger tiles reach so far
// beyond a small map that F(4x4, 3x3) needs fewer. The transforms take about 10 multiply-adds for
// each input value and 10 operations for each output value.
//
// A block of tiles is transformed into 36 (or 64) matrices (tiles, C), in 6 (or 8) rows. Row by row
// they are multiplied by the matrices of the filters (C, 32 outputs at a time), which are
// transformed just before: to transform them takes less time than to read them from memory, 4 (or
// 7) times as large as the filters. The matrices of a row stay in the L2 cache; those of the whole
// block, and the products, stay in the L3 cache.
//
// Maps and filters are in float32 or bfloat16; all else is in float32. In bfloat16, the result is
// rounded once, and is as exact as that of a direct convolution: the error of F(6x6, 3x3), 7 times
// that of a direct convolution in float32, is hundreds of times smaller than this rounding.
// Products of transformed values in bfloat16 would take half the time, but with 5 times the error.
// F(2x2, 3x3) with such products has twice the error and needs more than twice as many of them.
//
// The gradient with respect to the input is the same convolution with the filters rotated by 180
// degrees. The gradient with respect to the filters is in winograd_filters_grad.cpp.
//
// An output is the sum of its products in one order, with any number of threads. Rounding: with the
// points 0, +-3/4, +-3/2 and infinity the error of F(4x4, 3x3) is 1 to 3 times that of a direct
// convolution, half of the error with the usual points 0, +-1, +-2. A value that is not finite
// spreads to all outputs of its tiles, which is more than in the definition.
#include <algorithm>
#include <array>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "tile_division.h"
#include "winograd.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlockFloats = 1'200'000;  // of transformed inputs: 4.8 MB
constexpr int64_t kMostTiles = 96;           // of more, the transforms of the filters save little
constexpr int64_t kMostPanels = 8;           // of products: at most 6.3 MB
// Matrices with a size of a power of two would share a few sets of the L1 cache.
constexpr int64_t kGap = 16;

// Of the channels of a weight that one task lays out: their columns stay in the L2 cache.
constexpr int64_t kChannelsAtOnce = 128;

// The result of winograd_filters for a weight of T, which is float or BFloat16.
template <typename T>
Tensor filters_of(const Tensor& weight, const std::optional<Tensor>& scale) {
  const int64_t outputs = weight.size(0), depth = weight.size(1);
  const int64_t panels = winograd_panels(outputs);
  const bool taps_first = weight.is_contiguous();  // the taps of a channel lie together
  const Tensor readable =
      taps_first ? weight : torch::stable::contiguous(channels_to_back(weight));  // (O, 3, 3, C)
  const Tensor packed = in_huge_pages(
      empty(weight, {panels, depth, kWinogradTaps, kWinogradPanel}, weight.scalar_type()));
  std::vector<float> scales(panels * kWinogradPanel, 1.0f);
  if (scale) std::copy_n(data<float>(torch::stable::contiguous(*scale)), outputs, scales.data());
  const T* taps = data<T>(readable);
  T* out = mutable_data<T>(packed);
  const auto& loops = current_loops<WinogradFilterLoops<T>>();
  constexpr int64_t kOneChannel = kWinogradTaps * kWinogradPanel;
  const int64_t pieces = round_up(depth, kChannelsAtOnce) / kChannelsAtOnce;
  parallel_for(panels * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t output = item / pieces * kWinogradPanel;
      const int64_t channel = item % pieces * kChannelsAtOnce;
      const int64_t channels = std::min(kChannelsAtOnce, depth - channel);
      const int64_t stride = depth * kWinogradTaps;
      const T* from = taps + output * stride;
      T* to = out + (output / kWinogradPanel * depth + channel) * kOneChannel;
      const auto lay_out = [&](int64_t first, int64_t count, T* column, int64_t column_stride) {
        loops.lay_out(from + first, stride, std::min(kWinogradPanel, outputs - output),
                      scales.data() + output, count, column, column_stride);
      };
      if (taps_first)
        lay_out(channel * kWinogradTaps, channels * kWinogradTaps, to, kWinogradPanel);
      else
        for (int64_t tap = 0; tap < kWinogradTaps; ++tap)
          lay_out(tap * depth + channel, channels, to + tap * kWinogradPanel, kOneChannel);
    }
  });
  return packed;
}

// The result of winograd_filters_turned for a weight of T, which is float or BFloat16.
template <typename T>
Tensor turned_filters_of(const Tensor& weight) {
  const Tensor readable = torch::stable::contiguous(channels_to_back(weight));  // (O, 3, 3, C)
  const int64_t depth = weight.size(0), outputs = weight.size(1);
  const int64_t panels = winograd_panels(outputs);
  const Tensor packed = in_huge_pages(
      empty(weight, {panels, depth, kWinogradTaps, kWinogradPanel}, weight.scalar_type()));
  const T* taps = data<T>(readable);
  T* out = mutable_data<T>(packed);
  constexpr int64_t kOneChannel = kWinogradTaps * kWinogradPanel;
  const auto pack = [&](int64_t panel, int64_t k) {
    const int64_t first = panel * kWinogradPanel;
    const int64_t count = std::min(kWinogradPanel, outputs - first);
    T* to = out + (panel * depth + k) * kOneChannel;
    if (count < kWinogradPanel) std::fill_n(to, kOneChannel, T(0));
    for (int64_t tap = 0; tap < kWinogradTaps; ++tap, to += kWinogradPanel)
      std::copy_n(taps + (k * kWinogradTaps + kWinogradTaps - 1 - tap) * outputs + first, count,
                  to);
  };
  parallel_for(panels * depth, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack(i / depth, i % depth);
  });
  return packed;
}

// The result of winograd_conv for maps and filters of T, which is float or BFloat16, in tiles of
// kTile x kTile outputs.
template <typename T, int kTile>
Tensor conv_of(const Tensor& input, const Tensor& filters, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& summand, int64_t channels, int64_t activation) {
  const Tensor readable = in_channels_last(input), packed = torch::stable::contiguous(filters);
  const Tensor readable_summand = in_channels_last(summand ? *summand : input);
  const Tensor output = empty_in_channels_last(input.size(0), channels, input.size(2),
                                               input.size(3), input.scalar_type());
  constexpr int kSide = winograd_side(kTile), kPositions = kSide * kSide;
  using Inputs = TiledMap<const T, kTile>;
  const Inputs from(data<T>(readable), readable);
  const Inputs added(data<T>(readable_summand), readable_summand);
  const TiledMap<T, kTile> to(mutable_data<T>(output), output);
  const int64_t depth = filters.size(1), panels = filters.size(0);
  std::vector<float> shift(panels * kWinogradPanel);
  const std::vector<T> zeros(depth);
  if (bias) std::copy_n(data<float>(torch::stable::contiguous(*bias)), channels, shift.data());
  const T* taps = data<T>(packed);
  const int64_t row_stride = round_up(std::max<int64_t>(depth, 1), 16) + kGap;
  const int64_t most =
      std::clamp(kBlockFloats / (kPositions * row_stride), int64_t(12), kMostTiles);
  const TileDivision division(from.tiles(), most, panels, kMostPanels,
                              torch::stable::get_num_threads());
  const int64_t block = division.block_tiles();
  const int64_t group_width = division.group_panels() * kWinogradPanel;
  const int64_t position_stride = block * row_stride + kGap;
  const int64_t product_stride = block * group_width + kGap;
  const int64_t panel_floats = depth * kWinogradPanel;
  const auto& loops = current_loops<WinogradLoops>();
  const auto& map_loops = current_loops<WinogradMapLoops<T, kTile>>();

  const auto transform = [&](int64_t begin, int64_t end, float* transformed) {
    auto pixels = from.template pixels<kSide>(begin, 1, zeros.data());
    for (int64_t tile = begin; tile < end; ++tile, transformed += row_stride) {
      const auto next =
          from.template pixels<kSide>(std::min(tile + 1, from.tiles() - 1), 1, zeros.data());
      map_loops.input(pixels.data(), next.data(), depth, transformed, position_stride);
      pixels = next;
    }
  };
  const auto multiply = [&](int64_t tiles, int64_t first, int64_t last, const float* transformed,
                            float* columns, float* products) {
    for (int row = 0; row < kSide; ++row)
      for (int64_t panel = first; panel < last; ++panel) {
        map_loops.filters(taps + panel * panel_floats * kWinogradTaps, depth, row, columns);
        for (int i = 0; i < kSide; ++i) {
          const int64_t q = row * kSide + i;
          loops.multiply(
              transformed + q * position_stride, row_stride, tiles, columns + i * panel_floats,
              depth, products + q * product_stride + (panel - first) * kWinogradPanel, group_width);
        }
      }
  };
  const auto write = [&](int64_t begin, int64_t end, int64_t first, int64_t last,
                         const float* products) {
    const int64_t channel = first * kWinogradPanel;
    const int64_t count = std::min(last * kWinogradPanel, channels) - channel;
    for (int64_t tile = begin; tile < end; ++tile, products += group_width) {
      const auto summands = added.template pixels<kTile>(tile, 0, nullptr);
      map_loops.output(products, product_stride, group_width, shift.data() + channel,
                       summand ? summands.data() : nullptr, static_cast<Activation>(activation),
                       channel, count, to.template pixels<kTile>(tile, 0, nullptr).data());
    }
  };
  const auto workspace = [&] {
    return kept_workspace(kPositions * (position_stride + product_stride) + kSide * panel_floats);
  };
  division.run(
      kTorchPool, [&](int64_t tile, int64_t past) { transform(tile, past, workspace()); },
      [&](int64_t tile, int64_t past, int64_t first, int64_t last) {
        float* transformed = workspace();
        float* products = transformed + kPositions * position_stride;
        float* columns = products + kPositions * product_stride;
        multiply(past - tile, first, last, transformed, columns, products);
        write(tile, past, first, last, products);
      });
  return output;
}

// Whether tiles of 6x6 outputs need fewer products than tiles of 4x4, some of which may lie outside
// the map.
bool prefers_large_tiles(const Tensor& map) {
  const auto products = [&](int64_t tile) {
    const int64_t side = winograd_side(static_cast<int>(tile));
    return round_up(map.size(2), tile) / tile * (round_up(map.size(3), tile) / tile) * side * side;
  };
  return products(6) < products(4);
}

}  // namespace

Tensor winograd_filters(const Tensor& weight, const std::optional<Tensor>& scale) {
  check_winograd_filters("winograd_filters", weight, scale);
  const bool halves = weight.scalar_type() == ScalarType::BFloat16;
  return halves ? filters_of<BFloat16>(weight, scale) : filters_of<float>(weight, scale);
}

Tensor winograd_filters_turned(const Tensor& weight) {
  check_winograd_filters("winograd_filters_turned", weight, std::nullopt);
  const bool halves = weight.scalar_type() == ScalarType::BFloat16;
  return halves ? turned_filters_of<BFloat16>(weight) : turned_filters_of<float>(weight);
}

Tensor winograd_conv(const Tensor& input, const Tensor& filters, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& summand, int64_t channels, int64_t activation) {
  check_winograd_conv("winograd_conv", input, filters, bias, summand, channels, activation);
  const bool halves = input.scalar_type() == ScalarType::BFloat16;
  const auto conv = !halves                      ? conv_of<float, 4>
                    : prefers_large_tiles(input) ? conv_of<BFloat16, 6>
                                                 : conv_of<BFloat16, 4>;
  return conv(input, filters, bias, summand, channels, activation);
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_filters", TORCH_BOX(&winograd_filters));
  m.impl("winograd_filters_turned", TORCH_BOX(&winograd_filters_turned));
  m.impl("winograd_conv", TORCH_BOX(&winograd_conv));
}

}  // namespace fastdet::cpu
