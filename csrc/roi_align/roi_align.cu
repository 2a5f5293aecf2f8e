// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one level or several, in one launch.
//
// A block owns a RoI. It computes the taps of the RoI's rows and columns once, and merges the taps
// that samples of a bin share. Then each thread takes eight channels of a bin: in channels_last by
// loads and stores of 16 bytes, in NCHW as eight planes at the same pixel. So in both layouts one
// computed tap serves eight values. A thread loads up to four taps of a row before it adds the
// first of them.
//
// By count, not measured, for 1,000 RoIs of 256 x 7 x 7 at ratio 2 in channels_last bfloat16: it
// writes 25 MB and loads about 9 merged taps for each bin (16 without merging). That is 226 MB, of
// which the caches serve all but the features themselves, in about 9 million warp instructions, 10
// us of an H100.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../tensors/feature_layout.h"
#include "contract.h"
#include "roi_align.cuh"

namespace fastdet::cuda {

namespace {

constexpr int kValues = 8;  // the number of channels of a bin that a thread sums
static_assert(2 * kMostBins == kThreads, "one thread a bin");

// One axis of a RoI: for each bin, the offsets that it reads and their weights in its average. If
// there are too many taps for the room of a bin, they come in parts; with 7 bins this needs more
// than 30 features in a bin.
template <typename S>
struct AxisTaps {
  static constexpr int kTaps = 256;

  RoiAxis<double> axis;
  int64_t size, stride;
  int first, bins;  // of the RoI
  int room;         // the room for the taps of a bin, at least those of one sample
  bool more;        // whether a bin has a sample that was in no part yet
  Tap<S> taps[kTaps];
  int count[kMostBins];
  int64_t next[kMostBins];  // the next sample of each bin

  __device__ void start(const RoiAxis<double>& of, int64_t of_size, int64_t of_stride,
                        int first_bin, int num_bins) {
    axis = of, size = of_size, stride = of_stride;
    first = first_bin, bins = num_bins, room = kTaps / num_bins, more = false;
  }

  // Fills the taps of bin p, from its first sample or from the end of the last part.
  __device__ void fill(int p, bool from_start) {
    const MergedTaps merged =
        merge_taps(axis, first + p, from_start ? 0 : next[p], size, stride, taps + p * room, room);
    count[p] = merged.count;
    next[p] = merged.next;
    if (merged.more) more = true;
  }
};

// The taps of a block's RoI.
template <typename S>
struct RoiTaps {
  AxisTaps<S> rows, columns;
  int level;
  int64_t map;     // offset of the RoI's image in its level
  int64_t pooled;  // offset of the first bin

  // Called by two threads of the block, one for each axis.
  template <typename T>
  __device__ void place(const Levels<T, S>& levels, const RoiTable<S>& table, Sampling sampling,
                        const PooledShape& shape, int64_t n, const BinBlock& bins) {
    const PlacedRoi<S> roi = table.place(n);
    const FeatureLevel<T, S>& of = levels.of[roi.level];
    const bool in_y = threadIdx.x == 0;
    AxisTaps<S>& axis = in_y ? rows : columns;
    axis.start(axis_of(roi, in_y, of.scale, sampling, shape), in_y ? of.height : of.width,
               in_y ? of.row_stride : of.pixel_stride, in_y ? bins.ph : bins.pw,
               in_y ? bins.height : bins.width);
    if (!in_y) return;
    level = static_cast<int>(roi.level);
    map = max_of(roi.image, int64_t(0)) * of.image_stride;
    pooled = shape.offset(n) + bins.ph * shape.stride[3] + bins.pw * shape.stride[4];
  }

  // Goes to the next part of the columns. After the last one, it goes to the next part of the rows,
  // with the first part of the columns. After the last one of both, it returns false and goes back
  // to the first parts. Neighbouring threads take the two axes, so that one warp has all bins of
  // most RoIs: its float64 instructions are few, which counts where they are slow.
  __device__ bool advance() {
    const bool more_columns = columns.more, more_rows = rows.more;
    __syncthreads();
    const int p = threadIdx.x / 2;
    const bool in_y = threadIdx.x % 2 == 0;
    AxisTaps<S>& axis = in_y ? rows : columns;
    const bool stays = in_y && more_columns;
    if (p == 0 && !stays) axis.more = false;
    __syncthreads();
    if (p < axis.bins && !stays) axis.fill(p, in_y ? !more_rows : !more_columns);
    __syncthreads();
    return more_columns || more_rows;
  }
};

// The work of a thread: kValues channels of the bin (ph, pw). These are packs `group`, `group` +
// groups, `group` + 2 groups, ...
struct Unit {
  int ph, pw, group;
};

// All units of a RoI in memory order, so that neighbouring threads read adjacent memory in either
// layout. The threads of a RoI's blocks take them in turns.
struct Units {
  int height, width, groups, num_packs;
  bool channels_last;
  int rounds = 0;  // units of a thread
  Unit step = {};  // from one of them to the next

