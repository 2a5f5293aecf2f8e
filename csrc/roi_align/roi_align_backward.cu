// SPDX-License-Identifier: BSD-3-Clause
// The gradient of RoIAlign, of one level or several, in 3 launches and a memset, without atomic
// additions of floating numbers. So the result has the same bits in every run, even if torch does
// not ask for deterministic algorithms.
//
// A block owns a tile of the features and goes over the RoIs that touch it, in order, with the sums
// in registers. It writes each feature once and in the gradient's own type. Atomic addition would
// clear, add in float32 and convert, 3 to 5 times the bytes.
//
// 1. place_kernel: the tiles that each RoI touches, and the taps of its bins: float64 for the
//    positions, as in the forward pass, once for each bin. Taps are stored as float (double for
//    double).
// 2. divide_kernel: a warp counts the RoIs of a tile. A crowded tile is divided into parts.
// 3. gather_kernel: a block for each part, then a block for each tile, coarse levels first, since
//    their tiles have more RoIs. A part writes its sums, and the last one of a tile adds them up,
//    in order.
//
// In packs of channels, the lanes of a warp own channels, and a warp some adjacent features of a
// row. So what it does depends on no lane, and a load of a bin serves all its features. Otherwise
// (in NCHW, and for odd channels) a thread owns one feature and 16 channels.
//
// Workspace: 64 bytes for each RoI, 4 or 8 taps of 16 bytes for each of its h + w bins, 4 bytes for
// each tile, and the sums of up to 512 parts, of half the number of RoIs if that is less: 32 MB for
// 256 channels in float32.
#include <algorithm>
#include <vector>

#include "../device/arrival.cuh"
#include "../device/block_sum.cuh"
#include "../device/warp.cuh"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "roi_align.cuh"

namespace fastdet::cuda {

namespace {

struct RoiAxes {
  RoiAxis<double> y, x;
};

constexpr int kTile = 8;             // the most features of a tile on one side
constexpr int kScan = 4 * kThreads;  // RoIs that a block tests before it visits the hits
constexpr int kWarps = kThreads / kWarp;
static_assert(kScan / kWarp == kWarp, "a warp's lanes hold the hits of all warps");

// The features of a block, for packs of V channels.
template <int V>
struct TileOf {
  static constexpr int kWidth = kTile;
  static constexpr int kHeight = V == 8 ? 4 : kTile;
  static constexpr int kColumns = V == 1 ? 1 : std::min(kWidth, 32 / V);  // of a thread
  static constexpr int kLanes = V == 1 ? 4 : kWarp;  // threads that share the channels of a feature
  static constexpr int kPacks = V == 1 ? 16 : 1;     // of a thread for a feature, kLanes apart
  static constexpr int kChannels = kLanes * kPacks * V;
  static_assert(kHeight * kWidth / kColumns * kLanes == kThreads);
};

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

