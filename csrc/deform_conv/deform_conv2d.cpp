// SPDX-License-Identifier: BSD-3-Clause
// Deformable convolution, forward and backward, in blocks of output positions.
//
// The input is read as (B, H, W, C) in the type of sums: in place if it is so, else from a copy. So
// the pixels and weights of a sample are computed once for all channels of an offset group.
//
// Forward: a thread takes blocks of positions. For one tap of the kernel after the other, it
// samples the columns (positions, C) and multiplies them by the tap's weights (C, O), packed in
// panels. The columns, a tap's weights and the sums stay in the L2 cache.
//
// Backward goes over chunks of positions. First the threads share the positions: the output's
// gradient times the weights is the gradient of the columns, which gives those of offset and mask,
// and the columns are sampled again. Then they share the channels and the weights: the gradient of
// the columns is added to the pixels, in the order of the taps and positions; and the product of
// the output's gradient and the columns is added to the gradient of the weights.
//
// So each sum has one order, whatever the number of threads. Workspace: the copy of the input, the
// packed weights, and in backward their gradient, the gradient of the input as sums, and a chunk's
// columns with their gradient, at most 8 MB in float32.
//
// The lower bound is that of the products: O * C * taps multiply-adds for each position, twice as
// many in backward. For 256 channels, 256 outputs, 3x3 taps and 100 x 152 positions that is 9.0 and
// 17.9 billion; a sample takes 4 of the 256 multiply-adds of its column, 2 %.
#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "deform_conv2d.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlockValues = 100'000;    // columns and sums of a block, forward
constexpr int64_t kChunkValues = 1'000'000;  // columns of a chunk, backward
constexpr int64_t kWeightRows = 384;
constexpr int64_t kMostBlockRows = 192, kMostChunkRows = 1536;
static_assert(kMostBlockRows % kPanelRows == 0 && kMostChunkRows % kPanelRows == 0);

// The length of a row of n values and of what a panel writes beyond them. An odd number of cache
// lines, so that the rows do not share a few sets of the caches.
template <typename S>
int64_t row_stride(int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(S);
  const int64_t lines = round_up(n + kPanel, kLine) / kLine;
  return (lines | 1) * kLine;
}

// Room for n sums, uninitialised.
template <typename S>
class Room {
 public:
  explicit Room(int64_t n)
      : tensor_(in_huge_pages(torch::stable::empty({&n, 1}, scalar_type_of<S>()))),
        data_(mutable_data<S>(tensor_)) {}
  S* data() const { return data_; }

 private:
  Tensor tensor_;
  S* data_;
};

int64_t panels_of(int64_t columns) { return round_up(columns, kPanel) / kPanel; }

// ---- maps and positions -------------------------------------------------------------------------

// A map (B, C, ...) whose positions are evenly spaced: contiguous or channels_last.
template <typename T>
struct PositionMap {
  T* data;
  int64_t image_stride, position_stride, channel_stride;

  T* at(int64_t image, int64_t position) const {
    return data + image * image_stride + position * position_stride;
  }
};

// Whether the positions of a map (B, C, H, W) lie one after the other, each with all its channels.
bool is_dense_channels_last(const Tensor& map) {
  return is_channels_last(map) && channels_to_back(map).is_contiguous();
}

template <typename T>
PositionMap<T> position_map(const Tensor& map) {
  const int64_t channels = map.size(1), positions = map.size(2) * map.size(3);
  T* values = static_cast<T*>(map.mutable_data_ptr());
  if (is_dense_channels_last(map)) return {values, channels * positions, channels, 1};
  return {values, channels * positions, 1, positions};
}

// Calls visit(image, first, n, row) for the images that share positions [begin, end) of all images:
// n positions from `first` on, which are the rows from `row` on.
template <typename Visit>
void for_each_image(const DeformConvShape& shape, int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t position = begin; position < end;) {
    const int64_t image = position / shape.positions(), first = position % shape.positions();
    const int64_t n = std::min(end - position, shape.positions() - first);
    visit(image, first, n, position - begin);
    position += n;
  }
}

