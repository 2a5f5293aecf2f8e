// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(2x2, 3x3): B^T d B of a tile's 4x4 inputs d, G g G^T of a 3x3 filter
// g, A^T m A of the 4x4 products m.
#include "winograd.loops.h"

#include "../isa/panel_product.h"
#include "winograd_filters.h"

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

inline void winograd_output(const float* products, int64_t position_stride, const float* bias,
                            const float* const* summands, bool relu, int64_t first,
                            int64_t channels, float* const* pixels) {
  for (int64_t x = 0; x < channels; x += kFloats) {
    const Floats shift = load_lanes(bias + x);
    const int64_t n = channels - x;
    Floats rows[2][4];
    for (int j = 0; j < 4; ++j) {
      const float* from = products + x + j * position_stride;
      const Floats m0 = load_lanes(from), m1 = load_lanes(from + 4 * position_stride),
                   m2 = load_lanes(from + 8 * position_stride),
                   m3 = load_lanes(from + 12 * position_stride);
      rows[0][j] = m0 + m1 + m2;
      rows[1][j] = m1 - m2 - m3;
    }
    for (int i = 0; i < 2; ++i) {
      const Floats* r = rows[i];
      Floats y[2] = {r[0] + r[1] + r[2] + shift, r[1] - r[2] - r[3] + shift};
      for (int j = 0; j < 2; ++j) {
        float* to = pixels[2 * i + j];
        if (!to) continue;
        if (summands) y[j] += load_first(summands[2 * i + j] + first + x, n);
        if (relu) y[j] = y[j] < Floats{} ? Floats{} : y[j];
        store_first(y[j], to + first + x, n);
      }
    }
  }
}

inline void winograd_multiply(const PanelFactor<float>& a, int64_t rows, const float* panel,
                              int64_t depth, bool add, float* out, int64_t out_stride) {
  multiply_panel(a, rows, panel, kWinogradPanel, depth, add, out, out_stride);
}

inline void winograd_filter(const float* filter, int64_t tap_stride, int64_t channels, float* out) {
  for_channels(channels, [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    const Floats half = all_lanes(0.5f);
    Floats rows[4][3];
    for (int j = 0; j < 3; ++j) {
      const Floats g0 = load(filter + j * tap_stride), g1 = load(filter + (3 + j) * tap_stride),
                   g2 = load(filter + (6 + j) * tap_stride);
      rows[0][j] = g0;
      rows[1][j] = (g0 + g1 + g2) * half;
      rows[2][j] = (g0 - g1 + g2) * half;
      rows[3][j] = g2;
    }
    for (int i = 0; i < 4; ++i) {
      const Floats* r = rows[i];
      float* to = out + 4 * i * kWinogradPanel + x;
      store_lanes<float>(r[0], to);
      store_lanes<float>((r[0] + r[1] + r[2]) * half, to + kWinogradPanel);
      store_lanes<float>((r[0] - r[1] + r[2]) * half, to + 2 * kWinogradPanel);
      store_lanes<float>(r[2], to + 3 * kWinogradPanel);
    }
  });
}

constexpr WinogradLoops kLoops = {
    .input = winograd_input,
    .multiply = winograd_multiply,
    .output = winograd_output,
    .filter = winograd_filter,
};

}  // namespace

FASTDET_LOOPS(WinogradLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