  Units(const PooledShape& shape, int pack, bool channels_last)
      : height(min_of(shape.height, kMostBins)),
        width(min_of(shape.width, kMostBins)),
        num_packs(static_cast<int>(shape.channels / pack)),
        channels_last(channels_last) {
    const int of_unit = kValues / pack;
    groups = (num_packs + of_unit - 1) / of_unit;
  }

  // The number of blocks with which one round is enough.
  int64_t blocks() const { return (int64_t(groups) * height * width + kThreads - 1) / kThreads; }

  FASTDET_HOST_DEVICE Unit at(int i) const {
    if (channels_last) return {i / groups / width, i / groups % width, i % groups};
    return {i / width % height, i % width, i / width / height};
  }

  // unit + step, with carry from one index to the next.
  __device__ Unit next(Unit unit) const {
    unit.group += step.group;
    if (channels_last && unit.group >= groups) unit.group -= groups, ++unit.pw;
    unit.pw += step.pw;
    if (unit.pw >= width) unit.pw -= width, ++unit.ph;
    unit.ph += step.ph;
    if (!channels_last && unit.ph >= height) unit.ph -= height, ++unit.group;
    return unit;
  }
};

template <typename S, int V>
struct UnitSums {
  static constexpr int kPacks = kValues / V;
  S sums[kPacks][V] = {};

  // The number of taps whose loads are under way at once.
  static constexpr int kAtOnce = V == 1 || std::is_same_v<S, double> ? 2 : 4;

