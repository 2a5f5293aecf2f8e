// SPDX-License-Identifier: BSD-3-Clause
// Deformable convolution, forward and backward: torch's matrix product of sampled columns, in
// blocks of output positions, so that the columns take at most 128 MB.
//
// The input is read as (B, H, W, C). A group of lanes takes a tap of a position and its channels,
// in loads of 16 bytes (8 of half types), and writes a row of the columns (groups, positions, taps,
// C / groups). The columns are in the type of sums, also for half types; so are the products.
//
// Backward: the product of the output's gradient and the weights is the gradient of the columns.
// One kernel reads it and the pixels of the samples, computes the gradients of offset and mask,
// adds the gradient of the pixels with atomics, 16 bytes at a time from compute capability 9.0 on,
// and overwrites it with the columns, which the product for the gradient of the weights reads. If
// torch asks for deterministic algorithms, another kernel sums the gradient of the pixels before: a
// block owns a tile of 8 x 8 pixels, goes over all samples of the positions, and adds those that
// touch the tile, in order.
//
// Estimated, not measured, for one image of 100 x 152, 256 channels and outputs and 3x3 taps in
// float32, on an H100: 17.9 billion operations of the product, 0.3 ms at 60 TFLOP/s; backward twice
// as many. The columns are 140 MB, written and read once, 0.08 ms.
#include <algorithm>
#include <array>
#include <cmath>

#include "../device/packs.cuh"
#include "../device/tile_sums.cuh"
#include "../device/warp.cuh"
#include "../geometry/pixel_sample.h"
#include "../tensors/feature_layout.h"
#include "contract.h"

namespace fastdet::cuda {

namespace {

constexpr int64_t kColumnBytes = int64_t(1) << 27;
constexpr int kTile = 32;  // positions and outputs that a block transposes

// Blocks that a multiprocessor holds at least in backward: registers are the limit.
template <typename S>
constexpr int kBlocks = std::is_same_v<S, double> ? 2 : 3;

// ---- samples ------------------------------------------------------------------------------------

// A sample: its top left pixel, the pixels inside the map as bits, and what pixel_sample.h says.
template <typename S>
struct ConvSample {
  int32_t y, x, taps;
  S down, right, mask;

  // The weight of one of the four pixels.
  __device__ S share(int tap) const {
    return (tap & 2 ? down : S(1) - down) * (tap & 1 ? right : S(1) - right);
  }
};

// offset (B, offset groups, taps, 2, positions); mask (B, offset groups, taps, positions) or null.
template <typename S>
struct ConvSource {
  const S *offset, *mask;

  // The place of a tap of a position of all images in the mask.
  static __device__ int64_t index(const DeformConvShape& shape, int64_t position, int64_t group,
                                  int64_t tap) {
    const int64_t image = position / shape.positions(), own = position % shape.positions();
    return ((image * shape.offset_groups + group) * shape.taps() + tap) * shape.positions() + own;
  }

