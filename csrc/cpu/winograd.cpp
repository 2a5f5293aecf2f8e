// SPDX-License-Identifier: BSD-3-Clause
// Convolutions 3x3 with stride 1 and padding 1 in float32, channels_last, by Winograd's F(2x2, 3x3)
// (Lavin & Gray, https://arxiv.org/abs/1509.09308): 16 products for 4 outputs where the definition
// has 36, so that 2.25 times fewer multiply-adds are left than any library's direct convolution
// does. What it adds are some 8 additions a product's row, 6 % of the time at 256 channels.
//
// A block of 2x2 tiles is transformed into 16 matrices (tiles, C) that stay in the L2 cache; each
// is multiplied by its matrix of the filters (C, 32 outputs at a time), and the 16 products become
// outputs while they are in the L1 cache. So a map is read and written once, and the filters' 16
// matrices stream from the L3 cache at 4 to 10 bytes a cycle. All maps that share their filters are
// one list of tiles: a small level fills no block of its own.
//
// The gradient by the input is such a convolution by the filters turned round. The gradient by the
// filters is 16 products too, of transformed outputs and inputs, summed over chunks of tiles in
// their order and transformed back once.
//
// An output is the sum of its products in one order, whatever the threads. Rounding: the matrices
// hold 0, 1 and 1/2 alone, and the error is about twice that of a direct convolution. A value that
// is not finite makes more of its neighbours so than the definition says, those of its tiles.
#include <algorithm>
#include <array>
#include <memory>

#include "../checks.h"
#include "../feature_layout.h"
#include "huge_pages.h"
#include "loops.h"
#include "parallel.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kPositions = 16;
constexpr int64_t kBlockFloats = 150'000;  // of transformed inputs: 600 KB of a 1 MB L2 cache
constexpr int64_t kMostBlockTiles = 72;
constexpr int64_t kChunkTiles = 256;
constexpr int64_t kChunkRows = 4 * kWinogradRows;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// n floats that begin on a cache line.
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

// Maps of the same channels and their 2x2 tiles, one after the other.
template <typename T>
class TiledMaps {
 public:
  explicit TiledMaps(const std::vector<Tensor>& maps) {
    for (const Tensor& map : maps) {
      Level level = {nullptr,       map.size(2),   map.size(3),   0,     0,
                     map.stride(0), map.stride(2), map.stride(3), tiles_};
      if constexpr (std::is_const_v<T>)
        level.data = fastdet::data<float>(map);
      else
        level.data = mutable_data<float>(map);
      level.tile_rows = (level.height + 1) / 2;
      level.tile_columns = (level.width + 1) / 2;
      tiles_ += map.size(0) * level.tile_rows * level.tile_columns;
      if (tiles_ > level.first_tile) levels_.push_back(level);
    }
  }

  int64_t tiles() const { return tiles_; }

  // Calls body(i, pixels) for the tiles [begin, end): pointers to the channels of kSide x kSide
  // pixels from `before` above and left of tile begin + i on, `outside` where the map has none.
  template <int kSide, typename Body>
  void for_tiles(int64_t begin, int64_t end, int64_t before, T* outside, const Body& body) const {
    size_t l = 0;
    for (int64_t tile = begin; tile < end; ++tile) {
      while (l + 1 < levels_.size() && tile >= levels_[l + 1].first_tile) ++l;
      const Level& level = levels_[l];
      const int64_t place = tile - level.first_tile;
      const int64_t image = place / (level.tile_rows * level.tile_columns);
      const int64_t y = place / level.tile_columns % level.tile_rows * 2 - before;
      const int64_t x = place % level.tile_columns * 2 - before;
      std::array<T*, kSide * kSide> pixels;
      for (int64_t i = 0; i < kSide; ++i)
        for (int64_t j = 0; j < kSide; ++j) {
          const bool inside =
              y + i >= 0 && y + i < level.height && x + j >= 0 && x + j < level.width;
          pixels[i * kSide + j] = inside ? level.data + image * level.image_stride +
                                               (y + i) * level.row_stride +
                                               (x + j) * level.pixel_stride
                                         : outside;
        }
      body(tile - begin, pixels);
    }
  }

 private:
  struct Level {
    T* data;
    int64_t height, width, tile_rows, tile_columns;
    int64_t image_stride, row_stride, pixel_stride;
    int64_t first_tile;
  };

  std::vector<Level> levels_;
  int64_t tiles_ = 0;
};

// (B, C, H, W) -> (B, H, W, C), a view.
Tensor channels_to_back(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3);
}

Tensor in_channels_last(const Tensor& map) {
  return map.stride(1) == 1 ? map
                            : channels_to_front(torch::stable::contiguous(channels_to_back(map)));
}

