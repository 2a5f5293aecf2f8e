// SPDX-License-Identifier: BSD-3-Clause
// The gradient of the filters of a 3x3 convolution with stride 1 and padding 1, in float32, of maps
// in float32 or bfloat16 and channels_last, by Winograd's F(3x3, 4x4): 36 products for the 16
// outputs of a tile instead of the 144 of the definition, so 4 times fewer multiply-adds.
//
// Each tile's inputs and gradients are transformed to 36 positions. At each position the sum over
// the tiles is a matrix product (filters, tiles) x (tiles, channels). The tiles are taken in chunks
// whose transforms stay in the L3 cache. They lie in panels, so that a product of 48 filters and 32
// channels reads little memory, in order. The 36 sums are transformed to 9 taps once; those of a
// map of one chunk block by block, from the L2 cache.
//
// An element is a sum over the tiles in one order, with any number of threads. Rounding: the error
// is four to six times that of a direct convolution, about 1e-6 of the gradient. A value that is
// not finite spreads to all taps of its channels.
#include <algorithm>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "tiled_map.h"
#include "winograd_filters_grad.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kMostChunkTiles = 192;
constexpr int64_t kLine = 16;  // floats in a cache line
constexpr int64_t kBlock = kGradRows * kPanel;

// The transforms of a chunk of tiles: for each position, panels of `width` channels, each of them
// (tiles, width).
class Chunk {
 public:
  Chunk(const Tensor& like, int64_t channels, int64_t width, int64_t most_tiles)
      : channels_(channels),
        width_(width),
        panels_((channels + width - 1) / width),
        panel_stride_(most_tiles * width),
        // Positions a power of two apart would share a few sets of the caches.
        position_stride_(panels_ * panel_stride_ + 5 * kLine),
        memory_(empty(like, {kGradPositions * position_stride_}, kFloat32)),
        floats_(mutable_data<float>(memory_)) {}

  int64_t panels() const { return panels_; }
  int64_t channels_of(int64_t panel) const { return std::min(width_, channels_ - panel * width_); }
  const float* panel(int64_t position, int64_t panel) const {
    return floats_ + position * position_stride_ + panel * panel_stride_;
  }

  // One of FiltersGradMapLoops' transforms, of all channels of the chunk's tile i.
  template <typename T>
  void set(int64_t i, decltype(FiltersGradMapLoops<T>::input) transform, const T* const* pixels) {
    for (int64_t p = 0; p < panels_; ++p)
      transform(pixels, p * width_, channels_of(p), floats_ + p * panel_stride_ + i * width_,
                position_stride_);
  }

 private:
  int64_t channels_, width_, panels_, panel_stride_, position_stride_;
  Tensor memory_;  // torch's, whose allocator may keep it for the next layer
  float* floats_;
};

// The result of winograd_filters_grad for maps of T, which is float or BFloat16.
template <typename T>
Tensor filters_grad_of(const Tensor& grad, const Tensor& input) {
  const Tensor readable_grad = in_channels_last(grad), readable_input = in_channels_last(input);
  using Map = TiledMap<const T, kGradTile>;
  const Map left_map(data<T>(readable_grad), readable_grad);
  const Map right_map(data<T>(readable_input), readable_input);
  const int64_t filters = grad.size(1), channels = input.size(1), count = left_map.tiles();
  // Allocated before the workspaces, which are freed first: allocated after them, it would fragment
  // the heap.
  const Tensor out = empty_in_channels_last(filters, channels, 3, 3, kFloat32);
  float* result = mutable_data<float>(out);
  if (count == 0) {
    fill_zero(out);
    return out;
  }
  const int64_t most = std::min(kMostChunkTiles, count);
  Chunk left(grad, filters, kGradRows, most), right(grad, channels, kPanel, most);
  const std::vector<T> outside(std::max(filters, channels));
  const FiltersGradLoops& loops = current_loops<FiltersGradLoops>();
  const auto& map_loops = current_loops<FiltersGradMapLoops<T>>();

  const auto transform = [&](int64_t first, int64_t tiles) {
    parallel_for(tiles, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* none = outside.data();
        const auto grads = left_map.template pixels<kGradTile>(first + i, 0, none);
        const auto inputs = right_map.template pixels<kGradSide>(first + i, 1, none);
        left.set<T>(i, map_loops.output_grad, grads.data());
        right.set<T>(i, map_loops.input, inputs.data());
      }
    });
  };
  // The sums of a block of kGradRows filters and kPanel channels at position q, and the taps from
  // all sums of some of its filters.
  const auto multiply = [&](int64_t q, int64_t row, int64_t panel, int64_t tiles, bool add,
                            float* sums) {
    loops.multiply(left.panel(q, row), round_up(left.channels_of(row), kPanelRows),
                   right.panel(q, panel), tiles, add, sums);
  };
  const auto take_taps = [&](int64_t filter, int64_t panel, const float* sums,
                             int64_t position_stride) {
    loops.taps(sums + filter % kGradRows * kPanel, position_stride, right.channels_of(panel),
               result + filter * 9 * channels + panel * kPanel, channels);
  };

  const int64_t blocks = left.panels() * right.panels();
  if (count <= most) {  // the sums of a block stay in the L2 cache
    transform(0, count);
    parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
      const Workspace sums(kGradPositions * kBlock);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / right.panels(), panel = i % right.panels();
        for (int64_t q = 0; q < kGradPositions; ++q)
          multiply(q, row, panel, count, false, sums.data() + q * kBlock);
        for (int64_t f = 0; f < left.channels_of(row); ++f)
          take_taps(row * kGradRows + f, panel, sums.data(), kBlock);
      }
    });
    return out;
  }
  const int64_t position_stride = blocks * kBlock + 5 * kLine;
  const Tensor memory = empty(grad, {kGradPositions * position_stride}, kFloat32);
  float* sums = mutable_data<float>(memory);
  for (int64_t first = 0; first < count; first += most) {
    const int64_t tiles = std::min(most, count - first);
    transform(first, tiles);
    parallel_for(kGradPositions * left.panels(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t q = i / left.panels(), row = i % left.panels();
        float* block = sums + q * position_stride + row * right.panels() * kBlock;
        for (int64_t panel = 0; panel < right.panels(); ++panel, block += kBlock)
          multiply(q, row, panel, tiles, first > 0, block);
      }
    });
  }
  parallel_for(filters, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t panel = 0; panel < right.panels(); ++panel) {
        const int64_t block = i / kGradRows * right.panels() + panel;
        take_taps(i, panel, sums + block * kBlock, position_stride);
      }
  });
  return out;
}

}  // namespace

Tensor winograd_filters_grad(const Tensor& grad, const Tensor& input) {
  check_winograd_filters_grad("winograd_filters_grad", grad, input);
  const bool halves = input.scalar_type() == ScalarType::BFloat16;
  return halves ? filters_grad_of<BFloat16>(grad, input) : filters_grad_of<float>(grad, input);
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_filters_grad", TORCH_BOX(&winograd_filters_grad));
}

}  // namespace fastdet::cpu
