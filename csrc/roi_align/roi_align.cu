// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one level or several, forward in one launch and backward in two, without atomics. So
// the result has the same bits in every run, even if torch does not ask for deterministic
// algorithms.
//
// Forward: a block owns a RoI. It computes the taps of the RoI's rows and columns once, and merges
// the taps that samples of a bin share. Then each thread takes eight channels of a bin: in
// channels_last by loads and stores of 16 bytes, in NCHW as eight planes at the same pixel. So in
// both layouts one computed tap serves eight values.
//
// Backward: a block owns a tile of 8 x 8 features and 64 channels. It keeps their sums in registers
// and goes over the RoIs that touch the tile, in order. It writes each feature once and in the
// gradient's own type. Atomic addition would clear, add in float32 and convert, 3 to 5 times the
// bytes. To find its RoIs a block reads 16 bytes of each RoI, which the first launch has written
// and which are in the caches. Workspace: 64 bytes for each RoI.
//
// Estimated, not measured, for 1,000 RoIs of 256 x 7 x 7 at ratio 2 in channels_last bfloat16:
// forward writes 25 MB and loads about 9 merged taps for each bin (16 without merging). That is 226
// MB, of which the caches serve all but the features themselves, in about 9 million warp
// instructions, 10 us of an H100. Backward reads those 25 MB and writes the features. A RoI of 16 x
// 16 features touches 9 tiles, and each of its 256 features has about 2 taps: about 20 million
// instructions. A tile that many RoIs share is the work of one block, which limits how early
// backward can end.
#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../device/packs.cuh"
#include "../device/warp.cuh"
#include "../geometry/bilinear.h"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "tensors.h"

namespace fastdet::cuda {

namespace {

template <typename T, typename S>
struct Levels {
  FeatureLevel<T, S> of[kMaxLevels];
};

// The shape and strides of pooled features (B, K, C, h, w).
struct PooledShape {
  int64_t images, rois_per_image, channels;
  int height, width;
  int64_t stride[5];

  explicit PooledShape(const Tensor& pooled)
      : images(pooled.size(0)),
        rois_per_image(pooled.size(1)),
        channels(pooled.size(2)),
        height(static_cast<int>(pooled.size(3))),
        width(static_cast<int>(pooled.size(4))) {
    for (int64_t d = 0; d < 5; ++d) stride[d] = pooled.stride(d);
  }

  FASTDET_HOST_DEVICE int64_t num_rois() const { return images * rois_per_image; }

  __device__ int64_t offset(int64_t n) const {
    return n / rois_per_image * stride[0] + n % rois_per_image * stride[1];
  }
};

// Adds weight * values to the sums of adjacent channels.
template <typename T, typename S, int V>
__device__ void add_to(S (&sums)[V], S weight, const Pack<T, V>& values) {
  for (int v = 0; v < V; ++v) sums[v] = std::fma(weight, static_cast<S>(values[v]), sums[v]);
}

template <typename T, typename S, int V>
__device__ void store_sums(T* to, const S (&sums)[V]) {
  Pack<T, V> pack;
  for (int v = 0; v < V; ++v) pack[v] = static_cast<T>(sums[v]);
#ifdef __CUDA_ARCH__  // without this, the compiler splits the copy of a pack
  if constexpr (sizeof pack == kPackBytes)
    return __stwb(reinterpret_cast<uint4*>(to), std::bit_cast<uint4>(pack));
#endif
  store_pack(to, pack);
}

// Hides the value of a stride from the compiler. Otherwise it computes all multiples of the stride
// before a loop, which needs too many registers.
__device__ int64_t opaque(int64_t stride) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(stride));
#endif
  return stride;
}

