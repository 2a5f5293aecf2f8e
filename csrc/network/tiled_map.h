// SPDX-License-Identifier: BSD-3-Clause
// Maps (B, C, H, W) in channels_last as square tiles of outputs, for Winograd's algorithm, and its
// workspaces.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

namespace fastdet::cpu {

// n floats that begin on a cache line, uninitialised.
class Workspace {
 public:
  explicit Workspace(int64_t n) : lines_(new Line[(n + 15) / 16]) {}
  float* data() const { return lines_[0].floats; }

 private:
  struct alignas(64) Line {
    float floats[16];
  };
  std::unique_ptr<Line[]> lines_;
};

// A map (B, C, H, W) in channels_last, as tiles of kTile x kTile pixels, row by row.
template <typename T, int64_t kTile>
class TiledMap {
 public:
  // Sizes and strides are those of `map`, a Tensor.
  template <typename Map>
  TiledMap(T* data, const Map& map)
      : data_(data),
        height_(map.size(2)),
        width_(map.size(3)),
        tile_rows_((height_ + kTile - 1) / kTile),
        tile_columns_((width_ + kTile - 1) / kTile),
        tiles_(map.size(0) * tile_rows_ * tile_columns_),
        image_stride_(map.stride(0)),
        row_stride_(map.stride(2)),
        pixel_stride_(map.stride(3)) {}

  int64_t tiles() const { return tiles_; }

  // Pointers to the channels of kSide x kSide pixels. The first is `before` pixels above and left
  // of the tile. For a pixel outside the map, the pointer is `outside`.
  template <int kSide>
  std::array<T*, kSide * kSide> pixels(int64_t tile, int64_t before, T* outside) const {
    const int64_t image = tile / (tile_rows_ * tile_columns_);
    const int64_t top = tile / tile_columns_ % tile_rows_ * kTile - before;
    const int64_t left = tile % tile_columns_ * kTile - before;
    std::array<T*, kSide * kSide> pixels;
    for (int64_t i = 0; i < kSide; ++i)
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < height_ && x >= 0 && x < width_;
        pixels[i * kSide + j] =
            inside ? data_ + image * image_stride_ + y * row_stride_ + x * pixel_stride_ : outside;
      }
    return pixels;
  }

 private:
  T* data_;
  int64_t height_, width_, tile_rows_, tile_columns_, tiles_;
  int64_t image_stride_, row_stride_, pixel_stride_;
};

}  // namespace fastdet::cpu
