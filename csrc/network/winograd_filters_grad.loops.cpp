// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(2x2, 3x3): B^T d B of a tile's 4x4 inputs d, A y A^T of the
// gradients y of its 2x2 outputs, and G^T u G of the gradients u of a transformed filter.
#include "winograd_filters_grad.loops.h"

#include "../isa/panel_product.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Floats = Lanes<float>;
constexpr int64_t kFloats = kLanesOf<float>;

// Calls body(x, load) for n channels, a vector of channels from x on at a time. load(p) reads these
// channels of p, with 0 from channel n on. body may write whole vectors.
template <typename Body>
__attribute__((always_inline)) inline void for_channels(int64_t n, const Body& body) {
  int64_t x = 0;
  for (; x + kFloats <= n; x += kFloats)
    body(x, [x](const float* p) __attribute__((always_inline)) { return load_lanes(p + x); });
  if (x == n) return;
  body(x, [x, n](const float* p) { return load_first(p + x, n - x); });
}

inline void winograd_input(const float* const* pixels, int64_t channels, float* out,
                           int64_t position_stride) {
  for_channels(channels, [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    Floats rows[4][4];
    for (int j = 0; j < 4; ++j) {
      const Floats d0 = load(pixels[j]), d1 = load(pixels[4 + j]), d2 = load(pixels[8 + j]),
                   d3 = load(pixels[12 + j]);
      rows[0][j] = d0 - d2;
      rows[1][j] = d1 + d2;
      rows[2][j] = d2 - d1;
      rows[3][j] = d1 - d3;
    }
    float* to = out + x;
    for (int i = 0; i < 4; ++i, to += 4 * position_stride) {
      const Floats* r = rows[i];
      store_lanes<float>(r[0] - r[2], to);
      store_lanes<float>(r[1] + r[2], to + position_stride);
      store_lanes<float>(r[2] - r[1], to + 2 * position_stride);
      store_lanes<float>(r[1] - r[3], to + 3 * position_stride);
    }
  });
}

inline void winograd_output_grad(const float* const* pixels, int64_t channels, float* out,
                                 int64_t position_stride) {
  for_channels(channels, [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    const Floats y[4] = {load(pixels[0]), load(pixels[1]), load(pixels[2]), load(pixels[3])};
    const Floats rows[4][2] = {
        {y[0], y[1]}, {y[0] + y[2], y[1] + y[3]}, {y[0] - y[2], y[1] - y[3]}, {-y[2], -y[3]}};
    float* to = out + x;
    for (int i = 0; i < 4; ++i, to += 4 * position_stride) {
      const Floats* r = rows[i];
      store_lanes<float>(r[0], to);
      store_lanes<float>(r[0] + r[1], to + position_stride);
      store_lanes<float>(r[0] - r[1], to + 2 * position_stride);
      store_lanes<float>(-r[1], to + 3 * position_stride);
    }
  });
}

inline void winograd_multiply(const PanelFactor<float>& a, int64_t rows, const float* panel,
                              int64_t depth, bool add, float* out, int64_t out_stride) {
  multiply_panel(a, rows, panel, kWinogradPanel, depth, add, out, out_stride);
}

inline void winograd_filter_grad(const float* grad, int64_t position_stride, int64_t channels,
                                 float* out, int64_t tap_stride) {
  const auto taps = [](const Floats& u0, const Floats& u1, const Floats& u2, const Floats& u3,
                       Floats* g) __attribute__((always_inline)) {
    const Floats half = all_lanes(0.5f);
    g[0] = u0 + (u1 + u2) * half;
    g[1] = (u1 - u2) * half;
    g[2] = (u1 + u2) * half + u3;
  };
  for (int64_t x = 0; x < channels; x += kFloats) {
    Floats columns[4][3];
    for (int j = 0; j < 4; ++j) {
      const float* from = grad + x + j * position_stride;
      taps(load_lanes(from), load_lanes(from + 4 * position_stride),
           load_lanes(from + 8 * position_stride), load_lanes(from + 12 * position_stride),
           columns[j]);
    }
    for (int i = 0; i < 3; ++i) {
      Floats g[3];
      taps(columns[0][i], columns[1][i], columns[2][i], columns[3][i], g);
      for (int j = 0; j < 3; ++j)
        store_first(g[j], out + (3 * i + j) * tap_stride + x, channels - x);
    }
  }
}

constexpr WinogradGradLoops kLoops = {
    .input = winograd_input,
    .output_grad = winograd_output_grad,
    .multiply = winograd_multiply,
    .filter_grad = winograd_filter_grad,
};

}  // namespace

FASTDET_LOOPS(WinogradGradLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