// (B, C, H, W) as (B, H, W, C) in the type of sums.
template <typename T>
Tensor pixels_of(const Tensor& input, const DeformConvShape& shape) {
  using S = Sum<T>;
  if (!input.is_contiguous() || (std::is_same_v<T, S> && is_dense_channels_last(input)))
    return torch::stable::contiguous(channels_to_back(cast(input, scalar_type_of<S>())));
  const Tensor pixels = in_huge_pages(
      empty(input, {shape.images, shape.height, shape.width, shape.channels}, scalar_type_of<S>()));
  const T* from = data<T>(input);
  S* to = mutable_data<S>(pixels);
  const auto& loops = current_loops<DeformConvLoops<T>>();
  const int64_t channels = shape.channels;
  parallel_for(shape.images * shape.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / shape.height, y = i % shape.height;
      loops.load_rows(from + (image * channels * shape.height + y) * shape.width, 1, shape.pixels(),
                      shape.width, channels, {to + i * shape.width * channels, channels});
    }
  });
  return pixels;
}

// The inverse of pixels_of, in the layout of `like`.
template <typename T>
Tensor map_of(const Tensor& pixels, const DeformConvShape& shape, const Tensor& like) {
  using S = Sum<T>;
  if (is_channels_last(like)) return channels_to_front(cast(pixels, like.scalar_type()));
  const Tensor map = in_huge_pages(empty_like(like, like.scalar_type()));
  const S* from = data<S>(pixels);
  T* to = mutable_data<T>(map);
  const auto& loops = current_loops<DeformConvLoops<T>>();
  const int64_t channels = shape.channels;
  parallel_for(shape.images * shape.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / shape.height, y = i % shape.height;
      loops.store_rows({from + i * shape.width * channels, channels}, shape.width, channels,
                       to + (image * channels * shape.height + y) * shape.width, 1, shape.pixels());
    }
  });
  return map;
}

// ---- taps ---------------------------------------------------------------------------------------

// What the samples read: pixels (B, H, W, C), offset (B, offset groups, taps, 2, positions) and
// mask (B, offset groups, taps, positions) or null.
template <typename S>
class Samples {
 public:
  Samples(const DeformConvShape& shape, const Tensor& pixels, const Tensor& offset,
          const std::optional<Tensor>& mask)
      : shape_(shape),
        pixels_(data<S>(pixels)),
        offset_(data<S>(offset)),
        mask_(mask ? data<S>(*mask) : nullptr),
        zeros_(shape.channels) {}

  // The channels of an offset group.
  DeformMap<S> map(int64_t image, int64_t offset_group) const {
    const int64_t channels = shape_.offset_group_channels();
    return {pixels_ + image * shape_.pixels() * shape_.channels + offset_group * channels,
            shape_.channels, channels, zeros_.data()};
  }

  // The positions of a tap and an offset group within the arrays of an image.
  int64_t index(int64_t image, int64_t offset_group, int64_t tap) const {
    return ((image * shape_.offset_groups + offset_group) * shape_.taps() + tap) *
           shape_.positions();
  }

  DeformTap<S> tap(int64_t image, int64_t offset_group, int64_t tap) const {
    const int64_t at = index(image, offset_group, tap);
    const int64_t y = tap / shape_.kernel_width, x = tap % shape_.kernel_width;
    return {
        .height = shape_.height,
        .width = shape_.width,
        .out_width = shape_.out_width,
        .stride_y = shape_.stride_y,
        .stride_x = shape_.stride_x,
        .shift_y = y * shape_.dilation_y - shape_.padding_y,
        .shift_x = x * shape_.dilation_x - shape_.padding_x,
        .offset_y = offset_ + 2 * at,
        .offset_x = offset_ + 2 * at + shape_.positions(),
        .mask = mask_ ? mask_ + at : nullptr,
    };
  }

 private:
  const DeformConvShape& shape_;
  const S *pixels_, *offset_, *mask_;
  std::vector<S> zeros_;
};

// ---- weights ------------------------------------------------------------------------------------

