// SPDX-License-Identifier: BSD-3-Clause
// The feature maps that RoIAlign reads and the place of each RoI on them. Host and device, no
// torch.
#pragma once

#include <cstdint>

#include "../geometry/pyramid.h"

namespace fastdet {

// A batch of feature maps of one level, of any strides. `scale` is feature pixels per image pixel.
template <typename T, typename S>
struct FeatureLevel {
  T* data;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, pixel_stride;
  S scale;
};

struct Sampling {
  int64_t ratio;
  bool aligned;
};

template <typename T>
struct PlacedRoi {
  Box<T> box;
  int64_t image, level;  // image -1: the RoI pools to zero
};

// Either rois (K, 5), batch index first and all of level 0, or boxes (B, K, 4) with counts, where
// the size of a box decides its level.
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
