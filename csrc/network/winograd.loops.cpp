// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(m x m, 3x3): B^T d B of a tile's inputs d, G g G^T of a 3x3 filter
// g, A^T m A of the products m. They are those of Toom and Cook for the points 0, pairs p and -p,
// and infinity. Of the rows of B^T for the points p and -p, one half is the same and the other half
// has the other sign. The divisors of the interpolation are in G.
#include "winograd.loops.h"

#include <array>
#include <utility>

#include "../isa/exp.h"
#include "../isa/panel_product.h"
#include "../isa/stored_lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Floats = Lanes<float>;
constexpr int64_t kFloats = kLanesOf<float>;

// The numbers of F(kTile x kTile, 3x3). All but the divisors are exact in float32.
template <int kTile>
struct Points {
  static constexpr int kSide = winograd_side(kTile), kPairs = kTile / 2;

  // The positive points.
  static constexpr auto kPoints = [] {
    if constexpr (kTile == 4)
      return std::array{0.75f, 1.5f};
    else
      return std::array{0.5f, 1.0f, 2.0f};
  }();

  // Coefficients of x^0, x^2 and so on in the product of x^2 - p^2 over all pairs but one.
  static constexpr std::array<float, kPairs + 1> product_without(int pair) {
    std::array<float, kPairs + 1> c{1};
    for (int i = 0, degree = 0; i < kPairs; ++i) {
      if (i == pair) continue;
      ++degree;
      for (int k = degree; k >= 0; --k)
        c[k] = (k > 0 ? c[k - 1] : 0) - kPoints[i] * kPoints[i] * c[k];
    }
    return c;
  }

  // The product of the differences between a point and all others; `pair` kPairs stands for 0.
  static constexpr float divisor(int pair) {
    const float square = pair < kPairs ? kPoints[pair] * kPoints[pair] : 0;
    float product = pair < kPairs ? 2 * square : 1;
    for (int i = 0; i < kPairs; ++i)
      if (i != pair) product *= square - kPoints[i] * kPoints[i];
    return product;
  }
};

__attribute__((always_inline)) inline Floats add_times(float c, const Floats& x, const Floats& y) {
  return multiply_add<float>(all_lanes(c), x, y);
}

// The sum of d[0], d[2] and so on, times coefficients of which the last, of d[2 kDegree], is 1.
template <int kDegree, size_t kCount>
__attribute__((always_inline)) inline Floats sum_of(const std::array<float, kCount>& coefficients,
                                                    const Floats* d) {
  Floats sum = d[2 * kDegree];
#pragma GCC unroll 8
  for (int k = kDegree - 1; k >= 0; --k) sum = add_times(coefficients[k], d[2 * k], sum);
  return sum;
}

template <int kTile>
__attribute__((always_inline)) inline void input_of(const Floats* d, Floats* out) {
  using P = Points<kTile>;
  constexpr auto all = P::product_without(-1);
  out[0] = sum_of<P::kPairs>(all, d);
#pragma GCC unroll 8
  for (int i = 0; i < P::kPairs; ++i) {
    const auto others = P::product_without(i);
    const Floats even = sum_of<P::kPairs - 1>(others, d + 2);
    const Floats odd = sum_of<P::kPairs - 1>(others, d + 1);
    out[1 + 2 * i] = add_times(P::kPoints[i], odd, even);
    out[2 + 2 * i] = add_times(-P::kPoints[i], odd, even);
  }
  out[P::kSide - 1] = sum_of<P::kPairs>(all, d + 1);
}

template <int kTile>
__attribute__((always_inline)) inline void output_of(const Floats* m, Floats* out) {
  using P = Points<kTile>;
  constexpr int kLast = P::kPairs - 1;
  Floats even[P::kPairs], odd[P::kPairs];
#pragma GCC unroll 8
  for (int i = 0; i < P::kPairs; ++i) {
    even[i] = m[1 + 2 * i] + m[2 + 2 * i];
    odd[i] = m[1 + 2 * i] - m[2 + 2 * i];
  }
  out[0] = m[0];
#pragma GCC unroll 8
  for (int i = 0; i < P::kPairs; ++i) out[0] += even[i];
  auto powers = P::kPoints;  // p^j
#pragma GCC unroll 8
  for (int j = 1; j < kTile; ++j) {
    const Floats* terms = j % 2 ? odd : even;
    out[j] = j == kTile - 1 ? add_times(powers[kLast], terms[kLast], m[P::kSide - 1])
                            : all_lanes(powers[kLast]) * terms[kLast];
#pragma GCC unroll 8
    for (int i = kLast - 1; i >= 0; --i) out[j] = add_times(powers[i], terms[i], out[j]);
    for (int i = 0; i < P::kPairs; ++i) powers[i] *= P::kPoints[i];
  }
}

template <int kTile>
__attribute__((always_inline)) inline void filter_of(const Floats* g, Floats* out) {
  using P = Points<kTile>;
  out[0] = all_lanes(1 / P::divisor(P::kPairs)) * g[0];
#pragma GCC unroll 8
  for (int i = 0; i < P::kPairs; ++i) {
    const float p = P::kPoints[i], factor = 1 / P::divisor(i);
    const Floats even = add_times(p * p * factor, g[2], all_lanes(factor) * g[0]);
    const Floats odd = all_lanes(p * factor) * g[1];
    out[1 + 2 * i] = even + odd;
    out[2 + 2 * i] = even - odd;
  }
  out[P::kSide - 1] = g[2];
}