  template <int V>
  __device__ Tile at(int64_t index) const {
    Tile tile = {};
    while (index >= begin[tile.level + 1]) ++tile.level;
    index -= begin[tile.level];
    tile.left = index % columns[tile.level] * TileOf<V>::kWidth;
    index /= columns[tile.level];
    tile.top = index % rows[tile.level] * TileOf<V>::kHeight;
    tile.image = index / rows[tile.level];
    tile.row = tile_of<TileOf<V>::kHeight>(tile.top);
    tile.column = tile_of<TileOf<V>::kWidth>(tile.left);
    return tile;
  }
};

// ---- 1: the place of each RoI -------------------------------------------------------------------

// The most taps of a bin that are stored: enough for a sampling ratio up to 4.
constexpr int kRoom = 8;
// In place of the first tap: the bin has too many, and each tile computes those that it needs.
constexpr int64_t kTooMany = -1;
// In place of a tap that does not exist.
constexpr int64_t kNoTap = -2;

struct Totals {
  unsigned long long hits;  // pairs of a RoI and a tile that it touches
  int parts;
};

// The RoIs in global memory. The bins of RoI n, its rows and then its columns, are from
// n * (h + w) on.
template <typename S>
struct PlacedRois {
  RoiTiles* tiles;
  RoiAxes* axes;
  Tap<S>* taps;  // `room` for each bin
  int room;
  Totals* totals;
};

// A thread owns a bin of one axis.
template <typename T, int V>
__global__ void place_kernel(const __grid_constant__ Levels<T, Sum<T>> levels,
                             const __grid_constant__ RoiTable<Sum<T>> table, Sampling sampling,
                             PooledShape shape, PlacedRois<Sum<T>> rois) {
  using S = Sum<T>;
  __shared__ Tap<S> of_thread[kThreads][kRoom];  // registers have no addresses
  const int64_t bins = int64_t(shape.height) + shape.width;
  const int64_t bin = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (bin >= shape.num_rois() * bins) return;
  const int64_t n = bin / bins, p = bin % bins, q = p - shape.height;
  const PlacedRoi<S> roi = table.place(n);
  const FeatureLevel<T, S>& level = levels.of[roi.level];
  const bool is_row = q < 0;
  const RoiAxis<double> axis = axis_of(roi, is_row, level.scale, sampling, shape);
  if (p == 0) {
    const RoiAxes both = {axis, axis_of(roi, false, level.scale, sampling, shape)};
    const uint32_t rows = tiles_of<TileOf<V>::kHeight>(both.y, shape.height, level.height);
    const uint32_t columns = tiles_of<TileOf<V>::kWidth>(both.x, shape.width, level.width);
    rois.axes[n] = both;
    rois.tiles[n] = {static_cast<int32_t>(roi.image * kMaxLevels + roi.level), rows, columns, 0};
    // A sum of integers: the order changes nothing.
    const auto hits = static_cast<unsigned long long>(tiles_in(rows)) * tiles_in(columns);
    if (hits > 0) atomicAdd(&rois.totals->hits, hits);
  }
  Tap<S>* const found = of_thread[threadIdx.x];
  const MergedTaps merged = merge_taps(axis, static_cast<int>(is_row ? p : q), 0,
                                       is_row ? level.height : level.width, 1, found, rois.room);
  Tap<S>* const taps = rois.taps + bin * rois.room;
  for (int k = 0; k < rois.room; ++k) taps[k] = k < merged.count ? found[k] : Tap<S>{kNoTap, S(0)};
  if (merged.more) taps[0].offset = kTooMany;
}

// ---- 2: the parts of crowded tiles --------------------------------------------------------------

// A part takes RoIs [begin, end) of those that touch its tile.
struct Part {
  int64_t tile;
  int begin, end;
  int own, first, num;  // its number; the tile's parts are `num` parts from `first` on
};

// What the blocks do, in global memory.
struct Division {
  static constexpr int kMost = 256;   // parts into which all RoIs of all tiles would be divided
  static constexpr int kFewest = 16;  // RoIs of a part

  Totals* totals;
  int* hits;  // RoIs that touch each tile; below 0: the tile is divided into parts
  Part* parts;
  unsigned* arrived;  // of each part, for each block of channels
  int most_parts;     // the room for them
  unsigned channel_blocks;

  // The RoIs of a part. A tile with n > size RoIs has fewer than 2 n / size parts. So all tiles
  // have at most most_parts = 2 * kMost of them (or fewer, with fewer RoIs).
  __device__ int size() const {
    const auto most = static_cast<unsigned long long>(max_of(most_parts / 2, 1));
    return static_cast<int>(
        max_of((totals->hits + most - 1) / most, static_cast<unsigned long long>(kFewest)));
  }

