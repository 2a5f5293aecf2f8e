// SPDX-License-Identifier: BSD-3-Clause
// The positions at which RoIAlign samples a feature map, and their weights. Shared by host and
// device: plain C++, no torch. The bilinear weight of a sample is the product of a weight in y and
// a weight in x. The factor 1 / count of a bin's average is such a product too. So everything here
// is about one axis.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace fastdet {

// The largest number of samples of a bin on one axis, which bounds the work of any RoI. With an
// adaptive grid, a bin longer than 2^20 feature pixels gets less than one sample for each pixel.
constexpr int64_t kMaxSamples = int64_t(1) << 20;

// One axis of a RoI in feature pixels: bins of length `bin`, from `start` on, with `samples` in
// each.
template <typename T>
struct RoiAxis {
  T start, bin;
  int64_t samples;  // 0: the RoI is empty or not finite, and pools to zero
};

template <typename T>
FASTDET_HOST_DEVICE RoiAxis<T> roi_axis(T low, T high, T scale, bool aligned, int64_t bins,
                                        int64_t sampling_ratio) {
  const T offset = aligned ? T(0.5) : T(0);
  const T start = low * scale - offset;
  const T end = high * scale - offset;
  const T extent = aligned ? end - start : max_of(end - start, T(1));
  const T bin = extent / static_cast<T>(bins);
  // `end - start` is tested itself, because max_of hides a NaN.
  if (!is_finite(start) || !is_finite(end - start) || !is_finite(bin)) return {T(0), T(0), 0};
  if (sampling_ratio > 0) return {start, bin, min_of(sampling_ratio, kMaxSamples)};
  const T samples = min_of(bin, static_cast<T>(kMaxSamples));  // before the cast to an integer
  const int64_t whole = static_cast<int64_t>(max_of(samples, T(0)));
  return {start, bin, static_cast<T>(whole) < samples ? whole + 1 : whole};
}

// Like roi_axis, but in float64, with the number of samples that rounding in T gives. So an
// adaptive grid is the same as torchvision's, and the positions have no rounding error of T. Far
// from the map's origin, that error is the largest one of RoIAlign in float32.
template <typename T>
FASTDET_HOST_DEVICE RoiAxis<double> roi_axis_in_float64(T low, T high, T scale, bool aligned,
                                                        int64_t bins, int64_t sampling_ratio) {
  const RoiAxis<T> rounded = roi_axis(low, high, scale, aligned, bins, sampling_ratio);
  const RoiAxis<double> exact = roi_axis<double>(low, high, scale, aligned, bins, sampling_ratio);
  return {exact.start, exact.bin, rounded.samples};
}

template <typename T>
FASTDET_HOST_DEVICE T sample_position(const RoiAxis<T>& axis, int64_t p, int64_t i) {
  return axis.start + static_cast<T>(p) * axis.bin +
         (static_cast<T>(i) + T(0.5)) * axis.bin / static_cast<T>(axis.samples);
}

struct SampleRange {
  int64_t begin, end;
};

// The samples of bin p that can lie in [low, high], and a few more. Because of this, a RoI far
// larger than the map costs no more than the size of the map.
template <typename T>
FASTDET_HOST_DEVICE SampleRange samples_within(const RoiAxis<T>& axis, int64_t p, T low, T high) {
  constexpr int64_t kFew = 8;  // for so few, a division does not pay; also the margin for rounding
  if (axis.samples <= kFew) return {0, axis.samples};
  const T samples = static_cast<T>(axis.samples);
  const T first = axis.start + static_cast<T>(p) * axis.bin, step = axis.bin / samples;
  const T a = (low - first) / step, b = (high - first) / step;
  // With this order of arguments, a NaN (from a bin of length 0) gives the whole range.
  const T begin = min_of(max_of(min_of(a, b) - T(kFew), T(0)), samples);
  const T end = max_of(min_of(max_of(a, b) + T(kFew), samples), T(0));
  return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
}

// The two feature indices that a sample reads. Outside [-1, size] both weights are 0. An index
// whose weight is 0 must not be read.
template <typename T>
struct BilinearTap {
  int64_t index[2];
  T weight[2];
};

template <typename T>
FASTDET_HOST_DEVICE BilinearTap<T> bilinear_tap(T position, int64_t size) {
  if (!(position >= T(-1) && position <= static_cast<T>(size))) return {{0, 0}, {T(0), T(0)}};
  const T inside = max_of(position, T(0));
  const int64_t low = static_cast<int64_t>(inside);
  if (low >= size - 1) return {{size - 1, size - 1}, {T(1), T(0)}};
  const T fraction = inside - static_cast<T>(low);
  return {{low, low + 1}, {T(1) - fraction, fraction}};
}

}  // namespace fastdet