std::vector<Tensor> in_channels_last(const std::vector<Tensor>& maps) {
  std::vector<Tensor> readable;
  for (const Tensor& map : maps) readable.push_back(in_channels_last(map));
  return readable;
}

// Uninitialised (B, C, H, W); no view, so that a layer behind it may write over it.
Tensor empty_in_channels_last(int64_t images, int64_t channels, int64_t height, int64_t width) {
  const std::array sizes = {images, channels, height, width};
  return in_huge_pages(torch::stable::empty({sizes.data(), sizes.size()}, kFloat32, std::nullopt,
                                            std::nullopt, std::nullopt,
                                            torch::headeronly::MemoryFormat::ChannelsLast));
}

}  // namespace

Tensor winograd_filters(const Tensor& weight, bool turned) {
  check_winograd_filters("winograd_filters", weight);
  const Tensor readable = torch::stable::contiguous(channels_to_back(weight));  // (O, 3, 3, C)
  const int64_t filters = weight.size(0), channels = weight.size(1);
  const int64_t outputs = turned ? channels : filters, depth = turned ? filters : channels;
  const int64_t panels = round_up(outputs, kWinogradPanel) / kWinogradPanel;
  const Tensor packed =
      in_huge_pages(empty(weight, {kPositions, panels, depth, kWinogradPanel}, kFloat32));
  const float* taps = data<float>(readable);
  float* out = mutable_data<float>(packed);
  const int64_t position_stride = panels * depth * kWinogradPanel;
  const WinogradLoops& loops = winograd_loops();
  // A panel's rows of 16 channels, which fit the L1 cache while their columns come one by one.
  constexpr int64_t kChannels = 16;
  const auto pack = [&](int64_t panel, int64_t first) {
    alignas(64) float one[kPositions * kWinogradPanel];
    const int64_t count = std::min(kChannels, depth - first);
    for (int64_t column = 0; column < kWinogradPanel; ++column) {
      const int64_t filter = panel * kWinogradPanel + column;
      if (filter < outputs)
        loops.filter(taps + filter * 9 * channels + first, channels, count, one);
      else
        std::fill_n(one, kPositions * kWinogradPanel, 0.0f);
      for (int64_t q = 0; q < kPositions; ++q) {
        float* to = out + q * position_stride + (panel * depth + first) * kWinogradPanel + column;
        for (int64_t i = 0; i < count; ++i) to[i * kWinogradPanel] = one[q * kWinogradPanel + i];
      }
    }
  };
  const auto pack_turned = [&](int64_t panel, int64_t filter) {
    alignas(64) float one[kPositions * kWinogradPanel] = {};
    const int64_t first = panel * kWinogradPanel;
    loops.filter(taps + (filter * 9 + 8) * channels + first, -channels,
                 std::min(kWinogradPanel, channels - first), one);
    for (int64_t q = 0; q < kPositions; ++q)
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

std::vector<Tensor> winograd_conv(const std::vector<Tensor>& inputs, const Tensor& filters,
                                  const std::optional<Tensor>& bias,
                                  const std::vector<Tensor>& summands, int64_t channels,
                                  bool relu) {
  check_winograd_conv("winograd_conv", inputs, filters, bias, summands, channels);
  const std::vector<Tensor> readable = in_channels_last(inputs);
  const Tensor packed = torch::stable::contiguous(filters);
  std::vector<Tensor> outputs;
  for (const Tensor& input : inputs)
    outputs.push_back(
        empty_in_channels_last(input.size(0), channels, input.size(2), input.size(3)));
  const std::vector<Tensor> readable_summands = in_channels_last(summands);
  const TiledMaps<const float> from(readable), added(readable_summands);
  const TiledMaps<float> to(outputs);
  const int64_t depth = filters.size(2), panels = filters.size(1);
  std::vector<float> shift(panels * kWinogradPanel), outside(depth);
  if (bias) std::copy_n(data<float>(torch::stable::contiguous(*bias)), channels, shift.data());
  const float* columns = data<float>(packed);
  const int64_t row_stride = round_up(depth, 16);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t fitting =
      std::min(kBlockFloats / (kPositions * row_stride), round_up(from.tiles(), threads) / threads);
  const int64_t block =
      std::clamp(round_up(fitting, kWinogradRows), kWinogradRows, kMostBlockTiles);
  const WinogradLoops& loops = winograd_loops();
  parallel_for(round_up(from.tiles(), block) / block, 1, [&](int64_t first, int64_t last) {
    const Workspace transformed(kPositions * block * row_stride);
    const Workspace products(kPositions * block * kWinogradPanel);
    std::vector<std::array<float*, 4>> output_pixels(block);
    std::vector<std::array<const float*, 4>> summand_pixels(block);
    const int64_t position_stride = block * row_stride, product_stride = block * kWinogradPanel;
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * block, end = std::min(begin + block, from.tiles());
      from.for_tiles<4>(begin, end, 1, outside.data(), [&](int64_t i, const auto& pixels) {
        loops.input(pixels.data(), depth, transformed.data() + i * row_stride, position_stride);
      });
      to.for_tiles<2>(begin, end, 0, nullptr,
                      [&](int64_t i, const auto& pixels) { output_pixels[i] = pixels; });
      if (!summands.empty())
        added.for_tiles<2>(begin, end, 0, nullptr,
                           [&](int64_t i, const auto& pixels) { summand_pixels[i] = pixels; });
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t q = 0; q < kPositions; ++q)
          loops.multiply({transformed.data() + q * position_stride, row_stride, 1},
                         round_up(end - begin, kWinogradRows),
                         columns + (q * panels + panel) * depth * kWinogradPanel, depth, false,
                         products.data() + q * product_stride, kWinogradPanel);
        const int64_t column = panel * kWinogradPanel;
        for (int64_t i = 0; i < end - begin; ++i)
          loops.output(products.data() + i * kWinogradPanel, product_stride, shift.data() + column,
                       summands.empty() ? nullptr : summand_pixels[i].data(), relu, column,
                       std::min(kWinogradPanel, channels - column), output_pixels[i].data());
      }
    }
  });
  return outputs;
}

