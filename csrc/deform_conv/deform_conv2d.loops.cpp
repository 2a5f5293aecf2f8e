// SPDX-License-Identifier: BSD-3-Clause
// The columns of deformable convolution and their gradients. For a few positions at a time, vectors
// over the positions compute the four pixels and their weights. Then vectors over the channels read
// the pixels; a pixel outside the map is a row of zeros.
#include "deform_conv2d.loops.h"

#include <type_traits>

#include "../geometry/pixel_sample.h"
#include "../isa/panel_product.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int64_t kChunk = 16;  // positions whose pixels are computed together
constexpr int kTaps = 4;        // pixels of a sample, in the order of their bits

// ---- rows of channels ---------------------------------------------------------------------------

// to[c * to_stride + r] = from[r * from_stride + c], in squares that stay in the L1 cache.
template <typename From, typename To>
void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns, To* to,
               int64_t to_stride) {
  constexpr int64_t kSide = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kSide)
    for (int64_t c0 = 0; c0 < columns; c0 += kSide) {
      const int64_t r1 = min_of(r0 + kSide, rows), c1 = min_of(c0 + kSide, columns);
      for (int64_t c = c0; c < c1; ++c)
        for (int64_t r = r0; r < r1; ++r)
          to[c * to_stride + r] = static_cast<To>(from[r * from_stride + c]);
    }
}

template <typename From, typename To>
void convert(const From* from, int64_t n, To* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

template <typename T>
void load_rows(const T* from, int64_t position_stride, int64_t channel_stride, int64_t n,
               int64_t channels, const DeformRows<Sum<T>>& rows) {
  if (channel_stride != 1)
    return transpose(from, channel_stride, channels, n, rows.data, rows.stride);
  for (int64_t i = 0; i < n; ++i)
    convert(from + i * position_stride, channels, rows.data + i * rows.stride);
}

template <typename T>
void store_rows(const DeformRows<const Sum<T>>& rows, int64_t n, int64_t channels, T* to,
                int64_t position_stride, int64_t channel_stride) {
  if (channel_stride != 1)
    return transpose(rows.data, rows.stride, n, channels, to, channel_stride);
  for (int64_t i = 0; i < n; ++i)
    convert(rows.data + i * rows.stride, channels, to + i * position_stride);
}

// ---- samples ------------------------------------------------------------------------------------

template <typename S>
struct Chunk {
  int32_t pixel[kChunk], taps[kChunk];  // the top left pixel, and those inside the map as bits
  S down[kChunk], right[kChunk];        // the weights of the lower row and of the right column
  S weight[kTaps][kChunk];              // of the pixels, by which the mask is not yet multiplied
  S mask[kChunk];
};

// Without a border, a sample at -1, which is 0, reads no pixel. With it, it reads the first pixel:
// the derivative there is that towards the inside.
template <bool kBorder, typename S>
AxisSample<S> sample_axis(S position, S size) {
  AxisSample<S> sample = axis_sample_at(position, size);
  if constexpr (kBorder) sample.touches |= position == S(-1) ? 1 : 0;
  return sample;
}

// Positions [first, first + n) for n <= kChunk.
template <bool kBorder, typename S>
void find_pixels(const DeformTap<S>& tap, int64_t first, int64_t n, Chunk<S>& chunk) {
  S y[kChunk], x[kChunk];
  int64_t row = first / tap.out_width, column = first % tap.out_width;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = static_cast<S>(row * tap.stride_y + tap.shift_y);
    x[i] = static_cast<S>(column * tap.stride_x + tap.shift_x);
    if (++column == tap.out_width) column = 0, ++row;
  }
  const S *offset_y = tap.offset_y + first, *offset_x = tap.offset_x + first;
  const int32_t height = static_cast<int32_t>(tap.height), width = static_cast<int32_t>(tap.width);
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const AxisSample<S> along_y = sample_axis<kBorder>(y[i] + offset_y[i], static_cast<S>(height));
    const AxisSample<S> along_x = sample_axis<kBorder>(x[i] + offset_x[i], static_cast<S>(width));
    const S down = along_y.fraction, right = along_x.fraction;
    chunk.pixel[i] = along_y.index * width + along_x.index;
    chunk.taps[i] = taps_inside(along_y, along_x, height, width);
    chunk.down[i] = down;
    chunk.right[i] = right;
    chunk.weight[0][i] = (S(1) - down) * (S(1) - right);
    chunk.weight[1][i] = (S(1) - down) * right;
    chunk.weight[2][i] = down * (S(1) - right);
    chunk.weight[3][i] = down * right;
  }
  for (int64_t i = 0; i < n; ++i) chunk.mask[i] = tap.mask ? tap.mask[first + i] : S(1);
}

// Calls visit(chunk, i, row) for each of n positions.
template <bool kBorder, typename S, typename Visit>
__attribute__((always_inline)) inline void for_each_sample(const DeformTap<S>& tap, int64_t first,
                                                           int64_t n, const Visit& visit) {
  Chunk<S> chunk;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = min_of(kChunk, n - begin);
    find_pixels<kBorder>(tap, first + begin, count, chunk);
    for (int64_t i = 0; i < count; ++i) visit(chunk, i, begin + i);
  }
}

// Calls body(c, width) for vectors of channels from c on. `width` is the number of lanes as a
// constant, or less for the last vector.
template <typename S, typename Body>
__attribute__((always_inline)) inline void for_channels(int64_t channels, const Body& body) {
  constexpr int64_t kLanes = kLanesOf<S>;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, std::integral_constant<int64_t, kLanes>{});
  if (c < channels) body(c, channels - c);
}

// The four pixels of a sample.
template <typename S>
struct Pixels {
  const S* at[kTaps];

