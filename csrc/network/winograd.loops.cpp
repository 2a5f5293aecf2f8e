// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(4x4, 3x3): B^T d B of a tile's 6x6 inputs d, G g G^T of a 3x3 filter
// g, A^T m A of the 6x6 products m. They are those of Toom and Cook for the points 0, +-3/4, +-3/2
// and infinity. Of the rows of B^T for the points p and -p, one half is the same and the other half
// has the other sign. The divisors of the interpolation are in G.
#include "winograd.loops.h"

#include <utility>

#include "../isa/exp.h"
#include "../isa/panel_product.h"
#include "../isa/stored_lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Floats = Lanes<float>;
constexpr int64_t kFloats = kLanesOf<float>;
constexpr int kTile = kWinogradTile, kSide = kWinogradSide;

// The points p and q, and their squares. All constants but the divisors are exact.
constexpr float kP = 0.75f, kQ = 1.5f, kP2 = kP * kP, kQ2 = kQ * kQ;
constexpr float kDivisor0 = 1 / (kP2 * kQ2);
constexpr float kDivisorP = 1 / (2 * kP2 * (kP2 - kQ2)), kDivisorQ = 1 / (2 * kQ2 * (kQ2 - kP2));

__attribute__((always_inline)) inline Floats add_times(float c, const Floats& x, const Floats& y) {
  return multiply_add<float>(all_lanes(c), x, y);
}

__attribute__((always_inline)) inline void input_of(const Floats* d, Floats* out) {
  const Floats even_p = add_times(-kQ2, d[2], d[4]), odd_p = add_times(-kQ2, d[1], d[3]);
  const Floats even_q = add_times(-kP2, d[2], d[4]), odd_q = add_times(-kP2, d[1], d[3]);
  out[0] = add_times(kP2 * kQ2, d[0], add_times(-(kP2 + kQ2), d[2], d[4]));
  out[1] = add_times(kP, odd_p, even_p);
  out[2] = add_times(-kP, odd_p, even_p);
  out[3] = add_times(kQ, odd_q, even_q);
  out[4] = add_times(-kQ, odd_q, even_q);
  out[5] = add_times(kP2 * kQ2, d[1], add_times(-(kP2 + kQ2), d[3], d[5]));
}

__attribute__((always_inline)) inline void output_of(const Floats* m, Floats* out) {
  const Floats even_p = m[1] + m[2], odd_p = m[1] - m[2];
  const Floats even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = add_times(kP, odd_p, all_lanes(kQ) * odd_q);
  out[2] = add_times(kP2, even_p, all_lanes(kQ2) * even_q);
  out[3] = add_times(kP * kP2, odd_p, add_times(kQ * kQ2, odd_q, m[5]));
}

__attribute__((always_inline)) inline void filter_of(const Floats* g, Floats* out) {
  const Floats even_p = add_times(kP2 * kDivisorP, g[2], all_lanes(kDivisorP) * g[0]);
  const Floats even_q = add_times(kQ2 * kDivisorQ, g[2], all_lanes(kDivisorQ) * g[0]);
  const Floats odd_p = all_lanes(kP * kDivisorP) * g[1], odd_q = all_lanes(kQ * kDivisorQ) * g[1];
  out[0] = all_lanes(kDivisor0) * g[0];
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  out[3] = even_q + odd_q;
  out[4] = even_q - odd_q;
  out[5] = g[2];
}

template <typename T>
void winograd_input(const T* const* pixels, const T* const* next, int64_t channels, float* out,
                    int64_t position_stride) {
  const auto transform = [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    // The first two columns are the last two of this tile.
    for (int i = 0; i < kSide; ++i)
      for (int j = 2; j < kSide; ++j) __builtin_prefetch(next[i * kSide + j] + x);
    Floats rows[kSide][kSide];
    for (int j = 0; j < kSide; ++j) {
      Floats column[kSide], of_column[kSide];
      for (int i = 0; i < kSide; ++i) column[i] = load(pixels[i * kSide + j] + x);
      input_of(column, of_column);
      for (int i = 0; i < kSide; ++i) rows[i][j] = of_column[i];
    }
    float* to = out + x;
    for (int i = 0; i < kSide; ++i) {
      Floats of_row[kSide];
      input_of(rows[i], of_row);
      for (int j = 0; j < kSide; ++j, to += position_stride) store_lanes<float>(of_row[j], to);
    }
  };
  int64_t x = 0;
  for (; x + kFloats <= channels; x += kFloats)
    transform(x, [](const T* p) __attribute__((always_inline)) { return load_floats(p); });
  const int64_t rest = channels - x;
  if (rest > 0) transform(x, [rest](const T* p) { return load_first_floats(p, rest); });
}

