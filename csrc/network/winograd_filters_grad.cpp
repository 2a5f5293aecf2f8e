// SPDX-License-Identifier: BSD-3-Clause
// The gradient with respect to the filters of a convolution 3x3 with stride 1 and padding 1 in
// float32, channels_last, by Winograd's F(2x2, 3x3) (Lavin & Gray,
// https://arxiv.org/abs/1509.09308): 16 products, of transformed gradients of 2x2 outputs and
// transformed 4x4 inputs, where the definition has 36. They are summed over chunks of tiles in
// order and transformed back once.
//
// A sum has one order, with any number of threads. The transform matrices contain only 0, +-1 and
// +-1/2, and the error is about twice that of the definition. A value that is not finite spreads to
// all taps of its channels.
#include <algorithm>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "tiled_map.h"
#include "winograd_filters_grad.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kChunkTiles = 256;
constexpr int64_t kChunkRows = 4 * kWinogradRows;

}  // namespace

Tensor winograd_filters_grad(const Tensor& grad, const Tensor& input) {
  check_winograd_filters_grad("winograd_filters_grad", grad, input);
  const Tensor readable_grad = in_channels_last(grad), readable_input = in_channels_last(input);
  const TiledMap<const float, 2> left(readable_grad), right(readable_input);
  const int64_t filters = grad.size(1), channels = input.size(1);
  // Allocated before the workspaces, which are freed first: allocated after them, it would fragment
  // the heap.
  const Tensor out = empty_in_channels_last(filters, channels, 3, 3, kFloat32);
  float* taps = mutable_data<float>(out);
  if (left.tiles() == 0) {
    fill_zero(out);
    return out;
  }
  const int64_t rows = round_up(filters, kWinogradRows);
  const int64_t panels = winograd_panels(channels);
  const int64_t columns = panels * kWinogradPanel;
  // Rows with a length of a power of two would share a few sets of the L1 cache.
  const int64_t left_stride = round_up(rows, 16) + 16, panel_size = kChunkTiles * kWinogradPanel;
  const Workspace left_chunk(kWinogradPositions * kChunkTiles * left_stride);
  const Workspace right_chunk(kWinogradPositions * panels * panel_size);
  const Workspace sums(kWinogradPositions * rows * columns);
  const std::vector<float> outside(std::max(filters, channels));
  const WinogradGradLoops& loops = current_loops<WinogradGradLoops>();
  for (int64_t first = 0; first < left.tiles(); first += kChunkTiles) {
    const int64_t tiles = std::min(kChunkTiles, left.tiles() - first);
    parallel_for(tiles, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        loops.output_grad(left.pixels<2>(first + i, 0, outside.data()).data(), filters,
                          left_chunk.data() + i * left_stride, kChunkTiles * left_stride);
        auto pixels = right.pixels<4>(first + i, 1, outside.data());
        for (int64_t panel = 0; panel < panels; ++panel) {
          loops.input(pixels.data(), std::min(kWinogradPanel, channels - panel * kWinogradPanel),
                      right_chunk.data() + panel * panel_size + i * kWinogradPanel,
                      panels * panel_size);
          for (const float*& pixel : pixels) pixel += kWinogradPanel;
        }
      }
    });
    const int64_t pieces = round_up(rows, kChunkRows) / kChunkRows;
    parallel_for(kWinogradPositions * pieces, 1, [&](int64_t begin, int64_t end) {
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
  parallel_for(filters, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      loops.filter_grad(sums.data() + i * columns, rows * columns, channels,
                        taps + i * 9 * channels, channels);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("winograd_filters_grad", TORCH_BOX(&winograd_filters_grad));
}

}  // namespace fastdet::cpu