  // With kBorder, a sample at -1, which is 0, reads the first pixel, for the derivative.
  template <bool kBorder>
  __device__ ConvSample<S> at(const DeformConvShape& shape, int64_t position, int64_t group,
                              int64_t tap) const {
    const int64_t own = position % shape.positions();
    const int64_t row = own / shape.out_width, column = own % shape.out_width;
    const int64_t i = tap / shape.kernel_width, j = tap % shape.kernel_width;
    const int64_t at = index(shape, position, group, tap);
    const S* const offsets = offset + 2 * at - own;  // (2, positions) of the tap
    const S y =
        static_cast<S>(row * shape.stride_y + i * shape.dilation_y - shape.padding_y) + offsets[0];
    const S x = static_cast<S>(column * shape.stride_x + j * shape.dilation_x - shape.padding_x) +
                offsets[shape.positions()];
    AxisSample<S> along_y = axis_sample_at(y, static_cast<S>(shape.height));
    AxisSample<S> along_x = axis_sample_at(x, static_cast<S>(shape.width));
    if constexpr (kBorder) {
      along_y.touches |= y == S(-1) ? 1 : 0;
      along_x.touches |= x == S(-1) ? 1 : 0;
    }
    const auto height = static_cast<int32_t>(shape.height);
    const auto width = static_cast<int32_t>(shape.width);
    return {along_y.index,    along_x.index,    taps_inside(along_y, along_x, height, width),
            along_y.fraction, along_x.fraction, mask ? mask[at] : S(1)};
  }
};

// Calls visit(tap, offset) for each pixel of the sample that is inside the map (H, W, C).
template <typename S, typename Visit>
__device__ void for_each_tap(const ConvSample<S>& sample, const DeformConvShape& shape,
                             Visit visit) {
  const int64_t top = (sample.y * shape.width + sample.x) * shape.channels;
#pragma unroll
  for (int tap = 0; tap < 4; ++tap)
    if (sample.taps >> tap & 1)
      visit(tap, top + ((tap & 1) + (tap & 2 ? shape.width : 0)) * shape.channels);
}

// The place of a channel in the columns (groups, rows, taps, C / groups).
__device__ int64_t column_at(const DeformConvShape& shape, int64_t rows, int64_t row, int64_t tap,
                             int64_t channel) {
  const int64_t channels = shape.group_channels();
  return ((channel / channels * rows + row) * shape.taps() + tap) * channels + channel % channels;
}

// The columns of the positions [begin, begin + rows) of all images. `lanes` threads, a power of
// two up to a warp, take a tap of a position.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ DeformConvShape shape, ConvSource<Sum<T>> source,
                  const T* pixels, int64_t begin, int64_t rows, int lanes, Sum<T>* columns) {
  using S = Sum<T>;
  const int64_t step = int64_t(gridDim.x) * kThreads / lanes;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  for (int64_t i = first; i < rows * shape.taps(); i += step) {
    const int64_t row = i / shape.taps(), tap = i % shape.taps(), position = begin + row;
    const T* const map = pixels + position / shape.positions() * shape.pixels() * shape.channels;
    for (int64_t c = threadIdx.x % lanes * V; c < shape.channels; c += lanes * V) {
      const ConvSample<S> sample =
          source.template at<false>(shape, position, c / shape.offset_group_channels(), tap);
      Pack<S, V> sum = {};
      for_each_tap(sample, shape, [&](int t, int64_t offset) {
        const Pack<T, V> pixel = load_pack<V>(map + offset + c);
        const S share = sample.share(t);
        for (int v = 0; v < V; ++v) sum[v] = std::fma(share, static_cast<S>(pixel[v]), sum[v]);
      });
      for (int v = 0; v < V; ++v) sum[v] *= sample.mask;
      store_pack(columns + column_at(shape, rows, row, tap, c), sum);
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------

// pixels: (B, H, W, C), to which the gradient is added; mask may be null.
template <typename S>
struct ConvGradients {
  S *pixels, *offset, *mask;
};

// The products of a sample's pixels with the gradient of its column, over the channels of a lane.
// Overwrites that gradient with the column.
template <typename T, int V, bool kAtomic>
__device__ void differentiate_channels(const DeformConvShape& shape,
                                       const ConvSample<Sum<T>>& sample, const T* map,
                                       Sum<T>* column, int64_t channels, int lane, int lanes,
                                       Sum<T>* grad_map, Sum<T> (&dots)[4]) {
  using S = Sum<T>;
  for (int64_t c = lane * V; c < channels; c += lanes * V) {
    const Pack<S, V> packed = load_pack<V>(column + c);
    S own[V];
    for (int v = 0; v < V; ++v) own[v] = packed[v];
    Pack<S, V> sum = {};
    for_each_tap(sample, shape, [&](int t, int64_t offset) {
      const Pack<T, V> pixel = load_pack<V>(map + offset + c);
      const S share = sample.share(t);
      for (int v = 0; v < V; ++v) {
        dots[t] = std::fma(own[v], static_cast<S>(pixel[v]), dots[t]);
        sum[v] = std::fma(share, static_cast<S>(pixel[v]), sum[v]);
      }
      if constexpr (kAtomic) add_atomically(grad_map + offset + c, share * sample.mask, own);
    });
    for (int v = 0; v < V; ++v) sum[v] *= sample.mask;
    store_pack(column + c, sum);
  }
}

// A group of lanes takes a tap of a position and an offset group. Of its channels, those of one
// group of the weights are adjacent in the columns.
template <typename T, int V, bool kAtomic>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    differentiate_kernel(const __grid_constant__ DeformConvShape shape, ConvSource<Sum<T>> source,
                         const T* pixels, int64_t begin, int64_t rows, int lanes, Sum<T>* columns,
                         ConvGradients<Sum<T>> to) {
  using S = Sum<T>;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t group_channels = shape.offset_group_channels();
  const int64_t samples = rows * shape.taps() * shape.offset_groups;
  const int64_t step = int64_t(gridDim.x) * (kThreads / lanes);
  const int64_t own = threadIdx.x / lanes;
  // The same number of rounds for all threads of a warp, because they add up dots together.
  for (int64_t i = int64_t(blockIdx.x) * (kThreads / lanes); i < samples; i += step) {
    const bool exists = i + own < samples;
    const int64_t n = exists ? i + own : 0;
    const int64_t row = n / shape.offset_groups / shape.taps(), group = n % shape.offset_groups;
    const int64_t tap = n / shape.offset_groups % shape.taps(), position = begin + row;
    const int64_t image = position / shape.positions() * shape.pixels() * shape.channels;
    const ConvSample<S> sample = source.template at<true>(shape, position, group, tap);
    S dots[4] = {};
    const int64_t past = exists ? (group + 1) * group_channels : 0;
    for (int64_t c = group * group_channels; c < past;) {
      const int64_t end = min_of(past, (c / shape.group_channels() + 1) * shape.group_channels());
      differentiate_channels<T, V, kAtomic>(shape, sample, pixels + image + c,
                                            columns + column_at(shape, rows, row, tap, c), end - c,
                                            lane, lanes, to.pixels + image + c, dots);
      c = end;
    }
    for (int t = 0; t < 4; ++t) dots[t] = group_sum(dots[t], lanes);
    if (!exists || lane != 0) continue;
    const int64_t at = ConvSource<S>::index(shape, position, group, tap);
    S* const offsets = to.offset + 2 * at - position % shape.positions();
    const S down = sample.down, right = sample.right;
    offsets[0] = sample.mask * ((S(1) - right) * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
    offsets[shape.positions()] =
        sample.mask * ((S(1) - down) * (dots[1] - dots[0]) + down * (dots[3] - dots[2]));
    if (!to.mask) continue;
    S of_mask = 0;
    for (int t = 0; t < 4; ++t) of_mask = std::fma(sample.share(t), dots[t], of_mask);
    to.mask[at] = of_mask;
  }
}

// The pixels that a block owns: a tile of an image, and up to a warp's width of the channels of an
// offset group.
struct ConvTile {
  int64_t image, group, channel;  // the first channel of its group
  int32_t top, left;

  __device__ ConvTile(const DeformConvShape& shape, int64_t first_image, int64_t block) {
    const int64_t columns = (shape.width + kSumTile - 1) / kSumTile;
    const int64_t tiles = (shape.height + kSumTile - 1) / kSumTile * columns;
    const int64_t parts = (shape.offset_group_channels() + kWarp - 1) / kWarp;
    channel = block % parts * kWarp;
    block /= parts;
    group = block % shape.offset_groups;
    block /= shape.offset_groups;
    top = static_cast<int32_t>(block % tiles / columns * kSumTile);
    left = static_cast<int32_t>(block % tiles % columns * kSumTile);
    image = first_image + block / tiles;
  }
};

// Adds the gradient of the columns of the positions [begin, begin + rows) to the pixels.
template <typename S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    gather_kernel(const __grid_constant__ DeformConvShape shape, ConvSource<S> source,
                  int64_t begin, int64_t rows, const S* columns, S* grad_pixels) {
  __shared__ TileSums<S> block;
  const ConvTile tile(shape, begin / shape.positions(), blockIdx.x);
  const int64_t first = max_of(begin, tile.image * shape.positions());
  const int64_t past = min_of(begin + rows, (tile.image + 1) * shape.positions());
  const int64_t own = tile.channel + lane();
  const bool exists = own < shape.offset_group_channels();
  const int64_t channel = tile.group * shape.offset_group_channels() + own;
  block.clear();
  // The samples count position by position, each with its taps.
  const int64_t samples = (past - first) * shape.taps();
  for (int64_t n = 0; n < samples; n += kSumScan) {
    const int found = block.find(n, samples, [&](int64_t i, TileHit<S>& hit) {
      const int64_t tap = i % shape.taps(), position = first + i / shape.taps();
      const ConvSample<S> sample = source.template at<false>(shape, position, tile.group, tap);
      const int32_t down = sample.y - tile.top, right = sample.x - tile.left;
      if (!sample.taps | !is_in_tile(down, right)) return false;
      hit = {i, down, right, sample.down, sample.right, sample.mask};
      return true;
    });
    block.add(found, [&](int64_t i) {
      const int64_t row = first - begin + i / shape.taps();
      return exists ? columns[column_at(shape, rows, row, i % shape.taps(), channel)] : S(0);
    });
  }
  const int32_t y = tile.top + warp();
  if (!exists || y >= shape.height) return;
  for (int x = 0; x < kSumTile && tile.left + x < shape.width; ++x) {
    const int64_t pixel = tile.image * shape.pixels() + y * shape.width + tile.left + x;
    grad_pixels[pixel * shape.channels + channel] += block.sum(x);
  }
}

// ---- weights and outputs ------------------------------------------------------------------------

// weight (O, C / groups, taps) -> (groups, taps * C / groups, O / groups).
template <typename S>
Tensor weight_matrices(const DeformConvShape& shape, const Tensor& weight) {
  const int64_t taps = shape.taps(), channels = shape.group_channels();
  const int64_t outputs = shape.group_outputs();
  const Tensor matrices =
      empty(weight, {shape.groups, taps * channels, outputs}, scalar_type_of<S>());
  const S* const from = data<S>(weight);
  S* const to = mutable_data<S>(matrices);
  for_each(matrices.numel(), current_stream(weight), [=] __device__(int64_t i) {
    const int64_t output = i % outputs, channel = i / outputs % channels;
    const int64_t tap = i / outputs / channels % taps, group = i / outputs / channels / taps;
    to[i] = from[((group * outputs + output) * channels + channel) * taps + tap];
  });
  return matrices;
}

// The inverse.
template <typename S>
void store_weights(const DeformConvShape& shape, const Tensor& matrices, const Tensor& weight) {
  const int64_t taps = shape.taps(), channels = shape.group_channels();
  const int64_t outputs = shape.group_outputs();
  const S* const from = data<S>(matrices);
  S* const to = mutable_data<S>(weight);
  for_each(matrices.numel(), current_stream(weight), [=] __device__(int64_t i) {
    const int64_t tap = i % taps, channel = i / taps % channels;
    const int64_t output = i / taps / channels % outputs, group = i / taps / channels / outputs;
    to[i] = from[((group * taps + tap) * channels + channel) * outputs + output];
  });
}

template <typename S>
void add_to(const Tensor& sums, const Tensor& values) {
  const S* const from = data<S>(values);
  S* const to = mutable_data<S>(sums);
  for_each(sums.numel(), current_stream(sums), [=] __device__(int64_t i) { to[i] += from[i]; });
}

// Where a block of outputs goes, for map (B, O, positions) of any strides.
template <typename T>
struct OutputMap {
  T* data;
  int64_t image_stride, output_stride, position_stride;

  __device__ T* at(const DeformConvShape& shape, int64_t position, int64_t output) const {
    return data + position / shape.positions() * image_stride + output * output_stride +
           position % shape.positions() * position_stride;
  }
};

// Adds the bias to products (groups, rows, O / groups) and stores them. A block takes a tile of a
// group, so that both its reads and its writes are adjacent.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const __grid_constant__ DeformConvShape shape, const Sum<T>* products,
                 const Sum<T>* bias, int64_t begin, int64_t rows, OutputMap<T> to) {
  using S = Sum<T>;
  __shared__ S tile[kTile][kTile + 1];
  const int64_t outputs = shape.group_outputs(), across = (outputs + kTile - 1) / kTile;
  const int64_t group = blockIdx.x / across % shape.groups;
  const int64_t first_row = blockIdx.x / across / shape.groups * kTile;
  const int64_t first_output = blockIdx.x % across * kTile;
  for (int i = warp(); i < kTile; i += kThreads / kWarp) {
    const int64_t row = first_row + i, output = first_output + lane();
    if (row < rows && output < outputs)
      tile[i][lane()] = products[(group * rows + row) * outputs + output] +
                        (bias ? bias[group * outputs + output] : S(0));
  }
  __syncthreads();
  const bool by_output = to.output_stride == 1;
  for (int i = warp(); i < kTile; i += kThreads / kWarp) {
    const int r = by_output ? i : lane(), o = by_output ? lane() : i;
    const int64_t row = first_row + r, output = first_output + o;
    if (row < rows && output < outputs)
      *to.at(shape, begin + row, group * outputs + output) = static_cast<T>(tile[r][o]);
  }
}

// ---- launches -----------------------------------------------------------------------------------

unsigned grid_of(int64_t blocks) {
  return static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
}

// Whether each pack is in one group and in one offset group.
template <typename S>
bool moves_in_packs(const DeformConvShape& shape) {
  return shape.group_channels() % kPackWidth<S> == 0 &&
         shape.offset_group_channels() % kPackWidth<S> == 0;
}

// Lanes for a number of loads.
int lanes_for(int64_t loads) {
  int lanes = 1;
  while (lanes < kWarp && lanes < loads) lanes *= 2;
  return lanes;
}

// The tensors of a call as the kernels read them.
struct ConvTensors {
  DeformConvShape shape;
  Tensor pixels, offset, weight;  // pixels (B, H, W, C)
  std::optional<Tensor> mask;

  ConvTensors(const DeformConvShape& shape, const Tensor& input, const Tensor& offset,
              const Tensor& weight, const std::optional<Tensor>& mask)
      : shape(shape),
        pixels(aligned(torch::stable::contiguous(
            torch::stable::transpose(torch::stable::transpose(input, 1, 2), 2, 3)))),
        offset(box_input(offset, box_dtype(input))),
        weight(box_input(weight, box_dtype(input))),
        mask(box_input(mask, box_dtype(input))) {}

  template <typename S>
  ConvSource<S> source() const {
    return {data<S>(offset), mask ? data<S>(*mask) : nullptr};
  }

  // The positions of a block, so that all blocks have about the same number.
  template <typename S>
  int64_t block_rows() const {
    const int64_t row_bytes = shape.channels * shape.taps() * static_cast<int64_t>(sizeof(S));
    const int64_t most = std::max<int64_t>(kColumnBytes / row_bytes, 1);
    const int64_t blocks = (shape.all_positions() + most - 1) / most;
    return (shape.all_positions() + blocks - 1) / blocks;
  }
};

// Calls body(begin, rows) for each block of positions.
template <typename S, typename Body>
void for_each_block(const ConvTensors& t, const Body& body) {
  const int64_t rows = t.block_rows<S>(), positions = t.shape.all_positions();
  for (int64_t begin = 0; begin < positions; begin += rows)
    body(begin, std::min(rows, positions - begin));
}

template <typename T>
void sample(const ConvTensors& t, int64_t begin, int64_t rows, const Tensor& columns) {
  using S = Sum<T>;
  const bool in_packs = moves_in_packs<S>(t.shape);
  const int lanes = lanes_for(t.shape.channels / (in_packs ? kPackWidth<S> : 1));
  const int64_t threads = rows * t.shape.taps() * lanes;
  launch(in_packs ? sample_kernel<T, kPackWidth<S>> : sample_kernel<T, 1>,
         dim3(grid_of((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0,
         current_stream(columns), t.shape, t.source<S>(), data<T>(t.pixels), begin, rows, lanes,
         mutable_data<S>(columns));
}

template <typename T>
void store(const DeformConvShape& shape, const Tensor& products, const std::optional<Tensor>& bias,
           int64_t begin, int64_t rows, const Tensor& out) {
  using S = Sum<T>;
  const int64_t across = (shape.group_outputs() + kTile - 1) / kTile;
  const bool is_last = is_channels_last(out);
  const OutputMap<T> to = {mutable_data<T>(out), shape.outputs * shape.positions(),
                           is_last ? 1 : shape.positions(), is_last ? shape.outputs : 1};
  launch(store_kernel<T>, dim3(grid_of((rows + kTile - 1) / kTile * shape.groups * across)),
         dim3(kThreads), 0, current_stream(out), shape, data<S>(products),
         bias ? data<S>(*bias) : nullptr, begin, rows, to);
}

template <typename T, bool kAtomic>
void differentiate(const ConvTensors& t, int64_t begin, int64_t rows, const Tensor& columns,
                   const ConvGradients<Sum<T>>& to) {
  using S = Sum<T>;
  const bool in_packs = moves_in_packs<S>(t.shape);
  const int64_t adjacent = std::min(t.shape.group_channels(), t.shape.offset_group_channels());
  const int lanes = lanes_for(adjacent / (in_packs ? kPackWidth<S> : 1));
  const int64_t threads = rows * t.shape.taps() * t.shape.offset_groups * lanes;
  launch(in_packs ? differentiate_kernel<T, kPackWidth<S>, kAtomic>
                  : differentiate_kernel<T, 1, kAtomic>,
         dim3(grid_of((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0,
         current_stream(columns), t.shape, t.source<S>(), data<T>(t.pixels), begin, rows, lanes,
         mutable_data<S>(columns), to);
}

template <typename S>
void gather(const ConvTensors& t, int64_t begin, int64_t rows, const Tensor& columns,
            S* grad_pixels) {
  const DeformConvShape& shape = t.shape;
  const int64_t images = (begin + rows - 1) / shape.positions() - begin / shape.positions() + 1;
  const int64_t tiles =
      (shape.height + kSumTile - 1) / kSumTile * ((shape.width + kSumTile - 1) / kSumTile);
  const int64_t parts = (shape.offset_group_channels() + kWarp - 1) / kWarp;
  launch(gather_kernel<S>,
         dim3(static_cast<unsigned>(images * tiles * shape.offset_groups * parts)), dim3(kThreads),
         0, current_stream(columns), shape, t.source<S>(), begin, rows, data<S>(columns),
         grad_pixels);
}

// Rows of (positions, O) as (groups, rows, O / groups), a view.
Tensor output_block(const DeformConvShape& shape, const Tensor& rows, int64_t begin, int64_t n) {
  Tensor part = rows;
  const std::array sizes = {n, shape.groups, shape.group_outputs()};
  part = torch::stable::narrow(part, 0, begin, n);
  return torch::stable::transpose(torch::stable::view(part, {sizes.data(), sizes.size()}), 0, 1);
}

template <typename S>
Tensor product_of(const Tensor& a, const Tensor& b) {
  const Tensor product = empty(a, {a.size(0), a.size(1), b.size(2)}, scalar_type_of<S>());
  multiply_matrices(a, b, product);
  return product;
}

// The gradients of all positions: of offset and mask, of the pixels, and of the weight matrices.
template <typename T>
void differentiate(const ConvTensors& t, const Tensor& grad_rows, bool deterministic,
                   const ConvGradients<Sum<T>>& to, const Tensor& grad_matrices) {
  using S = Sum<T>;
  const Tensor matrices = torch::stable::transpose(weight_matrices<S>(t.shape, t.weight), 1, 2);
  for_each_block<S>(t, [&](int64_t begin, int64_t rows) {
    const Tensor grad = output_block(t.shape, grad_rows, begin, rows);
    const Tensor columns = product_of<S>(grad, matrices);
    if (deterministic) {
      gather<S>(t, begin, rows, columns, to.pixels);
      differentiate<T, false>(t, begin, rows, columns, to);
    } else {
      differentiate<T, true>(t, begin, rows, columns, to);
    }
    add_to<S>(grad_matrices, product_of<S>(torch::stable::transpose(columns, 1, 2), grad));
  });
}

}  // namespace

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  const DeformConvShape shape = check_deform_conv2d("deform_conv2d", input, offset, weight, bias,
                                                    mask, stride, padding, dilation);
  const DeviceGuard guard(input.get_device_index());
  const Tensor out = empty_features(input, shape.images, shape.outputs, shape.out_height,
                                    shape.out_width, input.scalar_type(), is_channels_last(input));
  if (out.numel() == 0) return out;
  const ConvTensors t(shape, input, offset, weight, mask);
  const auto shift = box_input(bias, box_dtype(input));
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor matrices = weight_matrices<S>(shape, t.weight);
    for_each_block<S>(t, [&](int64_t begin, int64_t rows) {
      const Tensor columns = empty(
          input, {shape.groups, rows, shape.taps() * shape.group_channels()}, scalar_type_of<S>());
      sample<T>(t, begin, rows, columns);
      store<T>(shape, product_of<S>(columns, matrices), shift, begin, rows, out);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool deterministic) {
  const DeformConvShape shape = check_deform_conv2d_backward(
      "deform_conv2d_backward", grad, input, offset, weight, mask, stride, padding, dilation);
  const DeviceGuard guard(input.get_device_index());
  const auto dtype = box_dtype(input);
  const ConvTensors t(shape, input, offset, weight, mask);
  const Tensor grad_pixels =
      zeros(input, {shape.images, shape.height, shape.width, shape.channels}, dtype);
  const Tensor grad_offset = torch::stable::new_zeros(offset, offset.sizes(), dtype);
  const Tensor grad_mask =
      mask ? torch::stable::new_zeros(*mask, mask->sizes(), dtype) : empty(input, {0}, dtype);
  const Tensor grad_weight = torch::stable::new_zeros(weight, weight.sizes(), dtype);
  // (B, O, H, W) -> (positions, O).
  const Tensor grad_rows =
      torch::stable::flatten(torch::stable::contiguous(torch::stable::transpose(
                                 torch::stable::transpose(cast(grad, dtype), 1, 2), 2, 3)),
                             0, 2);
  if (grad.numel() != 0)
    dispatch_floating(input.scalar_type(), [&]<typename T>() {
      using S = Sum<T>;
      const Tensor matrices = zeros(
          weight, {shape.groups, shape.taps() * shape.group_channels(), shape.group_outputs()},
          dtype);
      differentiate<T>(t, grad_rows, deterministic,
                       {mutable_data<S>(grad_pixels), mutable_data<S>(grad_offset),
                        mask ? mutable_data<S>(grad_mask) : nullptr},
                       matrices);
      store_weights<S>(shape, matrices, grad_weight);
    });
  const int64_t over = 0;
  const Tensor grad_bias =
      torch::stable::sum(grad_rows, torch::headeronly::IntHeaderOnlyArrayRef(&over, 1));
  const Tensor grad_input = channels_to_front(cast(grad_pixels, input.scalar_type()));
  return {is_channels_last(input) ? grad_input : torch::stable::contiguous(grad_input),
          cast(grad_offset, offset.scalar_type()), cast(grad_weight, weight.scalar_type()),
          cast(grad_mask, mask ? mask->scalar_type() : dtype), grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace fastdet::cuda
