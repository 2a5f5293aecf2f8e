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
// In channels_last a lane owns channels (PackSums), in NCHW a thread owns a channel (PlaneSums).
//
// Workspace: 64 bytes for each RoI, up to 8 taps of 16 bytes for each of its h + w bins, 4 bytes
// for each tile, and the sums of up to 512 parts, or of half the number of RoIs if that is less: 32
// MB for 256 channels in float32. By count (docs/kernels.md) the sums take 40 to 70 us of an H100
// for 1,000 RoIs of 256 x 7 x 7.
#include <algorithm>
#include <vector>

#include "../device/arrival.cuh"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "tile_gradient.cuh"

namespace fastdet::cuda {

namespace {

struct Totals {
  unsigned long long hits;  // pairs of a RoI and a tile that it touches
  int parts;
};

// ---- 1: the place of each RoI -------------------------------------------------------------------

// A thread owns a bin of one axis.
template <typename T, int tile_height>
__global__ void place_kernel(const __grid_constant__ Levels<T, Sum<T>> levels,
                             const __grid_constant__ RoiTable<Sum<T>> table, Sampling sampling,
                             PooledShape shape, PlacedRois<Sum<T>> rois, Totals* totals) {
  using S = Sum<T>;
  // Registers have no addresses. One tap more than needed, so that threads use different banks.
  __shared__ Tap<S> of_thread[kThreads][kRoom + 1];
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
    const uint32_t rows = tiles_of<tile_height>(both.y, shape.height, level.height);
    const uint32_t columns = tiles_of<kTile>(both.x, shape.width, level.width);
    rois.axes[n] = both;
    rois.tiles[n] = {static_cast<int32_t>(roi.image * kMaxLevels + roi.level), rows, columns, 0};
    // A sum of integers: the order changes nothing.
    const auto hits = static_cast<unsigned long long>(tiles_in(rows)) * tiles_in(columns);
    if (hits > 0) atomicAdd(&totals->hits, hits);
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

// A warp owns a tile.
template <int tile_height>
__global__ void divide_kernel(Tiles tiles, int64_t num_tiles, PooledShape shape,
                              const RoiTiles* rois, Division division) {
  const int64_t index = int64_t(blockIdx.x) * kWarps + warp();
  if (index >= num_tiles) return;
  const Tile tile = tiles.at<tile_height>(index);
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

// kAllStored: no bin has too many taps, as is known without a look at the RoIs.
template <typename T, typename Sums, bool kAllStored>
__global__ void __launch_bounds__(kThreads, kDouble<T> || !kAllStored || Sums::kSums > 32 ? 2 : 3)
    gather_kernel(const __grid_constant__ Levels<T, Sum<T>> levels, Tiles tiles, int64_t num_tiles,
                  PlacedRois<Sum<T>> rois, int rois_at_a_time, Division division, Sum<T>* kept,
                  PooledShape shape, const T* grad) {
  using S = Sum<T>;
  __shared__ Hits hits;
  __shared__ Batch<Sums, kAllStored> batch;
  __shared__ Part part;
  __shared__ Tile tile;
  const unsigned channel_block = blockIdx.x % division.channel_blocks;
  if (threadIdx.x == 0) {
    part = division.part_of(blockIdx.x / division.channel_blocks, num_tiles);
    if (part.tile >= 0) tile = tiles.at<Sums::kHeight>(part.tile);
  }
  __syncthreads();
  if (part.tile < 0) return;
  const int64_t channel = int64_t(channel_block) * Sums::kChannels;
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
        sums.add(batch, num, bins, grad, shape, channel);
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
  sums.store(tile, level, channel);
}

// ---- the launches -------------------------------------------------------------------------------

template <typename T, typename Sums, bool kAllStored>
void spread_by(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
               const Levels<T, Sum<T>>& levels, size_t num_levels) {
  using S = Sum<T>;
  const PooledShape shape(grad);
  Tiles tiles = {};
  for (size_t l = 0; l < num_levels; ++l) {
    tiles.rows[l] = (levels.of[l].height + Sums::kHeight - 1) / Sums::kHeight;
    tiles.columns[l] = (levels.of[l].width + kTile - 1) / kTile;
    tiles.begin[l + 1] = tiles.begin[l] + levels.of[l].images * tiles.rows[l] * tiles.columns[l];
  }
  const int64_t num_tiles = tiles.begin[num_levels], num_rois = shape.num_rois();
  if (num_tiles == 0) return;

  std::vector<Tensor> scratch;
  const auto allocate = [&]<typename Of>(int64_t n, Of*& memory) {
    scratch.push_back(empty(grad, {n * int64_t(sizeof(Of))}, ScalarType::Byte));
    memory = mutable_data<Of>(scratch.back());
  };
  const int64_t bins = num_rois * (int64_t(shape.height) + shape.width);
  PlacedRois<S> rois = {};
  rois.room = kAllStored ? static_cast<int>(2 * sampling.ratio) : kRoom;
  allocate(num_rois, rois.tiles);
  allocate(num_rois, rois.axes);
  allocate(bins * rois.room, rois.taps);
  Division division = {};
  allocate(1, division.totals);
  division.channel_blocks =
      static_cast<unsigned>((shape.channels + Sums::kChannels - 1) / Sums::kChannels);
  division.most_parts = static_cast<int>(std::min<int64_t>(num_rois / 2, 2 * Division::kMost));
  const int64_t part_blocks = int64_t(division.most_parts) * division.channel_blocks;
  allocate(num_tiles, division.hits);
  allocate(division.most_parts, division.parts);
  allocate(part_blocks, division.arrived);
  S* kept = nullptr;
  allocate(part_blocks * Sums::kSums * kThreads, kept);

  const int side = std::max(shape.height, shape.width);
  const int rois_at_a_time = std::min(kBatch, kMostBins / std::min(side, kMostBins));
  const auto blocks_of = [](int64_t n, int of_block) {
    return dim3(static_cast<unsigned>((n + of_block - 1) / of_block));
  };
  const auto stream = current_stream(grad);
  STD_CUDA_CHECK(cudaMemsetAsync(division.totals, 0, sizeof(Totals), stream));
  launch(place_kernel<T, Sums::kHeight>, blocks_of(bins, kThreads), dim3(kThreads), 0, stream,
         levels, table, sampling, shape, rois, division.totals);
  launch(divide_kernel<Sums::kHeight>, blocks_of(num_tiles, kWarps), dim3(kThreads), 0, stream,
         tiles, num_tiles, shape, rois.tiles, division);
  launch(gather_kernel<T, Sums, kAllStored>,
         dim3(static_cast<unsigned>(part_blocks + num_tiles * division.channel_blocks)),
         dim3(kThreads), 0, stream, levels, tiles, num_tiles, rois, rois_at_a_time, division, kept,
         shape, data<T>(grad));
}

// To compute taps needs registers that sums then cannot have.
template <typename S, bool kAllStored>
constexpr int kPlaneHeight = kTile / (kDouble<S> ? 2 : 1) / (kAllStored ? 1 : 2);

template <typename T, bool kAllStored>
auto spread_of(bool in_packs, bool channels_last) {
  using S = Sum<T>;
  using Planes = PlaneSums<S, kPlaneHeight<S, kAllStored>>;
  return in_packs        ? spread_by<T, PackSums<S, kPackWidth<T>>, kAllStored>
         : channels_last ? spread_by<T, PackSums<S, 1>, kAllStored>
                         : spread_by<T, Planes, kAllStored>;
}

template <typename T>
void spread(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
            const std::vector<Tensor>& features, const double* scales, bool channels_last) {
  if (grad.numel() == 0) {
    for (const Tensor& level : features)
      STD_CUDA_CHECK(cudaMemsetAsync(mutable_data<T>(level), 0, level.numel() * sizeof(T),
                                     current_stream(grad)));
    return;
  }
  Levels<T, Sum<T>> levels = {};
  bool in_packs = moves_in_packs<T>(grad);
  for (size_t l = 0; l < features.size(); ++l) {
    levels.of[l] = feature_level<T, Sum<T>>(features[l], scales[l]);
    in_packs = in_packs && moves_in_packs<T>(features[l]);
  }
  const bool all_stored = sampling.ratio > 0 && 2 * sampling.ratio <= kRoom;
  const auto spread_in = all_stored ? spread_of<T, true>(in_packs, channels_last)
                                    : spread_of<T, false>(in_packs, channels_last);
  spread_in(grad, table, sampling, levels, features.size());
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
