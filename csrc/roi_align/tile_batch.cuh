// SPDX-License-Identifier: BSD-3-Clause
// The tiles of feature maps, the RoIs that touch a tile, and the weights of its features in their
// bins: what the gradient of RoIAlign needs to sum a tile.
#pragma once

#include "../device/block_sum.cuh"
#include "../device/warp.cuh"
#include "roi_align.cuh"

namespace fastdet::cuda {

namespace {

struct RoiAxes {
  RoiAxis<double> y, x;
};

constexpr int kTile = 8;             // features of a tile in x, and the most in y
constexpr int kScan = 4 * kThreads;  // RoIs that a block tests before it visits the hits
constexpr int kWarps = kThreads / kWarp;
static_assert(kScan / kWarp == kWarp, "a warp's lanes hold the hits of all warps");

// The tiles that a RoI may touch, and their map: one load of 16 bytes.
struct alignas(16) RoiTiles {
  int32_t map;  // image * kMaxLevels + level; below 0 if there is none
  uint32_t rows, columns, unused;
};

// A range of tiles, including both ends, as first | last << 16. Tiles beyond 16 bits count as the
// last tile that 16 bits hold. So a RoI may seem to touch too many tiles, but never too few.
constexpr uint32_t kNoTiles = 1;  // empty: from 1 to 0
constexpr uint32_t kLastTile = UINT16_MAX;

template <int size>
__device__ uint32_t tile_of(int64_t index) {
  return static_cast<uint32_t>(min_of(index / size, int64_t(kLastTile)));
}

__device__ bool within(uint32_t tile, uint32_t range) {
  return tile >= (range & kLastTile) && tile <= range >> 16;
}

__device__ uint32_t tiles_in(uint32_t range) { return (range >> 16) + 1 - (range & kLastTile); }

// A sample reads only indices at a distance of at most 1.
template <int tile_size>
__device__ uint32_t tiles_of(const RoiAxis<double>& axis, int bins, int64_t size) {
  const double end = axis.start + bins * axis.bin;
  const double low = max_of(min_of(axis.start, end) - 1.0, 0.0);
  const double high = min_of(max_of(axis.start, end) + 1.0, static_cast<double>(size - 1));
  if (axis.samples == 0 || low > high) return kNoTiles;
  return tile_of<tile_size>(static_cast<int64_t>(low)) |
         tile_of<tile_size>(static_cast<int64_t>(high)) << 16;
}

struct Tile {
  int64_t image, top, left;
  uint32_t row, column;  // of tiles, as far as 16 bits hold them
  int level;

  // Without a branch, so that one load reads all of `roi`.
  __device__ bool touched_by(const RoiTiles& roi) const {
    return (roi.map == image * kMaxLevels + level) & within(row, roi.rows) &
           within(column, roi.columns);
  }
};

// The tiles of all levels, one level after another.
struct Tiles {
  int64_t begin[kMaxLevels + 1], rows[kMaxLevels], columns[kMaxLevels];

  template <int tile_height>
  __device__ Tile at(int64_t index) const {
    Tile tile = {};
    while (index >= begin[tile.level + 1]) ++tile.level;
    index -= begin[tile.level];
    tile.left = index % columns[tile.level] * kTile;
    index /= columns[tile.level];
    tile.top = index % rows[tile.level] * tile_height;
    tile.image = index / rows[tile.level];
    tile.row = tile_of<tile_height>(tile.top);
    tile.column = tile_of<kTile>(tile.left);
    return tile;
  }
};

// The most taps of a bin that are stored: enough for a sampling ratio up to 4.
constexpr int kRoom = 8;
// In place of the first tap: the bin has too many, and each tile computes those that it needs.
constexpr int64_t kTooMany = -1;
// In place of a tap that does not exist.
constexpr int64_t kNoTap = -2;

// The RoIs in global memory. The bins of RoI n, its rows and then its columns, are from
// n * (h + w) on.
template <typename S>
struct PlacedRois {
  RoiTiles* tiles;
  RoiAxes* axes;
  Tap<S>* taps;  // `room` for each bin
  int room;
};

// The first of the rois_per_image RoIs that may be in a tile: boxes are stored image by image; rois
// may be in any order and are handled as if of one image.
__device__ int64_t first_roi(const PooledShape& shape, const Tile& tile) {
  return shape.images > 1 ? tile.image * shape.rois_per_image : 0;
}

// The RoIs that touch the tile, in their order, as distances from its first_roi.
struct Hits {
  int of_warp[kWarp], roi[kScan];

