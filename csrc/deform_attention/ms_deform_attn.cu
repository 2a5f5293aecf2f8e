// SPDX-License-Identifier: BSD-3-Clause
// Multi-scale deformable attention, forward and backward.
//
// A row is a query's head: D channels. A group of lanes takes a row, and each of its lanes the
// channels of one load of 16 bytes: 8 lanes for 32 floats. A block first computes the pixels of the
// points of its rows, one point for each thread, and keeps them in shared memory. Then each lane
// goes over the points of its row.
//
// Backward is such a pass, too: the lanes of a group add up the gradients of a point's location and
// weight. It adds the gradient of the value with atomics, 16 bytes at a time from compute
// capability 9.0 on. If torch asks for deterministic algorithms, a second launch sums that gradient
// instead: a block owns a tile of 8 x 8 pixels of a head, goes over all points of that head and
// level, and adds those that touch the tile, in order. Each block reads 8 bytes of each point, from
// the caches. So the work beyond the sums is points times tiles, which is small beside the sums for
// up to about 20,000 queries.
//
// Estimated, not measured, for 2 images of 20,197 pixels, 5,440 queries, 8 heads of 32 floats and
// 16 points, on an H100: forward reads and writes 69 MB, 21 us; its loads of pixels are 713 MB,
// which the L2 cache serves in about 150 us. Backward reads and writes 127 MB of memory, 38 us, and
// loads and adds 713 MB of pixels each. The tiles of the deterministic pass read 1 GB of locations,
// 0.2 ms.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../device/packs.cuh"
#include "../device/tile_sums.cuh"
#include "../device/warp.cuh"
#include "../geometry/maths.h"
#include "contract.h"
#include "sampling.h"
#include "tensors.h"

namespace fastdet::cuda {

namespace {

struct AttentionLevels {
  int32_t height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];
};

AttentionLevels levels_of(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths) {
  AttentionLevels levels = {};
  int64_t start = 0;
  for (size_t l = 0; l < heights.size(); ++l) {
    levels.height[l] = static_cast<int32_t>(heights[l]);
    levels.width[l] = static_cast<int32_t>(widths[l]);
    levels.start[l] = static_cast<int32_t>(start);
    start += heights[l] * widths[l];
  }
  return levels;
}

struct AttentionShape {
  int64_t queries, heads, channels, pixels, rows;
  int64_t points, points_of_level;  // of a row, and of a row on each level

  AttentionShape(const AttentionTensors& t, size_t num_levels)
      : queries(t.queries),
        heads(t.heads),
        channels(t.channels),
        pixels(t.pixels),
        rows(t.rows()),
        points(t.points),
        points_of_level(t.points / static_cast<int64_t>(num_levels)) {}

  FASTDET_HOST_DEVICE int64_t pixel_stride() const { return heads * channels; }

  // The offset of the row's head in its image.
  __device__ int64_t map(int64_t row) const {
    return (row / heads / queries * pixels * heads + row % heads) * channels;
  }
};

// Blocks that a multiprocessor holds at least: registers are the limit, and doubles take two.
template <typename T>
constexpr int kBlocks = std::is_same_v<T, double> ? 3 : 4;

// ---- the points of a block's rows ---------------------------------------------------------------

// A point: its four pixels, those inside the level as bits, and what sampling.h says of its place.
template <typename S>
struct AttentionPoint {
  int32_t pixel, below, taps;
  S down, right, weight;
};

// The maximum and the inverse sum of a row's softmax.
template <typename S>
struct SoftmaxScale {
  S largest, inverse;

  __device__ S probability(S logit) const { return exp_of(logit - largest) * inverse; }
};

// What a call reads for its points.
template <typename S>
struct PointSource {
  const S *locations, *weights;
  bool softmax;

  __device__ SoftmaxScale<S> scale(int64_t row, const AttentionShape& shape, int lane,
                                   int lanes) const {
    const S* logits = weights + row * shape.points;
    const int64_t n = row < shape.rows ? shape.points : 0;
    S largest = -static_cast<S>(HUGE_VAL), sum = 0;
    for (int64_t p = lane; p < n; p += lanes) largest = max_of(largest, logits[p]);
    largest = group_max(largest, lanes);
    for (int64_t p = lane; p < n; p += lanes) sum += exp_of(logits[p] - largest);
    return {largest, S(1) / group_sum(sum, lanes)};
  }