// Swaps the lanes with bit kBit of a with those without it of b: of 2 x 2 blocks of a matrix whose
// rows are kBit apart, those that are not on the diagonal.
template <int kBit, int... kLane>
__attribute__((always_inline)) inline void swap_lanes(Floats& a, Floats& b,
                                                      std::integer_sequence<int, kLane...>) {
  const Floats first = __builtin_shufflevector(
      a, b, (kLane & kBit ? static_cast<int>(kFloats) + kLane - kBit : kLane)...);
  b = __builtin_shufflevector(a, b,
                              (kLane & kBit ? static_cast<int>(kFloats) + kLane : kLane + kBit)...);
  a = first;
}

// Transposes a matrix of kFloats x kFloats.
template <int kBit = kFloats / 2>
__attribute__((always_inline)) inline void transpose(Floats (&rows)[kFloats]) {
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i)
    if (!(i & kBit))
      swap_lanes<kBit>(rows[i], rows[i + kBit], std::make_integer_sequence<int, kFloats>());
  if constexpr (kBit > 1) transpose<kBit / 2>(rows);
}

// Of kFloats outputs and taps; if not kWhole, of the first `outputs` and the first `count`.
template <bool kWhole, typename T>
__attribute__((always_inline)) inline void lay_out_block(const T* taps, int64_t stride,
                                                         int64_t outputs, const Floats& scales,
                                                         int64_t count, T* out,
                                                         int64_t out_stride) {
  Floats rows[kFloats];
#pragma GCC unroll 16
  for (int j = 0; j < kFloats; ++j)
    if constexpr (kWhole) {
      __builtin_prefetch(taps + j * stride + 4 * kFloats);
      rows[j] = load_floats(taps + j * stride);
    } else
      rows[j] = j < outputs ? load_first_floats(taps + j * stride, count) : Floats{};
  transpose(rows);
#pragma GCC unroll 16
  for (int j = 0; j < kFloats; ++j)
    if (kWhole || j < count) store_first_floats(rows[j] * scales, out + j * out_stride, kFloats);
}

template <typename T>
void winograd_lay_out(const T* taps, int64_t stride, int64_t outputs, const float* scales,
                      int64_t count, T* out, int64_t out_stride) {
  for (int64_t x = 0; x < kPanel; x += kFloats, taps += kFloats * stride, out += kFloats) {
    const Floats factors = load_lanes(scales + x);
    const bool whole = x + kFloats <= outputs;
    int64_t i = 0;
    for (; whole && i + kFloats <= count; i += kFloats)
      lay_out_block<true>(taps + i, stride, kFloats, factors, kFloats, out + i * out_stride,
                          out_stride);
    for (; i < count; i += kFloats)
      lay_out_block<false>(taps + i, stride, outputs - x, factors, count - i, out + i * out_stride,
                           out_stride);
  }
}

// Row kRow of G times each column of the taps, then times G^T.
template <typename T, int kRow>
void filters_of_row(const T* taps, int64_t depth, float* out) {
  constexpr float p = kRow == 1 ? kP : kRow == 2 ? -kP : kRow == 3 ? kQ : -kQ;
  constexpr float kDivisor = kRow < 3 ? kDivisorP : kDivisorQ;
  for (int64_t k = 0; k < depth; ++k, taps += kWinogradTaps * kPanel, out += kPanel)
    for (int64_t x = 0; x < kPanel; x += kFloats) {
      Floats g[3], of_filter[kSide];
      for (int j = 0; j < 3; ++j) {
        const T* tap = taps + j * kPanel + x;
        if constexpr (kRow == 0)
          g[j] = all_lanes(kDivisor0) * load_floats(tap);
        else if constexpr (kRow == kSide - 1)
          g[j] = load_floats(tap + 6 * kPanel);
        else
          g[j] = add_times(p * p * kDivisor, load_floats(tap + 6 * kPanel),
                           add_times(p * kDivisor, load_floats(tap + 3 * kPanel),
                                     all_lanes(kDivisor) * load_floats(tap)));
      }
      filter_of(g, of_filter);
      for (int j = 0; j < kSide; ++j)
        store_lanes<float>(of_filter[j], out + j * depth * kPanel + x);
    }
}