template <typename T, int kTile>
void winograd_input(const T* const* pixels, const T* const* next, int64_t channels, float* out,
                    int64_t position_stride) {
  constexpr int kSide = winograd_side(kTile);
  const auto transform = [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    // The first two columns are the last two of this tile.
    for (int i = 0; i < kSide; ++i)
      for (int j = 2; j < kSide; ++j) __builtin_prefetch(next[i * kSide + j] + x);
    Floats rows[kSide][kSide];
    for (int j = 0; j < kSide; ++j) {
      Floats column[kSide], of_column[kSide];
      for (int i = 0; i < kSide; ++i) column[i] = load(pixels[i * kSide + j] + x);
      input_of<kTile>(column, of_column);
      for (int i = 0; i < kSide; ++i) rows[i][j] = of_column[i];
    }
    float* to = out + x;
    for (int i = 0; i < kSide; ++i) {
      Floats of_row[kSide];
      input_of<kTile>(rows[i], of_row);
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
template <typename T, int kTile, int kRow>
void filters_of_row(const T* taps, int64_t depth, float* out) {
  using P = Points<kTile>;
  constexpr bool kFirst = kRow == 0, kLast = kRow == P::kSide - 1;
  constexpr int kPair = kFirst ? P::kPairs : (kRow - 1) / 2;
  constexpr float kDivisor = 1 / P::divisor(kPair);
  constexpr float p = kFirst || kLast ? 0 : (kRow % 2 ? 1 : -1) * P::kPoints[kPair % P::kPairs];
  for (int64_t k = 0; k < depth; ++k, taps += kWinogradTaps * kPanel, out += kPanel)
    for (int64_t x = 0; x < kPanel; x += kFloats) {
      Floats g[3], of_filter[P::kSide];
      for (int j = 0; j < 3; ++j) {
        const T* tap = taps + j * kPanel + x;
        if constexpr (kFirst)
          g[j] = all_lanes(kDivisor) * load_floats(tap);
        else if constexpr (kLast)
          g[j] = load_floats(tap + 6 * kPanel);
        else
          g[j] = add_times(p * p * kDivisor, load_floats(tap + 6 * kPanel),
                           add_times(p * kDivisor, load_floats(tap + 3 * kPanel),
                                     all_lanes(kDivisor) * load_floats(tap)));
      }
      filter_of<kTile>(g, of_filter);
      for (int j = 0; j < P::kSide; ++j)
        store_lanes<float>(of_filter[j], out + j * depth * kPanel + x);
    }
}

template <typename T, int kTile>
void winograd_filters(const T* taps, int64_t depth, int row, float* out) {
  constexpr auto kOfRows = []<int... kRows>(std::integer_sequence<int, kRows...>) {
    return std::array{filters_of_row<T, kTile, kRows>...};
  }(std::make_integer_sequence<int, winograd_side(kTile)>());
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

template <typename T, int kTile, Activation kActivation>
void outputs_of(const float* products, int64_t position_stride, int64_t tile_stride,
                const float* bias, const T* const* summands, int64_t first, int64_t channels,
                T* const* pixels) {
  constexpr int kSide = winograd_side(kTile);
  for (int64_t x = 0; x < channels; x += kFloats) {
    const Floats shift = load_lanes(bias + x);
    const int64_t n = channels - x;
    Floats rows[kTile][kSide];
    for (int j = 0; j < kSide; ++j) {
      Floats column[kSide], of_column[kTile];
      for (int i = 0; i < kSide; ++i) {
        const float* product = products + x + (i * kSide + j) * position_stride;
        __builtin_prefetch(product + tile_stride);
        column[i] = load_lanes(product);
      }
      output_of<kTile>(column, of_column);
      for (int i = 0; i < kTile; ++i) rows[i][j] = of_column[i];
    }
    for (int i = 0; i < kTile; ++i) {
      Floats of_row[kTile];
      output_of<kTile>(rows[i], of_row);
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

template <typename T, int kTile>
void winograd_output(const float* products, int64_t position_stride, int64_t tile_stride,
                     const float* bias, const T* const* summands, Activation activation,
                     int64_t first, int64_t channels, T* const* pixels) {
  constexpr std::array kOf = {outputs_of<T, kTile, Activation::kNone>,
                              outputs_of<T, kTile, Activation::kRelu>,
                              outputs_of<T, kTile, Activation::kSilu>};
  kOf[static_cast<int>(activation)](products, position_stride, tile_stride, bias, summands, first,
                                    channels, pixels);
}

constexpr WinogradLoops kLoops = {
    .multiply = winograd_multiply,
};

template <typename T, int kTile>
constexpr WinogradMapLoops<T, kTile> kMapLoops = {
    .input = winograd_input<T, kTile>,
    .filters = winograd_filters<T, kTile>,
    .output = winograd_output<T, kTile>,
};

template <typename T>
constexpr WinogradFilterLoops<T> kFilterLoops = {
    .lay_out = winograd_lay_out<T>,
};

template <typename T>
using Loops4 = WinogradMapLoops<T, 4>;
template <typename T>
using Loops6 = WinogradMapLoops<T, 6>;

}  // namespace

FASTDET_LOOPS(WinogradLoops) { return kLoops; }
FASTDET_LOOPS(WinogradFilterLoops<float>) { return kFilterLoops<float>; }
FASTDET_LOOPS(WinogradFilterLoops<BFloat16>) { return kFilterLoops<BFloat16>; }
FASTDET_LOOPS(Loops4<float>) { return kMapLoops<float, 4>; }
FASTDET_LOOPS(Loops4<BFloat16>) { return kMapLoops<BFloat16, 4>; }
FASTDET_LOOPS(Loops6<BFloat16>) { return kMapLoops<BFloat16, 6>; }

}  // namespace fastdet::cpu::FASTDET_ISA