  // `weight` is the point's own or its probability.
  __device__ AttentionPoint<S> at(int64_t row, int64_t p, S weight, const AttentionLevels& levels,
                                  const AttentionShape& shape) const {
    const int64_t level = p / shape.points_of_level;
    const int32_t height = levels.height[level], width = levels.width[level];
    const Pack<S, 2> xy = load_pack<2>(locations + 2 * (row * shape.points + p));
    const AxisSample<S> x = axis_sample(xy[0], static_cast<S>(width));
    const AxisSample<S> y = axis_sample(xy[1], static_cast<S>(height));
    return {levels.start[level] + y.index * width + x.index,
            width,
            taps_inside(y, x, height, width),
            y.fraction,
            x.fraction,
            weight};
  }
};

constexpr int kPoints = 1024;  // that a block keeps

// How a block's threads share its rows.
struct Groups {
  int lanes;  // of a group, a power of two up to a warp

  explicit Groups(int64_t packs) : lanes(1) {
    while (lanes < kWarp && lanes < packs) lanes *= 2;
  }

  FASTDET_HOST_DEVICE int rows() const { return kThreads / lanes; }
  FASTDET_HOST_DEVICE int points() const { return kPoints / rows(); }  // of a row at a time
  __device__ int row() const { return static_cast<int>(threadIdx.x) / lanes; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % lanes; }
};

// Points of a block's rows, in parts of groups.points() for each row.
template <typename S>
struct BlockPoints {
  AttentionPoint<S> points[kPoints];
  SoftmaxScale<S> scales[kThreads];

  // All threads of the block call it, before fill.
  __device__ void start(const PointSource<S>& source, int64_t first_row,
                        const AttentionShape& shape, const Groups& groups) {
    if (!source.softmax) return;
    const auto scale = source.scale(first_row + groups.row(), shape, groups.lane(), groups.lanes);
    if (groups.lane() == 0) scales[groups.row()] = scale;
  }

  // Points [from, from + groups.points()) of each row; those that do not exist read nothing.
  // probabilities: null, or where the weights are written.
  __device__ void fill(const PointSource<S>& source, int64_t first_row, int64_t from,
                       const AttentionLevels& levels, const AttentionShape& shape,
                       const Groups& groups, S* probabilities) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kPoints; i += kThreads) {
      const int r = i / groups.points();
      const int64_t row = first_row + r, p = from + i % groups.points();
      points[i].taps = 0;
      if (row >= shape.rows || p >= shape.points) continue;
      S weight = source.weights[row * shape.points + p];
      if (source.softmax) weight = scales[r].probability(weight);
      if (probabilities) probabilities[row * shape.points + p] = weight;
      points[i] = source.at(row, p, weight, levels, shape);
    }
    __syncthreads();
  }

  __device__ AttentionPoint<S>* of_row(const Groups& groups) {
    return points + groups.row() * groups.points();
  }
};

// Calls visit(tap, offset, weight) for each pixel of the point that is inside the level. The weight
// is that of the bilinear sample.
template <typename S, typename Visit>
__device__ void for_each_tap(const AttentionPoint<S>& point, int64_t stride, Visit visit) {
  const int64_t top = point.pixel * stride, bottom = top + point.below * stride;
  const S up = S(1) - point.down, left = S(1) - point.right;
  if (point.taps & kTopLeft) visit(0, top, up * left);
  if (point.taps & kTopRight) visit(1, top + stride, up * point.right);
  if (point.taps & kBottomLeft) visit(2, bottom, point.down * left);
  if (point.taps & kBottomRight) visit(3, bottom + stride, point.down * point.right);
}