  // Finds the hits among RoIs [begin, end), at least one, or among the first kScan of them. Returns
  // their number.
  __device__ int find(const RoiTiles* rois, int begin, int end, const Tile& tile) {
    unsigned votes[kScan / kThreads];
    for (int k = 0; k < kScan / kThreads; ++k) {
      const int n = begin + k * kThreads + static_cast<int>(threadIdx.x);
      // Without a branch, so that all loads are under way at once.
      const bool touches = tile.touched_by(rois[min_of(n, end - 1)]);
      votes[k] = __ballot_sync(kAllLanes, touches & (n < end));
      if (lane() == 0) of_warp[k * kWarps + warp()] = __popc(votes[k]);
    }
    __syncthreads();
    const int up_to = warp_sum_up_to(of_warp[lane()]);
    const int before = up_to - of_warp[lane()];
    for (int k = 0; k < kScan / kThreads; ++k) {
      const int place =
          __shfl_sync(kAllLanes, before, k * kWarps + warp()) + __popc(votes[k] & lanes_below());
      if (votes[k] >> lane() & 1) roi[place] = begin + k * kThreads + static_cast<int>(threadIdx.x);
    }
    __syncthreads();
    return __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
};

// The most RoIs that a block visits at once.
constexpr int kBatch = 16;

// For a few RoIs and one axis: the weight of each of the tile's rows (or columns) in each bin, and
// the range of bins that touch a few adjacent ones of them. Such bins are neighbours.
template <typename S, bool kAllStored>
struct TileWeights {
  struct Bins {
    int begin, end;
  };

  S weight[kMostBins][kTile];  // bin p of RoI r is at r * bins + p
  Bins touching[kBatch][kTile];

  // The weights of bin p, whose taps are `taps`.
  __device__ static void fill(const Tap<S>* taps, int room, const RoiAxis<double>* of_roi, int p,
                              int64_t size, int64_t low, S* weights) {
    for (int i = 0; i < kTile; ++i) weights[i] = S(0);
    if (kAllStored || taps[0].offset != kTooMany) {
#pragma unroll 4
      for (int k = 0; k < room; ++k) {
        const Tap<S> tap = taps[k];
        if (tap.offset >= low && tap.offset < low + kTile) weights[tap.offset - low] += tap.weight;
      }
    } else {
      add_samples(*of_roi, p, size, low, weights);
    }
  }

  // The same from the samples of the bin.
  __device__ static void add_samples(const RoiAxis<double>& axis, int p, int64_t size, int64_t low,
                                     S* weights) {
    const SampleRange range =
        samples_within(axis, p, static_cast<double>(low - 1), static_cast<double>(low + kTile));
    for (int64_t i = range.begin; i < range.end; ++i)
      for_each_tap<S>(axis, p, i, size, [&](int64_t index, S weight) {
        if (index >= low && index < low + kTile) weights[index - low] += weight;
      });
#pragma unroll 1
    for (int i = 0; i < kTile; ++i)
      if (weights[i] != S(0)) weights[i] /= static_cast<S>(axis.samples);
  }

  // For the rows or columns of group `group`.
  template <int of_group>
  __device__ void find_touching(int roi, int group, int bins) {
    Bins found = {bins, 0};
#pragma unroll 1
    for (int p = 0; p < bins; ++p) {
      bool touches = false;
      for (int i = 0; i < of_group; ++i)
        touches |= weight[roi * bins + p][group * of_group + i] != S(0);
      if (touches) found = {min_of(found.begin, p), p + 1};
    }
    touching[roi][group] = found;
  }
};

// A few of the RoIs that touch the tile, and the tile's weights in a block of their bins.
template <typename Sums, bool kAllStored>
struct Batch {
  using S = typename Sums::Value;
  using Weights = TileWeights<S, kAllStored>;

  int64_t offset[kBatch];  // of the first bin
  Weights rows, columns;

  template <typename Level>
  __device__ void fill(const Hits& hits, int from, int num, const PlacedRois<S>& rois,
                       const BinBlock& bins, const Tile& tile, const Level& level,
                       const PooledShape& shape) {
    constexpr int kRowGroups = Sums::kHeight / Sums::kRows;
    constexpr int kGroups = kRowGroups + kTile / Sums::kColumns;
    const int64_t first = first_roi(shape, tile);
    const int thread = static_cast<int>(threadIdx.x), both = bins.height + bins.width;
    for (int i = thread; i < num * both; i += kThreads) {
      const int r = i / both, p = i % both, q = p - bins.height;
      const bool is_row = q < 0;
      const int64_t n = first + hits.roi[from + r];
      const int bin = is_row ? bins.ph + p : bins.pw + q;
      const int64_t stored =
          n * (int64_t(shape.height) + shape.width) + (is_row ? 0 : shape.height);
      Weights::fill(rois.taps + (stored + bin) * rois.room, rois.room,
                    is_row ? &rois.axes[n].y : &rois.axes[n].x, bin,
                    is_row ? level.height : level.width, is_row ? tile.top : tile.left,
                    is_row ? rows.weight[r * bins.height + p] : columns.weight[r * bins.width + q]);
    }
    if (thread < num)
      offset[thread] = shape.offset(first + hits.roi[from + thread]) + bins.ph * shape.stride[3] +
                       bins.pw * shape.stride[4];
    __syncthreads();
    for (int i = thread; i < num * kGroups; i += kThreads) {
      const int r = i / kGroups, group = i % kGroups;
      if (group < kRowGroups)
        rows.template find_touching<Sums::kRows>(r, group, bins.height);
      else
        columns.template find_touching<Sums::kColumns>(r, group - kRowGroups, bins.width);
    }
    __syncthreads();
  }
};

}  // namespace

}  // namespace fastdet::cuda