// The weights of each tap and group as panels. Forward they multiply columns, (panels of O, C, 32);
// backward they multiply gradients of the output, (panels of C, O, 32).
template <typename S>
class PackedWeights {
 public:
  PackedWeights(const DeformConvShape& shape, const Tensor& weight, bool backward)
      : depth_(backward ? shape.group_outputs() : shape.group_channels()),
        columns_(backward ? shape.group_channels() : shape.group_outputs()),
        groups_(shape.groups),
        panels_(panels_of(columns_)),
        room_(shape.taps() * groups_ * panels_ * depth_ * kPanel) {
    // Of one group: (O, C, taps).
    const S* from = data<S>(weight);
    const int64_t taps = shape.taps(), output_stride = shape.group_channels() * taps;
    const int64_t depth_stride = backward ? output_stride : taps;
    const int64_t column_stride = backward ? taps : output_stride;
    parallel_for(groups_ * panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / panels_, first = i % panels_ * kPanel;
        const S* of_group = from + group * shape.group_outputs() * output_stride;
        for (int64_t d = 0; d < depth_; ++d)
          for (int64_t j = 0; j < kPanel; ++j)
            for (int64_t tap = 0; tap < taps; ++tap)
              panel(tap, group, i % panels_)[d * kPanel + j] =
                  first + j < columns_
                      ? of_group[d * depth_stride + (first + j) * column_stride + tap]
                      : S(0);
      }
    });
  }

  S* panel(int64_t tap, int64_t group, int64_t panel) const {
    return room_.data() + ((tap * groups_ + group) * panels_ + panel) * depth_ * kPanel;
  }
  int64_t depth() const { return depth_; }
  int64_t panels() const { return panels_; }

 private:
  int64_t depth_, columns_, groups_, panels_;
  Room<S> room_;
};

// ---- forward ------------------------------------------------------------------------------------

// Forward in blocks of positions.
template <typename T>
class ForwardPass {
 public:
  using S = Sum<T>;

  ForwardPass(const DeformConvShape& shape, const Samples<S>& samples,
              const PackedWeights<S>& weights, const S* bias, const PositionMap<T>& out)
      : shape_(shape),
        samples_(samples),
        weights_(weights),
        bias_(bias),
        out_(out),
        column_stride_(row_stride<S>(shape.channels)),
        sum_stride_(row_stride<S>(shape.groups * group_width())) {}

  void run() const {
    const int64_t positions = shape_.all_positions(), threads = torch::stable::get_num_threads();
    const int64_t most = std::min({kBlockValues / (column_stride_ + sum_stride_), kMostBlockRows,
                                   round_up(positions, threads) / threads});
    const int64_t rows = round_up(std::max(most, int64_t(1)), kPanelRows);
    parallel_for(round_up(positions, rows) / rows, 1, [&](int64_t first, int64_t last) {
      const Room<S> columns(rows * column_stride_), sums(rows * sum_stride_);
      for (int64_t block = first; block < last; ++block)
        convolve(block * rows, std::min((block + 1) * rows, positions), columns.data(),
                 sums.data());
    });
  }

 private:
  // Of a group's sums.
  int64_t group_width() const { return weights_.panels() * kPanel; }

  void convolve(int64_t begin, int64_t end, S* columns, S* sums) const {
    for (int64_t tap = 0; tap < shape_.taps(); ++tap) {
      for_each_image(shape_, begin, end, [&](int64_t image, int64_t first, int64_t n, int64_t row) {
        sample(tap, image, first, n, columns + row * column_stride_);
      });
      for (int64_t g = 0; g < shape_.groups; ++g)
        for (int64_t p = 0; p < weights_.panels(); ++p)
          loops_.multiply({columns + g * shape_.group_channels(), column_stride_, 1},
                          round_up(end - begin, kPanelRows), weights_.panel(tap, g, p), kPanel,
                          weights_.depth(), tap > 0, sums + g * group_width() + p * kPanel,
                          sum_stride_);
    }
    for_each_image(shape_, begin, end, [&](int64_t image, int64_t first, int64_t n, int64_t row) {
      for (int64_t g = 0; g < shape_.groups; ++g)
        store(g, image, first, n, sums + row * sum_stride_ + g * group_width());
    });
  }

  void sample(int64_t tap, int64_t image, int64_t first, int64_t n, S* columns) const {
    for (int64_t g = 0; g < shape_.offset_groups; ++g)
      loops_.sample(samples_.map(image, g), samples_.tap(image, g, tap), first, n,
                    {columns + g * shape_.offset_group_channels(), column_stride_});
  }

  void store(int64_t group, int64_t image, int64_t first, int64_t n, S* sums) const {
    const int64_t outputs = shape_.group_outputs(), output = group * outputs;
    for (int64_t i = 0; bias_ && i < n; ++i)
      for (int64_t o = 0; o < outputs; ++o) sums[i * sum_stride_ + o] += bias_[output + o];
    loops_.store_rows({sums, sum_stride_}, n, outputs,
                      out_.at(image, first) + output * out_.channel_stride, out_.position_stride,
                      out_.channel_stride);
  }