// ---- forward ------------------------------------------------------------------------------------

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    attend_kernel(const __grid_constant__ AttentionLevels levels,
                  const __grid_constant__ AttentionShape shape, PointSource<Sum<T>> source,
                  Groups groups, const T* value, T* out) {
  using S = Sum<T>;
  __shared__ BlockPoints<S> block;
  const int64_t packs = shape.channels / V, stride = shape.pixel_stride();
  const int64_t channel_blocks = (packs + groups.lanes - 1) / groups.lanes;
  const int64_t blocks = (shape.rows + groups.rows() - 1) / groups.rows() * channel_blocks;
  for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
    const int64_t first_row = b / channel_blocks * groups.rows();
    const int64_t row = first_row + groups.row();
    const int64_t pack = b % channel_blocks * groups.lanes + groups.lane();
    const bool exists = row < shape.rows && pack < packs;
    const T* const map = value + shape.map(row) + pack * V;
    S sums[V] = {};
    __syncthreads();
    block.start(source, first_row, shape, groups);
    for (int64_t from = 0; from < shape.points; from += groups.points()) {
      block.fill(source, first_row, from, levels, shape, groups, nullptr);
      const AttentionPoint<S>* const points = block.of_row(groups);
#pragma unroll 2
      for (int i = 0; exists && i < groups.points(); ++i) {
        const AttentionPoint<S> point = points[i];
        for_each_tap(point, stride, [&](int, int64_t offset, S share) {
          const Pack<T, V> pixel = load_pack<V>(map + offset);
          const S weight = share * point.weight;
          for (int v = 0; v < V; ++v) sums[v] = std::fma(weight, static_cast<S>(pixel[v]), sums[v]);
        });
      }
    }
    if (!exists) continue;
    Pack<T, V> result;
    for (int v = 0; v < V; ++v) result[v] = static_cast<T>(sums[v]);
    store_pack(out + row * shape.channels + pack * V, result);
  }
}

// ---- backward: locations and weights, and the value with atomics --------------------------------

// The outputs. value: null, or zeros, to which the gradient is added. probabilities: null, or where
// the weights are written.
template <typename S>
struct AttentionGradients {
  S *value, *locations, *weights, *probabilities;
};

// The gradients of one point, summed over the channels of a lane. Of the location only the
// derivative of the sample along x and y.
template <typename S>
struct PointGradient {
  S weight = 0, x = 0, y = 0;

  // `dot`: the products of a pixel with the gradient of the output.
  __device__ void add(int tap, S share, S dot, const AttentionPoint<S>& point) {
    const S row = tap & 2 ? point.down : S(1) - point.down;
    const S column = tap & 1 ? point.right : S(1) - point.right;
    weight = std::fma(share, dot, weight);
    x = std::fma(tap & 1 ? row : -row, dot, x);
    y = std::fma(tap & 2 ? column : -column, dot, y);
  }
};

// The gradient of a lane's share of a point's channels.
template <typename T, int V, bool kAtomic>
__device__ PointGradient<Sum<T>> point_gradient(const AttentionPoint<Sum<T>>& point, const T* map,
                                                const T* grad, Sum<T>* grad_map, int64_t stride,
                                                int64_t packs, const Groups& groups) {
  using S = Sum<T>;
  PointGradient<S> sum;
  for (int64_t pack = groups.lane(); pack < packs; pack += groups.lanes) {
    const Pack<T, V> packed = load_pack<V>(grad + pack * V);
    S own[V];
    for (int v = 0; v < V; ++v) own[v] = static_cast<S>(packed[v]);
    for_each_tap(point, stride, [&](int tap, int64_t offset, S share) {
      const Pack<T, V> pixel = load_pack<V>(map + offset + pack * V);
      S dot = 0;
      for (int v = 0; v < V; ++v) dot = std::fma(static_cast<S>(pixel[v]), own[v], dot);
      sum.add(tap, share, dot, point);
      if constexpr (kAtomic)
        add_atomically(grad_map + offset + pack * V, share * point.weight, own);
    });
  }
  return sum;
}

// Writes the gradients of the part [from, from + groups.points()) of each row, which lie in the
// points' own places.
template <typename S>
__device__ void store_gradients(BlockPoints<S>& block, int64_t first_row, int64_t from,
                                const AttentionShape& shape, const Groups& groups,
                                const AttentionGradients<S>& to) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kPoints; i += kThreads) {
    const int64_t row = first_row + i / groups.points(), p = from + i % groups.points();
    if (row >= shape.rows || p >= shape.points) continue;
    const int64_t at = row * shape.points + p;
    const AttentionPoint<S>& found = block.points[i];
    store_pack(to.locations + 2 * at, Pack<S, 2>{{found.right, found.down}});
    to.weights[at] = found.weight;
  }
}

