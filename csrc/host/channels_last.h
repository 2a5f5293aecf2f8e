// SPDX-License-Identifier: BSD-3-Clause
// Feature maps (B, C, H, W) in channels_last, as the network layers read and write them.
#pragma once

#include <array>

#include "../tensors/feature_layout.h"
#include "huge_pages.h"

namespace fastdet::cpu {

// (B, C, H, W) -> (B, H, W, C), a view.
inline Tensor channels_to_back(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3);
}

inline Tensor in_channels_last(const Tensor& map) {
  return map.stride(1) == 1 ? map
                            : channels_to_front(torch::stable::contiguous(channels_to_back(map)));
}

// Uninitialised (B, C, H, W). It is not a view, so that the next layer may overwrite it.
inline Tensor empty_in_channels_last(int64_t images, int64_t channels, int64_t height,
                                     int64_t width, ScalarType dtype) {
  const std::array sizes = {images, channels, height, width};
  return in_huge_pages(torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt,
                                            std::nullopt, std::nullopt,
                                            torch::headeronly::MemoryFormat::ChannelsLast));
}

}  // namespace fastdet::cpu