  const DeformConvLoops<T>& loops_ = current_loops<DeformConvLoops<T>>();
  const DeformConvShape& shape_;
  const Samples<S>& samples_;
  const PackedWeights<S>& weights_;
  const S* bias_;
  PositionMap<T> out_;
  int64_t column_stride_, sum_stride_;
};

// ---- backward -----------------------------------------------------------------------------------

template <typename S>
struct ConvGradients {
  S *pixels, *offset, *mask, *weight, *bias;  // mask may be null
};

// Backward in two passes over each chunk of positions.
template <typename T>
class BackwardPass {
 public:
  using S = Sum<T>;

  BackwardPass(const DeformConvShape& shape, const Samples<S>& samples,
               const PackedWeights<S>& weights, const PositionMap<const T>& grad,
               const ConvGradients<S>& to)
      : shape_(shape),
        samples_(samples),
        weights_(weights),
        grad_(grad),
        to_(to),
        output_stride_(row_stride<S>(shape.outputs)),
        column_stride_(row_stride<S>(shape.channels)),
        rows_(chunk_rows()),
        weight_rows_(round_up(shape.group_outputs(), kPanelRows)),
        outputs_(rows_ * output_stride_),
        grad_columns_(shape.taps() * rows_ * column_stride_),
        columns_(shape.taps() * rows_ * column_stride_),
        grad_weights_(shape.taps() * shape.groups * weight_rows_ * weight_stride()) {}

  void run() {
    for (int64_t begin = 0; begin < shape_.all_positions(); begin += rows_) {
      const int64_t end = std::min(begin + rows_, shape_.all_positions());
      differentiate_samples(begin, end);
      differentiate_pixels_and_weights(begin, end);
    }
    store_weights();
  }

 private:
  // The same for any number of threads, because a chunk's gradients of the pixels are added tap by
  // tap.
  int64_t chunk_rows() const {
    const int64_t most = std::min(
        {kChunkValues / (shape_.taps() * column_stride_), kMostChunkRows, shape_.all_positions()});
    return round_up(std::max(most, int64_t(1)), kPanelRows);
  }

  // The rows of the columns of a tap.
  S* tap_rows(const Room<S>& columns, int64_t tap) const {
    return columns.data() + tap * rows_ * column_stride_;
  }
  int64_t weight_stride() const { return weights_.panels() * kPanel; }
  // (weight_rows_, weight_stride()) of a tap and group.
  S* grad_weight(int64_t tap, int64_t group) const {
    return grad_weights_.data() + (tap * shape_.groups + group) * weight_rows_ * weight_stride();
  }

  // The gradients of the columns, of offset and mask, and the columns.
  void differentiate_samples(int64_t begin, int64_t end) {
    const auto differentiate_block = [&](int64_t row, int64_t past) {
      const int64_t real = std::min(past, end - begin);
      load_outputs(begin, row, real);
      for (int64_t tap = 0; tap < shape_.taps(); ++tap) {
        multiply_outputs(tap, row, past);
        differentiate_tap(tap, begin, row, real);
      }
    };
    parallel_for(round_up(end - begin, kPanelRows) / kPanelRows, 1,
                 [&](int64_t first, int64_t last) {
                   const int64_t past = last * kPanelRows;
                   for (int64_t row = first * kPanelRows; row < past; row += kMostBlockRows)
                     differentiate_block(row, std::min(row + kMostBlockRows, past));
                 });
  }

  void load_outputs(int64_t begin, int64_t row, int64_t past) {
    for_each_image(
        shape_, begin + row, begin + past, [&](int64_t image, int64_t first, int64_t n, int64_t i) {
          loops_.load_rows(grad_.at(image, first), grad_.position_stride, grad_.channel_stride, n,
                           shape_.outputs,
                           {outputs_.data() + (row + i) * output_stride_, output_stride_});
        });
  }