  template <typename T>
  __device__ void add(const RoiTaps<S>& roi, const FeatureLevel<const T, S>& level,
                      const Unit& unit, const Units& units) {
    const T* const first = level.data + roi.map + int64_t(unit.group) * V * level.channel_stride;
    const int64_t apart = int64_t(units.groups) * V * level.channel_stride;
    // In place of packs that do not exist, the last one is read again.
    const int last = (units.num_packs - 1 - unit.group) / units.groups;
    const auto* row = roi.rows.taps + unit.ph * roi.rows.room;
    const auto* const rows_end = row + roi.rows.count[unit.ph];
    const auto* const columns = roi.columns.taps + unit.pw * roi.columns.room;
    const int num_columns = roi.columns.count[unit.pw];
    for (; row < rows_end; ++row) {
#pragma unroll 1
      for (int c = 0; c < num_columns; c += kAtOnce) {
        Pack<T, V> packs[kAtOnce][kPacks];
        S weights[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const bool exists = c + i < num_columns;
          Tap<S> column = {};
          if (exists) column = columns[c + i];
          weights[i] = row->weight * column.weight;
          const T* at = first + row->offset + column.offset;
          for (int k = 0; k < kPacks; ++k) {
            packs[i][k] = load_pack_if<V>(exists, at);
            if (k < last) at += opaque(apart);
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          for (int k = 0; k < kPacks; ++k) add_to(sums[k], weights[i], packs[i][k]);
      }
    }
  }

  template <typename T>
  __device__ void store(T* pooled, const Unit& unit, const Units& units,
                        const PooledShape& shape) const {
    T* const out = pooled + unit.ph * shape.stride[3] + unit.pw * shape.stride[4];
    for (int k = 0; k < kPacks; ++k) {
      const int pack = unit.group + k * units.groups;
      if (pack < units.num_packs) store_sums(out + int64_t(pack) * V * shape.stride[2], sums[k]);
    }
  }
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kDouble<T> ? 2 : 3)
    pool_kernel(const __grid_constant__ Levels<const T, Sum<T>> levels,
                const __grid_constant__ RoiTable<Sum<T>> table, Sampling sampling,
                PooledShape shape, Units units, T* pooled) {
  __shared__ RoiTaps<Sum<T>> roi;
  for (int64_t n = blockIdx.x; n < shape.num_rois(); n += gridDim.x) {
    for_each_bin_block(shape, [&](const BinBlock& bins) {
      __syncthreads();
      if (threadIdx.x < 2) roi.place(levels, table, sampling, shape, n, bins);
      __syncthreads();
      roi.advance();
      const bool in_parts = roi.rows.more || roi.columns.more;
      const auto& level = levels.of[roi.level];
      Unit unit = units.at(static_cast<int>(blockIdx.y * kThreads + threadIdx.x));
      for (int i = 0; i < units.rounds; ++i, unit = units.next(unit)) {
        const bool exists =
            unit.ph < bins.height && unit.pw < bins.width && unit.group < units.groups;
        UnitSums<Sum<T>, V> sums;
        do {
          if (exists) sums.add(roi, level, unit, units);
        } while (in_parts && roi.advance());
        if (exists) sums.store(pooled + roi.pooled, unit, units, shape);
      }
    });
  }
}

template <typename T>
void pool(const std::vector<Tensor>& features, const double* scales, const RoiTable<Sum<T>>& table,
          Sampling sampling, const Tensor& pooled, bool channels_last) {
  Levels<const T, Sum<T>> levels = {};
  bool in_packs = moves_in_packs<T>(pooled);
  for (size_t l = 0; l < features.size(); ++l) {
    levels.of[l] = feature_level<const T, Sum<T>>(features[l], scales[l]);
    in_packs = in_packs && moves_in_packs<T>(features[l]);
  }
  const PooledShape shape(pooled);
  if (shape.num_rois() == 0 || shape.channels == 0) return;
  // If there are too few RoIs to fill a GPU, several blocks share the units of a RoI.
  Units units(shape, in_packs ? kPackWidth<T> : 1, channels_last);
  const int64_t blocks = std::clamp<int64_t>(1024 / shape.num_rois(), 1, units.blocks());
  units.rounds = (units.blocks() + blocks - 1) / blocks;
  units.step = units.at(static_cast<int>(blocks * kThreads));
  launch(in_packs ? pool_kernel<T, kPackWidth<T>> : pool_kernel<T, 1>,
         dim3(static_cast<unsigned>(std::min<int64_t>(shape.num_rois(), INT32_MAX)),
              static_cast<unsigned>(blocks)),
         dim3(kThreads), 0, current_stream(pooled), levels, table, sampling, shape, units,
         mutable_data<T>(pooled));
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& rois, double spatial_scale,
                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                 bool aligned) {
  check_roi_align("roi_align", input, rois);
  const DeviceGuard guard(input.get_device_index());
  const bool channels_last = is_channels_last(input);
  const Tensor pooled = empty_pooled(input, 1, rois.size(0), input.size(1), pooled_height,
                                     pooled_width, channels_last);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(rois, scalar_type_of<S>());
    pool<T>({input}, &spatial_scale, roi_table<S>(rows, input.size(0)), {sampling_ratio, aligned},
            pooled, channels_last);
  });
  return torch::stable::select(pooled, 0, 0);
}

Tensor multiscale_roi_align(const std::vector<Tensor>& features, const Tensor& boxes,
                            const std::optional<Tensor>& counts, int64_t pooled_height,
                            int64_t pooled_width, const std::vector<double>& scales,
                            int64_t sampling_ratio, int64_t canonical_scale,
                            int64_t canonical_level, bool aligned) {
  check_multiscale_roi_align("multiscale_roi_align", arguments(features), boxes, counts,
                             scales.size());
  const Tensor& first = features[0];
  const DeviceGuard guard(first.get_device_index());
  const bool channels_last = is_channels_last(first);
  const Tensor pooled = empty_pooled(first, boxes.size(0), boxes.size(1), first.size(1),
                                     pooled_height, pooled_width, channels_last);
  dispatch_floating(first.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(boxes, scalar_type_of<S>());
    const std::optional<Tensor> rows_in_use = contiguous(counts);
    const auto map = level_map<S>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    pool<T>(features, scales.data(), roi_table<S>(rows, rows_in_use ? &*rows_in_use : nullptr, map),
            {sampling_ratio, aligned}, pooled, channels_last);
  });
  return pooled;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
}

}  // namespace fastdet::cuda
