// SPDX-License-Identifier: BSD-3-Clause
// Sums of bilinear samples over the pixels of a tile, in a fixed order: gradients of a map without
// atomics. A block owns the tile. It tests all samples that may touch the tile, one for each
// thread, and then adds those that do, in their order: a warp owns a row of pixels, a lane a
// channel.
#pragma once

#include <cstdint>

#include "warp.cuh"

namespace fastdet::cuda {

constexpr int kSumTile = 8;             // pixels on each side
constexpr int kSumScan = 2 * kThreads;  // samples that a block tests before it adds the hits
static_assert(kSumTile == kThreads / kWarp, "a warp owns a row of the tile");

// A sample that touches the tile: its first pixel from the tile's corner on, -1 to kSumTile - 1.
template <typename S>
struct TileHit {
  int64_t sample;
  int32_t y, x;
  S down, right, weight;
};

// Whether a sample with this first pixel, from the tile's corner on, touches the tile.
__device__ inline bool is_in_tile(int32_t y, int32_t x) {
  return (y >= -1) & (y < kSumTile) & (x >= -1) & (x < kSumTile);
}

// In shared memory.
template <typename S>
class TileSums {
 public:
  __device__ void clear() {
    for (int x = 0; x < kSumTile; ++x) sums_[warp()][x][lane()] = S(0);
  }

  // Finds the hits among samples [begin, begin + kSumScan) below `end`. Returns their number.
  // locate(n, hit) says whether sample n is one, and fills it. All threads of the block call it.
  template <typename Locate>
  __device__ int find(int64_t begin, int64_t end, Locate locate) {
    constexpr int kRounds = kSumScan / kThreads, kWarps = kThreads / kWarp;
    unsigned votes[kRounds];
    TileHit<S> found[kRounds];
    for (int k = 0; k < kRounds; ++k) {
      const int64_t n = begin + k * kThreads + threadIdx.x;
      const bool hit = n < end && locate(n, found[k]);
      votes[k] = __ballot_sync(kAllLanes, hit);
      if (lane() == 0) of_warp_[k * kWarps + warp()] = __popc(votes[k]);
    }
    __syncthreads();
    int total = 0;
    for (int w = 0; w < kSumScan / kWarp; ++w) {
      for (int k = 0; k < kRounds; ++k)
        if (w == k * kWarps + warp() && (votes[k] >> lane() & 1))
          hits_[total + __popc(votes[k] & lanes_below())] = found[k];
      total += of_warp_[w];
    }
    __syncthreads();
    return total;
  }

  // Adds read(sample), a lane's channel, to the pixels of the hits. All threads call it.
  template <typename Read>
  __device__ void add(int found, Read read) {
    S(*const row)[kWarp] = sums_[warp()];
    for (int i = 0; i < found; ++i) {
      const TileHit<S>& hit = hits_[i];
      const int above = warp() - hit.y;  // 0: the hit's upper row of pixels; 1: its lower one
      if (above != 0 && above != 1) continue;
      const S weighted = (above ? hit.down : S(1) - hit.down) * hit.weight * read(hit.sample);
      if (hit.x >= 0) row[hit.x][lane()] += (S(1) - hit.right) * weighted;
      if (hit.x + 1 < kSumTile) row[hit.x + 1][lane()] += hit.right * weighted;
    }
    __syncthreads();
  }

  // The sum of pixel x of the warp's row, for the lane's channel.
  __device__ S sum(int x) const { return sums_[warp()][x][lane()]; }

 private:
  TileHit<S> hits_[kSumScan];
  int of_warp_[kSumScan / kWarp];
  S sums_[kSumTile][kSumTile][kWarp];
};

}  // namespace fastdet::cuda
