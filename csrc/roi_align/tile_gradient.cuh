// SPDX-License-Identifier: BSD-3-Clause
// How a block sums the gradient of a tile of features, with the sums in registers: one way for
// channels_last, one for NCHW.
//
// Both have: the tile's height kHeight and the channels of a block, kChannels; the rows and columns
// of features that a thread sums, kRows and kColumns; and the number of its sums, kSums.
#pragma once

#include "tile_batch.cuh"

namespace fastdet::cuda {

namespace {

// Sums in channels_last. A lane owns V adjacent channels, a warp kColumns adjacent features of a
// row. So what a warp does depends on no lane, and a load of a bin serves all its features.
template <typename S, int V>
struct PackSums {
  using Value = S;
  static constexpr int kHeight = V == 8 ? 4 : kTile, kChannels = kWarp * V;  // of a block
  static constexpr int kRows = 1, kColumns = V == 8 ? 4 : kTile;             // of a thread
  static constexpr int kSums = kColumns * V;
  static_assert(kHeight * kTile == kWarps * kColumns);
  // The number of bins whose loads are under way at once: about as many as touch kColumns features.
  static constexpr int kAtOnce = V == 8 ? 2 : 4;

  S sums[kColumns][V] = {};

  __device__ static int y() { return warp() / (kTile / kColumns); }
  __device__ static int x() { return warp() % (kTile / kColumns) * kColumns; }
  __device__ static int64_t channel(int64_t first) { return first + lane() * V; }

  template <typename Batch, typename T>
  __device__ void add(const Batch& batch, int rois, const BinBlock& bins, const T* grad,
                      const PooledShape& shape, int64_t first_channel) {
    if (channel(first_channel) >= shape.channels) return;
    grad += channel(first_channel) * shape.stride[2];
    for (int r = 0; r < rois; ++r) {
      const auto rows = batch.rows.touching[r][y()];
      const auto columns = batch.columns.touching[r][x() / kColumns];
#pragma unroll 1
      for (int ph = rows.begin; ph < rows.end; ++ph) {
        const S row_weight = batch.rows.weight[r * bins.height + ph][y()];
        const T* bin =
            grad + batch.offset[r] + ph * shape.stride[3] + columns.begin * shape.stride[4];
#pragma unroll 1
        for (int pw = columns.begin; pw < columns.end; pw += kAtOnce) {
          Pack<T, V> packs[kAtOnce];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i, bin += opaque(shape.stride[4]))
            packs[i] = load_pack_if<V>(pw + i < columns.end, bin);
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            if (pw + i >= columns.end) break;
            const S* const weights = &batch.columns.weight[r * bins.width + pw + i][x()];
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              // A gradient that is not finite must not reach a feature that its bin does not touch.
              const S weight = weights[c];
              if (weight != S(0)) add_to(sums[c], row_weight * weight, packs[i]);
            }
          }
        }
      }
    }
  }

  // The thread's sums are kThreads values apart.
  __device__ void keep(S* kept) const {
    for (int i = 0; i < kSums; ++i) kept[i * kThreads] = sums[i / V][i % V];
  }
  __device__ void add_kept(const S* kept) {
    for (int i = 0; i < kSums; ++i) sums[i / V][i % V] += kept[i * kThreads];
  }

  template <typename T>
  __device__ void store(const Tile& tile, const FeatureLevel<T, S>& level,
                        int64_t first_channel) const {
    const int64_t row = tile.top + y(), left = tile.left + x();
    if (row >= level.height || channel(first_channel) >= level.channels) return;
    T* const out = level.data + tile.image * level.image_stride + row * level.row_stride +
                   left * level.pixel_stride + channel(first_channel) * level.channel_stride;
    for (int c = 0; c < kColumns; ++c)
      if (left + c < level.width) store_sums(out + c * level.pixel_stride, sums[c]);
  }
};

// Sums in NCHW. A thread owns a channel and all features of the tile. The bins that touch the tile
// go through shared memory, so that neighbouring threads load neighbouring bins. The sums over the
// bins of a row serve all rows of features.
template <typename S, int tile_height>
struct PlaneSums {
  using Value = S;
  static constexpr int kHeight = tile_height, kChannels = kThreads;  // of a block
  static constexpr int kRows = kHeight, kColumns = kTile;            // of a thread
  static constexpr int kSums = kHeight * kTile;
  static constexpr int kBins = 64 / sizeof(S);  // that are in shared memory at once

  S sums[kHeight][kTile] = {};