  // What blocks do: the parts, then the tiles that are not in parts, whose `num` is 0. The tile is
  // below 0 if there is nothing to do.
  __device__ Part part_of(int64_t i, int64_t num_tiles) const {
    Part part = {-1, 0, 0, 0, 0, 0};
    if (i < most_parts) return i < totals->parts ? parts[i] : part;
    const int64_t tile = num_tiles - 1 - (i - most_parts);
    if (hits[tile] >= 0) part = {tile, 0, hits[tile], 0, 0, 0};
    return part;
  }
};

// The first of the rois_per_image RoIs that may be in a tile: boxes are stored image by image; rois
// may be in any order and are handled as if of one image.
__device__ int64_t first_roi(const PooledShape& shape, const Tile& tile) {
  return shape.images > 1 ? tile.image * shape.rois_per_image : 0;
}

// A warp owns a tile.
template <int V>
__global__ void divide_kernel(Tiles tiles, int64_t num_tiles, PooledShape shape,
                              const RoiTiles* rois, Division division) {
  const int64_t index = int64_t(blockIdx.x) * kWarps + warp();
  if (index >= num_tiles) return;
  const Tile tile = tiles.at<V>(index);
  rois += first_roi(shape, tile);
  int hits = 0;
#pragma unroll 4
  for (int64_t n = lane(); n < shape.rois_per_image; n += kWarp) hits += tile.touched_by(rois[n]);
  hits = group_sum(hits, kWarp);
  const int size = division.size();
  // Tiles beyond 16 bits seem to have hits that `totals` does not count.
  const bool in_parts =
      hits > size && division.most_parts > 0 && tile.row < kLastTile && tile.column < kLastTile;
  if (lane() == 0) division.hits[index] = in_parts ? -1 : hits;
  if (!in_parts) return;
  // Which parts these are depends on the order of the blocks, what they sum does not.
  const int num = (hits + size - 1) / size;
  int first = lane() == 0 ? atomicAdd(&division.totals->parts, num) : 0;
  first = __shfl_sync(kAllLanes, first, 0);
  for (int k = lane(); k < num; k += kWarp)
    division.parts[first + k] = {index,     k * size, min_of((k + 1) * size, hits),
                                 first + k, first,    num};
  for (unsigned c = lane(); c < division.channel_blocks; c += kWarp)
    division.arrived[first * division.channel_blocks + c] = 0;
}

// ---- 3: the sums --------------------------------------------------------------------------------

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

// For a few RoIs and one axis: the weight of each of the tile's rows (or columns) in each bin, and
// the range of bins that touch a few adjacent ones of them. Such bins are neighbours.
constexpr int kBatch = 16;  // the most RoIs

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
template <typename S, int V, bool kAllStored>
struct Batch {
  using Weights = TileWeights<S, kAllStored>;

  int64_t offset[kBatch];  // of the first bin
  Weights rows, columns;

  template <typename Level>
  __device__ void fill(const Hits& hits, int from, int num, const PlacedRois<S>& rois,
                       const BinBlock& bins, const Tile& tile, const Level& level,
                       const PooledShape& shape) {
    constexpr int kRows = TileOf<V>::kHeight, kGroups = TileOf<V>::kWidth / TileOf<V>::kColumns;
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
    for (int i = thread; i < num * (kRows + kGroups); i += kThreads) {
      const int r = i / (kRows + kGroups), group = i % (kRows + kGroups);
      if (group < kRows)
        rows.template find_touching<1>(r, group, bins.height);
      else
        columns.template find_touching<TileOf<V>::kColumns>(r, group - kRows, bins.width);
    }
    __syncthreads();
  }
};

// A thread's share of the tile: a few features of a row, from (y, x) on, and `packs` packs of the
// block's channels, from `channel` on, kLanes packs apart. Neighbouring threads take neighbouring
// channels in channels_last and neighbouring features in NCHW. It is computed where it is used,
// because registers are few.
struct Share {
  int y, x, packs;
  int64_t channel;
};

template <int V>
__device__ Share share_of(int64_t first_channel, int64_t channels, bool channels_last) {
  using Of = TileOf<V>;
  constexpr int kShares = kThreads / Of::kLanes, kAcross = Of::kWidth / Of::kColumns;
  constexpr int kApart = Of::kLanes * V;
  const int thread = static_cast<int>(threadIdx.x);
  const bool by_lanes = V > 1 || channels_last;
  const int share = by_lanes ? thread / Of::kLanes : thread % kShares;
  const int lane = by_lanes ? thread % Of::kLanes : thread / kShares;
  const int64_t channel = first_channel + lane * V;
  const int left =
      static_cast<int>(min_of(max_of(channels - channel, int64_t(0)), int64_t(Of::kChannels)));
  const int packs = min_of((left + kApart - 1) / kApart, Of::kPacks);
  return {share / kAcross, share % kAcross * Of::kColumns, packs, channel};
}

template <typename S, int V>
struct TileSums {
  using Of = TileOf<V>;
  static constexpr int kColumns = Of::kColumns, kPacks = Of::kPacks;
  static constexpr int kSums = kColumns * kPacks * V;
  // The number of bins whose loads are under way at once: about as many as touch kColumns features.
  static constexpr int kAtOnce = V == 1 ? 1 : V == 8 ? 2 : 4;
  S sums[kColumns][kPacks][V] = {};