// Turns the gradients of a row's probabilities into those of its logits.
template <typename S>
__device__ void differentiate_softmax(const PointSource<S>& source, const SoftmaxScale<S>& scale,
                                      int64_t row, const AttentionShape& shape,
                                      const Groups& groups, S* grad_weights) {
  const S* const logits = source.weights + row * shape.points;
  S* const grad = grad_weights + row * shape.points;
  const int64_t n = row < shape.rows ? shape.points : 0;
  S mean = 0;
  for (int64_t p = groups.lane(); p < n; p += groups.lanes)
    mean = std::fma(scale.probability(logits[p]), grad[p], mean);
  mean = group_sum(mean, groups.lanes);
  for (int64_t p = groups.lane(); p < n; p += groups.lanes)
    grad[p] = scale.probability(logits[p]) * (grad[p] - mean);
}

template <typename T, int V, bool kAtomic>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    attend_backward_kernel(const __grid_constant__ AttentionLevels levels,
                           const __grid_constant__ AttentionShape shape, PointSource<Sum<T>> source,
                           Groups groups, const T* value, const T* grad,
                           AttentionGradients<Sum<T>> to) {
  using S = Sum<T>;
  __shared__ BlockPoints<S> block;
  const int64_t packs = shape.channels / V;
  const int64_t blocks = (shape.rows + groups.rows() - 1) / groups.rows();
  for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
    const int64_t first_row = b * groups.rows(), row = first_row + groups.row();
    const int64_t map = shape.map(row);
    __syncthreads();
    block.start(source, first_row, shape, groups);
    for (int64_t from = 0; from < shape.points; from += groups.points()) {
      block.fill(source, first_row, from, levels, shape, groups, to.probabilities);
      AttentionPoint<S>* const points = block.of_row(groups);
      for (int i = 0; i < groups.points(); ++i) {
        const AttentionPoint<S> point = points[i];
        PointGradient<S> found;
        if (point.taps)  // false for rows that do not exist
          found =
              point_gradient<T, V, kAtomic>(point, value + map, grad + row * shape.channels,
                                            to.value + map, shape.pixel_stride(), packs, groups);
        found.weight = group_sum(found.weight, groups.lanes);
        found.x = group_sum(found.x, groups.lanes);
        found.y = group_sum(found.y, groups.lanes);
        if (groups.lane() != 0) continue;
        const int64_t level = min_of(from + i, shape.points - 1) / shape.points_of_level;
        const bool touches = point.taps != 0;
        points[i].weight = found.weight;
        points[i].right = touches ? point.weight * levels.width[level] * found.x : S(0);
        points[i].down = touches ? point.weight * levels.height[level] * found.y : S(0);
      }
      store_gradients(block, first_row, from, shape, groups, to);
    }
    __syncthreads();
    if (source.softmax)
      differentiate_softmax(source, block.scales[groups.row()], row, shape, groups, to.weights);
  }
}

// ---- backward: the value without atomics --------------------------------------------------------

// The tiles of all levels, one level after another.
struct Tiles {
  int64_t begin[kMaxLevels + 1], columns[kMaxLevels];
  int64_t channel_blocks;
};

// A block's pixels: a tile of a head of an image, and up to a warp's width of its channels.
struct Tile {
  int64_t image, head, channel;
  int32_t level, top, left;

  __device__ Tile(const Tiles& tiles, int64_t levels, int64_t heads, int64_t block) {
    channel = block % tiles.channel_blocks * kWarp;
    block /= tiles.channel_blocks;
    head = block % heads;
    block /= heads;
    int64_t tile = block % tiles.begin[levels];
    image = block / tiles.begin[levels];
    level = 0;
    while (tile >= tiles.begin[level + 1]) ++level;
    tile -= tiles.begin[level];
    top = static_cast<int32_t>(tile / tiles.columns[level] * kSumTile);
    left = static_cast<int32_t>(tile % tiles.columns[level] * kSumTile);
  }
};