  template <typename Batch, typename T>
  __device__ void add(const Batch& batch, int rois, const BinBlock& bins, const T* grad,
                      const PooledShape& shape, int64_t first_channel) {
    // One value more than needed, so that neighbouring threads read different banks.
    __shared__ S loaded[kThreads][kBins + 1];
    const int thread = static_cast<int>(threadIdx.x);
    for (int r = 0; r < rois; ++r) {
      const auto rows = batch.rows.touching[r][0];
      const auto columns = batch.columns.touching[r][0];
      for (int pw = columns.begin; pw < columns.end; pw += kBins) {
        const int width = min_of(columns.end - pw, kBins), height = kBins / width;
        for (int ph = rows.begin; ph < rows.end; ph += height) {
          const int num_rows = min_of(rows.end - ph, height);
          __syncthreads();
          load(grad + batch.offset[r] + ph * shape.stride[3] + pw * shape.stride[4], num_rows,
               width, shape, first_channel, loaded);
          __syncthreads();
          if (first_channel + thread >= shape.channels) continue;
          for (int i = 0; i < num_rows; ++i)
            add_row(loaded[thread] + i * width, width, batch.columns.weight + r * bins.width + pw,
                    batch.rows.weight[r * bins.height + ph + i]);
        }
      }
    }
  }

  // Loads height x width bins of all channels of the block, kBins threads for each.
  template <typename T>
  __device__ static void load(const T* grad, int height, int width, const PooledShape& shape,
                              int64_t first_channel, S (&loaded)[kThreads][kBins + 1]) {
    const int bin = threadIdx.x % kBins, first = threadIdx.x / kBins;
    if (bin >= height * width) return;
    const int channels =
        static_cast<int>(min_of(shape.channels - first_channel, int64_t(kChannels)));
    grad += bin / width * shape.stride[3] + bin % width * shape.stride[4] +
            (first_channel + first) * shape.stride[2];
    constexpr int kStep = kThreads / kBins;
#pragma unroll 8
    for (int c = first; c < channels; c += kStep, grad += opaque(kStep * shape.stride[2]))
      loaded[c][bin] = static_cast<S>(*grad);
  }

  // Adds a row of bins.
  __device__ void add_row(const S* values, int width, const S (*of_columns)[kTile],
                          const S* of_rows) {
    S row[kTile] = {};
    for (int pw = 0; pw < width; ++pw) {
      const S value = values[pw];
#pragma unroll
      for (int x = 0; x < kTile; ++x) {
        // A gradient that is not finite must not reach a feature that its bin does not touch.
        const S weight = of_columns[pw][x];
        if (weight != S(0)) row[x] = std::fma(weight, value, row[x]);
      }
    }
#pragma unroll
    for (int y = 0; y < kHeight; ++y) {
      const S weight = of_rows[y];
      if (weight == S(0)) continue;
      for (int x = 0; x < kTile; ++x) sums[y][x] = std::fma(weight, row[x], sums[y][x]);
    }
  }

  // The thread's sums are kThreads values apart.
  __device__ void keep(S* kept) const {
    for (int i = 0; i < kSums; ++i) kept[i * kThreads] = sums[i / kTile][i % kTile];
  }
  __device__ void add_kept(const S* kept) {
    for (int i = 0; i < kSums; ++i) sums[i / kTile][i % kTile] += kept[i * kThreads];
  }

  template <typename T>
  __device__ void store(const Tile& tile, const FeatureLevel<T, S>& level,
                        int64_t first_channel) const {
    constexpr int kWidth = kPackWidth<T>;
    const int64_t channel = first_channel + threadIdx.x;
    if (channel >= level.channels) return;
    T* row = level.data + tile.image * level.image_stride + channel * level.channel_stride +
             tile.top * level.row_stride + tile.left * level.pixel_stride;
    const bool whole = level.pixel_stride == 1 && tile.left + kTile <= level.width;
#pragma unroll
    for (int y = 0; y < kHeight; ++y, row += level.row_stride) {
      if (tile.top + y >= level.height) break;
      const bool in_packs = whole && reinterpret_cast<uintptr_t>(row) % kPackBytes == 0;
      for (int x = 0; x < kTile; x += kWidth) {
        S pack[kWidth];
        for (int i = 0; i < kWidth; ++i) pack[i] = sums[y][x + i];
        if (in_packs) {
          store_sums(row + x, pack);
          continue;
        }
        for (int i = 0; i < kWidth; ++i)
          if (tile.left + x + i < level.width)
            row[(x + i) * level.pixel_stride] = static_cast<T>(pack[i]);
      }
    }
  }
};

}  // namespace

}  // namespace fastdet::cuda