// Whether the channels of (..., C, h, w) can be loaded and stored as packs.
template <typename T>
bool moves_in_packs(const Tensor& tensor) {
  const int64_t channels = tensor.dim() - 3;
  if (tensor.stride(channels) != 1 || tensor.size(channels) % kPackWidth<T> != 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (d != channels && tensor.size(d) > 1 && tensor.stride(d) % kPackWidth<T> != 0) return false;
  return is_aligned(tensor.const_data_ptr());
}

// The largest block of bins of a RoI that a block of threads handles at once; most RoIs have fewer
// bins.
constexpr int kMostBins = 128;  // on each side

struct BinBlock {
  int ph, height, pw, width;
};

template <typename Visit>
__device__ void for_each_bin_block(const PooledShape& shape, Visit visit) {
  for (int ph = 0; ph < shape.height; ph += kMostBins)
    for (int pw = 0; pw < shape.width; pw += kMostBins)
      visit(BinBlock{ph, min_of(shape.height - ph, kMostBins), pw,
                     min_of(shape.width - pw, kMostBins)});
}

// With double, fewer blocks share the registers of a multiprocessor.
template <typename T>
constexpr bool kDouble = std::is_same_v<T, double>;

// The bins of a RoI along one side, from `low` to `high`.
template <typename S>
__device__ RoiAxis<double> axis_of(const PlacedRoi<S>& roi, S low, S high, S scale,
                                   Sampling sampling, int64_t bins) {
  if (roi.image < 0) return {};
  return roi_axis_in_float64(low, high, scale, sampling.aligned, bins, sampling.ratio);
}

template <typename S>
__device__ RoiAxis<double> y_axis(const PlacedRoi<S>& roi, S scale, Sampling sampling,
                                  const PooledShape& shape) {
  return axis_of(roi, roi.box.y1, roi.box.y2, scale, sampling, shape.height);
}

template <typename S>
__device__ RoiAxis<double> x_axis(const PlacedRoi<S>& roi, S scale, Sampling sampling,
                                  const PooledShape& shape) {
  return axis_of(roi, roi.box.x1, roi.box.x2, scale, sampling, shape.width);
}

// Calls visit(index, weight) for each tap of sample i of bin p. The weight must still be divided by
// the number of samples.
template <typename S, typename Visit>
__device__ void for_each_tap(const RoiAxis<double>& axis, int p, int64_t i, int64_t size,
                             Visit visit) {
  const BilinearTap<double> tap = bilinear_tap(sample_position(axis, p, i), size);
#pragma unroll 1
  for (int k = 0; k < 2; ++k) {
    const S weight = static_cast<S>(k == 0 ? tap.weight[0] : tap.weight[1]);
    if (weight != S(0)) visit(k == 0 ? tap.index[0] : tap.index[1], weight);
  }
}

// ---- forward ------------------------------------------------------------------------------------

constexpr int kValues = 8;  // the number of channels of a bin that a thread sums
constexpr int kHalf = kThreads / 2;
static_assert(kMostBins == kHalf, "one thread a bin");

// One axis of a RoI: for each bin, the offsets that it reads and their weights in its average. If
// there are too many taps for the room of a bin, they come in parts; with 7 bins this needs more
// than 30 features in a bin.
template <typename S>
struct AxisTaps {
  static constexpr int kTaps = 256;

  struct Tap {
    int64_t offset;
    S weight;
  };

  RoiAxis<double> axis;
  int64_t size, stride;
  int first, bins;  // of the RoI
  int room;         // the room for the taps of a bin, at least those of one sample
  bool more;        // whether a bin has a sample that was in no part yet
  Tap taps[kTaps];
  int count[kMostBins];
  int64_t next[kMostBins];  // the next sample of each bin

  __device__ void start(const RoiAxis<double>& of, int64_t of_size, int64_t of_stride,
                        int first_bin, int num_bins) {
    axis = of, size = of_size, stride = of_stride;
    first = first_bin, bins = num_bins, room = kTaps / num_bins, more = false;
  }

  // Fills the taps of bin p, from its first sample or from the end of the last part. Positions rise
  // with the samples, so an offset that the bin already has is one of the last two. In an inverted
  // RoI they fall, and some equal offsets are not merged.
  __device__ void fill(int p, bool from_start) {
    Tap* const bin = taps + p * room;
    const SampleRange range = samples_within(axis, first + p, -1.0, static_cast<double>(size));
    int64_t i = from_start ? range.begin : next[p];
    int n = 0;
    for (; i < range.end && n + 2 <= room; ++i) {
      for_each_tap<S>(axis, first + p, i, size, [&](int64_t index, S weight) {
        for (int k = n - 1; k >= 0 && k >= n - 2; --k) {
          if (bin[k].offset == index * stride) {
            bin[k].weight += weight;
            return;
          }
        }
        bin[n++] = {index * stride, weight};
      });
    }
    for (int k = 0; k < n; ++k) bin[k].weight /= static_cast<S>(axis.samples);
    count[p] = n;
    next[p] = i;
    if (i < range.end) more = true;
  }
};

// The taps of a block's RoI.
template <typename S>
struct RoiTaps {
  AxisTaps<S> rows, columns;
  int level;
  int64_t map;     // offset of the RoI's image in its level
  int64_t pooled;  // offset of the first bin

  // Called by the first thread of each half of the block, one for each axis.
  template <typename T>
  __device__ void place(const Levels<T, S>& levels, const RoiTable<S>& table, Sampling sampling,
                        const PooledShape& shape, int64_t n, const BinBlock& bins) {
    const PlacedRoi<S> roi = table.place(n);
    const FeatureLevel<T, S>& of = levels.of[roi.level];
    if (threadIdx.x == 0) {
      rows.start(y_axis(roi, of.scale, sampling, shape), of.height, of.row_stride, bins.ph,
                 bins.height);
      level = static_cast<int>(roi.level);
      map = max_of(roi.image, int64_t(0)) * of.image_stride;
    } else {
      columns.start(x_axis(roi, of.scale, sampling, shape), of.width, of.pixel_stride, bins.pw,
                    bins.width);
      pooled = shape.offset(n) + bins.ph * shape.stride[3] + bins.pw * shape.stride[4];
    }
  }

  // Goes to the next part of the columns. After the last one, it goes to the next part of the rows,
  // with the first part of the columns. After the last one of both, it returns false and goes back
  // to the first parts.
  __device__ bool advance() {
    const bool more_columns = columns.more, more_rows = rows.more;
    __syncthreads();
    const int p = threadIdx.x % kHalf;
    const bool by_rows = threadIdx.x < kHalf;
    if (p == 0 && by_rows && !more_columns) rows.more = false;
    if (p == 0 && !by_rows) columns.more = false;
    __syncthreads();
    if (by_rows && !more_columns && p < rows.bins) rows.fill(p, !more_rows);
    if (!by_rows && p < columns.bins) columns.fill(p, !more_columns);
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
  int rounds = 0;

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

  __device__ Unit at(int i) const {
    if (channels_last) return {i / groups / width, i / groups % width, i % groups};
    return {i / width % height, i % width, i / width / height};
  }

  // unit + step, with carry from one index to the next.
  __device__ Unit next(Unit unit, const Unit& step) const {
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

  template <typename T>
  __device__ void add(const RoiTaps<S>& roi, const FeatureLevel<const T, S>& level,
                      const Unit& unit, const Units& units) {
    const T* const first = level.data + roi.map + int64_t(unit.group) * V * level.channel_stride;
    const int64_t apart = int64_t(units.groups) * V * level.channel_stride;
    const auto* row = roi.rows.taps + unit.ph * roi.rows.room;
    const auto* const rows_end = row + roi.rows.count[unit.ph];
    const auto* const columns = roi.columns.taps + unit.pw * roi.columns.room;
    const auto* const columns_end = columns + roi.columns.count[unit.pw];
    for (; row < rows_end; ++row) {
#pragma unroll(V == 1 ? 1 : 2)
      for (const auto* column = columns; column < columns_end; ++column) {
        const T* at = first + row->offset + column->offset;
        const S weight = row->weight * column->weight;
        for (int k = 0; k < kPacks; ++k, at += opaque(apart))
          if (unit.group + k * units.groups < units.num_packs)
            add_to(sums[k], weight, load_pack<V>(at));
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
__global__ void __launch_bounds__(kThreads, kDouble<T> ? 2
                                            : V == 1   ? 3
                                                       : 4)
    pool_kernel(const __grid_constant__ Levels<const T, Sum<T>> levels,
                const __grid_constant__ RoiTable<Sum<T>> table, Sampling sampling,
                PooledShape shape, Units units, T* pooled) {
  __shared__ RoiTaps<Sum<T>> roi;
  const Unit first = units.at(static_cast<int>(blockIdx.y * kThreads + threadIdx.x));
  const Unit step = units.at(static_cast<int>(gridDim.y * kThreads));
  for (int64_t n = blockIdx.x; n < shape.num_rois(); n += gridDim.x) {
    for_each_bin_block(shape, [&](const BinBlock& bins) {
      __syncthreads();
      if (threadIdx.x % kHalf == 0) roi.place(levels, table, sampling, shape, n, bins);
      __syncthreads();
      roi.advance();
      const bool in_parts = roi.rows.more || roi.columns.more;
      const auto& level = levels.of[roi.level];
      Unit unit = first;
      for (int i = 0; i < units.rounds; ++i, unit = units.next(unit, step)) {
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
  launch(in_packs ? pool_kernel<T, kPackWidth<T>> : pool_kernel<T, 1>,
         dim3(static_cast<unsigned>(std::min<int64_t>(shape.num_rois(), INT32_MAX)),
              static_cast<unsigned>(blocks)),
         dim3(kThreads), 0, current_stream(pooled), levels, table, sampling, shape, units,
         mutable_data<T>(pooled));
}

// ---- backward -----------------------------------------------------------------------------------

struct RoiAxes {
  RoiAxis<double> y, x;
};

constexpr int kTile = 8;             // features on each side
constexpr int kTileChannels = 64;    // of a block
constexpr int kLanes = 4;            // threads that share the channels of a feature
constexpr int kScan = 4 * kThreads;  // RoIs that a block tests before it visits the hits
constexpr int kWarps = kThreads / kWarp;
static_assert(kTile * kTile * kLanes == kThreads);
static_assert(kScan / kWarp == kWarp, "a warp's lanes hold the hits of all warps");

// The tiles that a RoI may touch, and their map: one load of 16 bytes.
struct alignas(16) RoiTiles {
  int32_t map;  // image * kMaxLevels + level; below 0 if there is none
  uint32_t rows, columns, unused;
};

// A range of tiles, including both ends, as first | last << 16. Tiles beyond 16 bits count as the
// last tile that 16 bits hold. So a RoI may seem to touch too many tiles, but never too few.
constexpr uint32_t kNoTiles = 1;  // empty: from 1 to 0

__device__ uint32_t tile_of(int64_t index) {
  return static_cast<uint32_t>(min_of(index / kTile, int64_t(UINT16_MAX)));
}

__device__ bool within(uint32_t tile, uint32_t range) {
  return tile >= (range & UINT16_MAX) && tile <= range >> 16;
}

// A sample reads only indices at a distance of at most 1.
__device__ uint32_t tiles_of(const RoiAxis<double>& axis, int bins, int64_t size) {
  const double end = axis.start + bins * axis.bin;
  const double low = max_of(min_of(axis.start, end) - 1.0, 0.0);
  const double high = min_of(max_of(axis.start, end) + 1.0, static_cast<double>(size - 1));
  if (axis.samples == 0 || low > high) return kNoTiles;
  return tile_of(static_cast<int64_t>(low)) | tile_of(static_cast<int64_t>(high)) << 16;
}

// The features of a block.
struct Tile {
  int64_t image, top, left, channel;
  int level;

  // Without a branch, so that one load reads all of `roi`.
  __device__ bool touched_by(const RoiTiles& roi) const {
    return (roi.map == image * kMaxLevels + level) & within(tile_of(top), roi.rows) &
           within(tile_of(left), roi.columns);
  }
};

// The tiles of all levels, one level after another, and the channel blocks of each tile.
struct Tiles {
  int64_t begin[kMaxLevels + 1], rows[kMaxLevels], columns[kMaxLevels], channel_blocks;

  __device__ Tile at(int64_t block) const {
    Tile tile = {};
    tile.channel = block % channel_blocks * kTileChannels;
    block /= channel_blocks;
    while (block >= begin[tile.level + 1]) ++tile.level;
    block -= begin[tile.level];
    tile.left = block % columns[tile.level] * kTile;
    block /= columns[tile.level];
    tile.top = block % rows[tile.level] * kTile;
    tile.image = block / rows[tile.level];
    return tile;
  }
};

// The RoIs that touch the tile, in their order, as distances from `first`.
struct Hits {
  int64_t first;
  int of_warp[kWarp], roi[kScan];

  __device__ int64_t at(int i) const { return first + roi[i]; }

  // Finds the hits among RoIs [begin, end), or among the first kScan of them. Returns their number.
  __device__ int find(const RoiTiles* rois, int64_t begin, int64_t end, const Tile& tile) {
    unsigned votes[kScan / kThreads];
    for (int k = 0; k < kScan / kThreads; ++k) {
      const int64_t n = begin + k * kThreads + threadIdx.x;
      votes[k] = __ballot_sync(kAllLanes, n < end && tile.touched_by(rois[n]));
      if (lane() == 0) of_warp[k * kWarps + warp()] = __popc(votes[k]);
    }
    if (threadIdx.x == 0) first = begin;
    __syncthreads();
    int up_to = of_warp[lane()];
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, up_to, step);
      if (lane() >= step) up_to += before;
    }
    const int before = up_to - of_warp[lane()];
    for (int k = 0; k < kScan / kThreads; ++k) {
      const int place =
          __shfl_sync(kAllLanes, before, k * kWarps + warp()) + __popc(votes[k] & lanes_below());
      if (votes[k] >> lane() & 1) roi[place] = k * kThreads + static_cast<int>(threadIdx.x);
    }
    __syncthreads();
    return __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
};

// For a few RoIs and one axis: the weight of each of the tile's rows (or columns) in each bin, and
// the range of bins that touch it. Bins that touch a feature are neighbours.
template <typename S>
struct TileWeights {
  static constexpr int kRois = 16;

  struct Bins {
    int begin, end;
  };

  S weight[kMostBins][kTile];  // bin p of RoI r is at r * bins + p
  Bins touching[kRois][kTile];

  __device__ static void fill(const RoiAxis<double>& axis, int p, int64_t size, int64_t low,
                              S* weights) {
    for (int i = 0; i < kTile; ++i) weights[i] = S(0);
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

  __device__ void find_touching(int roi, int index, int bins) {
    Bins found = {bins, 0};
#pragma unroll 1
    for (int p = 0; p < bins; ++p) {
      if (weight[roi * bins + p][index] == S(0)) continue;
      found = {min_of(found.begin, p), p + 1};
    }
    touching[roi][index] = found;
  }
};

// A few of the RoIs that touch the tile, and the tile's weights in a block of their bins.
template <typename S>
struct Batch {
  int64_t offset[TileWeights<S>::kRois];  // of the first bin
  TileWeights<S> rows, columns;

  template <typename Level>
  __device__ void fill(const Hits& hits, int from, int rois, const RoiAxes* axes,
                       const BinBlock& bins, const Tile& tile, const Level& level,
                       const PooledShape& shape) {
    const int thread = static_cast<int>(threadIdx.x), both = bins.height + bins.width;
    for (int i = thread; i < rois * both; i += kThreads) {
      const int r = i / both, p = i % both, q = p - bins.height;
      const RoiAxes& roi = axes[hits.at(from + r)];
      if (q < 0)
        rows.fill(roi.y, bins.ph + p, level.height, tile.top, rows.weight[r * bins.height + p]);
      else
        columns.fill(roi.x, bins.pw + q, level.width, tile.left,
                     columns.weight[r * bins.width + q]);
    }
    if (thread < rois)
      offset[thread] = shape.offset(hits.at(from + thread)) + bins.ph * shape.stride[3] +
                       bins.pw * shape.stride[4];
    __syncthreads();
    for (int i = thread; i < rois * 2 * kTile; i += kThreads) {
      const int r = i / (2 * kTile), index = i % (2 * kTile);
      if (index < kTile)
        rows.find_touching(r, index, bins.height);
      else
        columns.find_touching(r, index - kTile, bins.width);
    }
    __syncthreads();
  }
};

// A thread's share of the tile: one feature, and `packs` packs of the block's channels, from
// `channel` on, kLanes packs apart. Neighbouring threads take neighbouring channels in
// channels_last and neighbouring features in NCHW. It is computed where it is used, because `tile`
// is in shared memory and registers are few.
struct Share {
  int y, x, packs;
  int64_t channel;
};

template <int V>
__device__ Share share_of(const Tile& tile, int64_t channels, bool channels_last) {
  constexpr int kFeatures = kTile * kTile, kApart = kLanes * V;
  const int thread = static_cast<int>(threadIdx.x);
  const int feature = channels_last ? thread / kLanes : thread % kFeatures;
  const int lane = channels_last ? thread % kLanes : thread / kFeatures;
  const int64_t channel = tile.channel + lane * V;
  const int left =
      static_cast<int>(min_of(max_of(channels - channel, int64_t(0)), int64_t(kTileChannels)));
  const int packs = min_of((left + kApart - 1) / kApart, kTileChannels / kApart);
  return {feature / kTile, feature % kTile, packs, channel};
}

template <typename S, int V>
struct TileSums {
  static constexpr int kPacks = kTileChannels / kLanes / V;
  S sums[kPacks][V] = {};

  template <typename T>
  __device__ void add(const Batch<S>& batch, int rois, const BinBlock& bins, const T* grad,
                      const PooledShape& shape, const Share& share) {
    const int64_t apart = int64_t(kLanes) * V * shape.stride[2];
    grad += share.channel * shape.stride[2];
    for (int r = 0; r < rois; ++r) {
      const auto rows = batch.rows.touching[r][share.y];
      const auto columns = batch.columns.touching[r][share.x];
      for (int ph = rows.begin; ph < rows.end; ++ph) {
        const S row_weight = batch.rows.weight[r * bins.height + ph][share.y];
        const T* row = grad + batch.offset[r] + ph * shape.stride[3];
#pragma unroll(V == 1 ? 1 : 2)
        for (int pw = columns.begin; pw < columns.end; ++pw) {
          const S weight = row_weight * batch.columns.weight[r * bins.width + pw][share.x];
          const T* at = row + pw * shape.stride[4];
          for (int k = 0; k < kPacks; ++k, at += opaque(apart))
            if (k < share.packs) add_to(sums[k], weight, load_pack<V>(at));
        }
      }
    }
  }

  template <typename T>
  __device__ void store(const Tile& tile, const FeatureLevel<T, S>& level,
                        const Share& share) const {
    const int64_t y = tile.top + share.y, x = tile.left + share.x;
    if (y >= level.height || x >= level.width) return;
    T* const out = level.data + tile.image * level.image_stride + y * level.row_stride +
                   x * level.pixel_stride + share.channel * level.channel_stride;
    for (int k = 0; k < kPacks; ++k)
      if (k < share.packs) store_sums(out + k * kLanes * V * level.channel_stride, sums[k]);
  }
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kDouble<T> ? 2 : 3)
    gather_kernel(const __grid_constant__ Levels<T, Sum<T>> levels, Tiles tiles,
                  const RoiTiles* roi_tiles, const RoiAxes* roi_axes, PooledShape shape,
                  const T* grad, bool channels_last) {
  using S = Sum<T>;
  __shared__ Hits hits;
  __shared__ Batch<S> batch;
  __shared__ Tile tile;
  if (threadIdx.x == 0) tile = tiles.at(blockIdx.x);
  __syncthreads();
  const FeatureLevel<T, S>& level = levels.of[tile.level];
  TileSums<S, V> sums;
  // Boxes are stored image by image. rois may be in any order and are handled as if of one image.
  const int64_t begin = shape.images > 1 ? tile.image * shape.rois_per_image : 0;
  const int64_t end = begin + shape.rois_per_image;
  const int side = min_of(max_of(shape.height, shape.width), kMostBins);
  const int rois_at_a_time = min_of(TileWeights<S>::kRois, kMostBins / side);
  for (int64_t n = begin; n < end; n += kScan) {
    const int found = hits.find(roi_tiles, n, end, tile);
    for (int h = 0; h < found; h += rois_at_a_time) {
      const int rois = min_of(rois_at_a_time, found - h);
      for_each_bin_block(shape, [&](const BinBlock& bins) {
        batch.fill(hits, h, rois, roi_axes, bins, tile, level, shape);
        sums.add(batch, rois, bins, grad, shape, share_of<V>(tile, shape.channels, channels_last));
        __syncthreads();
      });
    }
  }
  sums.store(tile, level, share_of<V>(tile, shape.channels, channels_last));
}

// Stores the place of each RoI.
template <typename T>
void place_rois(const Levels<T, Sum<T>>& levels, const RoiTable<Sum<T>>& table, Sampling sampling,
                const Tensor& grad, RoiTiles* tiles, RoiAxes* axes) {
  const PooledShape shape(grad);
  for_each(shape.num_rois(), current_stream(grad), [=] __device__(int64_t n) {
    const PlacedRoi<Sum<T>> roi = table.place(n);
    const FeatureLevel<T, Sum<T>>& level = levels.of[roi.level];
    axes[n] = {y_axis(roi, level.scale, sampling, shape),
               x_axis(roi, level.scale, sampling, shape)};
    const uint32_t rows = tiles_of(axes[n].y, shape.height, level.height);
    const uint32_t columns = tiles_of(axes[n].x, shape.width, level.width);
    tiles[n] = {static_cast<int32_t>(roi.image * kMaxLevels + roi.level), rows, columns, 0};
  });
}

template <typename T>
void spread(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
            const std::vector<Tensor>& features, const double* scales, bool channels_last) {
  Levels<T, Sum<T>> levels = {};
  Tiles tiles = {};
  bool in_packs = moves_in_packs<T>(grad);
  for (size_t l = 0; l < features.size(); ++l) {
    const auto level = levels.of[l] = feature_level<T, Sum<T>>(features[l], scales[l]);
    tiles.rows[l] = (level.height + kTile - 1) / kTile;
    tiles.columns[l] = (level.width + kTile - 1) / kTile;
    tiles.begin[l + 1] = tiles.begin[l] + level.images * tiles.rows[l] * tiles.columns[l];
    in_packs = in_packs && moves_in_packs<T>(features[l]);
  }
  tiles.channel_blocks = (grad.size(2) + kTileChannels - 1) / kTileChannels;
  const int64_t num_rois = grad.size(0) * grad.size(1);
  const Tensor roi_tiles = empty(grad, {num_rois * int64_t(sizeof(RoiTiles))}, ScalarType::Byte);
  const Tensor roi_axes = empty(grad, {num_rois * int64_t(sizeof(RoiAxes))}, ScalarType::Byte);
  place_rois<T>(levels, table, sampling, grad, mutable_data<RoiTiles>(roi_tiles),
                mutable_data<RoiAxes>(roi_axes));
  const int64_t blocks = tiles.begin[features.size()] * tiles.channel_blocks;
  launch(in_packs ? gather_kernel<T, kPackWidth<T>> : gather_kernel<T, 1>,
         dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, current_stream(grad), levels,
         tiles, data<RoiTiles>(roi_tiles), data<RoiAxes>(roi_axes), PooledShape(grad),
         data<T>(grad), channels_last);
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
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
}

}  // namespace fastdet::cuda