  __attribute__((always_inline)) Pixels(const DeformMap<S>& map, int64_t width,
                                        const Chunk<S>& chunk, int64_t i) {
    const S* top = map.data + chunk.pixel[i] * map.pixel_stride;
    const S* bottom = top + width * map.pixel_stride;
    const int32_t taps = chunk.taps[i];
    at[0] = taps & kTopLeft ? top : map.zeros;
    at[1] = taps & kTopRight ? top + map.pixel_stride : map.zeros;
    at[2] = taps & kBottomLeft ? bottom : map.zeros;
    at[3] = taps & kBottomRight ? bottom + map.pixel_stride : map.zeros;
  }
};

template <typename S>
void sample(const DeformMap<S>& map, const DeformTap<S>& tap, int64_t first, int64_t n,
            const DeformRows<S>& columns) {
  for_each_sample<false>(tap, first, n, [&](const Chunk<S>& chunk, int64_t i, int64_t row) {
    const Pixels<S> pixels(map, tap.width, chunk, i);
    Lanes<S> weight[kTaps];
    for (int t = 0; t < kTaps; ++t) weight[t] = all_lanes(chunk.weight[t][i]);
    const Lanes<S> mask = all_lanes(chunk.mask[i]);
    S* to = columns.data + row * columns.stride;
    for_channels<S>(map.channels, [&](int64_t c, auto width) __attribute__((always_inline)) {
      Lanes<S> sum = weight[0] * load_first(pixels.at[0] + c, width);
      for (int t = 1; t < kTaps; ++t)
        sum = multiply_add<S>(weight[t], load_first(pixels.at[t] + c, width), sum);
      store_first<S>(mask * sum, to + c, width);
    });
  });
}

template <typename S>
void sample_backward(const DeformMap<S>& map, const DeformTap<S>& tap, int64_t first, int64_t n,
                     const DeformRows<const S>& grad_columns, const DeformRows<S>& columns,
                     const DeformTapGrads<S>& to) {
  for_each_sample<true>(tap, first, n, [&](const Chunk<S>& chunk, int64_t i, int64_t row) {
    const Pixels<S> pixels(map, tap.width, chunk, i);
    Lanes<S> weight[kTaps], dots[kTaps] = {};
    for (int t = 0; t < kTaps; ++t) weight[t] = all_lanes(chunk.weight[t][i]);
    const Lanes<S> mask = all_lanes(chunk.mask[i]);
    const S* grad = grad_columns.data + row * grad_columns.stride;
    S* column = columns.data + row * columns.stride;
    for_channels<S>(map.channels, [&](int64_t c, auto width) __attribute__((always_inline)) {
      const Lanes<S> own = load_first(grad + c, width);
      Lanes<S> sum = {};
      for (int t = 0; t < kTaps; ++t) {
        const Lanes<S> pixel = load_first(pixels.at[t] + c, width);
        dots[t] = multiply_add<S>(own, pixel, dots[t]);
        sum = multiply_add<S>(weight[t], pixel, sum);
      }
      store_first<S>(mask * sum, column + c, width);
    });
    S dot[kTaps];  // the products of each pixel with the gradient of the column
    sum_lanes(dots, dot);
    const S down = chunk.down[i], right = chunk.right[i];
    const int64_t position = first + row;
    to.offset_y[position] =
        chunk.mask[i] * ((S(1) - right) * (dot[2] - dot[0]) + right * (dot[3] - dot[1]));
    to.offset_x[position] =
        chunk.mask[i] * ((S(1) - down) * (dot[1] - dot[0]) + down * (dot[3] - dot[2]));
    if (!to.mask) return;
    S of_mask = 0;
    for (int t = 0; t < kTaps; ++t) of_mask += chunk.weight[t][i] * dot[t];
    to.mask[position] = of_mask;
  });
}

template <typename S>
void scatter(const DeformTap<S>& tap, int64_t first, int64_t n,
             const DeformRows<const S>& grad_columns, int64_t channels,
             const DeformRows<S>& grad_pixels) {
  for_each_sample<false>(tap, first, n, [&](const Chunk<S>& chunk, int64_t i, int64_t row) {
    const S* grad = grad_columns.data + row * grad_columns.stride;
    S* const top = grad_pixels.data + chunk.pixel[i] * grad_pixels.stride;
    for (int t = 0; t < kTaps; ++t) {
      if (!(chunk.taps[i] >> t & 1)) continue;
      S* to = top + ((t & 1) + (t & 2 ? tap.width : 0)) * grad_pixels.stride;
      const Lanes<S> weight = all_lanes(chunk.mask[i] * chunk.weight[t][i]);
      for_channels<S>(channels, [&](int64_t c, auto width) __attribute__((always_inline)) {
        const Lanes<S> sum =
            multiply_add<S>(weight, load_first(grad + c, width), load_first(to + c, width));
        store_first<S>(sum, to + c, width);
      });
    }
  });
}

template <typename S>
void multiply(const PanelFactor<S>& factor, int64_t rows, const S* panel, int64_t panel_stride,
              int64_t depth, bool add, S* out, int64_t out_stride) {
  multiply_panel(factor, rows, panel, panel_stride, depth, add, out, out_stride);
}

template <typename T>
constexpr DeformConvLoops<T> kLoops = {
    .load_rows = load_rows<T>,
    .store_rows = store_rows<T>,
    .sample = sample<Sum<T>>,
    .sample_backward = sample_backward<Sum<T>>,
    .scatter = scatter<Sum<T>>,
    .multiply = multiply<Sum<T>>,
};

}  // namespace

FASTDET_LOOPS(DeformConvLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(DeformConvLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(DeformConvLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(DeformConvLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