  // A panel of a group overwrites columns of the next group, which come after it.
  void multiply_outputs(int64_t tap, int64_t row, int64_t past) {
    S* const to = tap_rows(grad_columns_, tap) + row * column_stride_;
    for (int64_t g = 0; g < shape_.groups; ++g)
      for (int64_t p = 0; p < weights_.panels(); ++p)
        loops_.multiply({outputs_.data() + row * output_stride_ + g * shape_.group_outputs(),
                         output_stride_, 1},
                        past - row, weights_.panel(tap, g, p), kPanel, weights_.depth(), false,
                        to + g * shape_.group_channels() + p * kPanel, column_stride_);
  }

  void differentiate_tap(int64_t tap, int64_t begin, int64_t row, int64_t past) {
    for_each_image(
        shape_, begin + row, begin + past, [&](int64_t image, int64_t first, int64_t n, int64_t i) {
          for (int64_t g = 0; g < shape_.offset_groups; ++g) {
            const int64_t at = samples_.index(image, g, tap);
            const int64_t from = (row + i) * column_stride_ + g * shape_.offset_group_channels();
            loops_.sample_backward(samples_.map(image, g), samples_.tap(image, g, tap), first, n,
                                   {tap_rows(grad_columns_, tap) + from, column_stride_},
                                   {tap_rows(columns_, tap) + from, column_stride_},
                                   {to_.offset + 2 * at, to_.offset + 2 * at + shape_.positions(),
                                    to_.mask ? to_.mask + at : nullptr});
          }
        });
  }

  // The threads share slices of channels and panels of weights in the same proportion.
  void differentiate_pixels_and_weights(int64_t begin, int64_t end) {
    constexpr int64_t kSlice = 16;
    const int64_t slices = round_up(shape_.channels, kSlice) / kSlice;
    const int64_t panels = shape_.taps() * shape_.groups * weights_.panels();
    const int64_t parts = std::max(slices, panels);
    parallel_for(parts, 1, [&](int64_t first, int64_t last) {
      differentiate_pixels(begin, end, first * slices / parts * kSlice,
                           std::min(last * slices / parts * kSlice, shape_.channels));
      differentiate_weights(end - begin, begin > 0, first * panels / parts, last * panels / parts);
    });
    for (int64_t row = 0; row < end - begin; ++row)
      for (int64_t o = 0; o < shape_.outputs; ++o)
        to_.bias[o] += outputs_.data()[row * output_stride_ + o];
  }

  // Adds the gradients of the columns to channels [c0, c1) of the pixels.
  void differentiate_pixels(int64_t begin, int64_t end, int64_t c0, int64_t c1) {
    for (int64_t tap = 0; c0 < c1 && tap < shape_.taps(); ++tap)
      for_each_image(shape_, begin, end,
                     [&](int64_t image, int64_t position, int64_t n, int64_t row) {
                       scatter(tap, image, position, n, row, c0, c1);
                     });
  }

  void scatter(int64_t tap, int64_t image, int64_t first, int64_t n, int64_t row, int64_t c0,
               int64_t c1) {
    const int64_t width = shape_.offset_group_channels();
    for (int64_t g = c0 / width; g * width < c1; ++g) {
      const int64_t c = std::max(c0, g * width), past = std::min(c1, (g + 1) * width);
      loops_.scatter(samples_.tap(image, g, tap), first, n,
                     {tap_rows(grad_columns_, tap) + row * column_stride_ + c, column_stride_},
                     past - c,
                     {to_.pixels + image * shape_.pixels() * shape_.channels + c, shape_.channels});
    }
  }

  // The products of the output's gradient and the columns, for panels [first, last) of the weights
  // of all taps and groups. The rows are divided so that they stay in the L2 cache.
  void differentiate_weights(int64_t rows, bool add, int64_t first, int64_t last) {
    const int64_t panels = weights_.panels();
    for (int64_t row = 0; row < rows; row += kWeightRows) {
      const S* const outputs = outputs_.data() + row * output_stride_;
      for (int64_t i = first; i < last; ++i) {
        const int64_t tap = i / (shape_.groups * panels), g = i / panels % shape_.groups;
        const int64_t column = i % panels * kPanel;
        loops_.multiply(
            {outputs + g * shape_.group_outputs(), 1, output_stride_}, weight_rows_,
            tap_rows(columns_, tap) + row * column_stride_ + g * shape_.group_channels() + column,
            column_stride_, std::min(kWeightRows, rows - row), add || row > 0,
            grad_weight(tap, g) + column, weight_stride());
      }
    }
  }