// source.weights are no logits here.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    gather_kernel(const __grid_constant__ AttentionLevels levels,
                  const __grid_constant__ AttentionShape shape, const __grid_constant__ Tiles tiles,
                  PointSource<Sum<T>> source, const T* grad, T* grad_value) {
  using S = Sum<T>;
  __shared__ TileSums<S> block;
  const Tile tile(tiles, shape.points / shape.points_of_level, shape.heads, blockIdx.x);
  const int64_t channel = tile.channel + lane();
  const bool exists = channel < shape.channels;
  const int32_t height = levels.height[tile.level], width = levels.width[tile.level];
  block.clear();
  // The points of the tile's head and level count query by query.
  const int64_t points = shape.queries * shape.points_of_level;
  for (int64_t n = 0; n < points; n += kSumScan) {
    const int found = block.find(n, points, [&](int64_t i, TileHit<S>& hit) {
      const int64_t query = i / shape.points_of_level;
      const int64_t row = (tile.image * shape.queries + query) * shape.heads + tile.head;
      const int64_t point =
          row * shape.points + tile.level * shape.points_of_level + i % shape.points_of_level;
      const Pack<S, 2> xy = load_pack<2>(source.locations + 2 * point);
      const AxisSample<S> x = axis_sample(xy[0], static_cast<S>(width));
      const AxisSample<S> y = axis_sample(xy[1], static_cast<S>(height));
      const int32_t down = y.index - tile.top, right = x.index - tile.left;
      if (!(y.touches & x.touches & is_in_tile(down, right))) return false;
      hit = {row, down, right, y.fraction, x.fraction, source.weights[point]};
      return true;
    });
    block.add(found, [&](int64_t row) {
      return exists ? static_cast<S>(grad[row * shape.channels + channel]) : S(0);
    });
  }
  const int32_t y = tile.top + warp();
  if (!exists || y >= height) return;
  for (int x = 0; x < kSumTile && tile.left + x < width; ++x) {
    const int64_t pixel =
        tile.image * shape.pixels + levels.start[tile.level] + int64_t(y) * width + tile.left + x;
    grad_value[(pixel * shape.heads + tile.head) * shape.channels + channel] =
        static_cast<T>(block.sum(x));
  }
}

// ---- launches -----------------------------------------------------------------------------------

unsigned grid_of(int64_t blocks) {
  return static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
}

// What is read in packs begins at a multiple of a pack.
AttentionTensors aligned_tensors(const Tensor& value, const Tensor& locations,
                                 const Tensor& weights) {
  return {aligned(torch::stable::contiguous(value)),
          aligned(box_input(locations, box_dtype(value))), weights};
}

template <typename T>
bool moves_in_packs(const AttentionShape& shape) {
  return shape.channels % kPackWidth<T> == 0;
}

template <typename S>
PointSource<S> source_of(const AttentionTensors& t, bool softmax) {
  return {data<S>(t.locations), data<S>(t.weights), softmax};
}

template <typename T>
void attend(const AttentionTensors& t, const AttentionLevels& levels, const AttentionShape& shape,
            bool softmax, const Tensor& out) {
  const bool in_packs = moves_in_packs<T>(shape);
  const int64_t packs = shape.channels / (in_packs ? kPackWidth<T> : 1);
  const Groups groups(packs);
  const int64_t channel_blocks = (packs + groups.lanes - 1) / groups.lanes;
  const int64_t row_blocks = (shape.rows + groups.rows() - 1) / groups.rows();
  launch(in_packs ? attend_kernel<T, kPackWidth<T>> : attend_kernel<T, 1>,
         dim3(grid_of(row_blocks * channel_blocks)), dim3(kThreads), 0, current_stream(out), levels,
         shape, source_of<Sum<T>>(t, softmax), groups, data<T>(t.value), mutable_data<T>(out));
}

template <typename T, bool kAtomic>
void attend_backward(const AttentionTensors& t, const AttentionLevels& levels,
                     const AttentionShape& shape, bool softmax, const Tensor& grad,
                     const AttentionGradients<Sum<T>>& to) {
  const bool in_packs = moves_in_packs<T>(shape);
  const Groups groups(shape.channels / (in_packs ? kPackWidth<T> : 1));
  launch(in_packs ? attend_backward_kernel<T, kPackWidth<T>, kAtomic>
                  : attend_backward_kernel<T, 1, kAtomic>,
         dim3(grid_of((shape.rows + groups.rows() - 1) / groups.rows())), dim3(kThreads), 0,
         current_stream(grad), levels, shape, source_of<Sum<T>>(t, softmax), groups,
         data<T>(t.value), data<T>(grad), to);
}