  template <typename T, bool kAllStored>
  __device__ void add(const Batch<S, V, kAllStored>& batch, int rois, const BinBlock& bins,
                      const T* grad, const PooledShape& shape, const Share& share) {
    if (share.packs == 0) return;
    const int64_t apart = int64_t(Of::kLanes) * V * shape.stride[2];
    grad += share.channel * shape.stride[2];
    for (int r = 0; r < rois; ++r) {
      const auto rows = batch.rows.touching[r][share.y];
      const auto columns = batch.columns.touching[r][share.x / kColumns];
#pragma unroll 1
      for (int ph = rows.begin; ph < rows.end; ++ph) {
        const S row_weight = batch.rows.weight[r * bins.height + ph][share.y];
        const T* bin =
            grad + batch.offset[r] + ph * shape.stride[3] + columns.begin * shape.stride[4];
#pragma unroll 1
        for (int pw = columns.begin; pw < columns.end; pw += kAtOnce) {
          Pack<T, V> packs[kAtOnce][kPacks];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i, bin += opaque(shape.stride[4])) {
            const T* at = bin;
            for (int k = 0; k < kPacks; ++k) {
              packs[i][k] = load_pack_if<V>(pw + i < columns.end, at);
              // In place of packs that do not exist, the last one is read again.
              if constexpr (kPacks > 1)
                if (k + 1 < share.packs) at += opaque(apart);
            }
          }
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            if (pw + i >= columns.end) break;
            const S* const weights = &batch.columns.weight[r * bins.width + pw + i][share.x];
#pragma unroll
            for (int x = 0; x < kColumns; ++x) {
              // A gradient that is not finite must not reach a feature that its bin does not touch.
              const S weight = weights[x];
              if (weight == S(0)) continue;
              for (int k = 0; k < kPacks; ++k) add_to(sums[x][k], row_weight * weight, packs[i][k]);
            }
          }
        }
      }
    }
  }

  // The thread's sums are kThreads values apart.
  __device__ void keep(S* kept) const {
    for (int i = 0; i < kSums; ++i)
      kept[i * kThreads] = sums[i / V / kPacks][i / V % kPacks][i % V];
  }
  __device__ void add_kept(const S* kept) {
    for (int i = 0; i < kSums; ++i)
      sums[i / V / kPacks][i / V % kPacks][i % V] += kept[i * kThreads];
  }

  template <typename T>
  __device__ void store(const Tile& tile, const FeatureLevel<T, S>& level,
                        const Share& share) const {
    const int64_t y = tile.top + share.y, left = tile.left + share.x;
    if (y >= level.height) return;
    T* const out = level.data + tile.image * level.image_stride + y * level.row_stride +
                   left * level.pixel_stride + share.channel * level.channel_stride;
    for (int x = 0; x < kColumns; ++x)
      for (int k = 0; k < kPacks; ++k)
        if (left + x < level.width && k < share.packs)
          store_sums(out + x * level.pixel_stride + k * Of::kLanes * V * level.channel_stride,
                     sums[x][k]);
  }
};