  // (taps, groups, O, C) -> (groups, O, C, taps).
  void store_weights() {
    const int64_t channels = shape_.group_channels(), taps = shape_.taps();
    parallel_for(shape_.outputs, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / shape_.group_outputs(), o = i % shape_.group_outputs();
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t c = 0; c < channels; ++c)
            to_.weight[(i * channels + c) * taps + tap] =
                grad_weight(tap, g)[o * weight_stride() + c];
      }
    });
  }

  const DeformConvLoops<T>& loops_ = current_loops<DeformConvLoops<T>>();
  const DeformConvShape& shape_;
  const Samples<S>& samples_;
  const PackedWeights<S>& weights_;
  PositionMap<const T> grad_;
  ConvGradients<S> to_;
  int64_t output_stride_, column_stride_, rows_, weight_rows_;
  Room<S> outputs_, grad_columns_, columns_, grad_weights_;
};

template <typename T>
void differentiate(const DeformConvShape& shape, const Tensor& input, const Tensor& offset,
                   const std::optional<Tensor>& mask, const Tensor& weight, const Tensor& grad,
                   const ConvGradients<Sum<T>>& to) {
  const Tensor pixels = pixels_of<T>(input, shape);
  const Samples<Sum<T>> samples(shape, pixels, offset, mask);
  const PackedWeights<Sum<T>> packed(shape, weight, true);
  BackwardPass<T>(shape, samples, packed, position_map<const T>(grad), to).run();
}

}  // namespace

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  const DeformConvShape shape = check_deform_conv2d("deform_conv2d", input, offset, weight, bias,
                                                    mask, stride, padding, dilation);
  const auto dtype = box_dtype(input);
  const Tensor out =
      in_huge_pages(empty_features(input, shape.images, shape.outputs, shape.out_height,
                                   shape.out_width, input.scalar_type(), is_channels_last(input)));
  if (out.numel() == 0) return out;
  const Tensor offsets = box_input(offset, dtype), weights = box_input(weight, dtype);
  const auto masks = box_input(mask, dtype), shift = box_input(bias, dtype);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor pixels = pixels_of<T>(input, shape);
    const Samples<S> samples(shape, pixels, offsets, masks);
    const PackedWeights<S> packed(shape, weights, false);
    ForwardPass<T>(shape, samples, packed, shift ? data<S>(*shift) : nullptr, position_map<T>(out))
        .run();
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    bool /*deterministic: always*/) {
  const DeformConvShape shape = check_deform_conv2d_backward(
      "deform_conv2d_backward", grad, input, offset, weight, mask, stride, padding, dilation);
  const auto dtype = box_dtype(input);
  const Tensor offsets = box_input(offset, dtype), weights = box_input(weight, dtype);
  const auto masks = box_input(mask, dtype);
  const Tensor rows = is_dense_channels_last(grad) ? grad : torch::stable::contiguous(grad);
  const Tensor grad_pixels =
      in_huge_pages(empty(input, {shape.images, shape.height, shape.width, shape.channels}, dtype));
  const Tensor grad_offset = in_huge_pages(empty_like(offset, dtype));
  const Tensor grad_mask =
      mask ? in_huge_pages(empty_like(*mask, dtype)) : empty(input, {0}, dtype);
  const Tensor grad_weight = empty_like(weight, dtype);
  const Tensor grad_bias = empty(weight, {shape.outputs}, dtype);
  fill_zero(grad_pixels);
  fill_zero(grad_offset);
  fill_zero(grad_mask);
  fill_zero(grad_weight);
  fill_zero(grad_bias);
  const Tensor grad_input = dispatch_floating(input.scalar_type(), [&]<typename T>() {
    if (grad.numel() != 0)
      differentiate<T>(shape, input, offsets, masks, weights, rows,
                       {mutable_data<Sum<T>>(grad_pixels), mutable_data<Sum<T>>(grad_offset),
                        mask ? mutable_data<Sum<T>>(grad_mask) : nullptr,
                        mutable_data<Sum<T>>(grad_weight), mutable_data<Sum<T>>(grad_bias)});
    return map_of<T>(grad_pixels, shape, input);
  });
  return {grad_input, cast(grad_offset, offset.scalar_type()),
          cast(grad_weight, weight.scalar_type()),
          cast(grad_mask, mask ? mask->scalar_type() : dtype), grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace fastdet::cpu
