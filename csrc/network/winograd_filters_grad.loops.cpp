// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(3x3, 4x4) with the points 0, +-3/4, +-3/2 and infinity: B^T d B of a
// tile's 6x6 inputs d, A y A^T of the gradients y of its 4x4 outputs, G^T u G of the 6x6 sums u of
// products. With these points an error is half as large as with the usual 0, +-1, +-2.
#include "winograd_filters_grad.loops.h"

#include "../geometry/numbers.h"
#include "../isa/panel_product.h"
#include "../isa/stored_lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Floats = Lanes<float>;
constexpr int64_t kFloats = kLanesOf<float>;

constexpr float kA = 0.75f, kA2 = kA * kA;
constexpr float kB = 1.5f, kB2 = kB * kB;
// The factors that make G the inverse of the other two: 1 over the products of differences of
// points.
constexpr float kAtZero = 1 / (kA2 * kB2);
constexpr float kAtA = 1 / (2 * kA2 * (kA2 - kB2));
constexpr float kAtB = 1 / (2 * kB2 * (kB2 - kA2));

// x * factor + y
__attribute__((always_inline)) inline Floats add_times(const Floats& y, float factor,
                                                       const Floats& x) {
  return multiply_add<float>(all_lanes(factor), x, y);
}

// B^T d, of d[0], d[stride], ..
__attribute__((always_inline)) inline void input_column(const Floats* d, int64_t stride,
                                                        Floats* t) {
  const Floats d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride];
  t[0] = add_times(add_times(d4, -(kA2 + kB2), d2), kA2 * kB2, d[0]);
  const Floats even_a = add_times(d4, -kB2, d2), odd_a = add_times(d3, -kB2, d1);
  t[1] = add_times(even_a, kA, odd_a);
  t[2] = add_times(even_a, -kA, odd_a);
  const Floats even_b = add_times(d4, -kA2, d2), odd_b = add_times(d3, -kA2, d1);
  t[3] = add_times(even_b, kB, odd_b);
  t[4] = add_times(even_b, -kB, odd_b);
  t[5] = add_times(add_times(d[5 * stride], -(kA2 + kB2), d3), kA2 * kB2, d1);
}

// A y
__attribute__((always_inline)) inline void grad_column(const Floats* y, int64_t stride, Floats* t) {
  const Floats y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  t[0] = y0;
  const Floats even_a = add_times(y0, kA2, y2), odd_a = add_times(y1, kA2, y3);
  t[1] = add_times(even_a, kA, odd_a);
  t[2] = add_times(even_a, -kA, odd_a);
  const Floats even_b = add_times(y0, kB2, y2), odd_b = add_times(y1, kB2, y3);
  t[3] = add_times(even_b, kB, odd_b);
  t[4] = add_times(even_b, -kB, odd_b);
  t[5] = y3;
}

// G^T u
__attribute__((always_inline)) inline void taps_column(const Floats* u, int64_t stride, Floats* g) {
  const Floats a_sum = u[stride] + u[2 * stride], a_difference = u[stride] - u[2 * stride];
  const Floats b_sum = u[3 * stride] + u[4 * stride], b_difference = u[3 * stride] - u[4 * stride];
  g[0] = add_times(add_times(u[0] * kAtZero, kAtA, a_sum), kAtB, b_sum);
  g[1] = add_times(a_difference * (kA * kAtA), kB * kAtB, b_difference);
  g[2] = add_times(add_times(u[5 * stride], kA2 * kAtA, a_sum), kB2 * kAtB, b_sum);
}

// Transforms kSide x kSide pixels to 6x6 positions; column transforms a column.
template <int kSide, typename T, typename Column>
__attribute__((always_inline)) inline void transform(const T* const* pixels, int64_t first,
                                                     int64_t channels, float* out,
                                                     int64_t position_stride,
                                                     const Column& column) {
  const auto one = [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    Floats columns[kSide][kGradSide];
    for (int j = 0; j < kSide; ++j) {
      Floats pixel[kSide];
      for (int i = 0; i < kSide; ++i) pixel[i] = load(pixels[i * kSide + j] + first + x);
      column(pixel, 1, columns[j]);
    }
    float* to = out + x;
    for (int i = 0; i < kGradSide; ++i) {
      Floats row[kGradSide];
      column(columns[0] + i, kGradSide, row);
      for (int j = 0; j < kGradSide; ++j, to += position_stride) store_lanes<float>(row[j], to);
    }
  };
  int64_t x = 0;
  for (; x + kFloats <= channels; x += kFloats)
    one(x, [](const T* p) __attribute__((always_inline)) { return load_floats(p); });
  if (x < channels) one(x, [n = channels - x](const T* p) { return load_first_floats(p, n); });
}

template <typename T>
inline void grad_input(const T* const* pixels, int64_t first, int64_t channels, float* out,
                       int64_t position_stride) {
  transform<kGradSide>(pixels, first, channels, out, position_stride, input_column);
}

template <typename T>
inline void grad_output_grad(const T* const* pixels, int64_t first, int64_t channels, float* out,
                             int64_t position_stride) {
  transform<kGradTile>(pixels, first, channels, out, position_stride, grad_column);
}

inline void grad_multiply(const float* left, int64_t rows, const float* right, int64_t depth,
                          bool add, float* out) {
  multiply_panel<float>({left, 1, kGradRows}, rows, right, kPanel, depth, add, out, kPanel);
}

inline void grad_taps(const float* grad, int64_t position_stride, int64_t channels, float* out,
                      int64_t tap_stride) {
  for (int64_t x = 0; x < channels; x += kFloats) {
    Floats columns[kGradSide][3];
    for (int j = 0; j < kGradSide; ++j) {
      Floats positions[kGradSide];
      for (int i = 0; i < kGradSide; ++i)
        positions[i] = load_lanes(grad + x + (i * kGradSide + j) * position_stride);
      taps_column(positions, 1, columns[j]);
    }
    for (int i = 0; i < 3; ++i) {
      Floats taps[3];
      taps_column(columns[0] + i, 3, taps);
      for (int j = 0; j < 3; ++j)
        store_first(taps[j], out + (3 * i + j) * tap_stride + x, channels - x);
    }
  }
}

template <typename T>
constexpr FiltersGradMapLoops<T> kMapLoops = {
    .input = grad_input<T>,
    .output_grad = grad_output_grad<T>,
};

constexpr FiltersGradLoops kLoops = {
    .multiply = grad_multiply,
    .taps = grad_taps,
};

}  // namespace

FASTDET_LOOPS(FiltersGradLoops) { return kLoops; }
FASTDET_LOOPS(FiltersGradMapLoops<float>) { return kMapLoops<float>; }
FASTDET_LOOPS(FiltersGradMapLoops<BFloat16>) { return kMapLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