// kAllStored: no bin has too many taps, as is known without a look at the RoIs.
template <typename T, int V, bool kAllStored>
__global__ void __launch_bounds__(kThreads, kDouble<T> || !kAllStored ? 2 : 3)
    gather_kernel(const __grid_constant__ Levels<T, Sum<T>> levels, Tiles tiles, int64_t num_tiles,
                  PlacedRois<Sum<T>> rois, int rois_at_a_time, Division division, Sum<T>* kept,
                  PooledShape shape, const T* grad, bool channels_last) {
  using S = Sum<T>;
  using Sums = TileSums<S, V>;
  __shared__ Hits hits;
  __shared__ Batch<S, V, kAllStored> batch;
  __shared__ Part part;
  __shared__ Tile tile;
  const unsigned channel_block = blockIdx.x % division.channel_blocks;
  if (threadIdx.x == 0) {
    part = division.part_of(blockIdx.x / division.channel_blocks, num_tiles);
    if (part.tile >= 0) tile = tiles.at<V>(part.tile);
  }
  __syncthreads();
  if (part.tile < 0) return;
  const int64_t channel = int64_t(channel_block) * TileOf<V>::kChannels;
  const FeatureLevel<T, S>& level = levels.of[tile.level];
  Sums sums;
  const int num_rois = static_cast<int>(shape.rois_per_image);
  int seen = 0;
  for (int n = 0; n < num_rois && seen < part.end; n += kScan) {
    const int found = hits.find(rois.tiles + first_roi(shape, tile), n, num_rois, tile);
    const int end = min_of(part.end - seen, found);
    for (int h = max_of(part.begin - seen, 0); h < end; h += rois_at_a_time) {
      const int num = min_of(rois_at_a_time, end - h);
      for_each_bin_block(shape, [&](const BinBlock& bins) {
        batch.fill(hits, h, num, rois, bins, tile, level, shape);
        sums.add(batch, num, bins, grad, shape,
                 share_of<V>(channel, shape.channels, channels_last));
        __syncthreads();
      });
    }
    seen += found;
  }
  if (part.num > 0) {
    constexpr int64_t kOfBlock = int64_t(Sums::kSums) * kThreads;
    const int64_t of_part = division.channel_blocks * kOfBlock;
    S* const of_first = kept + part.first * of_part + channel_block * kOfBlock + threadIdx.x;
    sums.keep(of_first + (part.own - part.first) * of_part);
    if (!last_to_arrive(&division.arrived[part.first * division.channel_blocks + channel_block],
                        part.num))
      return;
    sums = {};
    for (int k = 0; k < part.num; ++k) sums.add_kept(of_first + k * of_part);
  }
  sums.store(tile, level, share_of<V>(channel, shape.channels, channels_last));
}

// ---- the launches -------------------------------------------------------------------------------

template <typename T, int V>
void spread_in_tiles(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
                     const Levels<T, Sum<T>>& levels, size_t num_levels, bool channels_last) {
  using S = Sum<T>;
  using Of = TileOf<V>;
  const PooledShape shape(grad);
  Tiles tiles = {};
  for (size_t l = 0; l < num_levels; ++l) {
    tiles.rows[l] = (levels.of[l].height + Of::kHeight - 1) / Of::kHeight;
    tiles.columns[l] = (levels.of[l].width + Of::kWidth - 1) / Of::kWidth;
    tiles.begin[l + 1] = tiles.begin[l] + levels.of[l].images * tiles.rows[l] * tiles.columns[l];
  }
  const int64_t num_tiles = tiles.begin[num_levels], num_rois = shape.num_rois();
  if (num_tiles == 0 || shape.channels == 0) return;

  std::vector<Tensor> scratch;
  const auto allocate = [&]<typename Of>(int64_t n, Of*& memory) {
    scratch.push_back(empty(grad, {n * int64_t(sizeof(Of))}, ScalarType::Byte));
    memory = mutable_data<Of>(scratch.back());
  };
  const int64_t bins = num_rois * (int64_t(shape.height) + shape.width);
  PlacedRois<S> rois = {};
  const bool all_stored = sampling.ratio > 0 && 2 * sampling.ratio <= kRoom;
  rois.room = all_stored ? static_cast<int>(2 * sampling.ratio) : kRoom;
  allocate(num_rois, rois.tiles);
  allocate(num_rois, rois.axes);
  allocate(bins * rois.room, rois.taps);
  allocate(1, rois.totals);
  Division division = {};
  division.totals = rois.totals;
  division.channel_blocks =
      static_cast<unsigned>((shape.channels + Of::kChannels - 1) / Of::kChannels);
  division.most_parts = static_cast<int>(std::min<int64_t>(num_rois / 2, 2 * Division::kMost));
  const int64_t part_blocks = int64_t(division.most_parts) * division.channel_blocks;
  allocate(num_tiles, division.hits);
  allocate(division.most_parts, division.parts);
  allocate(part_blocks, division.arrived);
  S* kept = nullptr;
  allocate(part_blocks * TileSums<S, V>::kSums * kThreads, kept);

  const int side = std::max(shape.height, shape.width);
  const int rois_at_a_time = std::min(kBatch, kMostBins / std::min(side, kMostBins));
  const auto blocks_of = [](int64_t n, int of_block) {
    return dim3(static_cast<unsigned>((n + of_block - 1) / of_block));
  };
  const auto stream = current_stream(grad);
  STD_CUDA_CHECK(cudaMemsetAsync(rois.totals, 0, sizeof(Totals), stream));
  launch(place_kernel<T, V>, blocks_of(bins, kThreads), dim3(kThreads), 0, stream, levels, table,
         sampling, shape, rois);
  launch(divide_kernel<V>, blocks_of(num_tiles, kWarps), dim3(kThreads), 0, stream, tiles,
         num_tiles, shape, rois.tiles, division);
  launch(all_stored ? gather_kernel<T, V, true> : gather_kernel<T, V, false>,
         dim3(static_cast<unsigned>(part_blocks + num_tiles * division.channel_blocks)),
         dim3(kThreads), 0, stream, levels, tiles, num_tiles, rois, rois_at_a_time, division, kept,
         shape, data<T>(grad), channels_last);
}

