// SPDX-License-Identifier: BSD-3-Clause
// The levels of a feature pyramid, and the level that a box belongs to. Host and device, no torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace fastdet {

constexpr int64_t kMaxLevels = 8;

// A box belongs to the last level l with area >= min_area[l], or else to level 0.
template <typename T>
struct LevelMap {
  T min_area[kMaxLevels];
  int64_t num_levels;
};

// Equation 1 of the FPN paper with torchvision's epsilon, solved for the area. A comparison with a
// constant, unlike a logarithm, gives the same result on every device.
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

}  // namespace fastdet