template <typename T>
void winograd_filters(const T* taps, int64_t depth, int row, float* out) {
  constexpr void (*kOfRows[kSide])(const T*, int64_t, float*) = {
      filters_of_row<T, 0>, filters_of_row<T, 1>, filters_of_row<T, 2>,
      filters_of_row<T, 3>, filters_of_row<T, 4>, filters_of_row<T, 5>};
  kOfRows[row](taps, depth, out);
}

// Terms of a sum that are summed on their own: a sum of 512 terms rounds half as much then.
constexpr int64_t kSum = 128;

// `rows` is at most kRows.
template <int kRows>
inline void multiply_at_most(const float* left, int64_t left_stride, int64_t rows,
                             const float* panel, int64_t depth, float* out, int64_t out_stride) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return multiply_at_most<kRows - 1>(left, left_stride, rows, panel, depth, out, out_stride);
  int64_t k = 0;
  do {
    const int64_t some = depth - k < kSum ? depth - k : kSum;
    multiply_rows<kRows, float>({left + k, left_stride, 1}, panel + k * kPanel, kPanel, some, k > 0,
                                out, out_stride);
    k += some;
  } while (k < depth);
}

// The rows are divided evenly: of few rows, the products would wait for each other.
inline void winograd_multiply(const float* left, int64_t left_stride, int64_t rows,
                              const float* panel, int64_t depth, float* out, int64_t out_stride) {
  for (int64_t groups = round_up(rows, kProductRows) / kProductRows; groups > 0; --groups) {
    const int64_t some = round_up(rows, groups) / groups;
    multiply_at_most<kProductRows>(left, left_stride, some, panel, depth, out, out_stride);
    rows -= some;
    left += some * left_stride;
    out += some * out_stride;
  }
}

template <Activation kActivation>
__attribute__((always_inline)) inline Floats activated(const Floats& y) {
  if constexpr (kActivation == Activation::kRelu)
    return y < Floats{} ? Floats{} : y;  // NaN stays
  else if constexpr (kActivation == Activation::kSilu)
    // Below -88, where exp_lanes is clamped, the value is above -1e-36.
    return y < all_lanes(-88.0f) ? Floats{} : y / (all_lanes(1.0f) + exp_lanes(-y));
  else
    return y;
}

template <typename T, Activation kActivation>
void outputs_of(const float* products, int64_t position_stride, const float* bias,
                const T* const* summands, int64_t first, int64_t channels, T* const* pixels) {
  for (int64_t x = 0; x < channels; x += kFloats) {
    const Floats shift = load_lanes(bias + x);
    const int64_t n = channels - x;
    Floats rows[kTile][kSide];
    for (int j = 0; j < kSide; ++j) {
      Floats column[kSide], of_column[kTile];
      for (int i = 0; i < kSide; ++i)
        column[i] = load_lanes(products + x + (i * kSide + j) * position_stride);
      output_of(column, of_column);
      for (int i = 0; i < kTile; ++i) rows[i][j] = of_column[i];
    }
    for (int i = 0; i < kTile; ++i) {
      Floats of_row[kTile];
      output_of(rows[i], of_row);
      for (int j = 0; j < kTile; ++j) {
        T* to = pixels[kTile * i + j];
        if (!to) continue;
        Floats y = of_row[j] + shift;
        if (summands) y += load_first_floats(summands[kTile * i + j] + first + x, n);
        store_first_floats(activated<kActivation>(y), to + first + x, n);
      }
    }
  }
}

template <typename T>
void winograd_output(const float* products, int64_t position_stride, const float* bias,
                     const T* const* summands, Activation activation, int64_t first,
                     int64_t channels, T* const* pixels) {
  constexpr decltype(&outputs_of<T, Activation::kNone>) kOf[] = {outputs_of<T, Activation::kNone>,
                                                                 outputs_of<T, Activation::kRelu>,
                                                                 outputs_of<T, Activation::kSilu>};
  kOf[static_cast<int>(activation)](products, position_stride, bias, summands, first, channels,
                                    pixels);
}

constexpr WinogradLoops kLoops = {
    .multiply = winograd_multiply,
};

template <typename T>
constexpr WinogradMapLoops<T> kMapLoops = {
    .lay_out = winograd_lay_out<T>,
    .input = winograd_input<T>,
    .filters = winograd_filters<T>,
    .output = winograd_output<T>,
};

}  // namespace

FASTDET_LOOPS(WinogradLoops) { return kLoops; }
FASTDET_LOOPS(WinogradMapLoops<float>) { return kMapLoops<float>; }
FASTDET_LOOPS(WinogradMapLoops<BFloat16>) { return kMapLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
