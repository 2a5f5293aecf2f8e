// SPDX-License-Identifier: BSD-3-Clause
// Where RoIAlign samples a feature map and with which weights, shared by host and device: plain
// C++, no torch. The bilinear weight of a sample is a product of one weight in y and one in x, and
// so is its share 1 / count of a bin's average; everything here is about one axis.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace fastdet {

// No bin has more samples an axis than this: with an adaptive grid, a bin of more than a million
// feature pixels is sampled more coarsely than once a pixel. It bounds the work of any RoI.
constexpr int64_t kMaxSamples = int64_t(1) << 20;

// One axis of a RoI in feature pixels: bins of `bin` pixels from `start`, `samples` in each.
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
  // Tested before the clamp's result is used: max_of hides a NaN.
  if (!is_finite(start) || !is_finite(end - start) || !is_finite(bin)) return {T(0), T(0), 0};
  if (sampling_ratio > 0) return {start, bin, min_of(sampling_ratio, kMaxSamples)};
  const T samples = min_of(bin, static_cast<T>(kMaxSamples));  // before the cast to an integer
  const int64_t whole = static_cast<int64_t>(max_of(samples, T(0)));
  return {start, bin, static_cast<T>(whole) < samples ? whole + 1 : whole};
}

// The same in float64, with the samples that rounding in T gives: an adaptive grid is
// torchvision's, and its positions are free of the rounding of T, which far from the map's origin
// is the largest error of RoIAlign in float32.
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

// The samples of bin p that can lie in [low, high], give or take a few: a RoI far larger than the
// map costs what the map's size costs.
template <typename T>
FASTDET_HOST_DEVICE SampleRange samples_within(const RoiAxis<T>& axis, int64_t p, T low, T high) {
  constexpr int64_t kFew = 8;  // not worth a division; and the margin for rounding
  if (axis.samples <= kFew) return {0, axis.samples};
  const T samples = static_cast<T>(axis.samples);
  const T first = axis.start + static_cast<T>(p) * axis.bin, step = axis.bin / samples;
  const T a = (low - first) / step, b = (high - first) / step;
  // In this order of arguments a NaN (a bin of no size) gives the whole range.
  const T begin = min_of(max_of(min_of(a, b) - T(kFew), T(0)), samples);
  const T end = max_of(min_of(max_of(a, b) + T(kFew), samples), T(0));
  return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
}

// The two feature indexes that a sample reads. Outside [-1, size] both weights are 0; an index of
// weight 0 is not to be read.
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

// ---- feature maps -------------------------------------------------------------------------------

// A batch of feature maps of one level, of any strides; `scale` is feature pixels per image pixel.
template <typename T, typename S>
struct FeatureLevel {
  T* data;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, pixel_stride;
  S scale;
};

// ---- the level of a box -------------------------------------------------------------------------

constexpr int64_t kMaxLevels = 8;

// Level l takes the boxes from min_area[l] on, the last such l; level 0 takes the rest.
template <typename T>
struct LevelMap {
  T min_area[kMaxLevels];
  int64_t num_levels;
};

// Eq. 1 of the FPN paper with torchvision's epsilon, solved for the area: a comparison with a
// constant has one answer on every device, a logarithm has not.
template <typename T>
LevelMap<T> level_map(const double* scales, int64_t num_levels, int64_t canonical_scale,
                      int64_t canonical_level) {
  LevelMap<T> map = {{}, num_levels};
  for (int64_t l = 0; l < num_levels; ++l) {
    const double level = std::round(-std::log2(scales[l]));
    const double side = canonical_scale * std::exp2(level - canonical_level - 1e-6);
    map.min_area[l] = static_cast<T>(side * side);
  }
  return map;
}

template <typename T>
FASTDET_HOST_DEVICE int64_t level_of(const LevelMap<T>& map, const Box<T>& box) {
  int64_t level = 0;
  for (int64_t l = 1; l < map.num_levels; ++l)
    if (area(box) >= map.min_area[l]) level = l;
  return level;
}

// ---- which RoI lies where -----------------------------------------------------------------------

struct Sampling {
  int64_t ratio;
  bool aligned;
};

template <typename T>
struct PlacedRoi {
  Box<T> box;
  int64_t image, level;  // image -1: the RoI pools to zero
};

// rois (K, 5), batch index first and all of level 0; or boxes (B, K, 4) with counts, each box of
// the level of its size.
template <typename T>
struct RoiTable {
  const T* rows;
  int64_t columns;        // 5 or 4
  const int64_t* counts;  // (B,) or null
  int64_t images, rows_per_image;
  LevelMap<T> levels;

  FASTDET_HOST_DEVICE PlacedRoi<T> place(int64_t n) const {
    const T* row = rows + n * columns;
    if (columns == 5) {
      const bool exists = row[0] >= T(0) && row[0] < static_cast<T>(images);
      return {{row[1], row[2], row[3], row[4]}, exists ? static_cast<int64_t>(row[0]) : -1, 0};
    }
    const int64_t image = n / rows_per_image;
    if (counts && n % rows_per_image >= counts[image]) return {{}, -1, 0};
    const Box<T> box = {row[0], row[1], row[2], row[3]};
    return {box, image, level_of(levels, box)};
  }
};

}  // namespace fastdet