template <typename T>
void spread(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
            const std::vector<Tensor>& features, const double* scales, bool channels_last) {
  Levels<T, Sum<T>> levels = {};
  bool in_packs = moves_in_packs<T>(grad);
  for (size_t l = 0; l < features.size(); ++l) {
    levels.of[l] = feature_level<T, Sum<T>>(features[l], scales[l]);
    in_packs = in_packs && moves_in_packs<T>(features[l]);
  }
  const auto spread_in = in_packs ? spread_in_tiles<T, kPackWidth<T>> : spread_in_tiles<T, 1>;
  spread_in(grad, table, sampling, levels, features.size(), channels_last);
}

}  // namespace

Tensor roi_align_backward(const Tensor& grad, const Tensor& rois, double spatial_scale,
                          int64_t batch, int64_t channels, int64_t height, int64_t width,
                          int64_t sampling_ratio, bool aligned, bool channels_last,
                          bool /*deterministic: always*/) {
  check_roi_align_backward("roi_align_backward", grad, rois, channels);
  const DeviceGuard guard(grad.get_device_index());
  const Tensor features =
      empty_features(grad, batch, channels, height, width, grad.scalar_type(), channels_last);
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(rois, scalar_type_of<S>());
    spread<T>(torch::stable::unsqueeze(grad, 0), roi_table<S>(rows, batch),
              {sampling_ratio, aligned}, {features}, &spatial_scale, channels_last);
  });
  return features;
}

std::vector<Tensor> multiscale_roi_align_backward(
    const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
    const std::vector<double>& scales, int64_t sampling_ratio, int64_t canonical_scale,
    int64_t canonical_level, bool aligned, bool channels_last, bool /*deterministic: always*/) {
  check_multiscale_roi_align_backward("multiscale_roi_align_backward", grad, boxes, counts,
                                      heights.size(), widths.size(), scales.size());
  const DeviceGuard guard(grad.get_device_index());
  std::vector<Tensor> features;
  for (size_t l = 0; l < scales.size(); ++l)
    features.push_back(empty_features(grad, grad.size(0), grad.size(2), heights[l], widths[l],
                                      grad.scalar_type(), channels_last));
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(boxes, scalar_type_of<S>());
    const std::optional<Tensor> rows_in_use = contiguous(counts);
    const auto map = level_map<S>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    spread<T>(grad, roi_table<S>(rows, rows_in_use ? &*rows_in_use : nullptr, map),
              {sampling_ratio, aligned}, features, scales.data(), channels_last);
  });
  return features;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
}

}  // namespace fastdet::cuda