Tensor winograd_filters_grad(const std::vector<Tensor>& grads, const std::vector<Tensor>& inputs) {
  check_winograd_filters_grad("winograd_filters_grad", grads, inputs);
  const std::vector<Tensor> readable_grads = in_channels_last(grads);
  const std::vector<Tensor> readable_inputs = in_channels_last(inputs);
  const TiledMaps<const float> left(readable_grads), right(readable_inputs);
  const int64_t filters = grads[0].size(1), channels = inputs[0].size(1);
  const int64_t rows = round_up(filters, kWinogradRows);
  const int64_t panels = round_up(channels, kWinogradPanel) / kWinogradPanel;
  const int64_t columns = panels * kWinogradPanel;
  // Rows of a power of two floats would share a few sets of the L1 cache.
  const int64_t left_stride = round_up(rows, 16) + 16, panel_size = kChunkTiles * kWinogradPanel;
  const Workspace left_chunk(kPositions * kChunkTiles * left_stride);
  const Workspace right_chunk(kPositions * panels * panel_size);
  const Workspace sums(kPositions * rows * columns);
  const std::vector<float> outside(std::max(filters, channels));
  const WinogradLoops& loops = winograd_loops();
  for (int64_t first = 0; first < left.tiles(); first += kChunkTiles) {
    const int64_t tiles = std::min(kChunkTiles, left.tiles() - first);
    parallel_for(tiles, 8, [&](int64_t begin, int64_t end) {
      left.for_tiles<2>(
          first + begin, first + end, 0, outside.data(), [&](int64_t i, const auto& pixels) {
            loops.output_grad(pixels.data(), filters, left_chunk.data() + (begin + i) * left_stride,
                              kChunkTiles * left_stride);
          });
      right.for_tiles<4>(
          first + begin, first + end, 1, outside.data(), [&](int64_t i, auto pixels) {
            for (int64_t panel = 0; panel < panels; ++panel) {
              loops.input(pixels.data(),
                          std::min(kWinogradPanel, channels - panel * kWinogradPanel),
                          right_chunk.data() + panel * panel_size + (begin + i) * kWinogradPanel,
                          panels * panel_size);
              for (const float*& pixel : pixels) pixel += kWinogradPanel;
            }
          });
    });
    const int64_t pieces = round_up(rows, kChunkRows) / kChunkRows;
    parallel_for(kPositions * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t q = i / pieces, row = i % pieces * kChunkRows;
        for (int64_t panel = 0; panel < panels; ++panel)
          loops.multiply({left_chunk.data() + q * kChunkTiles * left_stride + row, 1, left_stride},
                         std::min(kChunkRows, rows - row),
                         right_chunk.data() + (q * panels + panel) * panel_size, tiles, first > 0,
                         sums.data() + (q * rows + row) * columns + panel * kWinogradPanel,
                         columns);
      }
    });
  }
  const Tensor out = empty_in_channels_last(filters, channels, 3, 3);
  float* grad = mutable_data<float>(out);
  if (left.tiles() == 0) {
    fill_zero(out);
    return out;
  }
  parallel_for(filters, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      loops.filter_grad(sums.data() + i * columns, rows * columns, channels,
                        grad + i * 9 * channels, channels);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_filters", TORCH_BOX(&winograd_filters));
  m.impl("winograd_conv", TORCH_BOX(&winograd_conv));
  m.impl("winograd_filters_grad", TORCH_BOX(&winograd_filters_grad));
}

}  // namespace fastdet::cpu