template <typename T>
void gather(const AttentionLevels& levels, const AttentionShape& shape, int64_t images,
            const PointSource<Sum<T>>& source, const Tensor& grad, const Tensor& grad_value) {
  Tiles tiles = {};
  const int64_t num_levels = shape.points / shape.points_of_level;
  for (int64_t l = 0; l < num_levels; ++l) {
    tiles.columns[l] = (levels.width[l] + kSumTile - 1) / kSumTile;
    const int64_t rows = (levels.height[l] + kSumTile - 1) / kSumTile;
    tiles.begin[l + 1] = tiles.begin[l] + rows * tiles.columns[l];
  }
  tiles.channel_blocks = (shape.channels + kWarp - 1) / kWarp;
  const int64_t blocks = images * shape.heads * tiles.begin[num_levels] * tiles.channel_blocks;
  launch(gather_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         current_stream(grad), levels, shape, tiles, source, data<T>(grad),
         mutable_data<T>(grad_value));
}

// The gradient of the value; those of locations and weights go to `to`.
template <typename T>
Tensor differentiate(const AttentionTensors& t, const AttentionLevels& levels,
                     const AttentionShape& shape, bool softmax, bool deterministic,
                     const Tensor& grad, AttentionGradients<Sum<T>> to) {
  using S = Sum<T>;
  const auto dtype = t.value.scalar_type();
  if (!deterministic || shape.points == 0) {
    const Tensor sums = torch::stable::new_zeros(t.value, t.value.sizes(), scalar_type_of<S>());
    to.value = mutable_data<S>(sums);
    attend_backward<T, true>(t, levels, shape, softmax, grad, to);
    return cast(sums, dtype);
  }
  const Tensor probabilities = softmax ? empty_like(t.weights, scalar_type_of<S>()) : t.weights;
  if (softmax) to.probabilities = mutable_data<S>(probabilities);
  attend_backward<T, false>(t, levels, shape, softmax, grad, to);
  const Tensor grad_value = empty_like(t.value, dtype);
  gather<T>(levels, shape, t.images, {data<S>(t.locations), data<S>(probabilities), false}, grad,
            grad_value);
  return grad_value;
}

}  // namespace

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& heights,
                      const std::vector<int64_t>& widths, const Tensor& locations,
                      const Tensor& weights, bool softmax) {
  check_ms_deform_attn("ms_deform_attn", value, heights, widths, locations, weights);
  const DeviceGuard guard(value.get_device_index());
  const AttentionTensors t = aligned_tensors(value, locations, weights);
  const Tensor out = empty(value, {t.images, t.queries, t.heads * t.channels}, value.scalar_type());
  if (out.numel() == 0) return out;
  const AttentionShape shape(t, heights.size());
  dispatch_floating(value.scalar_type(), [&]<typename T>() {
    attend<T>(t, levels_of(heights, widths), shape, softmax, out);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad, const Tensor& value,
                                                           const std::vector<int64_t>& heights,
                                                           const std::vector<int64_t>& widths,
                                                           const Tensor& locations,
                                                           const Tensor& weights, bool softmax,
                                                           bool deterministic) {
  check_ms_deform_attn_backward("ms_deform_attn_backward", grad, value, heights, widths, locations,
                                weights);
  const DeviceGuard guard(value.get_device_index());
  const AttentionTensors t = aligned_tensors(value, locations, weights);
  const Tensor rows = aligned(torch::stable::contiguous(grad));
  const AttentionShape shape(t, heights.size());
  const Tensor grad_locations = empty_like(locations, box_dtype(value));
  const Tensor grad_weights = empty_like(weights, box_dtype(value));
  const Tensor grad_value = dispatch_floating(value.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    return differentiate<T>(
        t, levels_of(heights, widths), shape, softmax, deterministic, rows,
        {nullptr, mutable_data<S>(grad_locations), mutable_data<S>(grad_weights), nullptr});
  });
  return {grad_value, cast(grad_locations, locations.scalar_type()),
          cast(grad_weights, weights.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace fastdet::cuda
